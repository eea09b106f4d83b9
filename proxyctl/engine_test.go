package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// step is an Apply with the expected results.
type step struct {
	set     func(*harness)
	text    string
	waits   bool // no reload is allowed
	action  Action
	reason  string // part of it
	changes string // of backends
	err     error  // the error wraps it
	says    string // part of the error
	file    string // the text in the file afterwards, with its mark or a foreign one
	live    string // the proxy's servers afterwards
	loads   int    // reloads so far
}

// walked is a walk that starts with a text in the file, which the proxy runs.
type walked struct {
	name    string
	running string               // "" for none
	set     func(*EngineOptions) // nil for none
	steps   []step
}

// run walks with its own clock, so that a slow disk cannot age a refusal.
func (w walked) run(t *testing.T, set ...func(*EngineOptions)) {
	if w.set != nil {
		set = append(set, w.set)
	}
	t.Run(w.name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newHarness(t, set...)
			if w.running != "" {
				r.hasText(w.running)
			}
			r.walk(w.steps)
		})
	})
}

func (r *harness) walk(steps []step) {
	r.Helper()
	for i, s := range steps {
		if s.set != nil {
			s.set(r)
		}
		res, err := r.engine.Apply(r.Context(), Config{Text: s.text}, !s.waits)
		if (err != nil) != (s.err != nil || s.says != "") || s.err != nil && !errors.Is(err, s.err) || err != nil && !strings.Contains(err.Error(), s.says) {
			r.Errorf("step %d: error %v; want %v saying %q", i, err, s.err, s.says)
		}
		if err == nil && s.action == "" {
			s.action = None
		}
		if res.Action != s.action || !strings.Contains(res.Reason, s.reason) {
			r.Errorf("step %d: %q for %q, want %q for %q", i, res.Action, res.Reason, s.action, s.reason)
		}
		if got := changed(res); s.changes != "" && got != s.changes {
			r.Errorf("step %d: changes %q, want %q", i, got, s.changes)
		}
		r.engine.Close()
		want := s.file
		if !strings.HasPrefix(want, "theirs") && want != "" {
			want = markFake(want)
		}
		if got := r.onDisk(r.file); got != want {
			r.Errorf("step %d: the file is\n%s\nwant\n%s", i, got, want)
		}
		if got := r.servers(); s.live != "" && got != s.live {
			r.Errorf("step %d: the proxy has %q, want %q", i, got, s.live)
		}
		if r.loads != s.loads {
			r.Errorf("step %d: %d reloads so far, want %d", i, r.loads, s.loads)
		}
		for _, path := range []string{r.file + ".good", filepath.Join(filepath.Dir(r.file), ".proxy.cfg.candidate")} {
			if _, err := os.Stat(path); err == nil {
				r.Errorf("step %d: %s is left behind", i, path)
			}
		}
	}
}

func changed(res Result) string {
	var all []string
	for _, c := range res.Changes {
		all = append(all, c.String())
	}
	return strings.Join(all, "; ")
}

// servers returns the proxy's servers: "app: a b; web: c".
func (r *harness) servers() string {
	var all []string
	for name, servers := range r.live {
		servers = slices.Sorted(slices.Values(servers))
		all = append(all, strings.TrimSpace(name+": "+strings.Join(servers, " ")))
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

const (
	one  = "bind\napp: a\nweb: x\n"
	two  = "bind\napp: a b\nweb: x\n"
	line = "bind\nmore\napp: a\nweb: x\n"
	bad  = "bind\nbogus\napp: a\nweb: x\n"
)

func unreachable(r *harness) { r.down = fmt.Errorf("%w: no such socket", ErrUnreachable) }
func reachable(r *harness)   { r.down = nil }
func withBinary(r *harness)  { r.binary = "proxy" }

func TestEngine(t *testing.T) {
	for _, w := range []walked{
		{name: "nothing, run time, reload", running: one, steps: []step{
			{text: one, action: None, file: one},
			{text: two, action: Runtime, reason: "add app/b", changes: "app: 1 → 2 servers", file: two, live: "app: a b; web: x"},
			{text: two, action: None, file: two},
			{text: line, action: Reload, reason: "lines differ", changes: "app: 2 → 1 server", file: line, live: "app: a; web: x", loads: 1},
		}},
		{name: "always inspected", running: one, set: func(o *EngineOptions) { o.Inspect = true }, steps: []step{
			{text: one, action: None, file: one},
			{set: func(r *harness) { r.live["web"] = nil }, text: two, action: Runtime, file: two, live: "app: a b; web: x"},
		}},
		{name: "no file yet", steps: []step{{text: one, action: Reload, reason: "first configuration by berth", file: one, live: "app: a; web: x", loads: 1}}},
		{name: "no file yet, and refused: none is left for a restart", steps: []step{{text: bad, err: ErrRefused, file: "", loads: 1}}},

		// Drift.
		{name: "what somebody changed is repaired", running: one, steps: []step{
			{text: one, action: None, file: one},
			{set: func(r *harness) { r.live["app"] = []string{"y"} }, text: one, action: Runtime, file: one, live: "app: a; web: x"},
			{set: func(r *harness) { r.run("somebody else's") }, text: one, action: Reload, reason: "the proxy does not run the configuration in its file", file: one, loads: 1},
			{set: func(r *harness) { r.write(r.file, r.onDisk(r.file)+"edited\n") }, text: one, action: Reload, reason: "not as berth wrote it", file: one, loads: 2},
			{set: func(r *harness) { os.Remove(r.file) }, text: two, action: Runtime, file: two, loads: 2},
			{set: func(r *harness) { os.Remove(r.file) }, text: two, action: Reload, reason: "removed", file: two, loads: 3},
		}},
		{name: "a change at run time that goes half the way is reloaded", running: one, steps: []step{
			{text: one, action: None, file: one},
			{set: func(r *harness) { r.half = true }, text: "bind\napp: b c\nweb: x\n", action: Reload, reason: "half of it", file: "bind\napp: b c\nweb: x\n", live: "app: b c; web: x", loads: 1},
		}},
		{name: "or undone", running: one, steps: []step{
			{text: one, action: None, file: one},
			{
				set:  func(r *harness) { r.half, r.elsewise = true, fmt.Errorf("%w: no", ErrRefused) },
				text: "bind\napp: a !\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: a\nweb: y\n", live: "app: a; web: y", loads: 1,
			},
		}},

		// Refusals.
		{name: "refused: the old file goes back", running: one, steps: []step{
			{text: bad, err: ErrRefused, says: "bogus", file: one, live: "app: a; web: x", loads: 1},
			{text: "bind\nbogus\napp: a \nweb: x\n", err: ErrRefused, says: "bogus", file: one, live: "app: a; web: x", loads: 1}, // it is too early
			{text: bad, err: ErrRefused, says: "bogus", file: one, live: "app: a; web: x", loads: 1},
			{text: bad, err: ErrRefused, says: "bogus", file: one, live: "app: a; web: x", loads: 2},
			{text: one, action: None, file: one, loads: 2},
			{text: line, action: Reload, file: line, loads: 3},
		}},
		{name: "refused by its program", running: one, steps: []step{
			{set: withBinary, text: "bind\nbogus here\napp: a b\nweb: x\n", err: ErrRefused, says: "by its program", action: Runtime, file: two, live: "app: a b; web: x"},
		}},
		{name: "its program hangs", running: one, steps: []step{
			{set: func(r *harness) { r.binary, r.engine.opts.Timeout = "hangs", 20*time.Millisecond }, text: line, says: "hangs -c did not finish within 20ms", file: one},
		}},
		{name: "no configuration at all", running: one, steps: []step{
			{text: "{", err: ErrRefused, says: "no configuration", file: one},
			{text: "{", err: ErrRefused, says: "no configuration", file: one},
			{text: one, action: None, file: one},
		}},
		{name: "it would serve nothing: its servers come and go", running: one, steps: []step{
			{text: "app: a b\nweb: x\n", err: ErrRefused, says: "serve nothing", action: Runtime, file: two, live: "app: a b; web: x"},
		}},
		{name: "loaded, and of no use: the last good one is loaded again", running: one, steps: []step{
			{set: func(r *harness) { r.loaded = fmt.Errorf("%w: no", ErrRefused) }, text: line, err: ErrRefused, file: one, live: "app: a; web: x", loads: 2},
			{text: one, action: None, file: one, loads: 2},
		}},
		{name: "loaded, of no use, and there is no way back", running: one, steps: []step{
			{set: func(r *harness) {
				r.loaded = fmt.Errorf("%w: no", ErrRefused)
				r.engine.driver = &stuckDriver{fakeDriver: r.fakeDriver}
			}, text: line, err: ErrRefused, says: "and the last good configuration cannot be loaded again: stuck", file: one, loads: 1},
		}},

		// A refusal stops nothing else.
		{name: "a bad line: servers of all backends come and go, and the file follows", running: two, steps: []step{
			{text: "bind\nbogus\napp: a b\nweb: x y\n", err: ErrRefused, action: Runtime, changes: "web: 1 → 2 servers", file: "bind\napp: a b\nweb: x y\n", live: "app: a b; web: x y", loads: 1},
			{text: "bind\nbogus\napp: b c\nweb: y\n", err: ErrRefused, action: Runtime, changes: "app: 2 servers, 1 replaced or changed; web: 2 → 1 server", file: "bind\napp: b c\nweb: y\n", live: "app: b c; web: y", loads: 1},
			{set: func(r *harness) { r.run(r.onDisk(r.file)); r.start() }, text: "bind\nbogus\napp: c\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: c\nweb: y\n", live: "app: c; web: y", loads: 2},
			{set: func(r *harness) { r.live["app"] = nil }, text: "bind\nbogus\napp: c\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: c\nweb: y\n", live: "app: c; web: y", loads: 3},
			{text: "bind\napp: d\nweb: y\n", action: Runtime, file: "bind\napp: d\nweb: y\n", live: "app: d; web: y", loads: 3},
		}},
		{name: "a backend that is new waits, one that is gone stays", running: two, steps: []step{
			{text: "bind\nbogus\nnew: n\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: a b\nweb: y\n", live: "app: a b; web: y", loads: 1},
		}},
		{name: "a server that is not to be added holds up its own backend", running: two, steps: []step{
			{text: "bind\napp: a b =\nweb: y\n", waits: true, err: ErrNotYet, action: Runtime, file: "bind\napp: a b\nweb: y\n", live: "app: a b; web: y"},
			{text: "bind\nbogus\napp: c =\nweb: z\n", err: ErrRefused, action: Runtime, file: "bind\napp: a b\nweb: z\n", live: "app: a b; web: z", loads: 1},
			{text: "bind\nbogus\napp: c !\nweb: u\n", err: ErrRefused, action: Runtime, file: "bind\napp: a b\nweb: u\n", live: "app: a b; web: u", loads: 1},
		}},
		{name: "a reload that has to wait: servers do not", running: one, steps: []step{
			{text: one, action: None, file: one},
			{text: "bind\nmore\napp: a b\nweb: x\n", waits: true, err: ErrNotYet, action: Runtime, changes: "app: 1 → 2 servers", file: two, live: "app: a b; web: x"},
			{text: "bind\nmore\napp: a b c\nweb: x\n", action: Reload, changes: "app: 1 → 3 servers", file: "bind\nmore\napp: a b c\nweb: x\n", loads: 1, set: func(r *harness) { r.live["app"] = []string{"a"} }},
		}},
		{name: "a port in use", running: one, steps: []step{
			{set: func(r *harness) { r.inUse = 81 }, text: "bind\nbind 81\napp: a b\nweb: x\n", err: ErrRefused, says: "bind :81: another program listens there", action: Runtime, file: two, live: "app: a b; web: x"},
			{set: func(r *harness) { r.inUse = 0 }, text: "bind\nbind 81\napp: a b\nweb: x\n", action: Reload, file: "bind\nbind 81\napp: a b\nweb: x\n", loads: 1},
		}},

		// A proxy that is down or hangs.
		{name: "down: without a file it gets one", steps: []step{
			{set: unreachable, text: one, err: ErrUnreachable, file: one},
			{set: unreachable, text: two, err: ErrUnreachable, file: one}, // it was never validated
			{set: withBinary, text: two, err: ErrUnreachable, file: two},
			{text: "bind\nbogus here\n", err: ErrRefused, file: two},
			{text: "app: a\n", err: ErrRefused, file: two},
			{set: func(r *harness) { reachable(r); r.run(r.onDisk(r.file)) }, text: two, action: None, file: two, live: "app: a b; web: x"},
		}},
		{name: "down: a text for which the driver vouches replaces berth's file, and nobody else's", steps: []step{
			{set: func(r *harness) { unreachable(r); r.vouches = true; r.write(r.file, markFake(one)) }, text: two, err: ErrUnreachable, file: two},
			{set: func(r *harness) { r.write(r.file, "theirs\n") }, text: two, err: ErrUnreachable, file: "theirs\n"},
		}},
		{name: "down: somebody's file is kept", steps: []step{
			{set: func(r *harness) { unreachable(r); withBinary(r); r.write(r.file, "theirs\n") }, text: one, err: ErrUnreachable, file: one},
			{text: one, err: ErrUnreachable, file: one, set: func(r *harness) {
				if got := r.onDisk(r.file + ".before-berth"); got != "theirs\n" {
					r.Errorf("kept is %q", got)
				}
			}},
		}},
		{name: "it goes down with a change, and comes back with the file", running: one, steps: []step{
			{text: one, action: None, file: one},
			{set: unreachable, text: two, err: ErrUnreachable, file: one},
			{set: reachable, text: two, action: Runtime, file: two, live: "app: a b; web: x"},
		}},
		{name: "it hangs", running: one, steps: []step{
			{set: func(r *harness) { r.hang = true }, text: two, err: ErrUnreachable, says: "no answer", file: one},
			{set: func(r *harness) { r.hang = false }, text: two, action: Runtime, file: two},
		}},
		{name: "a reload that gets lost is taken back", running: one, steps: []step{
			{set: func(r *harness) { r.elsewise = fmt.Errorf("%w: no", ErrUnreachable) }, text: line, err: ErrUnreachable, file: one, live: "app: a; web: x", loads: 1},
			{set: func(r *harness) { r.elsewise = nil }, text: line, action: Reload, file: line, loads: 2},
		}},
		{name: "who does not say that it is down is left alone", running: one, steps: []step{
			{set: func(r *harness) {
				withBinary(r)
				r.deaf = true
				r.down = fmt.Errorf("%w: a stranger", ErrUnreachable)
			}, text: two, err: ErrUnreachable, file: one},
		}},
		{name: "one that has nothing of berth's is brought to it", steps: []step{
			{set: func(r *harness) { r.unmarked = "it is new"; r.write(r.file, "theirs\n") }, text: bad, err: ErrRefused, file: "theirs\n", loads: 1},
			{text: one, action: Reload, reason: "it is new", file: one, live: "app: a; web: x", loads: 2},
		}},
		{name: "one that may be starting with berth's file gets time for that", running: one, steps: []step{
			{set: func(r *harness) { r.unmarked, r.starting = "it is new", true }, text: one, err: ErrUnreachable, says: "it is new", file: one},
			{set: func(r *harness) { r.engine.away = time.Now().Add(-unmarkedTime) }, text: one, action: Reload, file: one, loads: 1},
		}},

		// A proxy that reloads for every change.
		{name: "reloads: what a refused text has in common with the running one is loaded", running: one, steps: []step{
			{set: func(r *harness) { r.reloading = true }, text: one, file: one, live: "app: a; web: x"},
			{text: bad, err: ErrRefused, file: one, loads: 1},
			{text: "bind\nbogus\napp: a b\nweb: x\n", err: ErrRefused, action: Reload, reason: "add app/b", file: two, live: "app: a b; web: x", loads: 2},
			{text: "bind\nbogus\napp: a b c\nweb: x\n", waits: true, err: ErrNotYet, file: two, live: "app: a b; web: x", loads: 2},
			{text: "bind\nbogus\napp: a b c\nweb: x\n", err: ErrRefused, action: Reload, reason: "add app/c", file: "bind\napp: a b c\nweb: x\n", live: "app: a b c; web: x", loads: 4},
			{text: one, action: Reload, file: one, live: "app: a; web: x", loads: 5},
		}},
		{name: "reloads: what a text that need not be shown to the proxy has in common with the running one is loaded", running: one, steps: []step{
			{set: func(r *harness) { r.reloading = true }, text: "app: a b\nweb: x\n", err: ErrRefused, says: "serve nothing", action: Reload, reason: "add app/b", file: two, live: "app: a b; web: x", loads: 1},
			{text: "app: a b c\nweb: x\n", waits: true, err: ErrRefused, says: "serve nothing", file: two, live: "app: a b; web: x", loads: 1},
		}},

		// berth was killed.
		{name: "killed before the proxy was told of a text", running: one, steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(line)); r.write(r.file+".good", markFake(one)) }, text: line, action: Reload, file: line, loads: 1},
		}},
		{name: "killed before that of a bad one", running: one, steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(bad)); r.write(r.file+".good", markFake(one)) }, text: bad, err: ErrRefused, file: one, live: "app: a; web: x", loads: 1},
		}},
		{name: "killed before that of a bad one, and the servers are others now", running: one, steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(bad)); r.write(r.file+".good", markFake(one)) }, text: "bind\nbogus\napp: b\nweb: x\n", err: ErrRefused, action: Runtime, file: "bind\napp: b\nweb: x\n", live: "app: b; web: x", loads: 1},
		}},
		{name: "killed while it judged other servers", running: one, steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(two)); r.write(r.file+".good", markFake(one)) }, text: two, action: Reload, reason: "cut short", file: two, loads: 1},
		}},
		{name: "killed when it had taken it", running: two, steps: []step{
			{set: func(r *harness) { r.write(r.file+".good", markFake(one)) }, text: "bind\napp: c\nweb: x\n", action: Runtime, file: "bind\napp: c\nweb: x\n"},
		}},
		{name: "killed when it had taken it, and nothing changes; then it goes down", running: two, steps: []step{
			{set: func(r *harness) { r.write(r.file+".good", markFake(one)) }, text: two, action: None, file: two},
			{set: unreachable, text: two, err: ErrUnreachable, file: two},
		}},
		{name: "killed before the file followed", running: one, steps: []step{
			{set: func(r *harness) { r.live["app"] = []string{"a", "b"} }, text: two, action: None, file: two, live: "app: a b; web: x"},
		}},
		{name: "killed while it judged other servers, and now a bad one comes", running: one, steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(two)); r.write(r.file+".good", markFake(one)) }, text: bad, err: ErrRefused, file: one, live: "app: a; web: x", loads: 1},
		}},
		{name: "killed before the file followed, and now a bad one comes", running: one, steps: []step{
			{set: func(r *harness) { r.live["app"] = []string{"c"} }, text: "bind\nbogus\napp: a\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: a\nweb: y\n", live: "app: c; web: y", loads: 1},
		}},
		{name: "killed while the proxy judged a bad one, which is down by now", running: one, steps: []step{
			{set: func(r *harness) {
				unreachable(r)
				r.write(r.file, markFake(bad))
				r.write(r.file+".good", markFake(one))
			}, text: bad, err: ErrUnreachable, file: one},
		}},
		{name: "killed while the proxy judged a bad one, which is down by now, and there is nothing better", running: one, steps: []step{
			{set: func(r *harness) {
				unreachable(r)
				r.write(r.file, markFake(bad))
				r.write(r.file+".good", markFake(one))
			}, text: "app: a\n", err: ErrRefused, says: "serve nothing", file: one},
		}},
	} {
		w.run(t)
	}
}

// stuckDriver loads a text once.
type stuckDriver struct{ *fakeDriver }

func (d *stuckDriver) Reload(ctx context.Context, last, to Marked[fakeConfig]) (Snapshot, error) {
	if d.loads > 0 {
		return Snapshot{}, errors.New("stuck")
	}
	return d.fakeDriver.Reload(ctx, last, to)
}

// A change at run time does not inspect the proxy, run its program, or read files.
func TestFastPath(t *testing.T) {
	r := newHarness(t)
	withBinary(r)
	r.hasText(one)
	r.walk([]step{{text: one, file: one}})
	inspects := r.inspects
	if _, err := r.engine.Apply(t.Context(), Config{Text: two}, true); err != nil {
		t.Fatal(err)
	}
	if r.inspects != inspects {
		t.Errorf("%d looks", r.inspects-inspects)
	}
	r.engine.Close()
}

// A port that makes the proxy refuse a text is reported, so that another text can leave it out.
func TestPortRefused(t *testing.T) {
	var ports []int
	r := newHarness(t, func(o *EngineOptions) { o.PortRefused = func(port int, _ string) { ports = append(ports, port) } })
	r.hasText(one)
	r.inUse = 81
	for range 2 {
		_, err := r.engine.Apply(t.Context(), Config{Text: "bind\nbind 81\napp: a\nweb: x\n"}, true)
		var port *PortError
		if !errors.As(err, &port) || port.Port != 81 || !errors.Is(err, ErrRefused) {
			t.Errorf("error %v", err)
		}
	}
	if !slices.Equal(ports, []int{81, 81}) {
		t.Errorf("told were %v", ports)
	}
}

// A child is started as soon as a good configuration is in place, but not with one that its program refuses.
func TestPrepared(t *testing.T) {
	prepared, ports := 0, []int(nil)
	r := newHarness(t, func(o *EngineOptions) {
		o.Prepared = func() { prepared++ }
		o.PortRefused = func(port int, _ string) { ports = append(ports, port) }
	})
	withBinary(r)
	unreachable(r)
	r.inUse = 81
	for i, step := range []struct {
		text   string
		times  int
		checks int
	}{
		{"bind\nbogus here\n", 0, 1},
		{"bind\nbind 81\napp: a\nweb: x\n", 0, 2}, // another program listens there
		{one, 1, 3},
		{one, 2, 3}, // it is known to be good
		{two, 3, 4},
		{"bind\nbind 81\napp: a\nweb: x\n", 3, 5},
		{two, 4, 5},
	} {
		_, _ = r.engine.Apply(t.Context(), Config{Text: step.text}, true)
		if prepared != step.times || r.checks != step.checks {
			t.Errorf("step %d: prepared %d times after %d checks, want %d and %d", i, prepared, r.checks, step.times, step.checks)
		}
	}
	if !slices.Equal(ports, []int{81, 81}) {
		t.Errorf("told were %v", ports)
	}
}

// A file that was already there is not taken for a good one because the program accepted a text that does not replace it.
func TestPreparedWithAFileThatWasThere(t *testing.T) {
	prepared := 0
	r := newHarness(t, func(o *EngineOptions) { o.Prepared = func() { prepared++ } })
	withBinary(r)
	unreachable(r)
	const refused = "bind\nbogus here\napp: a\n"
	r.write(r.file, markFake(refused))
	r.inUse = 81
	for _, text := range []string{"bind\nbind 81\napp: a\n", refused} {
		if _, err := r.engine.Apply(t.Context(), Config{Text: text}, true); !errors.Is(err, ErrRefused) || prepared != 0 {
			t.Errorf("error %v, prepared %d times", err, prepared)
		}
	}
}

// If a proxy goes down just when the file follows, it is prepared with the wanted text, not with the old one of the file.
func TestPrepareWhileTheFileFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarness(t)
		withBinary(r)
		r.hasText(one)
		r.walk([]step{{text: one, file: one}})
		r.checkTakes = time.Second / 2
		defer r.engine.Close()
		if _, err := r.engine.Apply(t.Context(), Config{Text: two}, true); err != nil {
			t.Fatal(err)
		}
		unreachable(r)
		for range 2 {
			if _, err := r.engine.Apply(t.Context(), Config{Text: one}, true); !errors.Is(err, ErrUnreachable) {
				t.Errorf("error %v", err)
			}
		}
		if got := r.onDisk(r.file); got != markFake(one) {
			t.Errorf("the file is\n%s", got)
		}
	})
}

// Work that can wait is done in its own goroutine: when it is due, and after each Apply.
func TestTend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarness(t)
		r.hasText(one)
		r.tend = []time.Duration{30 * time.Millisecond, 40 * time.Millisecond, 0, time.Hour}
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.engine.Run(ctx) }()
		pass(time.Second)
		if _, err := r.engine.Apply(t.Context(), Config{Text: one}, true); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		var at []time.Duration
		for _, tended := range r.tended {
			at = append(at, tended.Sub(began))
		}
		if want := []time.Duration{0, 30 * time.Millisecond, 70 * time.Millisecond, time.Second}; !slices.Equal(at, want) {
			t.Errorf("tended at %v, want %v", at, want)
		}
		cancel()
		<-done
	})
}

// Auxiliary files exist before the proxy reads a text, and stay while the running text refers to them.
func TestAuxiliaryFiles(t *testing.T) {
	r := newHarness(t)
	name := func(digit string) string { return r.file + ".routes-" + strings.Repeat(digit, 16) + ".map" }
	config := func(text, digit string) Config {
		return Config{Text: text + "map " + name(digit) + "\n", Files: map[string]string{name(digit): digit}}
	}
	r.hasText(one)
	for i, step := range []struct {
		config Config
		err    error
		files  string
	}{
		{config(one, "1"), nil, "1"},
		{config(bad, "2"), ErrRefused, "12"},
		{config("bind\nbogus\napp: b\nweb: x\n", "3"), ErrRefused, "13"},
		{config(two, "4"), nil, "4"},
		{Config{Text: one}, nil, ""},
	} {
		_, err := r.engine.Apply(t.Context(), step.config, true)
		if !errors.Is(err, step.err) {
			t.Errorf("step %d: error %v", i, err)
		}
		r.engine.Close()
		_, _ = r.engine.Apply(t.Context(), step.config, true) // the lazy writer is idle now
		has := ""
		for _, digit := range []string{"1", "2", "3", "4"} {
			if r.onDisk(name(digit)) == digit {
				has += digit
			}
		}
		if has != step.files {
			t.Errorf("step %d: files %q, want %q", i, has, step.files)
		}
		r.engine.Close()
	}
}

// If an auxiliary file cannot be written, its text is not loaded. Servers still come and go, even if the configuration itself
// cannot be written.
func TestUnwritableFiles(t *testing.T) {
	r := newHarness(t)
	r.hasText(one)
	name := r.file + ".routes-" + strings.Repeat("1", 16) + ".map"
	apply := func(text string, files map[string]string, action Action, live, says string) {
		t.Helper()
		res, err := r.engine.Apply(t.Context(), Config{Text: text, Files: files}, true)
		if res.Action != action || r.servers() != live || (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q, %v, the proxy has %q; want %q, an error that says %q, and %q", res.Action, err, r.servers(), action, says, live)
		}
		r.engine.Close()
	}
	blocked := "bind\nmap " + name + "\n"
	files := map[string]string{name: "x"}
	if err := os.MkdirAll(name+"/in the way", 0o755); err != nil {
		t.Fatal(err)
	}
	apply(one, nil, None, "app: a; web: x", "")
	apply(blocked+"app: a b\nweb: x\n", files, Runtime, "app: a b; web: x", "write "+name)
	apply(blocked+"app: b\nweb: x y\n", files, Runtime, "app: b; web: x y", "write "+name)
	if r.loads != 0 || r.onDisk(r.file) != markFake("bind\napp: b\nweb: x y\n") {
		t.Errorf("%d reloads, the file is\n%s", r.loads, r.onDisk(r.file))
	}
	unreachable(r)
	withBinary(r)
	apply(blocked+"app: b\nweb: x y\n", files, "", "app: b; web: x y", "write "+name)
	if r.onDisk(r.file) != markFake("bind\napp: b\nweb: x y\n") {
		t.Errorf("a proxy that is down would start with\n%s", r.onDisk(r.file))
	}
	reachable(r)
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	apply(blocked+"app: b\nweb: x y\n", files, Reload, "app: b; web: x y", "")

	// The directory of the configuration disappears.
	dir := filepath.Dir(r.file)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	apply(blocked+"app: c\nweb: x y\n", files, Runtime, "app: c; web: x y", "")
	apply(blocked+"app: c\nweb: x y\n", files, "", "app: c; web: x y", "write "+name)
	apply(blocked+"app: d\nweb: x y\n", files, Runtime, "app: d; web: x y", "write ")
	apply("bind\nmore\napp: e\nweb: y\n", nil, Runtime, "app: e; web: y", "write ")
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	apply("bind\nmore\napp: e\nweb: y\n", nil, Reload, "app: e; web: y", "")
}

// The files of an invalid text stay while it is tried again.
func TestAuxiliaryFilesOfNoConfiguration(t *testing.T) {
	r := newHarness(t)
	r.hasText(one)
	name := r.file + ".routes-" + strings.Repeat("1", 16) + ".map"
	for range 3 {
		_, err := r.engine.Apply(t.Context(), Config{Text: "{ map " + name, Files: map[string]string{name: "1"}}, true)
		if !errors.Is(err, ErrRefused) || r.onDisk(name) != "1" {
			t.Errorf("error %v, the file has %q", err, r.onDisk(name))
		}
	}
	if r.log.String() != "" {
		t.Errorf("log:\n%s", r.log.String())
	}
}

// The first text after a start takes no backend's last server until the grace is over. Everything else comes and goes.
func TestHold(t *testing.T) {
	const (
		empty   = "bind\napp:\nweb: x y\n"
		lacking = "bind\nweb: x z\n"
		full    = "bind\nmore\napp: n\nweb: x\n"
		waited  = 31 * time.Second
	)
	hold := func(backends string) string { return "holding back: " + backends }
	for _, w := range []walked{
		{name: "until all have servers again", running: one, steps: []step{
			{text: empty, says: hold("backend app would lose all its servers"), action: Runtime, changes: "web: 1 → 2 servers", file: "bind\napp: a\nweb: x y\n", live: "app: a; web: x y"},
			{text: lacking, says: hold("backend app"), action: Runtime, file: "bind\napp: a\nweb: x z\n", live: "app: a; web: x z"},
			{text: lacking, says: hold("backend app"), action: None, file: "bind\napp: a\nweb: x z\n", live: "app: a; web: x z"},
			{text: full, action: Reload, file: full, live: "app: n; web: x", loads: 1},
			{text: empty, action: Reload, file: empty, live: "app:; web: x y", loads: 2}, // a later one is trusted
		}},
		{name: "until the grace is over", running: one, steps: []step{
			{text: "bind\n", says: hold("backends app, web would lose all their servers"), action: None, file: one, live: "app: a; web: x"},
			{set: func(*harness) { time.Sleep(waited) }, text: "bind\n", action: Reload, file: "bind\n", live: "", loads: 1},
		}},
		{name: "what was changed by hand is repaired meanwhile", running: one, steps: []step{
			{text: empty, says: hold("backend app"), action: Runtime, file: "bind\napp: a\nweb: x y\n"},
			{set: func(r *harness) { r.live["app"] = nil }, text: empty, says: hold("backend app"), action: Runtime, file: "bind\napp: a\nweb: x y\n", live: "app: a; web: x y"},
		}},
		{name: "a full text goes at once", running: one, steps: []step{{text: full, action: Reload, file: full, loads: 1}}},
		{name: "the proxy is down: its file stays", running: one, steps: []step{
			{set: func(r *harness) { unreachable(r); withBinary(r) }, text: empty, err: ErrUnreachable, file: "bind\napp: a\nweb: x y\n"},
			{set: func(r *harness) { reachable(r); r.run(r.onDisk(r.file)) }, text: empty, says: hold("backend app"), action: None, file: "bind\napp: a\nweb: x y\n"},
		}},
		{name: "the proxy runs something else than its file: it gets the last good text", steps: []step{
			{set: func(r *harness) { r.write(r.file, markFake(one)) }, text: empty, says: hold("backend app"), action: Reload, file: "bind\napp: a\nweb: x y\n", live: "app: a; web: x y", loads: 1},
		}},
		{name: "another template goes at once", running: one, steps: []step{
			{text: "bind\nframe\n", action: Reload, file: "bind\nframe\n", loads: 1},
		}},
		{name: "another template is refused at once, and the one before is held back still", running: one, steps: []step{
			{text: "bind\nframe\nbogus\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: a\nweb: y\n", live: "app: a; web: y", loads: 1},
			{text: empty, says: hold("backend app"), action: Runtime, file: "bind\napp: a\nweb: x y\n", live: "app: a; web: x y", loads: 1},
		}},
		{name: "another template that is refused takes no last server until the grace is over", running: one, steps: []step{
			{text: "bind\nframe\nbogus\napp:\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp: a\nweb: y\n", live: "app: a; web: y", loads: 1},
			{set: func(*harness) { time.Sleep(waited) }, text: "bind\nframe\nbogus\napp:\nweb: y\n", err: ErrRefused, action: Runtime, file: "bind\napp:\nweb: y\n", live: "app:; web: y", loads: 2},
		}},
		{name: "a refused text is none that was applied", running: one, steps: []step{
			{text: bad, err: ErrRefused, file: one, loads: 1},
			{text: empty, says: hold("backend app"), action: Runtime, file: "bind\napp: a\nweb: x y\n", loads: 1},
		}},
	} {
		w.run(t, func(o *EngineOptions) { o.Grace = 0 })
	}
}

// A file that berth did not write is replaced by a text with servers for all of its backends, or on request.
func TestTakeOver(t *testing.T) {
	const (
		theirs  = "theirs\nbind\napp: a\nold: o p\nempty:\n"
		lacking = "bind\napp: b\nold:\n"
		full    = "bind\napp: b\nold: p\n"
		hold    = "holding back: backend old would lose all its servers, which are in "
	)
	foreign := func(r *harness) { r.write(r.file, theirs); r.run(theirs) }
	for _, w := range []walked{
		{name: "held for as long as it takes", steps: []step{
			{set: foreign, text: lacking, says: hold, action: None, file: theirs, live: "app: a; empty:; old: o p"},
			{set: func(*harness) { time.Sleep(48 * time.Hour) }, text: lacking, says: "start berth with --take-over", action: None, file: theirs, live: "app: a; empty:; old: o p"},
			{text: "bind\n", says: "backends app, old would lose all their servers", action: None, file: theirs},
			{text: full, action: Reload, reason: "first configuration by berth", changes: "app: 1 server, 1 replaced or changed; old: 2 → 1 server", file: full, live: "app: b; old: p", loads: 1},
			{text: lacking, action: Runtime, file: "bind\napp: b\nold:\n", live: "app: b; old:", loads: 1}, // a later one is trusted
		}},
		{name: "without a grace", set: func(o *EngineOptions) { o.Grace = -1 }, steps: []step{
			{set: foreign, text: lacking, says: hold, action: None, file: theirs},
		}},
		{name: "asked for", set: func(o *EngineOptions) { o.TakeOver = true }, steps: []step{
			{set: foreign, text: lacking, action: Reload, reason: "first configuration by berth", changes: "app: 1 server, 1 replaced or changed; old: 2 → 0 servers", file: lacking, live: "app: b; old:", loads: 1},
		}},
		{name: "a restart of berth holds it, too", steps: []step{
			{set: foreign, text: lacking, says: hold, action: None, file: theirs},
			{set: func(r *harness) { r.start() }, text: lacking, says: hold, action: None, file: theirs},
		}},
		{name: "what is refused is said, rather than that it would be held", steps: []step{
			{set: foreign, text: "app: b\n", err: ErrRefused, says: "serve nothing", file: theirs},
		}},
		{name: "a proxy that is down starts with the file that it had", steps: []step{
			{set: func(r *harness) { foreign(r); unreachable(r); withBinary(r) }, text: lacking, err: ErrUnreachable, says: hold, file: theirs},
			{text: full, err: ErrUnreachable, file: full},
		}},
		{name: "a proxy that runs berth's has nothing to lose by another's file", running: full, steps: []step{
			{set: func(r *harness) { r.write(r.file, theirs) }, text: "bind\napp: b\nold:\n", action: Reload, reason: "not as berth wrote it", file: lacking, live: "app: b; old:", loads: 1},
		}},
		{name: "a file that replaces berth's while berth is there is replaced at once", running: full, steps: []step{
			{text: lacking, says: "consul-grace", action: Runtime, file: "bind\napp: b\nold: p\n", live: "app: b; old: p", set: func(r *harness) { r.live["app"] = nil }},
			{text: full, action: None, file: full},
			{set: foreign, text: full, action: Reload, reason: "not as berth wrote it", file: full, loads: 1},
		}},
	} {
		w.run(t, func(o *EngineOptions) { o.Grace = 0 })
	}
}

// A controller reports why a text is held back, once, and applies it when the time is over.
func TestHoldIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarness(t, func(o *EngineOptions) { o.Grace = 0 })
		r.hasText(one)
		c := New(Options{Proxy: r.engine, Log: r.opts.Log})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		c.Set(Config{Text: "bind\napp:\nweb: x\n"}, time.Now())
		pass(29 * time.Second)
		if err := c.Ready(); err == nil || !strings.HasPrefix(err.Error(), "holding back: backend app would lose all its servers; ") {
			t.Errorf("Ready() = %v", err)
		}
		if n := strings.Count(r.log.String(), "holding back"); n != 1 {
			t.Errorf("told %d times:\n%s", n, r.log.String())
		}
		pass(2 * time.Second)
		if err := c.Ready(); err != nil || r.servers() != "app:; web: x" {
			t.Errorf("Ready() = %v, the proxy has %q", err, r.servers())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A text that needs a reload gets it even if another text follows every few milliseconds, also after refusals.
func TestReloadUnderChurn(t *testing.T) {
	const interval = time.Second
	for _, tt := range []struct{ name, before, after string }{
		{"another shape", "", "more\n"},
		{"two shapes, in turn", "", "more\n|another\n"},
		{"a refused shape before", "bogus\n", "more\n"},
		{"a refused shape between", "bogus\n", "more\n|bogus\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarness(t)
				r.hasText(one)
				c := New(Options{Proxy: r.engine, Interval: interval, Log: r.opts.Log})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- c.Run(ctx) }()
				n := 0
				churn := func(d time.Duration, lines string) {
					for began := time.Now(); time.Since(began) < d; pass(10 * time.Millisecond) {
						shapes := strings.Split(lines, "|")
						n++
						c.Set(Config{Text: fmt.Sprintf("bind\n%sapp: a s%d\nweb: x\n", shapes[n%len(shapes)], n)}, time.Now())
					}
				}
				churn(5*time.Second, tt.before)
				before := r.loads
				churn(3*interval, tt.after)
				if r.loads == before || r.loads > before+4 {
					t.Errorf("%d reloads", r.loads-before)
				}
				churn(time.Second, "more\n")
				pass(2 * interval)
				if err := c.Ready(); err != nil || r.servers() != fmt.Sprintf("app: a s%d; web: x", n) {
					t.Errorf("Ready() = %v, the proxy has %s", err, r.servers())
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A reload func that never returns is not waited for.
func TestTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		began := time.Now()
		err := Tell(t.Context(), 10*time.Second, func(context.Context) error { <-release; return nil })
		if took := time.Since(began); !errors.Is(err, ErrUnreachable) || took > 11*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		close(release)
		no := errors.New("no")
		if err := Tell(t.Context(), time.Second, func(context.Context) error { return no }); err != no {
			t.Errorf("error %v", err)
		}
		if err := Tell(t.Context(), time.Second, func(ctx context.Context) error { <-ctx.Done(); return no }); err != no {
			t.Errorf("error %v", err)
		}
	})
}

// A refused text is tried again within seconds at first, and as soon as anything but its servers changes.
func TestRefusalIsTriedAgain(t *testing.T) {
	const text = "bind\nbogus\napp: a\nweb: x\n"
	for _, tt := range []struct {
		name        string
		set         func(*harness)
		takes       time.Duration // a reload
		least, most int           // tries in ten minutes with a change every second
	}{
		{"by its program", func(r *harness) { r.binary = "proxy" }, 0, 35, 60},
		{"by the proxy", nil, 0, 10, 20},
		{"by the proxy, after a while without listeners", nil, 2 * time.Second, 4, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarness(t)
				r.hasText(one)
				r.takes = tt.takes
				bogus := "bogus"
				if tt.set != nil {
					tt.set(r)
					bogus = "bogus here"
				}
				apply := func(text string) {
					if _, err := r.engine.Apply(t.Context(), Config{Text: strings.Replace(text, "bogus", bogus, 1)}, true); !errors.Is(err, ErrRefused) {
						t.Fatalf("error %v", err)
					}
				}
				tries := func() int { return r.loads + r.refusals }
				for n := range 600 {
					apply(fmt.Sprintf("%sother: s%d\n", text, n))
					time.Sleep(time.Second)
				}
				if n := tries(); n < tt.least || n > tt.most {
					t.Errorf("%d tries", n)
				}
				before := tries()
				apply(text + "more\n")
				if tries() != before+1 {
					t.Error("another text was not tried at once")
				}
				r.engine.Close()
			})
		})
	}
}

// A text with a name that does not resolve is tried again when the name resolves, however often it was refused, and no more often
// than others before that.
func TestNameThatDoesNotResolve(t *testing.T) {
	const text = "bind\nbogus\napp: a\nweb: x\n"
	for _, tt := range []struct {
		name, says string
		here       bool // the name always resolves for berth
		soon       bool
	}{
		{"HAProxy", "config : [haproxy.cfg:128] : 'server legacy/legacy' : could not resolve address 'legacy'.", false, true},
		{"nginx", `host not found in upstream "legacy:3000" in /etc/nginx/nginx.conf:9`, false, true},
		{"HAProxy, another resolver", "'server legacy/legacy' : could not resolve address 'legacy'.", true, false},
		{"another reason", "no", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var resolves atomic.Bool
				resolves.Store(tt.here)
				before := lookup
				defer func() { lookup = before }()
				lookup = func(_ context.Context, host string) ([]string, error) {
					if host != "legacy" {
						t.Errorf("looked up %q", host)
					}
					if resolves.Load() {
						return []string{"10.0.0.1"}, nil
					}
					return nil, errors.New("no such host")
				}
				r := newHarness(t)
				r.hasText(one)
				r.takes, r.elsewise = 2*time.Second, fmt.Errorf("%w: %s", ErrRefused, tt.says)
				counted := &countedDriver{fakeDriver: r.fakeDriver}
				r.engine.driver = counted
				tries := func() int { return int(counted.tries.Load()) }
				c := New(Options{Proxy: r.engine, Log: r.opts.Log})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- c.Run(ctx) }()
				c.Set(Config{Text: text}, time.Now())
				pass(10 * time.Minute)
				if n := tries(); n < 4 || n > 20 {
					t.Errorf("%d tries in ten minutes", n)
				}
				for n := tries(); tries() == n; { // the next one is a while away
					pass(time.Second)
				}
				pass(5 * time.Second)
				n := tries()
				resolves.Store(true)
				pass(4 * time.Second)
				if got := tries() > n; got != tt.soon {
					t.Errorf("tried again soon after the name resolves: %v, want %v", got, tt.soon)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A name is looked up as long as a text with it is wanted.
func TestNameIsNotLookedUpForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int32
		before := lookup
		defer func() { lookup = before }()
		lookup = func(context.Context, string) ([]string, error) {
			lookups.Add(1)
			return nil, errors.New("no such host")
		}
		r := newHarness(t)
		defer func() { r.engine.Close() }()
		r.hasText(one)
		r.elsewise = fmt.Errorf("%w: could not resolve address 'legacy'", ErrRefused)
		if _, err := r.engine.Apply(t.Context(), Config{Text: "bind\nbogus\napp: a\nweb: x\n"}, true); !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		if n := lookups.Load(); n < 4 {
			t.Errorf("%d lookups in five seconds", n)
		}
		if res, err := r.engine.Apply(t.Context(), Config{Text: one}, true); err != nil || res.Action != None {
			t.Fatalf("%+v, %v", res, err)
		}
		n := lookups.Load()
		pass(time.Minute)
		if more := lookups.Load() - n; more > 1 {
			t.Errorf("%d lookups after the text was given up", more)
		}
	})
}

// countedDriver counts reloads for another goroutine.
type countedDriver struct {
	*fakeDriver
	tries atomic.Int32
}

func (d *countedDriver) Reload(ctx context.Context, last, to Marked[fakeConfig]) (Snapshot, error) {
	d.tries.Add(1)
	return d.fakeDriver.Reload(ctx, last, to)
}
