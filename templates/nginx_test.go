package templates

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/templates/nginx"
	"berth/templates/route"
)

const testSocket = "/run/nginx/berth.sock"

// renderNginx executes the nginx template like the templater, for the newest version unless the options differ.
func renderNginx(t tb, c catalog, o Options) rendered {
	if o.NginxAtLeast == nil {
		o.NginxAtLeast = func(string) bool { return true }
	}
	if o.NginxSocket == "" {
		o.NginxSocket, o.NginxClosing = testSocket, "/etc/nginx/nginx.conf.closing"
	}
	return renderTemplate(t, Nginx(), c, o, inOrder)
}

func TestNginxGolden(t *testing.T) {
	for name, c := range map[string]catalog{
		"empty":    {},
		"one":      oneService(),
		"many":     manyServices(),
		"labels":   everyLabel(),
		"hostile":  hostileCatalog(),
		"ipv6":     ipv6(),
		"fallback": fallbacks(),
	} {
		t.Run(name, func(t *testing.T) {
			r := renderNginx(t, c, Options{})
			golden(t, filepath.Join("testdata", name+".conf"), r.text)
			reasons := filepath.Join("testdata", name+".nginx-left-out")
			if len(r.leftOut) > 0 {
				golden(t, reasons, strings.Join(r.leftOut, "\n")+"\n")
			} else if _, err := os.Stat(reasons); err == nil {
				t.Errorf("nothing is left out, but there is %s", reasons)
			}
		})
	}
}

// Directives that a version does not know are omitted for it and while the version is unknown.
func TestNginxVersions(t *testing.T) {
	directory := t.TempDir()
	certify(t, filepath.Join(directory, "site.pem"), "site.com")
	for _, tt := range []struct {
		name    string
		atLeast func(string) bool
		lacks   []string
	}{
		{
			name:    "the newest",
			atLeast: func(string) bool { return true },
		},
		{
			name:    "1.26",
			atLeast: func(version string) bool { return version == "1.25.1" },
			lacks:   []string{"keepalive_min_timeout"},
		},
		{
			name:    "1.22",
			atLeast: func(string) bool { return false },
			lacks:   []string{"http2", "keepalive_min_timeout"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := renderNginx(t, everyLabel(), Options{TLSDirectory: directory, NginxAtLeast: tt.atLeast})
			for _, directive := range []string{"http2", "keepalive_min_timeout", "stream"} {
				has := regexp.MustCompile(`(?m)^ *` + directive + ` `).MatchString(r.text)
				if has == slices.Contains(tt.lacks, directive) {
					t.Errorf("%s is in the text: %v", directive, has)
				}
			}
		})
	}
	unknown := renderTemplate(t, Nginx(), everyLabel(), Options{NginxSocket: testSocket}, inOrder)
	if strings.Contains(unknown.text, "keepalive_min_timeout") {
		t.Error("a version that is not known is taken for a new one")
	}
	if _, err := atLeast("nginxAtLeast", nil)("1.x"); err == nil {
		t.Error("what is no version is taken for one")
	}
}

// With Lua, other lines differ only where necessary, and only the reports about waiting differ.
func TestNginxLua(t *testing.T) {
	stock, lua := renderNginx(t, everyLabel(), Options{}), renderNginx(t, everyLabel(), Options{Lua: true, Hold: 10 * time.Second, HoldMax: 2000})
	held := slices.DeleteFunc(slices.Clone(stock.leftOut), func(reason string) bool { return strings.Contains(reason, route.KeyHold) })
	if len(held) != len(stock.leftOut)-1 || !slices.Equal(held, lua.leftOut) {
		t.Errorf("left out: %q, and with Lua %q", stock.leftOut, lua.leftOut)
	}
	before, rest, found := strings.Cut(lua.text, strings.TrimSuffix(balancer, "\n"))
	if !found {
		t.Error("the balancer is not in the text")
	}
	golden(t, "testdata/labels.lua-only", linesOnlyIn(before+rest, stock.text))
	golden(t, "testdata/labels.stock-only", linesOnlyIn(stock.text, lua.text))
}

func linesOnlyIn(text, other string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains("\n"+other, "\n"+line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// nginxGrammar is every line that a catalog value may appear in.
func nginxGrammar() *regexp.Regexp {
	const (
		name     = `[A-Za-z0-9._-]{1,200}`
		upstream = name + `(\.[0-9a-f]{8})?`
		host     = `[a-z0-9_][a-z0-9._-]{0,252}`
		path     = `(/[A-Za-z0-9._~%+:@=-]+)*/`
		lower    = `(/[a-z0-9._~%+:@=-]+)*/`
		flags    = `(-|strip|redirect|sticky|strip,redirect|strip,sticky|redirect,sticky|strip,redirect,sticky)`
		entry    = upstream + ` ` + flags + ` ` + path
		rank     = `(host|domain|any)_[0-9]{1,2}`
		number   = `[1-9][0-9]{0,9}`
		address  = `([0-9.]+|\[[0-9a-f:]+\]):` + number
	)
	return regexp.MustCompile(`^(` + strings.Join([]string{
		`    map \$request_uri \$berth_path_[0-9]{1,2} \{`,
		`        "~\^\(\(\?:/\[\^/\?#\]\+\)\{[0-9]{1,2}\}\)\(\?:\[/\?#\]\|\$\)" \$1/;`,
		`    map (\$host|\$berth_domain|)(/|\$berth_path_[0-9]{1,2}) \$berth_` + rank + ` \{`,
		`        (` + host + `)?` + lower + ` "` + entry + `( ` + entry + `)*";`,
		`    map "\$berth_` + rank + ` (/|\$berth_path_[0-9]{1,2})" \$berth_found(_` + rank + `)? \{`,
		`        default "(\$berth_found_` + rank + `)?";`,
		`    upstream ` + upstream + `(\.tcp)? \{`,
		`        zone ` + upstream + `(\.tcp)?\.zone ` + number + `k;`,
		`        (least_conn|random two least_conn|hash \$(remote_addr|berth_path|berth_sticky|http_[a-z0-9_]{1,64}) consistent);`,
		`        server ` + address + `( weight=` + number + `)?( max_conns=` + number + `)? max_fails=0;`,
		`        server 127\.0\.0\.1:1 down;`,
		`        # hold [0-9]{1,6}`,
		`        balancer_by_lua_block \{ require\("berth"\)\.(balance|random)\("` + upstream + `"(, ngx\.var\.[a-z0-9_]+)?\) \}`,
		`        listen ` + number + ` so_keepalive=60s:10s:6;`,
		`        proxy_pass ` + upstream + `\.tcp;`,
	}, "|") + `)$`)
}

func checkNginx(t tb, r, empty rendered) {
	if strings.HasSuffix(r.text, "\n\n") || !strings.HasSuffix(r.text, "\n") || strings.HasPrefix(r.text, "\n") {
		t.Errorf("the text must begin with a line and end with one newline:\n%s", r.text)
	}
	own := map[string]bool{}
	// Fixed lines of the template.
	for line := range strings.SplitSeq(empty.text+Nginx(), "\n") {
		own[line] = true
	}
	allowed := nginxGrammar()
	keys := map[string]bool{} // of one map
	upstreams := map[string]bool{}
	for line := range strings.SplitSeq(r.text, "\n") {
		if strings.TrimRight(line, " \t") != line {
			t.Errorf("blanks at the end of %q", line)
		}
		if !own[line] && !allowed.MatchString(line) {
			t.Errorf("neither the template's own nor one of a service: %q", line)
		}
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "    map "):
			clear(keys)
		case strings.HasPrefix(line, "        ") && strings.Contains(words[0], "/") && !strings.HasPrefix(words[0], `"`):
			if key := strings.ToLower(words[0]); keys[key] {
				t.Errorf("twice in a map: %q", line)
			} else {
				keys[key] = true
			}
		case strings.HasPrefix(line, "    upstream "):
			if name := strings.ToLower(words[1]); upstreams[name] {
				t.Errorf("two upstreams %q", name)
			} else {
				upstreams[name] = true
			}
		}
	}
	checkReasons(t, r.leftOut)
}

func TestNginxHostileValuesStayOut(t *testing.T) {
	for _, c := range []catalog{hostileCatalog(), everyLabel(), manyServices(), ipv6(), fallbacks()} {
		for _, o := range []Options{{}, {Lua: true}} {
			checkNginx(t, renderNginx(t, c, o), renderNginx(t, catalog{}, o))
		}
	}
}

// nginx limits the length of a word, and routes that differ only in case share one.
func TestRoutesThatDifferOnlyInCase(t *testing.T) {
	c := catalog{}
	for n := range 12 {
		path := "/" + strings.Repeat("A", n+1) + strings.Repeat("a", 150-n) + "/" + strings.Repeat("b", 160) + "/" + strings.Repeat("c", 160)
		c.with("web", fmt.Sprint("web-", n), "10.0.0.1", 8000+n, route.KeyPath, path)
	}
	r := renderNginx(t, c, Options{})
	for _, word := range regexp.MustCompile(`"[^"]*"`).FindAllString(r.text, -1) {
		if len(word) > 4096 {
			t.Errorf("a word of %d characters", len(word))
		}
	}
	if len(r.leftOut) == 0 || !strings.Contains(r.leftOut[0], "only in the case of letters") {
		t.Errorf("left out: %q", r.leftOut)
	}
	if n := strings.Count(r.text, "/"+strings.Repeat("b", 160)+"/"); n < 5 {
		t.Errorf("%d routes are there, want as many as nginx takes", n)
	}
}

func TestNginxCertificates(t *testing.T) {
	o := Options{TLSDirectory: t.TempDir()}
	brokenCertificates(t, o.TLSDirectory)
	certify(t, filepath.Join(o.TLSDirectory, "z-other.pem"), "*.Other.com")
	certify(t, filepath.Join(o.TLSDirectory, "z-same.pem"), "other.com")
	certify(t, filepath.Join(o.TLSDirectory, "z-strange.pem"), `a" b;{$x}`)
	certificate, key := newECCertificate(t, "pair.com")
	write(t, filepath.Join(o.TLSDirectory, "z-pair.crt"), certificate)
	write(t, filepath.Join(o.TLSDirectory, "z-pair.key"), key)
	c := oneService()
	c.with("web", "host:web-3:80", "172.18.0.7", 80, route.KeyRedirect, "https")
	r := renderNginx(t, c, o)
	var got []string
	for line := range strings.Lines(strings.ReplaceAll(r.text, o.TLSDirectory, "DIR")) {
		line = strings.TrimSpace(line)
		for _, word := range []string{"listen 8443", "server_name ", "ssl_certificate", "http2"} {
			if strings.HasPrefix(line, word) {
				got = append(got, line)
			}
		}
	}
	want := []string{
		"listen 8443 ssl default_server backlog=4096;", "http2 on;", "server_name good.com;",
		"ssl_certificate DIR/*.good.com.pem;", "ssl_certificate_key DIR/*.good.com.pem;",
		"listen 8443 ssl;", "http2 on;", "server_name *.other.com;",
		"ssl_certificate DIR/z-other.pem;", "ssl_certificate_key DIR/z-other.pem;",
		"listen 8443 ssl;", "http2 on;", "server_name pair.com;",
		"ssl_certificate DIR/z-pair.crt;", "ssl_certificate_key DIR/z-pair.key;",
		"listen 8443 ssl;", "http2 on;", "server_name other.com;",
		"ssl_certificate DIR/z-same.pem;", "ssl_certificate_key DIR/z-same.pem;",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(r.text, "return 308 https://$host$request_uri;"); n != 1 {
		t.Errorf("%d servers redirect", n)
	}
	for n, reason := range r.leftOut {
		r.leftOut[n] = strings.ReplaceAll(reason, o.TLSDirectory, "DIR")
	}
	golden(t, "testdata/certificates.left-out", strings.Join(r.leftOut, "\n")+"\n") // as HAProxy's
}

// Without a control socket, nginx's text has none.
func TestNginxWithoutSocket(t *testing.T) {
	r := renderTemplate(t, Nginx(), oneService(), Options{}, inOrder)
	if strings.Contains(r.text, "error.log") || strings.Contains(r.text, "unix:") {
		t.Error(r.text)
	}
}

func TestServiceWithoutARoute(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "10.0.0.1", 80, route.KeyCheck, "/", route.KeyBalance, "first")
	c.with("tcp", "tcp-1", "10.0.0.1", 80, route.KeyPort, "5432")
	c.brain(t, inOrder)
	var leftOut []string
	routed := Funcs(Options{TCPPorts: unprivileged})(func(reason string) { leftOut = append(leftOut, reason) })["routed"].(func(string, any, ...map[string]time.Duration) ([]*route.Group, error))
	if groups, err := routed("db", listed["db"]); len(groups) != 0 || err != nil {
		t.Errorf("%+v, %v", groups, err)
	}
	if len(leftOut) != 2 { // no route, reported for each setting
		t.Errorf("left out %q", leftOut)
	}
	groups, err := routed("tcp", listed["tcp"])
	if err != nil || len(groups) != 1 {
		t.Fatal(groups, err)
	}
	g := groups[0]
	if u := nginx.NewUpstreams(g, true, refuse(t)); u.HTTP != nil || u.TCP == nil || !slices.Equal(g.Ports, []int{5432}) || len(g.Routes) != 0 {
		t.Errorf("%+v of %+v", u, g)
	}
	if len(leftOut) != 2 {
		t.Errorf("left out %q", leftOut)
	}
}
