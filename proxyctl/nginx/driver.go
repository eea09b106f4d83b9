package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"berth/proxyctl"
)

type (
	marked = proxyctl.Marked[config]
	plan   = proxyctl.Plan[balancerOp]
)

// driver implements proxyctl.Driver for one nginx.
type driver struct {
	opts       Options
	control    control
	log        errorLog
	findMaster func() (pid int, err error)

	status     status  // of the last inspection or reload
	servers    string  // the servers of the Lua balancers at that time
	serversErr error   // why they could not be read
	running    *config // what nginx runs
	started    sync.Once
	version    proxyctl.Version
	away       time.Time    // since when nginx does not report what it runs; zero if it does
	down       atomic.Bool  // no process listens on the control socket
	waits      atomic.Int32 // whether requests may wait for a server: mayWait, doWait or neither

	before   []int       // workers from before the last reload
	overlaps time.Time   // until when these may still serve, if they are not visible
	closing  *time.Timer // ends the announcement of a reload
	declined string      // why the Lua balancer last refused its servers
	warned   bool        // whether a missing worker_shutdown_timeout was logged
}

// startTime is how long an nginx that ended is expected to come back with the same version.
const startTime = 10 * time.Second

const notOurs = "nginx does not have berth's configuration yet"

// Mark implements proxyctl.Grammar.
func (d *driver) Mark(text string, _ *config) (marked, error) {
	d.version.Rendered()
	m, err := mark(text, d.opts.Socket)
	if err == nil {
		err = m.Config.claimError()
	}
	if err == nil && !m.Config.serves {
		err = fmt.Errorf("%w: no server block, so nginx would serve nothing", proxyctl.ErrRefused)
	}
	return m, err
}

// Unmark implements proxyctl.Grammar.
func (d *driver) Unmark(file string, _ *config) marked { return unmark(file, d.opts.Socket) }

// IsMarked implements proxyctl.Grammar.
func (d *driver) IsMarked(file string) bool { return isMarked(file) }

// Beside implements proxyctl.Grammar.
func (d *driver) Beside(string) map[string]string { return nil }

// Between implements proxyctl.Grammar.
func (d *driver) Between(_, _ string) map[string]string { return nil }

// Changes implements proxyctl.Grammar.
func (d *driver) Changes(before, after *config) []proxyctl.Change { return changes(before, after) }

// SameFrame implements proxyctl.Grammar. Services only affect http and stream blocks.
func (d *driver) SameFrame(a, b *config) bool {
	return firstDifference("", a.all.without("http", "stream"), b.all.without("http", "stream")) == ""
}

// Before implements proxyctl.Driver.
func (d *driver) Before(last *config) *config { return last }

// Observe implements proxyctl.Driver.
func (d *driver) Observe(base marked) { d.running = base.Config }

// Binary implements proxyctl.Driver.
func (d *driver) Binary() string { return d.opts.Binary }

// Check implements proxyctl.Driver.
func (d *driver) Check(ctx context.Context, file string) error {
	return check(ctx, d.opts.Env, d.opts.Binary, file)
}

// Precheck implements proxyctl.Driver. nginx opens new listeners alongside the old ones and finds conflicts itself.
func (d *driver) Precheck(context.Context, marked, marked) error { return nil }

// Draining implements proxyctl.Driver. nginx does not report it.
func (d *driver) Draining() int { return 0 }

// Tend implements proxyctl.Driver. It removes the control socket of a killed nginx, which would keep nginx from starting, and
// reports waiting requests.
func (d *driver) Tend(ctx context.Context) time.Duration {
	if !d.down.Load() {
		return d.tellWaiting(ctx)
	}
	d.removeStale()
	return staleAfter / 2
}

func (d *driver) removeStale() {
	if removeStale(d.opts.Socket) {
		d.opts.Log.Warn("removed "+d.opts.Socket+", the control socket of a killed nginx: nginx does not start while it exists", "socket", d.opts.Socket)
	}
}

// Inspect implements proxyctl.Driver.
func (d *driver) Inspect(ctx context.Context) (proxyctl.Snapshot, error) {
	d.started.Do(d.forgetClosing)
	// nginx makes the control socket accessible to everybody, so its directory must keep others out.
	if err := os.MkdirAll(filepath.Dir(d.opts.Socket), 0o750); err != nil {
		return proxyctl.Snapshot{}, fmt.Errorf("nginx's control socket: %w", err)
	}
	s, err := d.control.status(ctx)
	if err == nil && s.generation != d.status.generation { // the answer may be from an old worker that is about to stop
		d.waitForOverlap(ctx)
		s, err = d.control.status(ctx)
	}
	d.status = s
	d.down.Store(gone(err))
	if err != nil {
		return d.inspectUnmarked(ctx, err)
	}
	d.away = time.Time{}
	if err := d.version.Set(ctx, s.version); err != nil {
		return proxyctl.Snapshot{}, err
	}
	// Without a Lua balancer, the answer means nothing and is ignored.
	if d.servers, d.serversErr = d.control.servers(ctx); errors.Is(d.serversErr, proxyctl.ErrUnreachable) {
		return proxyctl.Snapshot{}, d.serversErr
	}
	return d.snapshot(), nil
}

// snapshot returns what nginx last reported.
func (d *driver) snapshot() proxyctl.Snapshot {
	serve, finish := d.oldWorkers()
	return proxyctl.Snapshot{Generation: d.status.generation, OldWorkers: serve + finish}
}

// inspectUnmarked inspects an nginx that does not report what it runs. reason says why: it is down, or its configuration is not
// berth's.
func (d *driver) inspectUnmarked(ctx context.Context, reason error) (proxyctl.Snapshot, error) {
	foreign := errors.Is(reason, errNotOurs)
	if !gone(reason) && !foreign || d.status.notNginx {
		return proxyctl.Snapshot{}, reason
	}
	if !foreign {
		d.removeStale()
	}
	if d.away.IsZero() {
		d.away = time.Now()
	}
	restarts := !foreign && time.Since(d.away) < startTime
	version := ""
	if restarts { // otherwise another nginx may start next
		version = d.version.Running()
	}
	if err := d.version.Set(ctx, version); err != nil {
		return proxyctl.Snapshot{}, err
	}
	supervised := d.opts.Prepared != nil
	if d.status.master == 0 && d.opts.Reload == nil {
		var err error
		if d.status.master, err = d.findMaster(); err != nil {
			return proxyctl.Snapshot{}, err
		}
	}
	if d.status.master == 0 && (d.opts.Reload == nil || supervised) {
		return proxyctl.Snapshot{Down: true}, reason
	}
	return proxyctl.Snapshot{Unmarked: notOurs, Starting: restarts && !supervised}, nil
}

// Plan implements proxyctl.Driver. nginx is reloaded, unless only servers of its Lua balancers differ.
func (d *driver) Plan(to marked, _ *config) plan {
	loaded := d.status.generation.Text == to.Generation.Text
	switch {
	case !d.status.generation.SameShape(to.Generation):
		return plan{Reload: cmp.Or(difference(d.running, to.Config), "the configuration changed")}
	case !to.Config.live:
	case d.opts.ReloadOnly && !loaded:
		return plan{Reload: cmp.Or(difference(d.running, to.Config), balancerServers.String())}
	case loaded && d.servers == "" && d.declined != "": // those in the file are in use
	case d.servers != d.serversOf(to.Config):
		return plan{Ops: []balancerOp{balancerServers}}
	}
	return plan{}
}

// Merge implements proxyctl.Driver. It takes the servers of live upstreams, and with a reload those of all upstreams that have
// only IP addresses: nginx may have refused a name because it does not resolve.
func (d *driver) Merge(base, to *config, keep []string, reload bool) string {
	return merge(base, to, keep, func(old, other *upstream) bool {
		return reload && other.hasOnlyAddresses() || !reload && old.live && other.live
	})
}

// Runs implements proxyctl.Driver. nginx's mark belongs to the configuration that it runs.
func (d *driver) Runs(*config) bool { return false }

// StartsWith implements proxyctl.Driver. An nginx that does not come up may be an older version that does not know everything in
// its file. A text that only leaves something out is then safe.
func (d *driver) StartsWith(to, there *config) bool {
	return time.Since(d.away) > startTime && to.isLessThan(there)
}
