package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/proxyctl/configfile"
)

// A text of fakeDriver consists of lines, and of backends with servers: "app: a b". The proxy refuses a line "bogus", and its
// program also refuses "bogus here". Lines that begin with "frame" do not come from the catalog. A text without a line "bind"
// serves nothing.
type fakeConfig struct {
	lines    []string
	order    []string
	backends map[string][]string
}

const fakeMark = "mark "

func parseFake(text string) *fakeConfig {
	c := &fakeConfig{backends: map[string][]string{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, servers, ok := strings.Cut(line, ":"); ok {
			c.order = append(c.order, name)
			c.backends[name] = strings.Fields(servers)
		} else if line != "" {
			c.lines = append(c.lines, line)
		}
	}
	return c
}

func (c *fakeConfig) shape() string { return fmt.Sprint(c.lines, c.order) }

func (c *fakeConfig) text() string {
	var b strings.Builder
	for _, line := range c.lines {
		b.WriteString(line + "\n")
	}
	for _, name := range c.order {
		b.WriteString(strings.TrimSpace(name+": "+strings.Join(c.backends[name], " ")) + "\n")
	}
	return b.String()
}

// fakeDriver is a proxy that does what it is told. A server whose name begins with = cannot be changed at run time, and one that
// begins with ! is refused.
type fakeDriver struct {
	file   string
	binary string

	down     error // of Inspect
	deaf     bool  // it may still run
	hang     bool  // it does not answer until ctx, or the driver's own deadline, expires
	unmarked string
	starting bool
	elsewise error // Reload returns it without loading the text
	loaded   error // Reload returns it for the next text, although it is loaded
	half     bool  // Run does only the first op
	inUse    int   // a port in use

	vouches   bool // StartsWith accepts any text for the file while it is down
	reloading bool // each change of servers takes a reload

	running    configfile.Generation
	live       map[string][]string
	loads      int
	takes      time.Duration // a reload
	checks     int
	checkTakes time.Duration
	refusals   int // of checks
	inspects   int
	ran        []string
	tend       []time.Duration // what the next calls of Tend return
	tended     []time.Time     // when it was called

	has  Marked[fakeConfig]
	now  *fakeConfig
	sour map[string]bool // backends with refused servers
}

// markFake returns a text as it is in the file.
func markFake(text string) string { return (&fakeDriver{}).mark(text).Text }

func (d *fakeDriver) mark(text string) Marked[fakeConfig] {
	c := parseFake(text)
	g := configfile.NewGeneration(c.shape(), text)
	return Marked[fakeConfig]{text + fakeMark + g.String() + "\n", g, c}
}

func (d *fakeDriver) Mark(text string, _ *fakeConfig) (Marked[fakeConfig], error) {
	m := d.mark(text)
	if strings.HasPrefix(text, "{") {
		return Marked[fakeConfig]{}, fmt.Errorf("%w: it is no configuration", ErrRefused)
	}
	if !slices.Contains(m.Config.lines, "bind") {
		return m, fmt.Errorf("%w: it would serve nothing", ErrRefused)
	}
	return m, nil
}

func (d *fakeDriver) Unmark(file string, _ *fakeConfig) Marked[fakeConfig] {
	text, _, _ := strings.Cut(file, fakeMark)
	if m := d.mark(text); m.Text == file {
		return m
	}
	return Marked[fakeConfig]{Text: file, Config: parseFake(text)}
}

func (d *fakeDriver) Beside(string) map[string]string { return nil }

func (d *fakeDriver) Between(_, _ string) map[string]string { return nil }

func (d *fakeDriver) IsMarked(file string) bool { return strings.Contains(file, fakeMark) }

// AtFault takes the line from "line 3".
func (d *fakeDriver) AtFault(text, complaint string) string {
	_, number, _ := strings.Cut(complaint, "line ")
	n, err := strconv.Atoi(number)
	lines := strings.Split(text, "\n")
	if err != nil || n > len(lines) {
		return ""
	}
	name, _, ok := strings.Cut(lines[n-1], ":")
	if !ok {
		return ""
	}
	return name
}

func (d *fakeDriver) Count(c *fakeConfig) (backends, servers int) {
	for _, s := range c.backends {
		backends += min(len(s), 1)
		servers += len(s)
	}
	return backends, servers
}

func (d *fakeDriver) Changes(before, after *fakeConfig) []Change {
	names := map[string]bool{}
	count := func(of, not []string) (n int) {
		for _, s := range of {
			if !slices.Contains(not, s) {
				n++
			}
		}
		return n
	}
	for _, c := range []*fakeConfig{before, after} {
		if c != nil {
			for name := range c.backends {
				names[name] = true
			}
		}
	}
	var out []Change
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var was, is []string
		if before != nil {
			was = before.backends[name]
		}
		if after != nil {
			is = after.backends[name]
		}
		c := Change{Backend: name, Before: len(was), After: len(is), Added: count(is, was), Removed: count(was, is)}
		if c.Added+c.Removed > 0 {
			out = append(out, c)
		}
	}
	return out
}

func (d *fakeDriver) Serves(c *fakeConfig) map[string]bool {
	out := map[string]bool{}
	for name, servers := range c.backends {
		if len(servers) > 0 {
			out[name] = true
		}
	}
	return out
}

func (d *fakeDriver) SameFrame(a, b *fakeConfig) bool {
	frame := func(c *fakeConfig) []string {
		return slices.DeleteFunc(slices.Clone(c.lines), func(line string) bool { return !strings.HasPrefix(line, "frame") })
	}
	return slices.Equal(frame(a), frame(b))
}

func (d *fakeDriver) Inspect(ctx context.Context) (Snapshot, error) {
	d.inspects++
	if d.hang {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		<-ctx.Done()
		return Snapshot{Down: true}, fmt.Errorf("%w: no answer", ErrUnreachable)
	}
	if d.down != nil {
		return Snapshot{Down: !d.deaf}, d.down
	}
	return Snapshot{Generation: d.running, OldWorkers: 1, Unmarked: d.unmarked, Starting: d.starting}, nil
}

func (d *fakeDriver) Observe(base Marked[fakeConfig]) {
	d.has, d.now = base, &fakeConfig{base.Config.lines, base.Config.order, maps.Clone(d.live)}
}

type fakeOp struct{ kind, backend, server string }

func (o fakeOp) String() string { return o.kind + " " + o.backend + "/" + o.server }

func (d *fakeDriver) Plan(to Marked[fakeConfig], alike *fakeConfig) Plan[fakeOp] {
	if d.now.shape() != to.Config.shape() {
		return Plan[fakeOp]{Reload: "lines differ"}
	}
	var p Plan[fakeOp]
	for _, name := range to.Config.order {
		was, is := d.now.backends[name], to.Config.backends[name]
		if alike != nil && slices.Equal(alike.backends[name], is) {
			continue
		}
		for _, s := range is {
			if !slices.Contains(was, s) {
				p.Ops = append(p.Ops, fakeOp{"add", name, s})
			}
			if !slices.Contains(was, s) && (s[0] == '=' || d.sour[name]) {
				return Plan[fakeOp]{Reload: s + " cannot be added"}
			}
		}
		for _, s := range was {
			if !slices.Contains(is, s) {
				p.Ops = append(p.Ops, fakeOp{"remove", name, s})
			}
		}
	}
	if d.reloading && len(p.Ops) > 0 {
		return Plan[fakeOp]{Reload: p.Ops[0].String()}
	}
	return p
}

func (d *fakeDriver) Run(_ context.Context, to Marked[fakeConfig], plan Plan[fakeOp]) error {
	if d.down != nil {
		return d.down
	}
	for i, op := range plan.Ops {
		if op.kind == "add" && op.server[0] == '!' {
			d.sour[op.backend] = true
			return fmt.Errorf("%w: it does not take %s", ErrUnexpected, op)
		}
		if i > 0 && d.half {
			return fmt.Errorf("%w: half of it", ErrUnexpected)
		}
		d.ran = append(d.ran, op.String())
		list := slices.DeleteFunc(slices.Clone(d.live[op.backend]), func(s string) bool { return s == op.server })
		if op.kind == "add" {
			list = append(list, op.server)
		}
		d.live[op.backend] = list
	}
	d.has, d.now = to, to.Config
	return nil
}

func (d *fakeDriver) Before(last *fakeConfig) *fakeConfig {
	if d.now != nil {
		return d.now
	}
	return last
}

func (d *fakeDriver) Runs(*fakeConfig) bool { return false }

func (d *fakeDriver) StartsWith(_, _ *fakeConfig) bool { return d.vouches }

func (d *fakeDriver) Merge(base, to *fakeConfig, keep []string, reload bool) string {
	if reload != d.reloading {
		return ""
	}
	out := *base
	out.backends = maps.Clone(base.backends)
	for name := range base.backends {
		is, ok := to.backends[name]
		if ok && !slices.Contains(keep, name) && !d.sour[name] && !slices.ContainsFunc(is, func(s string) bool { return s[0] == '=' }) {
			out.backends[name] = is
		}
	}
	return out.text()
}

func (d *fakeDriver) Binary() string { return d.binary }

func (d *fakeDriver) Check(ctx context.Context, file string) error {
	if d.binary == "hangs" {
		<-ctx.Done()
	}
	time.Sleep(d.checkTakes)
	d.checks++
	if text, _ := configfile.Read(file); strings.Contains(text, "bogus here") {
		d.refusals++
		return fmt.Errorf("%w by its program: bogus", ErrRefused)
	}
	return nil
}

func (d *fakeDriver) Precheck(_ context.Context, _, to Marked[fakeConfig]) error {
	if d.inUse != 0 && slices.Contains(to.Config.lines, fmt.Sprint("bind ", d.inUse)) {
		return &PortError{d.inUse, fmt.Sprint(":", d.inUse), "another program listens there"}
	}
	return nil
}

func (d *fakeDriver) Reload(ctx context.Context, _, to Marked[fakeConfig]) (Snapshot, error) {
	d.loads++
	d.now = nil
	time.Sleep(d.takes)
	text, err := configfile.Read(d.file)
	switch {
	case err != nil:
		return Snapshot{}, err
	case text != to.Text:
		return Snapshot{}, errors.New("the file is not what it is to load")
	case d.elsewise != nil:
		return Snapshot{}, d.elsewise
	case strings.Contains(text, "bogus"):
		return Snapshot{}, fmt.Errorf("%w by the proxy: bogus", ErrRefused)
	}
	d.run(text)
	if err := d.loaded; err != nil {
		d.loaded = nil
		return Snapshot{}, &LoadedError{err}
	}
	d.has, d.now = to, to.Config
	return Snapshot{Generation: to.Generation, OldWorkers: 2}, nil
}

// run makes the proxy one that started with a file.
func (d *fakeDriver) run(file string) {
	m := d.Unmark(file, nil)
	d.running, d.live, d.unmarked, d.sour = m.Generation, maps.Clone(m.Config.backends), "", map[string]bool{}
}

func (d *fakeDriver) Servers(context.Context) ([]Server, error) { return nil, nil }

func (d *fakeDriver) Tend(context.Context) time.Duration {
	d.tended = append(d.tended, time.Now())
	if len(d.tend) == 0 {
		return 0
	}
	next := d.tend[0]
	d.tend = d.tend[1:]
	return next
}

func (d *fakeDriver) Draining() int { return 0 }

// harness is an engine over a fakeDriver, with its options.
type harness struct {
	*testing.T
	*fakeDriver
	opts   EngineOptions
	engine *Engine[fakeConfig, fakeOp]
	log    logged
}

// logged is a log that can be read while it is written.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newHarness(t *testing.T, set ...func(*EngineOptions)) *harness {
	r := &harness{T: t, fakeDriver: &fakeDriver{file: filepath.Join(t.TempDir(), "proxy.cfg"), live: map[string][]string{}, sour: map[string]bool{}}}
	r.opts = EngineOptions{Name: "the proxy", File: r.file, Checks: "-c", Timeout: time.Second, Grace: -1, Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	for _, f := range set {
		f(&r.opts)
	}
	r.start()
	return r
}

// start starts a new berth.
func (r *harness) start() { r.engine = NewEngine(r.fakeDriver, r.opts) }

// has makes the proxy one that berth has brought to a text.
func (r *harness) hasText(text string) {
	r.run(markFake(text))
	r.write(r.file, markFake(text))
}

func (r *harness) write(path, text string) {
	r.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
}

func (r *harness) onDisk(path string) string {
	r.Helper()
	text, err := configfile.Read(path)
	if err != nil {
		r.Fatal(err)
	}
	return text
}
