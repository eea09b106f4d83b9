package templates

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
)

const testSocket = "/run/nginx/berth.sock"

// renderNginx executes the template for nginx as the templater does: unless the options say otherwise, for the newest.
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

// What a version does not know is left out for it, and while the version is not known.
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
	if _, err := (Options{}).nginxAtLeast("1.x"); err == nil {
		t.Error("what is no version is taken for one")
	}
}

// With Lua, other lines differ only by what has to.
func TestNginxLua(t *testing.T) {
	stock, lua := renderNginx(t, everyLabel(), Options{}), renderNginx(t, everyLabel(), Options{Lua: true})
	if !slices.Equal(stock.leftOut, lua.leftOut) {
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

// nginxGrammar is all that a value from the catalog may become part of.
func nginxGrammar() *regexp.Regexp {
	const (
		name     = `[A-Za-z0-9_-]{1,200}`
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
		`        server ` + address + `( weight=` + number + `)?( max_conns=` + number + `)? max_fails=1 fail_timeout=2s;`,
		`        server 127\.0\.0\.1:1 down;`,
		`        listen ` + number + ` so_keepalive=60s:10s:6;`,
		`        proxy_pass ` + upstream + `\.tcp;`,
	}, "|") + `)$`)
}

func checkNginx(t tb, r, empty rendered) {
	if strings.HasSuffix(r.text, "\n\n") || !strings.HasSuffix(r.text, "\n") || strings.HasPrefix(r.text, "\n") {
		t.Errorf("the text must begin with a line and end with one newline:\n%s", r.text)
	}
	own := map[string]bool{}
	// Lines that are in the template as they are.
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
		checkNginx(t, renderNginx(t, c, Options{}), renderNginx(t, catalog{}, Options{}))
	}
}

// What nginx takes for one word is limited, and routes that differ only in case share one.
func TestRoutesThatDifferOnlyInCase(t *testing.T) {
	c := catalog{}
	for n := range 12 {
		path := "/" + strings.Repeat("A", n+1) + strings.Repeat("a", 150-n) + "/" + strings.Repeat("b", 160) + "/" + strings.Repeat("c", 160)
		c.with("web", fmt.Sprint("web-", n), "10.0.0.1", 8000+n, metaPath, path)
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

func TestRouteMaps(t *testing.T) {
	var leftOut []string
	table := newTable(true, func(reason string) { leftOut = append(leftOut, reason) })
	table.Add("App", "http a.com/X/\nhttp */\nflags strip,sticky")
	table.Add("app", "http a.com/x/\nhttp b.com/x/\nhttp *.a.com/x/y/")
	table.Add("deep", "http */"+strings.Repeat("d/", 16)+"\nhttp */"+strings.Repeat("d/", 17))
	got := table.RouteMaps()
	app := upstreamName("App")
	deep := "/" + strings.Repeat("d/", 16)
	want := []RouteMap{
		{"host_1", "$host", "$berth_path_1", []RouteEntry{
			{"a.com/x/", app + " strip,sticky /X/ app - /x/"},
			{"b.com/x/", "app - /x/"},
		}, "berth_found", "berth_found_domain_2"},
		{"domain_2", "$berth_domain", "$berth_path_2", []RouteEntry{{"a.com/x/y/", "app - /x/y/"}}, "berth_found_domain_2", "berth_found_any_16"},
		{"any_16", "", "$berth_path_16", []RouteEntry{{deep, "deep - " + deep}}, "berth_found_any_16", "berth_found_any_0"},
		{"any_0", "", "/", []RouteEntry{{"/", app + " strip,sticky /"}}, "berth_found_any_0", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if depths := table.PathDepths(); !slices.Equal(depths, []int{1, 2, 16}) {
		t.Errorf("depths %v", depths)
	}
	tooDeep := `service "deep": the path of its route */` + strings.Repeat("d/", 17) +
		` has more than 16 segments, which is too many for nginx; set a shorter SERVICE_ROUTE_PATH`
	if !slices.Equal(leftOut, []string{tooDeep}) {
		t.Errorf("left out %q", leftOut)
	}
	if maps := newTable(false, refuse(t)).RouteMaps(); len(maps) != 1 || maps[0].Found != "berth_found" || len(maps[0].Entries) != 0 {
		t.Errorf("without routes: %+v", maps)
	}
}

func TestUpstreamNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, service := range []string{"app", "App", "aPP", "APP", "app2", "berth", "BERTH", "a_b-c"} {
		name := upstreamName(service)
		if other, there := seen[strings.ToLower(name)]; there || strings.Contains(service, strings.ToLower(service)) && name != service {
			t.Errorf("%s: %s, as that of %s", service, name, other)
		}
		seen[strings.ToLower(name)] = service
	}
}

func TestUpstreams(t *testing.T) {
	for _, tt := range []struct {
		meta        []string
		lua         bool
		http, tcp   string // method
		call        string
		zone, most  int
		reasonNames string // what the reports name
	}{
		{nil, false, "", "", "", 0, 0, ""},
		{nil, true, "", "", `balance("App.0d04bfeb")`, 0, 0, ""},
		{[]string{metaBalance, "roundrobin"}, true, "", "", `balance("App.0d04bfeb")`, 0, 0, ""},
		{[]string{metaBalance, "leastconn"}, true, "least_conn", "least_conn", "", 0, 0, ""},
		{[]string{metaBalance, "random"}, false, "random two least_conn", "random two least_conn", "", 0, 0, ""},
		{[]string{metaBalance, "random"}, true, "", "random two least_conn", `random("App.0d04bfeb")`, 0, 0, ""},
		{[]string{metaBalance, "source"}, false, "hash $remote_addr consistent", "hash $remote_addr consistent", "", 0, 0, ""},
		{[]string{metaBalance, "source"}, true, "", "hash $remote_addr consistent", `balance("App.0d04bfeb", ngx.var.remote_addr)`, 0, 0, ""},
		{[]string{metaBalance, "uri"}, false, "hash $berth_path consistent", "", "", 0, 0, ""},
		{[]string{metaBalance, "uri"}, true, "", "", `balance("App.0d04bfeb", ngx.var.berth_path)`, 0, 0, ""},
		{[]string{metaBalance, "hdr(X-User)"}, false, "hash $http_x_user consistent", "", "", 0, 0, ""},
		{[]string{metaBalance, "hdr(-)"}, true, "", "", `balance("App.0d04bfeb", ngx.var.http__)`, 0, 0, ""},
		{[]string{metaBalance, "leastconn", metaSticky, "1"}, false, "hash $berth_sticky consistent", "least_conn", "", 0, 0, ""},
		{[]string{metaBalance, "leastconn", metaSticky, "1"}, true, "", "least_conn", `balance("App.0d04bfeb", ngx.var.berth_sticky)`, 0, 0, ""},
		{[]string{metaMaxConn, "7"}, true, "", "", "", 128, 7, ""},
		{[]string{metaBalance, "first"}, false, "", "", "", 0, 0, "balance first"},
		{[]string{metaCheck, "/", metaSlowStart, "10s"}, false, "", "", "", 0, 0, "SERVICE_CHECK_HTTP, SERVICE_ROUTE_SLOWSTART"},
	} {
		c := catalog{}
		c.with("App", "a", "10.0.0.1", 80, append(tt.meta, metaPath, "/", metaPort, "5432")...)
		var leftOut []string
		p := newService("App", c["App"], DefaultPorts(), func(reason string) { leftOut = append(leftOut, reason) }).proxied(tt.lua)
		http, tcp := p.HTTP(), p.TCP()
		if http.Method != tt.http || tcp.Method != tt.tcp || http.Lua != tt.call || tcp.Lua != "" {
			t.Errorf("%v: %q %q, TCP %q %q", tt.meta, http.Method, http.Lua, tcp.Method, tcp.Lua)
		}
		if http.Zone != tt.zone || tcp.Zone != tt.zone || http.Most != tt.most || tcp.Name != "App.0d04bfeb.tcp" {
			t.Errorf("%v: %+v, %+v", tt.meta, http, tcp)
		}
		if want := strings.Split(tt.reasonNames, ", "); tt.reasonNames == "" && len(leftOut) > 0 || tt.reasonNames != "" && len(leftOut) != len(want) {
			t.Errorf("%v: %q", tt.meta, leftOut)
		} else {
			for n := range leftOut {
				if !strings.Contains(leftOut[n], want[n]) {
					t.Errorf("%v: %q", tt.meta, leftOut)
				}
			}
		}
	}
}

func TestZoneHasRoomForAllServers(t *testing.T) {
	s := service{settings: settings{maxConn: 1}}
	for _, tt := range []struct{ servers, kilobytes int }{{0, 128}, {63, 128}, {64, 256}, {1000, 2048}} {
		s.servers = make([]Server, tt.servers)
		if u := s.upstream("x"); u.Zone != tt.kilobytes {
			t.Errorf("%d servers: %d", tt.servers, u.Zone)
		}
	}
}

func TestFallback(t *testing.T) {
	c := fallbacks()
	var leftOut []string
	report := func(reason string) { leftOut = append(leftOut, reason) }
	for service, want := range map[string]string{"down": "sorry", "up": "", "itself": "", "wrong": "", "of-the-down": "down"} {
		if e := newService(service, c[service], DefaultPorts(), report).exposed(); e.Fallback != want {
			t.Errorf("%s: %q, want %q", service, e.Fallback, want)
		}
	}
	slices.Sort(leftOut)
	want := []string{
		`service "itself", instance "itself-1": its route_fallback "itself" is not the name of another service; set SERVICE_ROUTE_FALLBACK`,
		`service "wrong", instance "wrong-1": its route_fallback "no service" is not the name of another service; set SERVICE_ROUTE_FALLBACK`,
	}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
	leftOut = nil
	e := newService("down", c["down"], DefaultPorts(), report).exposed()
	if e.FallBack(c["sorry"]) != "" || len(e.Backends()) != 1 {
		t.Error("no backend")
	}
	servers := e.Backends()[0].Servers
	if want := []Server{{Name: "sorry-1", Address: "10.0.9.1:8080", Weight: 7}, {Name: "sorry-2", Address: "10.0.9.2:8080"}}; !slices.Equal(servers, want) {
		t.Errorf("servers %+v", servers)
	}
	want = []string{`service "down": of its route_fallback: service "sorry", instance "sorry-5": its address "nowhere" is not an IP address; set SERVICE_ADDRESS to one`}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
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
	c.with("web", "host:web-3:80", "172.18.0.7", 80, metaRedirect, "https")
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

// nginx is not told of certificates whose hosts are not known, but for the first.
func TestNginxCertificateThatBerthMayNotRead(t *testing.T) {
	var leftOut []string
	s := &certificateStore{path: "/tls", sum: "1", report: func(reason string) { leftOut = append(leftOut, reason) }}
	s.files = []certificate{{file: "/tls/a", key: "/tls/a"}, {file: "/tls/b", key: "/tls/b"}, {"/tls/c", "/tls/c.key", []string{"c.com"}, true}}
	got := s.inNginx("/tls", nil, "1")
	if diff := cmp.Diff([]Certificate{{"/tls/a", "/tls/a", nil}, {"/tls/c", "/tls/c.key", []string{"c.com"}}}, got); diff != "" {
		t.Error(diff)
	}
	want := []string{`certificate "b" in "/tls": berth may not read it and so does not know its hosts; make it readable for berth, and put its key into a file of its own`}
	if diff := cmp.Diff(want, leftOut); diff != "" {
		t.Error(diff)
	}
}

// Without a control socket, nginx is told of none.
func TestNginxWithoutSocket(t *testing.T) {
	r := renderTemplate(t, Nginx(), oneService(), Options{}, inOrder)
	if strings.Contains(r.text, "error.log") || strings.Contains(r.text, "unix:") {
		t.Error(r.text)
	}
}

func TestProxiedIsNilWithoutARoute(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "10.0.0.1", 80, metaCheck, "/", metaBalance, "first")
	var leftOut []string
	if p := newService("db", c["db"], DefaultPorts(), func(reason string) { leftOut = append(leftOut, reason) }).proxied(false); p != nil {
		t.Errorf("%+v", p)
	}
	if len(leftOut) != 2 { // that there is no route, for each setting
		t.Errorf("left out %q", leftOut)
	}
	c.with("tcp", "tcp-1", "10.0.0.1", 80, metaPort, "5432")
	var p *Proxied = newService("tcp", []*dependency.HealthService(c["tcp"]), DefaultPorts(), refuse(t)).proxied(true)
	if p.HTTP() != nil || p.TCP() == nil || fmt.Sprint(p.Claims) != "tcp 5432" {
		t.Errorf("%+v", p)
	}
}
