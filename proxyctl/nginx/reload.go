package nginx

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// overlap is how long nginx's old workers serve alongside the new ones after a reload: the master waits 100 ms before it tells
// them to stop (ngx_master_process_cycle).
const overlap = 150 * time.Millisecond

// poll is the time between two checks of an nginx that reloads.
const poll = 3 * time.Millisecond

// errStarting is the error for an nginx that seemed not to have berth's configuration but was just starting with it.
var errStarting = fmt.Errorf("%w: nginx is starting", proxyctl.ErrUnreachable)

// Reload implements proxyctl.Driver.
func (d *driver) Reload(ctx context.Context, last, to marked) (proxyctl.Snapshot, error) {
	d.waitForOverlap(ctx)
	if to.Generation == (configfile.Generation{}) { // such a text does not report that it is loaded
		return proxyctl.Snapshot{}, d.signal(ctx)
	}
	defer d.announce(ctx, last)()
	if err := d.reloadAndVerify(ctx, to); err != nil {
		return proxyctl.Snapshot{}, err
	}
	if to.Config.live {
		d.waitForOverlap(ctx) // an old worker may have no balancer
		if err := d.startBalancers(ctx, to.Config); err != nil {
			return proxyctl.Snapshot{}, &proxyctl.LoadedError{Err: err}
		}
	}
	d.runs(to.Config)
	d.down.Store(false)
	_ = d.version.Set(ctx, d.status.version) // if the text is for another version, the right one comes next
	if !d.warned && !to.Config.all.has("worker_shutdown_timeout") {
		d.warned = true
		d.opts.Log.Warn("the nginx configuration sets no worker_shutdown_timeout: after a reload, an old worker stays as long as its longest connection")
	}
	return d.snapshot(), nil
}

// reloadAndVerify has nginx load its file, and returns when a worker answers that has loaded it.
func (d *driver) reloadAndVerify(ctx context.Context, to marked) error {
	d.log.begin()
	d.before, _ = workers(d.status.master)
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	err := d.signal(ctx)
	if err == nil {
		err = d.await(ctx, to.Generation)
	}
	if err != nil {
		d.before = nil // they keep serving
		return err
	}
	d.overlaps = time.Now().Add(overlap)
	return nil
}

// signal tells nginx to load its file.
func (d *driver) signal(ctx context.Context) error {
	switch {
	case d.opts.Reload != nil:
		if err := proxyctl.Tell(ctx, d.opts.Timeout, d.opts.Reload); err != nil {
			return fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
		}
		return nil
	case d.status.master == 0:
		return fmt.Errorf("%w: cannot see nginx's master process: share its process namespace (pid: service:nginx), or set nginx-reload-container or nginx-reload-command", proxyctl.ErrUnreachable)
	}
	return hangup(d.status.master)
}

// await waits until nginx reports that it runs a text, or that it refused it.
func (d *driver) await(ctx context.Context, want configfile.Generation) error {
	began, before := time.Now(), d.status.generation
	unanswered := d.control.unreachable(context.DeadlineExceeded)
	for {
		s, err := d.control.status(ctx)
		switch {
		case err == nil && s.generation == want && (want != before || d.isRenewed(s, began)):
			d.status = s
			return nil
		case err == nil && before == (configfile.Generation{}) && s.generation != before:
			return errStarting
		case !errors.Is(err, errSilent): // otherwise its time is over
			unanswered = err
		}
		complaint, final := d.log.refusal()
		if final {
			return refusal(complaint)
		}
		select {
		case <-ctx.Done():
			switch {
			case complaint != "":
				return refusal(complaint)
			case unanswered != nil:
				return unanswered
			}
			return fmt.Errorf("%w: nginx did not load %s within %s: see its error log; if it reads another file, start it with -c %s and share the directory, not the single file",
				proxyctl.ErrRefused, d.opts.File, d.opts.Timeout, d.opts.File)
		case <-time.After(poll):
		}
	}
}

var refusedPort = regexp.MustCompile(`^bind\(\) to (\S+:([0-9]+)) failed \([0-9]+: (.*)\)$`)

// refusal returns the error for a text that nginx refused with this complaint.
func refusal(complaint string) error {
	err := fmt.Errorf("%w by nginx: %s", proxyctl.ErrRefused, complaint)
	m := refusedPort.FindStringSubmatch(complaint)
	if m == nil {
		return err
	}
	port, _ := strconv.Atoi(m[2])
	return tagged{err, &proxyctl.PortError{Port: port, Address: m[1], Reason: m[3]}}
}

// isRenewed reports whether nginx has started workers since a reload began, as far as they are visible. If nginx was told to load
// the text that it already runs, its generation does not tell.
func (d *driver) isRenewed(now status, began time.Time) bool {
	if now.master == 0 {
		return time.Since(began) > overlap
	}
	serving, _ := workers(now.master)
	return slices.ContainsFunc(serving, func(pid int) bool { return !slices.Contains(d.before, pid) })
}

// waitForOverlap waits until the workers from before the last reload accept no new connections.
func (d *driver) waitForOverlap(ctx context.Context) {
	for end := time.Now().Add(time.Second); d.overlapping() && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
	}
}

// overlapping reports whether workers from before the last reload still serve.
func (d *driver) overlapping() bool {
	if d.status.master == 0 || len(d.before) == 0 { // the workers of an nginx without berth's configuration were not seen
		return time.Now().Before(d.overlaps)
	}
	serve, _ := d.oldWorkers()
	return serve > 0
}

// oldWorkers counts the workers from before the last reload that still serve, and the workers that only finish their connections,
// as far as they are visible.
func (d *driver) oldWorkers() (serve, finish int) {
	if d.status.master == 0 {
		return 0, 0
	}
	serving, leaving := workers(d.status.master)
	for _, pid := range serving {
		if slices.Contains(d.before, pid) {
			serve++
		}
	}
	return serve, len(leaving)
}
