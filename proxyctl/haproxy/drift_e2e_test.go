//go:build e2e

package haproxy

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// What others do to HAProxy or its file is found by the next Apply of the same text, and repaired with the least effort. Anything
// that is right is left alone.
func TestE2EDrift(t *testing.T) {
	none, runtime, reload := proxyctl.None, proxyctl.Runtime, proxyctl.Reload
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		before := h.text("ok", "backend app\n  server a 127.0.0.1:9001 weight 5 maxconn 7\n  server c 127.0.0.1:9003 disabled\n"+
			"backend checked\n  default-server check inter 100ms fall 1\n  server d 127.0.0.1:9004\n")
		text := strings.Replace(before, "  server c", "  server b 127.0.0.1:9002\n  server c", 1)
		want := l.load(h, text)
		h.apply(before)
		old := onDisk(t, h.driver.opts.File)
		h.apply(text)
		h.Close()
		edit := func(from, to string) func() {
			return func() {
				write(t, h.driver.opts.File, strings.Replace(onDisk(t, h.driver.opts.File), from, to, 1))
			}
		}
		byHand := func() {
			worker := h.says("show info")
			h.eventually("the master takes a reload", func() bool { _, err := ask(h.dir+"/master.sock", "reload"); return err == nil })
			h.eventually("another worker answers", func() bool {
				reply, err := ask(h.dir+"/master.sock", "show proc; @1 show info")
				return err == nil && strings.Contains(reply, "Pid: ") && pidOf(reply) != pidOf(worker)
			})
		}
		both := func(list ...func()) func() {
			return func() {
				for _, f := range list {
					f()
				}
			}
		}
		say := func(commands ...string) func() { return func() { h.says(commands...) } }
		for _, d := range []struct {
			name   string
			do     func()
			want   proxyctl.Action
			reason string
		}{
			{"nothing", func() {}, none, ""},
			{"restarted", h.restart, none, ""},
			{"restarted with earlier servers", both(func() { write(t, h.driver.opts.File, old) }, h.restart), runtime, "add app/b"},
			{"an earlier file", func() { write(t, h.driver.opts.File, old) }, none, ""},
			{"reloaded", byHand, none, ""},
			{"a bind added to the file", edit("frontend web\n", fmt.Sprintf("frontend web\n  bind 127.0.0.1:%s\n", testenv.FreePort(t))), reload, "not as berth wrote it"},
			{"a bind added to the file, reloaded", both(edit("frontend web\n", fmt.Sprintf("frontend web\n  bind 127.0.0.1:%s\n", testenv.FreePort(t))), byHand), reload, "not as berth wrote it"},
			{"a server taken from the file", edit("  server b 127.0.0.1:9002\n", ""), reload, "not as berth wrote it"},
			{"a server taken from the file, reloaded", both(edit("  server b 127.0.0.1:9002\n", ""), byHand), reload, "not as berth wrote it"},
			{"keywords changed in the file, reloaded", both(edit("maxconn 7", "maxconn 8"), byHand), reload, "not as berth wrote it"},
			{"a file of somebody else, restarted", both(func() { write(t, h.driver.opts.File, h.text("foreign", "")) }, h.restart), reload, "not as berth wrote it"},
			{"the file deleted", both(func() { testenv.MustDocker(t, "exec", h.id, "rm", h.driver.opts.File) }), reload, ""},
			{"maintenance", say("set server app/a state maint"), runtime, "put back app/a"},
			{"drained", say("set server app/a state drain"), runtime, "put back app/a"},
			{"maintenance of one that is checked", say("set server checked/d state maint"), runtime, "put back checked/d"},
			{"weight", say("set server app/a weight 6"), runtime, "set weight of app/a to 5"},
			{"weight 0", say("set server app/a weight 0"), runtime, "set weight of app/a to 5"},
			{"address", say("set server app/a addr 127.0.0.2"), runtime, "move app/a to 127.0.0.1:9001"},
			{"port", say("set server app/a addr 127.0.0.1 port 9009"), runtime, "move app/a to 127.0.0.1:9001"},
			{"family", say("set server app/a addr ::1 port 9001"), runtime, "move app/a to 127.0.0.1:9001"},
			{"deleted", say("set server app/a state maint", "del server app/a"), runtime, "add app/a"},
			{"one that is out deleted", say("del server app/c"), runtime, "add app/c"},
			{"all deleted", say("set server app/a state maint", "del server app/a", "set server app/b state maint", "del server app/b", "del server app/c"), runtime, "add app/a, and 2 more"},
			{"added", say("add server app/x 127.0.0.1:9009", "enable server app/x"), runtime, "remove app/x"},
			{"added, not in service", say("add server app/x 127.0.0.1:9009"), none, ""}, // Tend deletes it
			{"put into service, disabled in the text", say("set server app/c state ready"), runtime, "take out app/c"},
			{"drained, disabled in the text", say("set server app/c state drain"), none, ""},
			{"its check down", say("set server checked/d health down"), none, ""},
			{"several", say("set server app/a weight 9", "set server app/b state maint", "add server checked/x 127.0.0.1:1", "enable server checked/x"), runtime, "and 2 more"},
		} {
			d.do()
			res, err := h.Apply(t.Context(), onlyText(text), true)
			if err != nil || res.Action != d.want || !strings.Contains(res.Reason, d.reason) {
				t.Errorf("%s: %s for %q, %v; want %s for %q", d.name, res.Action, res.Reason, err, d.want, d.reason)
			}
			h.tend()
			if r.version != "2.6" || d.name != "drained, disabled in the text" {
				h.same(d.name, want)
			}
			if got := h.answer(); got != "ok" {
				t.Errorf("%s: HAProxy answers %q", d.name, got)
			}
			h.steady(d.name, text)
			h.Close()
			if got := onDisk(t, h.driver.opts.File); !strings.HasPrefix(got, text) {
				t.Errorf("%s: the file is not the text:\n%s", d.name, got)
			}
		}
	})
}

func pidOf(info string) string {
	_, rest, _ := strings.Cut(info, "\nPid: ")
	pid, _, _ := strings.Cut(rest, "\n")
	return pid
}

// The same, but with another text next: berth finds HAProxy different from what it remembers.
func TestE2EDriftUnderChange(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		text := func(more string) string {
			return h.text("ok", "backend app\n  server a 127.0.0.1:9001\n  server b 127.0.0.1:9002 weight 3\n"+more+"backend other\n  server o 127.0.0.1:9001\n")
		}
		first := text("")
		h.apply(first)
		h.Close()
		for _, d := range []struct {
			name string
			do   func()
			next string
		}{
			{"restarted", h.restart, text("  server c 127.0.0.1:9003\n")},
			{"in maintenance", func() { h.says("set server app/a state maint") }, text("  server c 127.0.0.1:9003\n")},
			{"deleted", func() { h.says("set server app/a state maint; @1 del server app/a") }, text("  server c 127.0.0.1:9003\n")},
			{"deleted, as in the text", func() { h.says("set server app/b state maint; @1 del server app/b") }, strings.Replace(first, "  server b 127.0.0.1:9002 weight 3\n", "", 1)},
			{"deleted, changed in the text", func() { h.says("set server app/b state maint; @1 del server app/b") }, strings.Replace(first, "weight 3", "weight 4", 1)},
			{"added, as in the text", func() { h.says("add server app/c 127.0.0.1:9003; @1 enable server app/c") }, text("  server c 127.0.0.1:9003\n")},
			{"added, otherwise than in the text", func() { h.says("add server app/c 127.0.0.1:9004 weight 9") }, text("  server c 127.0.0.1:9003\n")},
			{"another file", func() { write(t, h.driver.opts.File, h.text("foreign", "")); h.restart() }, text("  server c 127.0.0.1:9003\n")},
		} {
			d.do()
			res, err := h.Apply(t.Context(), onlyText(d.next), true)
			if err != nil || !slices.Contains([]proxyctl.Action{proxyctl.Runtime, proxyctl.Reload}, res.Action) {
				t.Errorf("%s: %+v, %v", d.name, res, err)
			}
			t.Logf("%s: %s for %q", d.name, res.Action, res.Reason)
			h.tend()
			h.same(d.name, l.load(h, d.next))
			h.steady(d.name, d.next)
			h.apply(first)
			h.tend()
			h.same(d.name+", back", l.load(h, first))
			h.Close()
		}
	})
}

// status returns when the status of a server has this prefix.
func (h *realHAProxy) status(server, prefix string) {
	h.t.Helper()
	h.eventually(server+" is "+prefix, func() bool {
		for line := range strings.Lines(h.says("show stat")) {
			f := strings.Split(line, ",")
			if len(f) > 17 && f[0]+"/"+f[1] == server {
				return strings.HasPrefix(f[17], prefix)
			}
		}
		return false
	})
}

// What looks like drift but is HAProxy's own doing is not undone; otherwise that would go on forever.
func TestE2ENoDrift(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		closed := testenv.FreePort(t)
		text := func(disabled string) string {
			return h.text("ok", fmt.Sprintf("backend down\n  server a 127.0.0.1:%s check inter 50ms fall 1 %s\n", closed, disabled)+
				"backend off\n  disabled\n  server z 127.0.0.1:9001\n"+
				"backend unresolved\n  server u nosuch.invalid:80 init-addr none\n"+
				"backend zero\n  server w 127.0.0.1:9001 weight 0\n"+
				"backend tracked\n  server t 127.0.0.1:9001 track down/a\n"+
				"backend templates\n  server-template s 2 127.0.0.1:9001 disabled\n  server own 127.0.0.1:9002\n")
		}
		h.apply(text("disabled"))
		h.steady("at first", text("disabled"))
		h.apply(text(""))
		h.status("down/a", "DOWN")
		h.steady("one that was disabled when HAProxy loaded it fails its check", text(""))
		h.apply(text("") + "# another\n")
		h.Close()
		h.restart()
		h.steady("restarted", text("")+"# another\n")

		more := strings.Replace(text(""), "  server z 127.0.0.1:9001\n", "  server z 127.0.0.1:9001\n  server y 127.0.0.1:9002\n", 1)
		h.apply(more)
		h.tend()
		h.same("one more in a disabled backend", l.load(h, more))
		h.steady("one more in a disabled backend", more)
		less := strings.Replace(text(""), "  server z 127.0.0.1:9001\n", "", 1)
		h.apply(less)
		h.tend()
		h.same("none in a disabled backend", l.load(h, less))
		h.steady("none in a disabled backend", less)
	})
}

// An agent's decision about its server is not undone either.
func TestE2EAgent(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, agent, a := startHAProxy(t, r.image), startAgent(t), startApp(t)
		text := h.text("ok", fmt.Sprintf("backend agent\n  server g %s weight 10 check inter 50ms agent-check agent-addr 127.0.0.1 agent-port %s agent-inter 50ms\n", a.addr, agent.port))
		h.apply(text)
		for _, says := range []struct{ word, status string }{
			{"75%", "UP"}, {"drain", "DRAIN"}, {"ready up", "UP"}, {"maint", "MAINT"}, {"ready up", "UP"}, {"down", "DOWN"}, {"up", "UP"},
		} {
			agent.say.Store(says.word)
			h.status("agent/g", says.status)
			h.steady("the agent says "+says.word, text)
		}
	})
}

type agent struct {
	port string
	say  word
}

// startAgent answers HAProxy's agent checks.
func startAgent(t testing.TB) *agent {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	a := &agent{}
	_, a.port, _ = net.SplitHostPort(l.Addr().String())
	a.say.Store("up")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(conn, a.say.Load()+"\n")
			conn.Close()
		}
	}()
	return a
}

// word is a string shared by several goroutines.
type word struct{ v atomic.Value }

func (w *word) Store(s string) { w.v.Store(s) }
func (w *word) Load() string   { s, _ := w.v.Load().(string); return s }
