package haproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/proxyctl"
)

// A refused text stops nothing else: the servers of everything that it shares with the running text come and go. The file
// follows, so that a restart of HAProxy comes up with them.
func TestRefusedTextStopsNobodyElse(t *testing.T) {
	const good = "frontend f\n  bind :80\ndefaults\n  mode http\nbackend app\n  server a 10.0.0.1:80\nbackend web\n  balance source\n  server x 10.0.1.1:80\n"
	replace := func(text string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(text) }
	const (
		a, b = "  server a 10.0.0.1:80\n", "  server b 10.0.0.2:80\n"
		x, y = "  server x 10.0.1.1:80\n", "  server y 10.0.1.2:80\n"
	)
	for _, tt := range []struct {
		name    string
		refused string
		set     func(*masterSocket)
		waits   bool   // for the next reload
		stays   string // what HAProxy and the file have at the end
	}{
		{"a bad line elsewhere", replace(good, "bind :80\n", "bind :80\n  bogus\n", a, b), nil, false, replace(good, a, b)},
		{"a bad line in a backend: it stays as it was", replace(good, "balance source\n", "balance source\n  bogus\n", x, y, a, b), nil, false, replace(good, a, b)},
		{"a bad backend that is new", replace(good, a, a+b) + "backend new\n  bogus\n  server n 10.0.2.1:80\n", nil, false, replace(good, a, a+b)},
		{"a backend that is gone", replace(good, "backend web\n  balance source\n"+x, "", a, b, "bind :80\n", "bind :80\n  bogus\n"), nil, false, replace(good, a, b)},
		{"other defaults: servers may mean something else", replace(good, "mode http\n", "mode http\n  default-server bogus\n", a, b), nil, false, good},
		{"a name that cannot be resolved", replace(good, x, "  server y nosuch.invalid:80\n", a, b), func(m *masterSocket) {
			m.refuse = func(string) string { return "could not resolve address 'nosuch.invalid'" }
		}, false, replace(good, a, b)},
		{"a server that HAProxy does not add", replace(good, x, x+"  server y 10.0.1.2:80 ca-file /nonexistent\n", a, b), func(m *masterSocket) {
			m.says["add server web/y"] = "unable to load /nonexistent\n\n"
			m.refuse = func(string) string { return "unable to load /nonexistent" }
		}, false, replace(good, a, b)},
		{"a server to which a line refers", replace(good, "bind :80\n", "bind :80\n  acl up srv_is_up(web/x)\n", a, b), nil, true, replace(good, a, b)},
		{"no listener", replace(good, "  bind :80\n", "", a, b), nil, false, replace(good, a, b)},
		{"a reload has to wait", replace(good, "bind :80\n", "bind :80\n  mode http\n", a, b), nil, true, replace(good, a, b)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			p := newProxy(dir)
			if _, err := p.Apply(t.Context(), onlyText(good), true); err != nil {
				t.Fatal(err)
			}
			if tt.set != nil {
				m.mu.Lock()
				tt.set(m)
				m.mu.Unlock()
			}
			want := proxyctl.ErrRefused
			if tt.waits {
				want = proxyctl.ErrNotYet
			}
			for _, again := range []string{"", ", again", ", by another berth", ", after a restart of HAProxy"} {
				switch again {
				case ", by another berth":
					p = newProxy(dir)
				case ", after a restart of HAProxy":
					m.mu.Lock()
					m.run(onDisk(t, m.file))
					m.mu.Unlock()
				}
				_, err := p.Apply(t.Context(), onlyText(tt.refused), !tt.waits)
				if !errors.Is(err, want) {
					t.Errorf("error %v%s, want %v", err, again, want)
				}
				p.Close()
				if got := onDisk(t, m.file); got != markText(tt.stays) {
					t.Errorf("the file%s is\n%s", again, got)
				}
				m.mu.Lock()
				if got, want := serverList(m.servers), serverList(serversIn(tt.stays)); got != want {
					t.Errorf("HAProxy%s has %s, want %s", again, got, want)
				}
				m.mu.Unlock()
			}
		})
	}
}

// serversIn returns the servers of a text as HAProxy has them.
func serversIn(text string) []fakeServer {
	var m masterSocket
	m.run(text)
	return m.servers
}

func serverList(servers []fakeServer) string {
	var all []string
	for _, s := range servers {
		all = append(all, fmt.Sprintf("%s/%s %s:%s %d", s.backend, s.name, s.addr, s.port, s.admin))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// The first text after a start takes no backend's last server.
func TestFirstTextIsHeldBack(t *testing.T) {
	const good = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\nbackend web\n  server x 10.0.1.1:80\n"
	const empty = "frontend f\n  bind :80\nbackend app\nbackend web\n  server y 10.0.1.2:80\n"
	dir := t.TempDir()
	m := startMaster(t, dir)
	m.run(markText(good))
	write(t, m.file, markText(good))
	opts := newProxy(dir).driver.opts
	opts.Grace = time.Minute
	p := New(opts)
	defer p.Close()
	other := strings.Replace(empty, "backend app\n", "  bogus\n", 1)
	if _, err := p.Apply(t.Context(), onlyText("defaults\n  mode http\n"+other), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "unknown keyword 'bogus'") {
		t.Errorf("another template, which HAProxy refuses: error %v", err)
	}
	m.servers[1].name, m.servers[1].addr = "x", "10.0.1.1"
	var held *proxyctl.HoldError
	res, err := p.Apply(t.Context(), onlyText(empty), true)
	if !errors.As(err, &held) || res.Action != proxyctl.Runtime {
		t.Fatalf("%+v, %v", res, err)
	}
	if got := serverList(m.servers); got != "app/a 10.0.0.1:80 0, web/y 10.0.1.2:80 0" {
		t.Errorf("HAProxy has %s", got)
	}
	if res, err := p.Apply(t.Context(), onlyText(strings.Replace(good, "10.0.0.1", "10.0.0.2", 1)), true); err != nil || res.Action != proxyctl.Runtime {
		t.Errorf("%+v, %v", res, err)
	}
	if res, err := p.Apply(t.Context(), onlyText(empty), true); err != nil || res.Action != proxyctl.Runtime {
		t.Errorf("a later one: %+v, %v", res, err)
	}
}

// An address that HAProxy cannot listen on costs two seconds without listeners once, not for every text.
func TestRefusedPortIsRemembered(t *testing.T) {
	const port = 18111
	text := func(bind string, app int) string {
		return "frontend f\n  bind :80\n" + bind + "backend app\n" + manyServers(app)
	}
	bind := fmt.Sprintf("frontend tcp\n  bind :%d\n", port)
	for _, tt := range []struct {
		name    string
		visible bool
		loads   int // at the end
	}{
		{"HAProxy's network cannot be seen", false, 3},
		{"it can be, and there the port is free by now", true, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			m.refuse = func(text string) string {
				if strings.Contains(text, fmt.Sprint(port)) && len(m.loaded) < 4 {
					return fmt.Sprintf("Binding [/f:12] for frontend tcp: cannot bind socket (Address already in use) for [0.0.0.0:%d]", port)
				}
				return ""
			}
			var told []string
			opts := newProxy(dir).driver.opts
			opts.PortRefused = func(port int, reason string) { told = append(told, fmt.Sprint(port, " ", reason)) }
			p := New(opts)
			defer p.Close()
			p.driver.visible = func(context.Context) bool { return tt.visible }
			if _, err := p.Apply(t.Context(), onlyText(text("", 1)), true); err != nil {
				t.Fatal(err)
			}
			for n := range 2 {
				_, err := p.Apply(t.Context(), onlyText(text(bind, 2+n)), true)
				var refused *proxyctl.PortError
				if !errors.As(err, &refused) || refused.Port != port || !errors.Is(err, proxyctl.ErrRefused) {
					t.Errorf("error %v", err)
				}
			}
			if len(told) != 2 || told[0] != "18111 HAProxy cannot listen there: Address already in use" || told[1] != told[0] {
				t.Errorf("told was %q", told)
			}
			if got := len(m.servers); got != 3 {
				t.Errorf("HAProxy has %d servers, want the 3 of the refused text", got)
			}
			p.driver.ports[port] = refusedPort{time.Now().Add(-refusedFor - time.Second), ""}
			bind += "  mode http\n" // another text is tried at once
			if !tt.visible {
				m.mu.Lock()
				m.loaded = append(m.loaded, "", "")
				m.mu.Unlock()
			}
			if _, err := p.Apply(t.Context(), onlyText(text(bind, 4)), true); err != nil && !tt.visible {
				t.Errorf("much later: %v", err)
			}
		})
	}
}

// 2.6 gives no reason for refusing a reload, but there is only one reason that takes a second or more.
func TestSilentRefusalOfAPort(t *testing.T) {
	d := newDriver(Options{})
	refused := fmt.Errorf("%w by haproxy: the reload failed; see its log", proxyctl.ErrRefused)
	before, after := parse("frontend f\n bind :80\n", nil), parse("frontend f\n bind :80\n bind :18111\n", nil)
	var port *proxyctl.PortError
	if err := d.portError(refused, before, after, 50*time.Millisecond); err != refused {
		t.Errorf("at once: %v", err)
	}
	if err := d.portError(refused, before, before, 3*time.Second); err != refused {
		t.Errorf("without a new address: %v", err)
	}
	if err := d.portError(refused, before, after, 3*time.Second); !errors.As(err, &port) || port.Port != 18111 || len(d.ports) != 1 {
		t.Errorf("error %v, remembered: %v", err, d.ports)
	}
}

// A reload func that never returns has a deadline.
func TestReloadFuncHangs(t *testing.T) {
	for _, socket := range []bool{true, false} {
		dir := t.TempDir()
		m := startMaster(t, dir)
		write(t, m.file, oldText)
		opts := newProxy(dir).driver.opts
		release := make(chan struct{})
		opts.Reload = func(context.Context) error { <-release; return nil }
		if !socket {
			opts.Socket = ""
		}
		done := make(chan error, 1)
		go func() { _, err := New(opts).Apply(t.Context(), onlyText(newText), true); done <- err }()
		select {
		case err := <-done:
			if !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "the reload request took longer than 500ms") || onDisk(t, m.file) != oldText {
				t.Errorf("error %v, file %q", err, onDisk(t, m.file))
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Apply waits for a func that hangs")
		}
		close(release)
	}
}
