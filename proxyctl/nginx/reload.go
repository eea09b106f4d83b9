package nginx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/disk"
)

// reload brings nginx to p.want by its file. why is the reason if it is known, last what nginx goes on with if it does
// not take it.
func (p *Proxy) reload(ctx context.Context, why string, last marked, v view, mayReload bool) (proxyctl.Result, error) {
	if why == "" && last.config != nil {
		why = difference(last.config, p.want.config)
	}
	res := proxyctl.Result{Reason: why}
	if !mayReload {
		return res, proxyctl.ErrNotYet
	}
	p.settle(ctx, v)
	p.follower.Settle()
	now, err := p.load(ctx, last, v)
	if err != nil {
		return res, err
	}
	if before := last.config; before != nil {
		res.Changes = changes(before, p.want.config)
	}
	res.Action, res.OldWorkers = proxyctl.Reload, p.oldWorkers(now)
	p.has = p.want
	_ = p.setVersion(ctx, now.version) // if the text is not the one for it, that comes next
	if !p.warned && !p.want.config.has("worker_shutdown_timeout") {
		p.warned = true
		p.opts.Log.Warn("the configuration sets no worker_shutdown_timeout: after a reload an old worker stays as long as its longest connection")
	}
	return res, nil
}

// load has nginx load p.want, after the checks that can be made before.
func (p *Proxy) load(ctx context.Context, last marked, v view) (view, error) {
	if err := p.validate(ctx, p.want.text); err != nil {
		return view{}, err
	}
	defer p.announce(ctx, last)()
	if err := p.conf.Replace(last.text, p.want.text); err != nil {
		return view{}, err
	}
	now, err := p.hup(ctx, v, p.want)
	if err == nil && p.want.config.hasLive() {
		p.settle(ctx, now) // an old worker may have no balancer
		if err = p.startBalancer(ctx); err != nil {
			if backErr := p.back(ctx, last, now); backErr != nil {
				err = fmt.Errorf("%w; and the last good configuration cannot be loaded again: %w", err, backErr)
			}
		}
	}
	if err != nil && last.text == "" { // else a restart would meet what nginx has refused
		_ = os.Remove(p.opts.File)
	}
	return now, p.conf.Replaced(last.text, err)
}

// back has nginx load the last good text again.
func (p *Proxy) back(ctx context.Context, last marked, v view) error {
	if last.text == "" {
		return nil
	}
	if err := p.conf.Write(p.opts.File, last.text); err != nil {
		return err
	}
	if last.generation == (disk.Generation{}) {
		return p.tell(ctx, v.master) // what is not berth's does not say whether it is loaded
	}
	now, err := p.hup(ctx, v, last)
	if err != nil || !last.config.hasLive() {
		return err
	}
	p.settle(ctx, now)
	return p.fill(ctx, last.config) // they may have servers of the text that failed
}

// hup has nginx load the file, which has this text, and returns when a worker answers that has. v is what nginx runs.
func (p *Proxy) hup(ctx context.Context, v view, want marked) (view, error) {
	p.log.begin()
	p.before, _ = workers(v.master)
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	err := p.tell(ctx, v.master)
	if err == nil {
		v, err = p.await(ctx, want, v.generation)
	}
	if err != nil {
		p.before = nil // they stay
		return view{}, err
	}
	p.overlaps = time.Now().Add(overlap)
	return v, nil
}

// renewed says whether there are workers of after a reload, as far as they can be seen. It is asked where nginx was told
// to load what it says that it runs.
func (p *Proxy) renewed(now view, began time.Time) bool {
	if now.master == 0 {
		return time.Since(began) > overlap
	}
	serving, _ := workers(now.master)
	return slices.ContainsFunc(serving, func(pid int) bool { return !slices.Contains(p.before, pid) })
}

// tell sends the sign to reload.
func (p *Proxy) tell(ctx context.Context, master int) error {
	switch {
	case p.opts.Reload != nil:
		if err := p.opts.Reload(ctx); err != nil {
			return fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
		}
		return nil
	case master == 0:
		return fmt.Errorf("%w: nginx's master process cannot be seen from here: share its process namespace (pid: service:nginx), or set nginx-reload-container or nginx-reload-command", proxyctl.ErrUnreachable)
	}
	return hangup(master)
}

// lookAgain is the time between two looks at an nginx that reloads.
const lookAgain = 3 * time.Millisecond

// errStarting is the error when an nginx that seemed not to have berth's configuration was just starting with it.
var errStarting = fmt.Errorf("%w: nginx is starting", proxyctl.ErrUnreachable)

// await waits until nginx says that it runs a text, or that it does not. before is what it ran.
func (p *Proxy) await(ctx context.Context, want marked, before disk.Generation) (view, error) {
	began := time.Now()
	unanswered := p.control.unreachable(context.DeadlineExceeded)
	for {
		v, err := p.control.look(ctx)
		switch {
		case err == nil && v.generation == want.generation && (v.generation != before || p.renewed(v, began)):
			return v, nil
		case err == nil && before == (disk.Generation{}) && v.generation != before:
			return view{}, errStarting
		case !errors.Is(err, errSilent): // else its time is over
			unanswered = err
		}
		complaint, final := p.log.refusal()
		if final {
			return view{}, fmt.Errorf("%w by nginx: %s", proxyctl.ErrRefused, complaint)
		}
		select {
		case <-ctx.Done():
			switch {
			case complaint != "":
				return view{}, fmt.Errorf("%w by nginx: %s", proxyctl.ErrRefused, complaint)
			case unanswered != nil:
				return view{}, unanswered
			}
			return view{}, fmt.Errorf("%w: nginx did not load %s within %s: its error log says why, unless it reads another file (start it with -c %s, and share the directory, not the single file)",
				proxyctl.ErrRefused, p.opts.File, p.opts.Timeout, p.opts.File)
		case <-time.After(lookAgain):
		}
	}
}

// overlapping says whether workers of before the last reload may serve still, beside the new ones.
func (p *Proxy) overlapping(v view) bool {
	if v.master == 0 || len(p.before) == 0 { // those of an nginx that had nothing of berth's were not seen
		return time.Now().Before(p.overlaps)
	}
	return p.overlappers(v.master) > 0
}

// overlappers is how many workers of before the last reload serve still.
func (p *Proxy) overlappers(master int) (n int) {
	serving, _ := workers(master)
	for _, pid := range serving {
		if slices.Contains(p.before, pid) {
			n++
		}
	}
	return n
}

// settle waits until workers of before the last reload take no new connections.
func (p *Proxy) settle(ctx context.Context, v view) {
	for begin := time.Now(); p.overlapping(v) && time.Since(begin) < time.Second; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookAgain):
		}
	}
}

// oldWorkers are those that only finish their connections, as far as they can be seen.
func (p *Proxy) oldWorkers(v view) int {
	if v.master == 0 {
		return 0
	}
	_, leaving := workers(v.master)
	return len(leaving) + p.overlappers(v.master)
}

// lastGood is what nginx runs, as far as is known: the file, or if berth was killed while nginx judged that, the one
// before.
func (p *Proxy) lastGood(there marked, running disk.Generation) marked {
	switch {
	case there.text != "" && !isMarked(there.text): // somebody else's
		return there
	case p.has.config != nil && p.has.generation.SameShape(running):
		return p.has
	case running == p.want.generation:
		return p.want
	case there.generation.SameShape(running) || !p.conf.InDoubt():
		return there
	}
	good, err := disk.Read(p.conf.Good())
	if err != nil || good == "" {
		return there
	}
	return unmark(good, p.opts.Socket)
}

// has says whether there is a directive of this name outside of all blocks.
func (c *config) has(name string) bool {
	return slices.ContainsFunc(c.top, func(d *directive) bool { return d.name() == name })
}
