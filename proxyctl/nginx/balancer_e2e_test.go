//go:build e2e

package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// startLuaHarness starts an nginx with a configuration of berth's that has a Lua balancer with these servers.
func startLuaHarness(t *testing.T, servers []string, set ...func(*Options)) *harness {
	t.Helper()
	t.Parallel()
	h := startHarness(t, testenv.Image(t, "IMAGE_NGINX_LUA"), set...)
	h.apply(h.lua(servers...), proxyctl.Reload)
	h.settled()
	return h
}

// lua is a text with a Lua balancer, like that of the built-in template.
func (h *harness) lua(servers ...string) string {
	h.Helper()
	code, err := os.ReadFile("../../templates/balancer.lua")
	if err != nil {
		h.Fatal(err)
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:1 down"}
	}
	forward := to(servers...)
	forward.http = strings.Replace(forward.http, "        keepalive 32;", "        balancer_by_lua_block { require(\"berth\").balance(\"app\") }\n        keepalive 32;", 1)
	forward.server = strings.Replace(forward.server, "location / {", "location / {\n            set_by_lua_block $empty { return require(\"berth\").empty(\"app\") }\n            if ($empty) { return 503; }", 1)
	return h.text("", forward, parts{http: fmt.Sprintf(`    lua_shared_dict berth 1m;
    init_by_lua_block {
%[2]s
    }
    upstream berth.check {
        server unix:%[1]s;
        balancer_by_lua_block { require("berth").check() }
    }
    server {
        listen unix:%[1]s;
        server_name balancer;
        client_body_buffer_size 1m;
        client_max_body_size 64m;
        location = /servers { content_by_lua_block { require("berth").servers() } }
        location = /check { proxy_set_header Host balancer; proxy_pass http://berth.check/checked; }
        location = /checked { return 200 "checked\n"; }
    }
`, h.socket(), code)})
}

// balancers returns or sets the balancers' servers, without the code under test.
func (h *harness) balancers(give ...string) string {
	h.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.socket())
		},
	}}
	method := http.MethodGet
	if len(give) > 0 {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, "http://balancer/servers", strings.NewReader(strings.Join(give, "")))
	if err != nil {
		h.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return string(body)
}

// has checks which servers get the requests, and which the balancers report.
func (h *harness) has(what, listed string, servers ...string) {
	h.Helper()
	if got := h.balancers(); got != listed {
		h.Errorf("%s: the balancers have %q, want %q", what, got, listed)
	}
	var got []string
	for range 4 * max(len(servers), 1) {
		if a := h.answer(); !slices.Contains(got, a) {
			got = append(got, a)
		}
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(servers))
	if !slices.Equal(got, want) {
		h.Errorf("%s: requests reach %q, want %q", what, got, want)
	}
}

// listing returns the balancers' report for these servers.
func listing(servers ...string) string {
	if len(servers) == 0 {
		return "app\n"
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "app %s 1\n", s)
	}
	return b.String()
}

// Servers come and go without a reload, and every request reaches one that is in service.
func TestE2ENginxLua(t *testing.T) {
	apps := []string{startApp(t), startApp(t), startApp(t)}
	h := startLuaHarness(t, apps[:1])
	h.has("adopted", listing(apps[0]), apps[0])
	workers, hups := h.workers(), h.hups()
	load := traffic.Start(t, h.web)
	for _, servers := range [][]string{apps[:2], apps[1:2], apps[1:], apps, apps[2:]} {
		if res := h.apply(h.lua(servers...), proxyctl.Runtime); len(res.Changes) != 1 || res.Changes[0].Backend != "app" {
			t.Errorf("%+v", res)
		}
		h.has(fmt.Sprint(servers), listing(servers...), servers...)
		h.apply(h.lua(servers...), proxyctl.None)
	}
	for n := range 100 {
		h.apply(h.lua(apps[n%3], apps[(n+1)%3]), proxyctl.Runtime)
	}
	if all := load.End(); all.Failed() > 0 || all.Resent() > 0 {
		t.Errorf("%s%s", all, all.Failures())
	}
	h.apply(h.lua(), proxyctl.Runtime)
	h.has("none", listing(), "503 Service Temporarily Unavailable")
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.has("one again", listing(apps[1]), apps[1])
	h.balancers(listing(apps[2]))
	h.has("changed behind berth's back", listing(apps[2]), apps[2])
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.has("repaired", listing(apps[1]), apps[1])
	h.balancers("other 127.0.0.1:1 1\n", listing(apps[1]))
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.has("others added behind berth's back", listing(apps[1]), apps[1])
	h.berth()
	h.apply(h.lua(apps[1]), proxyctl.None)
	h.apply(h.lua(apps[2]), proxyctl.Runtime)
	h.has("by another berth", listing(apps[2]), apps[2])
	if now := h.workers(); !slices.Equal(now, workers) || h.hups() != hups {
		t.Errorf("the workers %d became %d by %d reloads", workers, now, h.hups()-hups)
	}
	// Everything else takes a reload, and keeps the servers.
	h.apply(h.lua(apps[2])+"# another\n", proxyctl.Reload)
	h.has("reloaded", listing(apps[2]), apps[2])
}

// After a restart, nginx has no servers in its balancers. Those in the file serve, which are the newest, until berth has set
// them.
func TestE2ENginxLuaRestart(t *testing.T) {
	apps := []string{startApp(t), startApp(t), startApp(t)}
	h := startLuaHarness(t, apps[:1])
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.Close()
	for _, how := range []string{"restart", "kill"} {
		testenv.MustDocker(h, how, h.name)
		if how == "kill" {
			testenv.Until(h, patience, "the control socket is removed", func() bool {
				_, err := h.Apply(t.Context(), onlyText(h.lua(apps[1])), true)
				h.driver.Tend(t.Context())
				_, statErr := os.Stat(h.socket())
				return errors.Is(err, proxyctl.ErrUnreachable) && statErr != nil
			})
			testenv.MustDocker(h, "start", h.name)
		}
		testenv.Until(h, patience, "nginx serves", func() bool { return h.balancers() == "" && h.answer() == apps[1] })
		h.has("after a "+how, "", apps[1])
		h.apply(h.lua(apps[1]), proxyctl.Runtime)
		h.has("given again", listing(apps[1]), apps[1])
	}
	testenv.MustDocker(h, "restart", h.name)
	testenv.Until(h, patience, "nginx serves", func() bool { return h.answer() == apps[1] })
	h.apply(h.lua(apps[2]), proxyctl.Runtime)
	h.has("others after a restart", listing(apps[2]), apps[2])
}

// Errors in Lua code that nginx does not see when it loads a configuration are detected, and the previous configuration is loaded
// again with its servers.
func TestE2ENginxLuaBroken(t *testing.T) {
	apps := []string{startApp(t), startApp(t)}
	h := startLuaHarness(t, apps[:1])
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.Close()
	good := onDisk(t, h.file())
	check := `balancer_by_lua_block { require("berth").check() }`
	for name, spoilt := range map[string]string{
		"a syntax error":        `balancer_by_lua_block { if then }`,
		"an error at run time":  `balancer_by_lua_block { require("berth").nosuch() }`,
		"a module that is none": `balancer_by_lua_block { require("nosuch").check() }`,
	} {
		text := strings.Replace(h.lua(apps[1]), check, spoilt, 1)
		_, err := h.Apply(t.Context(), onlyText(text), true)
		if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "its Lua balancer does not work: nginx answers 500") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		h.settled()
		h.has(name, listing(apps[1]), apps[1])
		if onDisk(t, h.file()) != good {
			t.Errorf("%s: the good file did not go back", name)
		}
		h.apply(h.lua(apps[1]), proxyctl.None)
	}
	// An error that nginx itself detects.
	began := time.Now()
	_, err := h.Apply(t.Context(), onlyText(strings.Replace(h.lua(apps[1]), "init_by_lua_block {", "init_by_lua_block {\nif then", 1)), true)
	t.Logf("an error in init_by_lua_block, after %v: %v", time.Since(began), err)
	if !errors.Is(err, proxyctl.ErrRefused) || onDisk(t, h.file()) != good {
		t.Errorf("an error in init_by_lua_block: %v", err)
	}
	h.has("refused", listing(apps[1]), apps[1])
	// Servers still come.
	res, err := h.Apply(t.Context(), onlyText(strings.Replace(h.lua(apps[0]), check, `balancer_by_lua_block { if then }`, 1)), true)
	if !errors.Is(err, proxyctl.ErrRefused) || res.Action != proxyctl.Runtime {
		t.Errorf("refused, with other servers: %+v, %v", res, err)
	}
	h.has("refused, with other servers", listing(apps[0]), apps[0])
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.apply(h.lua(apps[0]), proxyctl.Runtime)
	h.has("good again", listing(apps[0]), apps[0])
}

// If the balancers' memory is too small, a reload is used, and the right servers serve.
func TestE2ENginxLuaNoRoom(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	small := func(text string) string { return strings.Replace(text, "berth 1m;", "berth 16k;", 1) }
	many := func(net, n int) (servers []string) {
		for i := range n {
			servers = append(servers, fmt.Sprintf("127.%d.%d.%d:%s", net, i/250, 1+i%250, port))
		}
		return servers
	}
	h := startLuaHarness(t, many(90, 2))
	h.apply(small(h.lua(many(90, 2)...)), proxyctl.Reload)
	h.settled()
	h.has("few", listing(many(90, 2)...), many(90, 2)...)
	res := h.apply(small(h.lua(many(91, 1000)...)), proxyctl.Reload)
	if !strings.Contains(res.Reason, "the dictionary is too small") {
		t.Errorf("reloaded for %q", res.Reason)
	}
	only := func(what, net string) {
		t.Helper()
		h.settled()
		for range 20 {
			if got := h.answer(); !strings.HasPrefix(got, "127."+net+".") {
				t.Errorf("%s: a request reaches %q", what, got)
			}
		}
	}
	only("many", "91")
	if got := h.balancers(); got != "" {
		t.Errorf("the balancers have %d bytes", len(got))
	}
	h.apply(small(h.lua(many(91, 1000)...)), proxyctl.None)
	h.apply(small(h.lua(many(92, 1000)...)), proxyctl.Reload)
	only("many others", "92")
	h.apply(small(h.lua(many(93, 2)...)), proxyctl.Runtime)
	h.has("few again", listing(many(93, 2)...), many(93, 2)...)
}

// With reloads only, the servers are those in the file.
func TestE2ENginxLuaReloadOnly(t *testing.T) {
	apps := []string{startApp(t), startApp(t)}
	h := startLuaHarness(t, apps[:1])
	h.apply(h.lua(apps[1]), proxyctl.Runtime)
	h.Close()
	h.berth(func(o *Options) { o.ReloadOnly = true })
	h.apply(h.lua(apps[1]), proxyctl.Reload)
	h.settled()
	h.has("taken over", "", apps[1])
	if res := h.apply(h.lua(apps...), proxyctl.Reload); !strings.Contains(res.Reason, "upstream app: 1 → 2 servers") {
		t.Errorf("reloaded for %q", res.Reason)
	}
	h.settled()
	h.has("two", "", apps...)
	h.apply(h.lua(apps...), proxyctl.None)
	h.balancers(listing(apps[0]))
	h.apply(h.lua(apps...), proxyctl.Runtime)
	h.has("changed behind berth's back", "", apps...)
}
