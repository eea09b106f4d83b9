package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

// smallCatalog is a Consul with one service of two instances.
func smallCatalog(t *testing.T) string {
	t.Helper()
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body any
		switch {
		case r.URL.Query().Has("index"):
			<-r.Context().Done() // nothing ever changes
			return
		case r.URL.Path == "/v1/catalog/services":
			body = map[string][]string{"web": {}}
		case r.URL.Path == "/v1/health/service/web":
			entry := func(id, address string) api.ServiceEntry {
				return api.ServiceEntry{
					Node:    &api.Node{Node: "n1"},
					Service: &api.AgentService{ID: id, Service: "web", Address: address, Port: 80, Meta: map[string]string{"route_path": "/"}},
				}
			}
			body = []api.ServiceEntry{entry("web-1", "10.0.0.1"), entry("web-2", "10.0.0.2")}
		}
		w.Header().Set("X-Consul-Index", "7")
		_ = json.NewEncoder(w).Encode(body)
	}))
	t.Cleanup(func() {
		consul.CloseClientConnections()
		consul.Close()
	})
	return consul.URL
}

// berthCommand runs a command and returns what it printed.
func berthCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := rootCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestRender(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	consul := smallCatalog(t)
	render := func(args ...string) (string, error) {
		t.Helper()
		return berthCommand(t, append([]string{"render", "--consul-address", consul, "--haproxy-config", path("haproxy.cfg")}, args...)...)
	}
	const text = "head\nserver web-1 10.0.0.1:80\nserver web-2 10.0.0.2:80\n"
	write("h.ctmpl", "head\n{{ range service `web` }}server {{ .ID }} {{ .Address }}:{{ .Port }}\n{{ end }}")

	if got, err := render("--template", path("h.ctmpl")); err != nil || got != text {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := render(); err != nil || !strings.Contains(got, "server web-2 10.0.0.2:80") || !strings.HasPrefix(got, "# These files ") || !strings.Contains(got, "\n# Rendered by berth") {
		t.Errorf("the built-in template: %v\n%s", err, got)
	}

	got, err := render("--template", path("h.ctmpl"), "--diff")
	if !errors.Is(err, differs{}) || !strings.Contains(got, "+server web-2 10.0.0.2:80") {
		t.Errorf("against no file: %v\n%s", err, got)
	}
	write("haproxy.cfg", text)
	if got, err := render("--template", path("h.ctmpl"), "--diff"); err != nil || got != "" {
		t.Errorf("against the same: %v\n%s", err, got)
	}
	write("haproxy.cfg", strings.Replace(text, "web-2", "web-3", 1))
	got, err = render("--template", path("h.ctmpl"), "--diff")
	if !errors.Is(err, differs{}) || !strings.Contains(got, "-server web-3 10.0.0.2:80\n+server web-2 10.0.0.2:80\n") {
		t.Errorf("against another: %v\n%s", err, got)
	}

	got, err = render("--template", path("h.ctmpl"), "--explain")
	const explained = "----- from line 1: the template only\nhead\n" +
		"----- from line 2: health.service(web|passing)\nserver web-1 10.0.0.1:80\nserver web-2 10.0.0.2:80\n"
	if err != nil || got != explained {
		t.Errorf("explained: %v\n%s", err, got)
	}

	write("app.ctmpl", "{{ len (service `web`) }}\n")
	got, err = render("--template", path("h.ctmpl"), "--file", path("app.ctmpl")+":"+path("app.conf"))
	if want := "==> " + path("haproxy.cfg") + " <==\n" + text + "==> " + path("app.conf") + " <==\n2\n"; err != nil || got != want {
		t.Errorf("two files: %v\n%s", err, got)
	}
	if _, err := os.Stat(path("app.conf")); err == nil {
		t.Error("render has written a file")
	}

	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"two ways":     {[]string{"--diff", "--explain"}, "exclude each other"},
		"no haproxy":   {[]string{"--validate", "--haproxy-binary", "none"}, "needs the haproxy program"},
		"a bad one":    {[]string{"--template", path("bad.ctmpl")}, path("bad.ctmpl") + ":1: unexpected"},
		"no Consul":    {[]string{"--consul-address", "127.0.0.1:1", "--timeout", "300ms"}, "Consul does not answer"},
		"no answer":    {[]string{"--template", path("key.ctmpl"), "--timeout", "300ms"}, "waiting for kv.block(nosuch)"},
		"only files":   {[]string{"--validate", "--haproxy-config", "none", "--file", path("app.ctmpl") + ":" + path("app.conf")}, "no configuration to validate"},
		"other failed": {[]string{"--template", path("fails.ctmpl")}, path("fails.ctmpl") + ":1:"},
	} {
		write("bad.ctmpl", "{{ end }}")
		write("key.ctmpl", "{{ key `nosuch` }}")
		write("fails.ctmpl", "{{ range service `web` }}{{ index .Tags 9 }}{{ end }}")
		if got, err := render(test.args...); err == nil || errors.Is(err, differs{}) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q\n%s", name, err, test.want, got)
		}
	}
}

func TestRenderValidates(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "haproxy")
	// It says what it was given to check, and refuses what has a bad line.
	script := "#!/bin/sh\ngrep -q '^bad' \"$3\" && { echo '[ALERT] config : unknown keyword'; exit 1; }\nexit 0\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	tmpl := filepath.Join(dir, "x.ctmpl")
	for text, wants := range map[string]string{"good {{ asFile `x.map` `y` }}\n": "", "bad\n": "unknown keyword"} {
		if err := os.WriteFile(tmpl, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := berthCommand(t, "render", "--consul-address", smallCatalog(t), "--haproxy-config", filepath.Join(dir, "haproxy.cfg"),
			"--template", tmpl, "--validate", "--haproxy-binary", program)
		if wants == "" && err != nil || wants != "" && (err == nil || !strings.Contains(err.Error(), wants)) || got != "" {
			t.Errorf("%q: %v, want %q; printed %q", text, err, wants, got)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "haproxy.cfg*"))
	if err != nil || len(files) > 0 {
		t.Errorf("it has left %v, %v", files, err)
	}
}
