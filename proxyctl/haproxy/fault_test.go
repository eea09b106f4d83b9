package haproxy

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"berth/proxyctl"
)

// The section at fault, according to HAProxy 2.6 to 3.2.
func TestAtFault(t *testing.T) {
	const text = `# begins with what is no section
global
    daemon
backend app from http.defaults
server a 10.0.0.1:80 chek
  listen "shop"
    server b 10.0.0.2:80 # backend x
frontend web
    bind :80
backend new
`
	filler := strings.Repeat("    server x 10.0.0.3:80\n", 100)
	for name, tt := range map[string]struct{ said, want string }{
		"a server":                 {"config : [/etc/haproxy/haproxy.cfg:5] : 'server app/a' : unknown keyword 'chek'; did you mean 'check' maybe ?; config : Error(s) found in configuration file : /etc/haproxy/haproxy.cfg", "app"},
		"the head":                 {"config : parsing [/berth/.haproxy.cfg.candidate:10] : bad head", "new"},
		"an indented listen":       {"config : parsing [/berth/haproxy.cfg:7] : unknown keyword 'blance' in 'backend' section", "shop"},
		"a frontend":               {"config : Parsing [/c/haproxy.cfg:9]: failed to parse use_backend rule '%[src,map_ip(/c/m.map)]' : '999.1.1.1' is not a valid IPv4", ""},
		"the first of two":         {"parsing [/c/haproxy.cfg:7] : bad; [/c/haproxy.cfg:5] : bad, used at /c/haproxy.cfg:5 ('server a')", "shop"},
		"another file, then this":  {"[/etc/haproxy/other.cfg:5] : bad; [/etc/haproxy/haproxy.cfg:7] : bad", "shop"},
		"another file":             {"[/etc/haproxy/haproxy.cfg.routes.map:5] : bad", ""},
		"an address":               {"Starting frontend web: cannot bind socket (Address already in use) for [0.0.0.0:5]", ""},
		"beyond the end":           {"parsing [/haproxy.cfg:999] : bad", ""},
		"a number of no line":      {"parsing [/haproxy.cfg:99999999999999999999] : bad", ""},
		"by name":                  {"config : backend 'app' has no server", "app"},
		"a server by name":         {"config : 'server shop/b' : unable to find required proxy 'nob' for tracking.", "shop"},
		"a name of the frontend":   {"config : Proxy 'web': unable to find required use_backend: 'nosuch'.", ""},
		"a name that nobody has":   {"config : backend 'nosuch' has no server", ""},
		"in a comment":             {"config : backend 'x' has no server", ""},
		"nothing of the kind":      {"the reload failed; see its log", ""},
		"what is after other text": {"[/haproxy.cfg:70] : bad", "new"},
	} {
		d := newDriver(Options{File: "/berth/haproxy.cfg"})
		if got := d.AtFault(text+filler, tt.said); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A text that is refused without asking HAProxy names the section, too. Lines of maps before it count.
func TestAtFaultOfWords(t *testing.T) {
	d := newDriver(Options{File: "/berth/haproxy.cfg"})
	text := mapsBegin + "/berth/haproxy.cfg.routes.map\n" + mapsEntry + "a b\nfrontend web\n  bind :80\nbackend app\n  server a 10.0.0.1:80 cookie \"a\nbackend other\n"
	_, err := d.Mark(text, nil)
	var refused *proxyctl.RefusalError
	if !errors.As(err, &refused) || refused.Section != "app" || !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "line 6: unclosed quote") {
		t.Errorf("%v", err)
	}
}

// A remembered refusal keeps naming the section, although its lines have moved.
func TestAtFaultIsRemembered(t *testing.T) {
	dir := t.TempDir()
	m, p := startMaster(t, dir), newProxy(dir)
	defer p.Close()
	const bad = "backend web\n  balance source\n  bogus\n  server x 10.0.1.1:80\n"
	text := func(servers int) string {
		return "frontend f\n  bind :80\nbackend app\n" + manyServers(servers) + bad + "backend last\n"
	}
	m.refuse = func(text string) string {
		for i, line := range strings.Split(text, "\n") {
			if line == "  bogus" {
				return "parsing [" + m.file + ":" + strconv.Itoa(i+1) + "] : unknown keyword 'bogus' in 'backend' section"
			}
		}
		return ""
	}
	for _, servers := range []int{30, 1, 60} {
		_, err := p.Apply(t.Context(), onlyText(text(servers)), true)
		var refused *proxyctl.RefusalError
		if !errors.As(err, &refused) || refused.Section != "web" || !errors.Is(err, proxyctl.ErrRefused) {
			t.Errorf("with %d servers: %v", servers, err)
		}
	}
}
