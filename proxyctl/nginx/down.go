package nginx

import (
	"context"
	"errors"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/disk"
)

// unseen deals with an nginx that does not say what it runs: it is down, or it has a configuration that is not berth's.
// v is what could be seen of it.
func (p *Proxy) unseen(ctx context.Context, there marked, v view, reason error, mayReload bool) (proxyctl.Result, error) {
	other := errors.Is(reason, errNotOurs)
	if !gone(reason) && !other || v.stranger {
		return proxyctl.Result{}, reason
	}
	if !other {
		p.removeStale()
	}
	if p.down.IsZero() {
		p.down = time.Now()
	}
	recent := !other && time.Since(p.down) < startTime
	running := p.running
	if there.text == "" || !recent { // it may be another nginx that starts next
		running = ""
	}
	if err := p.setVersion(ctx, running); err != nil {
		return proxyctl.Result{}, err
	}
	last := p.lastGood(there, disk.Generation{})
	if recent && p.opts.Prepared == nil && there.generation.Shape != "" && there.text == last.text {
		return proxyctl.Result{}, p.prepare(ctx, there, last, reason)
	}
	var err error
	if v.master == 0 && p.opts.Reload == nil {
		if v.master, err = p.find(); err != nil {
			return proxyctl.Result{}, err
		}
	}
	if p.opts.Prepared != nil && v.master == 0 { // it is started here, with berth's configuration
		return proxyctl.Result{}, p.prepare(ctx, there, last, reason)
	}
	if v.master != 0 || p.opts.Reload != nil {
		res, err := p.reload(ctx, "nginx does not have berth's configuration yet", last, v, mayReload)
		if !errors.Is(err, proxyctl.ErrUnreachable) || errors.Is(err, errStarting) {
			return res, err
		}
		reason = err
		if there, err = p.onDisk(); err != nil {
			return proxyctl.Result{}, err
		}
		last = p.lastGood(there, disk.Generation{})
	}
	return proxyctl.Result{}, p.prepare(ctx, there, last, reason)
}

// removeStale removes a control socket on which nobody listens.
func (p *Proxy) removeStale() {
	if removeStale(p.opts.Socket) {
		p.opts.Log.Warn("removed the control socket of an nginx that was killed: no nginx starts while it is there", "socket", p.opts.Socket)
	}
}

// prepare puts the text where an nginx that is down will find it when it starts, if that is safe, and returns the reason
// why it is not live yet. last is the last good text, which is another one than that in the file if berth was killed while
// nginx judged that.
//
// Without nginx's program nobody vouches for a text, and it replaces no good one. But an nginx that does not come up may be
// an older one, which does not know all of what is in its file: then a text that only leaves something out is safe.
func (p *Proxy) prepare(ctx context.Context, there, last marked, reason error) error {
	p.follower.Settle()
	// An nginx that is down may be another one than that which took the file: it may know less.
	unproven := p.opts.Binary != "" && !p.vouched
	if there.text != p.want.text || there.text != last.text || unproven {
		if err := p.validate(ctx, p.want.text); err != nil {
			return p.restore(there, last, err)
		}
		p.vouched = true
		if there.text != "" && p.opts.Binary == "" && !(time.Since(p.down) > startTime && p.want.config.isLessThan(there.config)) {
			return p.restore(there, last, reason)
		}
		if there.text != p.want.text {
			if err := p.conf.KeepForeign(last.text); err != nil {
				return err
			}
			if err := p.conf.Write(p.opts.File, p.want.text); err != nil {
				return err
			}
			p.opts.Log.Info("configuration written, nginx will start with it", "file", p.opts.File)
		}
		p.conf.ForgetGood()
	}
	if p.opts.Prepared != nil {
		p.opts.Prepared()
	}
	return reason
}

// restore puts the last good text in place of one that nobody has judged. It returns the reason, or what went wrong.
func (p *Proxy) restore(there, last marked, reason error) error {
	if there.text == last.text {
		return reason
	}
	if err := p.conf.Write(p.opts.File, last.text); err != nil {
		return err
	}
	p.conf.ForgetGood()
	return reason
}
