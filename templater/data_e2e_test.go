//go:build e2e

package templater_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
)

// With a typo in a key, its last good value is rendered, and servers still come and go.
func TestE2EKeyWithATypo(t *testing.T) {
	c := startConsul(t, "-dev")
	put := func(key, value string) {
		t.Helper()
		if _, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("lb/redirects", `{"old": "new"}`)
	put("lb/maps/a", "1")
	c.put("web", "a")
	w := run(t, &api.Config{Address: c.Address}, web+`{{ range $from, $to := key "lb/redirects" | parseJSON }}server {{ $from }}->{{ $to }} x
{{ end }}{{ range ls "lb/maps" }}server {{ .Key }}={{ parseInt .Value }} x
{{ end }}`, templater.Options{})
	w.await(soon, "a a=1 old->new")
	w.ready(soon)

	put("lb/redirects", `{"old": "newer"`)
	w.notReady(soon)
	c.put("web", "b")
	w.await(soon, "a a=1 b old->new")
	put("lb/maps/a", "2")
	w.await(soon, "a a=2 b old->new")
	if err := w.Ready(); err == nil || !strings.Contains(err.Error(), "keeping the last good value of kv.block(lb/redirects): out.ctmpl:2:") {
		t.Errorf("not ready: %v", err)
	}
	// Binary, large, and gone and back.
	put("lb/redirects", strings.Repeat("\x00\xff", 200_000))
	put("lb/maps/a", "3")
	w.await(soon, "a a=3 b old->new")
	if _, err := c.KV().Delete("lb/redirects", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KV().DeleteTree("lb/maps", nil); err != nil {
		t.Fatal(err)
	}
	w.await(soon, "a b old->new")
	put("lb/redirects", `{"old": "newest"}`)
	put("lb/maps/b", "4")
	w.await(soon, "a b b=4 old->newest")
	w.ready(soon)
}

// Catalog values cannot write configuration lines with the documentation's template.
func TestE2EHostileCatalog(t *testing.T) {
	c := startConsul(t, "-dev")
	c.put("app", "good", "bad\n    server evil 6.6.6.6:80", "my app#\\\"'$HOME")
	w := run(t, &api.Config{Address: c.Address}, documentedTemplate(t), templater.Options{})
	line := regexp.MustCompile(`^    server [\w.:-]+ 10\.0\.0\.1:\d+ check$`)
	testenv.Eventually(t, soon, "a text", func() error { return w.Ready() })
	var lines []string
	for l := range strings.Lines(w.last()) {
		if l = strings.TrimRight(l, "\n"); l == "backend app" || line.MatchString(l) {
			lines = append(lines, l)
		} else if l != "" {
			t.Errorf("line %q", l)
		}
	}
	if len(lines) != 3 {
		t.Errorf("lines %q of %q", lines, w.last())
	}
	testenv.Eventually(t, soon, "the reason is logged", func() error { return logged(w, `ignored: `, `has a line break or another control character`) })
	c.remove("bad\n    server evil 6.6.6.6:80")
	testenv.Eventually(t, soon, "its end is logged", func() error { return logged(w, `no longer applies`) })
}

// Only the services of an unknown datacenter are waited for.
func TestE2EUnknownDatacenter(t *testing.T) {
	c := startConsul(t, "-dev")
	c.put("web", "a")
	w := run(t, &api.Config{Address: c.Address}, `{{ range services }}{{ if ne .Name "consul" }}{{ range instances .Name }}server {{ .Service.ID }} x
{{ end }}{{ end }}{{ end }}`, templater.Options{})
	w.await(soon, "a")
	c.put("web@nowhere", "lost")
	c.put("hc name", "h")
	w.notReady(soon)
	c.put("web", "b")
	w.await(soon, "a b")
	c.remove("lost")
	w.await(soon, "a b h")
	w.ready(soon)
}

// documentedTemplate is the loop over servers from docs/start/own-haproxy.md, without its indentation.
func documentedTemplate(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/start/own-haproxy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "    backend app\n")
	body, _, found := strings.Cut(after, "    {{- end }}")
	if !found {
		t.Fatal("no template in docs/start/own-haproxy.md")
	}
	return "backend app\n" + strings.ReplaceAll("\n"+body, "\n    ", "\n")[1:] + "{{- end }}\n"
}

func logged(w *watch, parts ...string) error {
	for line := range strings.Lines(w.log.String()) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			return nil
		}
	}
	return fmt.Errorf("no line with %q in\n%s", parts, w.log)
}
