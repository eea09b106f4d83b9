package haproxy

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/proxyctl"
)

// lingers is a HAProxy whose requests wait for servers.
type lingers struct {
	*testing.T
	*masterSocket
	*Proxy
	log strings.Builder
}

func startLingers(t *testing.T, set ...func(*Options)) *lingers {
	dir := t.TempDir()
	l := &lingers{T: t, masterSocket: startMaster(t, dir)}
	l.berth(set...)
	return l
}

// berth makes a new Proxy, like a start of berth.
func (l *lingers) berth(set ...func(*Options)) {
	if l.Proxy != nil {
		l.Close()
	}
	opts := newProxy(strings.TrimSuffix(l.path, "/master.sock")).driver.opts
	opts.RouteHold, opts.Log = 10*time.Second, slog.New(slog.NewTextHandler(&l.log, nil))
	for _, f := range set {
		f(&opts)
	}
	l.Proxy = New(opts)
	l.Cleanup(l.Proxy.Close)
}

// text is a configuration with these servers in its backends app, other, and never, whose requests do not wait.
func (l *lingers) text(app string, others ...string) string {
	servers := append([]string{app}, append(others, "", "")...)
	text := "frontend f\n  bind :80\n"
	for i, backend := range []string{"app", "other", "never"} {
		text += "backend " + backend + "\n"
		for s := range strings.SplitSeq(servers[i], ", ") {
			if s != "" {
				text += "  server " + s + "\n"
			}
		}
	}
	return WithMaps(text, map[string]string{l.file + ".held.map": "", l.file + ".hold.map": "never 0\n"})
}

// apply brings HAProxy to a text at run time with exactly these commands.
func (l *lingers) apply(text string, commands ...string) proxyctl.Result {
	l.Helper()
	l.commands = nil
	res, err := l.Apply(l.Context(), onlyText(text), true)
	if err != nil {
		l.Fatal(err)
	}
	l.expect(commands...)
	if action := map[bool]proxyctl.Action{true: proxyctl.Runtime, false: proxyctl.None}[len(commands) > 0]; res.Action != action {
		l.Errorf("%s because of %q, want %s", res.Action, res.Reason, action)
	}
	return res
}

func (l *lingers) expect(commands ...string) {
	l.Helper()
	commands = slices.Clone(commands)
	for i, c := range commands {
		commands[i] = strings.ReplaceAll(c, "HELD", l.file+".held.map")
	}
	if !slices.Equal(l.commands, commands) {
		l.Fatalf("commands\n%s\nwant\n%s", strings.Join(l.commands, "\n"), strings.Join(commands, "\n"))
	}
}

// load has HAProxy load a text.
func (l *lingers) load(text string) {
	l.Helper()
	if res, err := l.Apply(l.Context(), onlyText(text), true); err != nil || res.Action != proxyctl.Reload {
		l.Fatal(res, err)
	}
}

// over lets the time of all lingering servers run out.
func (l *lingers) over() {
	d := l.driver.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, is := range d.lingering {
		is.until = time.Now()
	}
}

const (
	serverA = "a 10.0.0.1:80 check"
	serverB = "b 10.0.0.2:80 check"
)

var (
	lingersA = []string{"add map HELD app 1", "disable health app/a"}
	leavesA  = []string{"enable health app/a", "set server app/a state maint", "del server app/a", "del map HELD app"}
	entersB  = []string{"add server app/b 10.0.0.2:80 id 2 check", "enable health app/b", "enable server app/b"}
)

func TestLinger(t *testing.T) {
	for name, do := range map[string]func(l *lingers){
		"until another one comes": func(l *lingers) {
			res := l.apply(l.text(""), lingersA...)
			if len(res.Changes) != 1 || res.Changes[0].String() != "app: 1 → 0 servers" || res.Leaving != 0 {
				l.Errorf("%+v", res)
			}
			l.apply(l.text(""))
			if n := l.driver.Tend(l.Context()); n < 9*time.Second || n > 10*time.Second {
				l.Errorf("the next look is in %v, and requests wait for 10s", n)
			}
			res = l.apply(l.text(serverB), slices.Concat(entersB, leavesA)...)
			if len(res.Changes) != 1 || res.Changes[0].String() != "app: 0 → 1 server" {
				l.Errorf("%+v", res)
			}
			l.apply(l.text(serverB))
		},
		"until it is back": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.apply(l.text(serverA), "set server app/a state ready", "enable health app/a", "set server app/a health up", "del map HELD app")
			l.apply(l.text(serverA))
		},
		"until it is back elsewhere": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.apply(l.text("a 10.0.0.9:81 check"), "set server app/a addr 10.0.0.9 port 81", "set server app/a health up",
				"set server app/a state ready", "enable health app/a", "set server app/a health up", "del map HELD app")
		},
		"drained first": func(l *lingers) {
			l.apply(l.text("a 10.0.0.1:80 check weight 0"), lingersA...)
			l.apply(l.text("a 10.0.0.1:80 check weight 0"))
			res := l.apply(l.text(""), "set map HELD app 1", "disable health app/a")
			if len(res.Changes) != 1 || res.Changes[0].String() != "app: 1 → 0 servers" {
				l.Errorf("%+v", res)
			}
			l.apply(l.text("a 10.0.0.1:80 check weight 0"), "set map HELD app 1", "disable health app/a")
			l.apply(l.text("a 10.0.0.1:80 check weight 0, "+serverB), slices.Concat(entersB,
				[]string{"set server app/a weight 0", "enable health app/a", "set server app/a health up", "del map HELD app"})...)
		},
		"drained and back": func(l *lingers) {
			l.apply(l.text("a 10.0.0.1:80 check weight 0"), lingersA...)
			l.apply(l.text(serverA), "set server app/a weight 1", "enable health app/a", "set server app/a health up", "del map HELD app")
		},
		"taken out": func(l *lingers) {
			l.apply(l.text("a 10.0.0.1:80 check disabled"), lingersA...)
			l.apply(l.text("a 10.0.0.1:80 check disabled, "+serverB), slices.Concat(entersB,
				[]string{"set server app/a state maint", "enable health app/a", "set server app/a health up", "del map HELD app"})...)
		},
		"one of two that leave": func(l *lingers) {
			l.apply(l.text(serverA+", "+serverB), entersB...)
			l.apply(l.text(""), "add map HELD app 1", "disable health app/a", "set server app/b state maint", "del server app/b")
		},
		"sooner the one that only drains": func(l *lingers) {
			l.apply(l.text(serverA+", "+serverB), entersB...)
			l.apply(l.text("b 10.0.0.2:80 check weight 0"), "add map HELD app 1", "disable health app/b", "set server app/a state maint", "del server app/a")
		},
		"not where requests do not wait": func(l *lingers) {
			l.apply(l.text(serverA, "", serverB), "add server never/b 10.0.0.2:80 id 1 check", "enable health never/b", "enable server never/b")
			l.apply(l.text(serverA), "set server never/b state maint", "del server never/b")
		},
		"one without checks": func(l *lingers) {
			l.apply(l.text(serverA, "c 10.0.0.3:80"), "add server other/c 10.0.0.3:80 id 1", "enable server other/c")
			l.apply(l.text(serverA), "add map HELD other 1")
			l.apply(l.text(serverA, "c 10.0.0.3:80"), "set server other/c state ready", "del map HELD other")
		},
		"not at an address that another service has by now": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.apply(l.text("", "x 10.0.0.1:80"), "add server other/x 10.0.0.1:80 id 1", "enable server other/x",
				"enable health app/a", "set server app/a state maint", "del server app/a", "del map HELD app")
		},
		"over a restart of berth": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.berth()
			l.apply(l.text(""))
			l.apply(l.text(serverB), slices.Concat(entersB, leavesA)...)
		},
		"over a restart of berth that was killed before the file was in step": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.Close()
			write(l.T, l.file, markText(l.text(serverA)))
			l.berth()
			l.apply(l.text(serverA), "set server app/a state ready", "enable health app/a", "set server app/a health up", "del map HELD app")
		},
		"when berth was killed before its checks had ended": func(l *lingers) {
			l.Close()
			l.masterSocket.maps[l.file+".held.map"]["app"] = "1"
			l.berth()
			l.apply(l.text(""), "set map HELD app 1", "disable health app/a")
		},
		"an entry of nothing goes": func(l *lingers) {
			l.masterSocket.maps[l.file+".held.map"]["app"] = "1"
			l.masterSocket.maps[l.file+".held.map"]["gone"] = "1"
			l.berth()
			l.apply(l.text(serverA), "del map HELD app", "del map HELD gone")
		},
		"not when HAProxy was started anew": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.Close()
			l.mu.Lock()
			l.run(onDisk(l.T, l.file))
			l.worker++
			l.mu.Unlock()
			l.over()
			l.commands = nil
			l.driver.Tend(l.Context())
			l.expect()
			l.apply(l.text(serverB), "add server app/b 10.0.0.2:80 id 2 check", "enable health app/b", "enable server app/b")
		},
		"not after a reload": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.load(strings.Replace(l.text(""), "frontend f\n", "frontend f\n  option httplog\n", 1))
			l.commands = nil
			l.over()
			l.driver.Tend(l.Context())
			l.expect()
		},
		"as long as requests wait": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.over()
			l.masterSocket.servers[0].busy = true
			l.commands = nil
			l.driver.Tend(l.Context())
			l.expect("set server app/a state maint", "enable health app/a", "del map HELD app", "del server app/a")
			if n := l.driver.Draining(); n != 1 {
				l.Errorf("%d servers drain", n)
			}
			l.apply(l.text(""))
			l.apply(l.text(serverB), entersB...)
			l.masterSocket.servers[0].busy = false
			l.commands = nil
			l.overdue(time.Minute)
			l.driver.Tend(l.Context())
			l.expect("del server app/a")
		},
		"as long as requests wait, and drains then": func(l *lingers) {
			l.apply(l.text("a 10.0.0.1:80 check weight 0"), lingersA...)
			l.over()
			l.commands = nil
			l.driver.Tend(l.Context())
			l.expect("set server app/a weight 0", "enable health app/a", "del map HELD app")
			l.apply(l.text("a 10.0.0.1:80 check weight 0"))
			l.apply(l.text(serverA), "set server app/a weight 1")
		},
		"longer if HAProxy does not answer": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.over()
			hangs := "@1 show map " + l.file + ".held.map"
			hang := func(is bool) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.hang[hangs] = is
			}
			hang(true)
			if n := l.driver.Tend(l.Context()); n < lastTry/2 || n > lastTry {
				l.Errorf("the next try is in %v", n)
			}
			hang(false)
			l.apply(l.text(serverB), slices.Concat(entersB, leavesA)...)
		},
		"and drains, and is back with its checks": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.masterSocket.servers[0].busy = true
			l.apply(l.text(serverB), slices.Concat(entersB, leavesA)...)
			l.apply(l.text(serverB+", "+serverA), "set server app/a state ready")
			if s := l.masterSocket.servers[0]; s.name != "a" || s.check&checkEnabled == 0 {
				l.Errorf("%+v has no checks", s)
			}
		},
		"as long as requests wait, and is back with its checks": func(l *lingers) {
			l.apply(l.text(""), lingersA...)
			l.masterSocket.servers[0].busy = true
			l.over()
			l.driver.Tend(l.Context())
			l.apply(l.text(serverA), "set server app/a state ready")
			if s := l.masterSocket.servers[0]; s.name != "a" || s.check&checkEnabled == 0 {
				l.Errorf("%+v has no checks", s)
			}
		},
		"and gets no requests": func(l *lingers) {
			l.says["show stat -1 4 -1"] = "# pxname,svname,scur,status,weight,addr,check_status,last_chk\napp,a,1,no check,1,10.0.0.1:80,,\n\n"
			usable := func(want bool) {
				if servers, err := l.Servers(l.Context()); err != nil || len(servers) != 1 || servers[0].Usable != want {
					l.Errorf("%+v, %v, want usable %v", servers, err, want)
				}
			}
			usable(true)
			l.apply(l.text(""), lingersA...)
			usable(false)
		},
		"as long as requests wait, and berth looks meanwhile": func(l *lingers) {
			l.apply(l.text("a 10.0.0.1:80 check weight 0"), lingersA...)
			l.mu.Lock()
			l.first = map[string]func(){"@1 show map": func() { l.over(); l.driver.endHolds(l.Context()) }}
			l.mu.Unlock()
			l.commands = nil
			if res, err := l.Apply(l.Context(), onlyText(l.text("a 10.0.0.1:80 check weight 0")), true); err != nil || res.Action != proxyctl.None {
				l.Error(res, err)
			}
			l.expect("set server app/a weight 0", "enable health app/a", "del map HELD app")
		},
		"no longer than requests wait while a text is refused": func(l *lingers) {
			text := onlyText(l.text("") + "backend bad\n  bogus\n")
			for range 3 {
				if _, err := l.Apply(l.Context(), text, true); err == nil {
					l.Error("it is not refused")
				}
				if n := l.driver.Tend(l.Context()); n < 8*time.Second || n > 10*time.Second {
					l.Errorf("the next look is in %v, and requests wait for 10s", n)
				}
			}
		},
		"in a merge of what is refused": func(l *lingers) {
			l.refuse = func(text string) string {
				if strings.Contains(text, "bogus") {
					return "unknown keyword 'bogus'"
				}
				return ""
			}
			l.commands = nil
			if res, err := l.Apply(l.Context(), onlyText(l.text("")+"backend bad\n  bogus\n"), true); err == nil || res.Action != proxyctl.Runtime {
				l.Errorf("%+v, %v", res, err)
			}
			l.expect(lingersA...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := startLingers(t)
			l.load(l.text(serverA))
			do(l)
			held := l.masterSocket.maps[l.file+".held.map"]
			if is := len(l.driver.lingering); is != len(held) {
				t.Errorf("%d entries are known, and HAProxy has %v", is, held)
			}
		})
	}
}

// Nothing lingers where servers come and go by reloads. A reload ends what an earlier berth left lingering.
func TestNobodyLingersByReloads(t *testing.T) {
	l := startLingers(t)
	l.load(l.text(serverA))
	l.apply(l.text(""), lingersA...)
	l.berth(func(o *Options) { o.ReloadOnly = true })
	l.load(l.text(""))
	l.load(l.text(serverA))
	l.commands = nil
	l.load(l.text(""))
	l.expect()
}

// A change waits for Tend if Tend is ending lingering in its own backend, and knows the result.
func TestHoldEndsUnderAChange(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprint("planned first ", first), func(t *testing.T) {
			l := startLingers(t)
			l.load(l.text(serverA))
			l.apply(l.text(""), lingersA...)
			d := l.driver
			to := mark(l.text(serverB), d.now)
			var p plan
			if first {
				p = d.Plan(to, nil)
			}
			l.over()
			l.commands = nil
			d.endHolds(t.Context())
			if !first {
				p = d.Plan(to, nil)
			}
			if err := d.Run(t.Context(), to, p); err != nil {
				t.Fatal(err)
			}
			l.expect(slices.Concat([]string{"set server app/a state maint", "enable health app/a", "del map HELD app"}, entersB)...)
		})
	}
}

// A service that is removed while its last server lingers takes that server and its entry along, and may come back at any time.
func TestLingersInABackendThatGoes(t *testing.T) {
	for name, busy := range map[string]bool{"is deleted": false, "is leaving": true} {
		t.Run(name, func(t *testing.T) {
			l := startLingers(t)
			l.version = "3.4.7"
			text := func(backends string) string {
				return WithMaps("defaults rr\n  mode http\nfrontend f from rr\n  bind :80\n"+backends, map[string]string{l.file + ".held.map": "", l.file + ".routes.map": map[bool]string{true: "/ app\n"}[backends != ""]})
			}
			const app = "backend app from rr\n"
			l.load(text(app + "  server " + serverA + "\n"))
			l.apply(text(app), lingersA...)
			l.masterSocket.servers[0].busy = busy
			l.apply(text(""), "del map "+l.file+".routes.map /", "unpublish backend app",
				"enable health app/a", "set server app/a state maint", "del server app/a", "del map HELD app")
			if len(l.driver.lingering) > 0 {
				t.Error(l.driver.lingering)
			}
			l.overdue(time.Minute)
			l.driver.Tend(l.Context())
			if _, there := l.backends["app"]; there != busy {
				t.Errorf("backends %v", l.backends)
			}
			want := []string{"publish backend app", "set server app/a state ready"}
			if !busy {
				want = []string{"add backend app from rr", "add server app/a 10.0.0.1:80 id 2 check", "enable health app/a", "enable server app/a", "publish backend app"}
			}
			l.apply(text(app+"  server "+serverA+"\n"), append(want, "add map "+l.file+".routes.map / app")...)
			l.overdue(time.Minute)
			l.driver.Tend(l.Context())
			if s := l.masterSocket.servers; len(s) != 1 || s[0].admin != 0 || s[0].check&checkEnabled == 0 {
				t.Errorf("%+v", s)
			}
			l.apply(text(app), lingersA...)
		})
	}
}
