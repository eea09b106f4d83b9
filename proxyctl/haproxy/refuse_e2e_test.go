//go:build e2e

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"berth/proxyctl"
)

// refused applies a text, which must be refused. HAProxy must keep its servers, also after a restart.
func (h *realHAProxy) refused(what, text, stays string, want seen) {
	h.t.Helper()
	if _, err := h.Apply(h.t.Context(), onlyText(text), true); !errors.Is(err, proxyctl.ErrRefused) {
		h.t.Errorf("%s: error %v, want a refusal", what, err)
	}
	h.tend()
	h.same(what+", refused", want)
	h.Close()
	if got := onDisk(h.t, h.driver.opts.File); !strings.HasPrefix(got, stays) {
		h.t.Errorf("%s: the file is not the last good text:\n%s", what, got)
	}
	if got := onDisk(h.t, h.driver.opts.File+".good"); got != "" {
		h.t.Errorf("%s: %s is left behind", what, h.driver.opts.File+".good")
	}
}

// If a text is refused right after changes at run time, the servers of the newest good text stay, in HAProxy and in the file, not
// those of the last reload.
func TestE2ERefusedAfterRuntime(t *testing.T) {
	good := func(h *realHAProxy, servers ...string) string {
		return h.text("ok", "backend app\n  balance roundrobin\n  server "+strings.Join(servers, "\n  server ")+"\n"+
			"backend static\n  balance static-rr\n  server s 127.0.0.1:9001\n")
	}
	bad := []struct {
		name  string
		spoil func(text string) string
	}{
		{"an unknown keyword", func(text string) string {
			return strings.Replace(text, "frontend web\n", "frontend web\n  bogus\n", 1)
		}},
		// Neither commands nor a reload can do it. The part that commands could do must not remain.
		{"an unknown keyword of a server", func(text string) string {
			return strings.Replace(text, "server a 127.0.0.1:9001", "server z 127.0.0.1:9009 bogus", 1)
		}},
		{"no such file", func(text string) string {
			return strings.Replace(text, "server a 127.0.0.1:9001", "server z 127.0.0.1:9009 ssl verify required ca-file /nonexistent", 1)
		}},
		{"one id twice", func(text string) string {
			return strings.Replace(text, "server a 127.0.0.1:9001", "server y 127.0.0.1:9008 id 77\n  server z 127.0.0.1:9009 id 77", 1)
		}},
		{"weights and moves", func(text string) string {
			return strings.Replace(strings.Replace(text, "server a 127.0.0.1:9001", "server a 127.0.0.2:9001 weight 7", 1),
				"server b 127.0.0.1:9002", "server b 127.0.0.1:9002 disabled\n  server z 127.0.0.1:9009 ssl verify required ca-file /nonexistent", 1)
		}},
		{"not to be added, and refused elsewhere", func(text string) string {
			return strings.Replace(text, "server s 127.0.0.1:9001", "server t 127.0.0.1:9001\n  server u 127.0.0.1:9009 ssl verify required ca-file /nonexistent", 1)
		}},
	}
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		for _, b := range bad {
			name, spoil := b.name, b.spoil
			h.apply(good(h, "a 127.0.0.1:9001"))
			h.Close()
			h.apply(good(h, "a 127.0.0.1:9001", "b 127.0.0.1:9002"))
			newest := good(h, "a 127.0.0.1:9001", "b 127.0.0.1:9002", "c 127.0.0.1:9003 weight 3")
			h.apply(newest) // the file may not be written yet
			want := l.load(h, newest)
			h.refused(name, spoil(newest), newest, want)
			h.refused(name+" again", spoil(newest), newest, want)
			h.restart()
			h.same(name+", refused and restarted", want)
			h.refused(name+" restarted", spoil(newest), newest, want)
			h.apply(newest)
			h.tend()
			h.same(name+", good again", want)
			// A backend is not blamed for one of its former servers.
			next := good(h, "a 127.0.0.1:9001", "b 127.0.0.1:9002", "d 127.0.0.1:9004")
			if res := h.apply(next); res.Action != proxyctl.Runtime {
				t.Errorf("%s, then one that is good: %s for %q", name, res.Action, res.Reason)
			}
			h.tend()
			h.same(name+", then one that is good", l.load(h, next))
		}
	})
}

// A change that takes a reload but must wait for it has changed nothing.
func TestE2ENotYet(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a := startHAProxy(t, r.image), startApp(t)
		l := h.startLoader(r.image)
		static := func(servers ...string) string {
			return strings.Replace(h.servers(servers...), "leastconn", "static-rr", 1)
		}
		before := static("a "+a.addr, "b "+a.addr)
		want := l.load(h, before)
		h.apply(before)
		h.Close()
		file := onDisk(t, h.driver.opts.File)
		tr := h.visitors()
		tr.more(t, 20)
		after := static("c "+a.addr, "d "+a.addr)
		for range 3 {
			if res, err := h.Apply(t.Context(), onlyText(after), false); !errors.Is(err, proxyctl.ErrNotYet) {
				t.Errorf("%+v, %v; want %v", res, err, proxyctl.ErrNotYet)
			}
			h.tend()
			h.same("not yet", want)
			h.Close()
			if got := onDisk(t, h.driver.opts.File); got != file {
				t.Errorf("the file has changed:\n%s", got)
			}
			tr.more(t, 20)
		}
		if res := h.apply(after); res.Action != proxyctl.Reload {
			t.Errorf("%+v", res)
		}
		h.same("a reload later", l.load(h, after))
		tr.more(t, 20)
		tr.end(t)
	})
}

// All servers of a backend that accepts none at run time are replaced, and no request fails.
func TestE2EReplaceStatic(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a := startHAProxy(t, r.image), startApp(t)
		static := func(servers ...string) string {
			return strings.Replace(h.servers(servers...), "leastconn", "source", 1)
		}
		h.apply(static("a " + a.addr))
		tr := h.visitors()
		for _, name := range []string{"b", "c", "d"} {
			tr.more(t, 20)
			if res := h.apply(static(name + " " + a.addr)); res.Action != proxyctl.Reload {
				t.Errorf("%+v", res)
			}
			h.tend()
		}
		tr.more(t, 20)
		tr.end(t)
	})
}

// berth is killed at any point of its work; a new berth on the same files ends in the right state.
func TestE2EKilled(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		old := h.text("ok", "backend app\n  server a 127.0.0.1:9001 maxconn 10\n  server b 127.0.0.1:9002\n")
		servers := strings.Replace(old, "server b 127.0.0.1:9002", "server c 127.0.0.1:9003", 1)
		keyword := strings.Replace(old, "maxconn 10", "maxconn 20", 1)
		shape := strings.Replace(old, "backend app\n", "backend app\n  balance leastconn\n", 1)
		bad := strings.Replace(old, "backend app\n", "backend app\n  bogus\n", 1)
		third := strings.Replace(old, "server b 127.0.0.1:9002", "server d 127.0.0.1:9004 weight 4", 1)
		marked := func(text string) string { return mark(text, nil).Text }
		good, file, candidate := h.driver.opts.File+".good", h.driver.opts.File, h.dir+"/.haproxy.cfg.candidate"
		for i, k := range []struct {
			name   string
			killed func() // called when HAProxy and the file have old
			next   string
		}{
			{"while the candidate was validated", func() { write(t, candidate, marked(shape)) }, shape},
			{"before the file was replaced", func() { write(t, good, marked(old)) }, shape},
			{"before the reload", func() { write(t, good, marked(old)); write(t, file, marked(shape)) }, shape},
			{"before the reload, other servers", func() { write(t, good, marked(old)); write(t, file, marked(servers)) }, servers},
			{"before the reload, other keywords", func() { write(t, good, marked(old)); write(t, file, marked(keyword)) }, keyword},
			{"before the reload of a bad one", func() { write(t, good, marked(old)); write(t, file, marked(bad)) }, bad},
			{"before the reload of a bad one, and HAProxy has refused it", func() {
				write(t, good, marked(old))
				write(t, file, marked(bad))
				_, _ = ask(h.dir+"/master.sock", "reload")
				h.up("master.sock")
			}, bad},
			{"before the last good one was removed", func() {
				h.apply(shape)
				h.Close()
				write(t, good, marked(old))
			}, shape},
			{"before the file followed", func() { h.apply(servers); h.Close(); write(t, file, marked(old)) }, servers},
			{"while a server was added", func() { h.says("add server app/c 127.0.0.1:9003") }, servers},
			{"before a server was removed", func() { h.says("add server app/c 127.0.0.1:9003; @1 enable server app/c") }, servers},
		} {
			for j, then := range []struct{ name, text string }{{"with the same", k.next}, {"with the one before", old}, {"with a third", third}, {"with a bad one", bad}} {
				if (i+j)%r.of != r.index {
					continue // one of the releases does it
				}
				name := "killed " + k.name + ", started " + then.name
				h.apply(old)
				h.tend()
				h.Close()
				k.killed()
				before := h.see()
				h.berth()
				_, err := h.Apply(t.Context(), onlyText(then.text), true)
				h.tend()
				h.Close()
				if then.text == bad {
					if !errors.Is(err, proxyctl.ErrRefused) {
						t.Errorf("%s: %v, want a refusal", name, err)
					}
					maps.DeleteFunc(before, func(_, what string) bool { return strings.HasSuffix(what, " out") }) // half added, and in no text
					h.same(name, before)
				} else {
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
					h.same(name, l.load(h, then.text))
					h.steady(name, then.text)
					h.refused(name+", then a bad one", bad, then.text, l.load(h, then.text))
				}
				if got := onDisk(t, h.driver.opts.File); strings.Contains(got, "bogus") {
					t.Errorf("%s: the bad one is in the file", name)
				}
				os.Remove(candidate)
				if j == 0 {
					has := h.see()
					h.restart()
					h.same(name+", restarted", has)
				}
			}
		}
	})
}

// A copy of the last good text left by an earlier berth is not taken for the current one much later.
func TestE2EStaleCopy(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		text := func(n int) string {
			return h.text(fmt.Sprint("v", n), fmt.Sprintf("backend app\n  balance static-rr\n  server a 127.0.0.1:%d\n", 9000+n))
		}
		h.apply(text(1))
		h.Close()
		ancient := onDisk(t, h.driver.opts.File)
		h.apply(text(2))
		h.Close()
		write(t, h.driver.opts.File+".good", ancient)
		h.berth()
		h.steady("started", text(2))
		newest := strings.Replace(text(2), "9002", "9003", 1)
		if res := h.apply(newest); res.Action != proxyctl.Runtime {
			t.Errorf("%+v", res)
		}
		h.Close()
		// Neither a command nor a reload can do it.
		bad := strings.Replace(newest, "server a", "server b 127.0.0.1:9009 ssl verify required ca-file /nonexistent\n  server a", 1)
		h.refused("bad", bad, newest, l.load(h, newest))
		if got := h.answer(); got != "v2" {
			t.Errorf("HAProxy answers %q", got)
		}
		h.restart()
		if got := h.answer(); got != "v2" {
			t.Errorf("restarted, HAProxy answers %q", got)
		}
	})
}

// A refused text stops nothing else: servers of another backend come and go, in HAProxy and in the file, and are still there
// after a restart of HAProxy.
func TestE2ERefusedPart(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		text := func(line string, web ...string) string {
			return h.text("ok", "backend app\n  balance roundrobin\n"+line+"  server a 127.0.0.1:9001\nbackend other\n  server "+strings.Join(web, "\n  server ")+"\n")
		}
		h.apply(text("", "x 127.0.0.1:9101"))
		for n, web := range [][]string{{"x 127.0.0.1:9101", "y 127.0.0.1:9102"}, {"y 127.0.0.1:9102"}, {"z 127.0.0.1:9103 weight 3"}} {
			bad := text("  bogus\n", web...)
			if n == 2 {
				bad = text("  server b nosuch.invalid:80\n", web...)
			}
			res, err := h.Apply(t.Context(), onlyText(bad), true)
			if !errors.Is(err, proxyctl.ErrRefused) || res.Action != proxyctl.Runtime {
				t.Errorf("change %d: %+v, %v", n, res, err)
			}
			want := l.load(h, text("", web...))
			h.tend()
			h.same(fmt.Sprint("change ", n), want)
			h.Close()
			h.restart()
			h.same(fmt.Sprint("change ", n, ", restarted"), want)
		}
		if res := h.apply(text("", "z 127.0.0.1:9103 weight 3", "u 127.0.0.1:9104")); res.Action != proxyctl.Runtime {
			t.Errorf("good again: %+v", res)
		}
	})
}

// If berth cannot see that another program listens on a port, HAProxy's listeners close for two seconds once, not at every
// change.
func TestE2EPortInUse(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		var told []int
		h.berth(func(o *Options) { o.PortRefused = func(port int, _ string) { told = append(told, port) } })
		h.driver.visible = func(context.Context) bool { return false }
		theirs, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		text := func(bind string, servers int) string {
			return h.text("ok", bind+"backend app\n"+manyServers(servers))
		}
		bind := fmt.Sprintf("frontend tcp\n  bind %s\n", theirs.Addr())
		h.apply(text("", 1))
		for n := range 4 {
			began := time.Now()
			res, err := h.Apply(t.Context(), onlyText(text(bind, 2+n)), true)
			var port *proxyctl.PortError
			if !errors.As(err, &port) || port.Port != theirs.Addr().(*net.TCPAddr).Port || res.Action != proxyctl.Runtime {
				t.Errorf("change %d: %+v, %v", n, res, err)
			}
			if took := time.Since(began); n > 0 && took > time.Second {
				t.Errorf("change %d took %v", n, took)
			}
		}
		if len(told) != 4 {
			t.Errorf("told were the ports %v", told)
		}
		if servers := len(h.see()); servers != 5 {
			t.Errorf("HAProxy has %d servers, want 5", servers)
		}
	})
}
