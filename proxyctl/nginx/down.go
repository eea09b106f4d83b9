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
	last := p.lastGood(there, disk.Generation{})
	if !other && p.opts.Prepared == nil && there.generation.Shape != "" && there.text == last.text && time.Since(p.down) < startTime {
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
		res, err := p.adopt(ctx, last, v, mayReload)
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

// adopt has an nginx that does not have berth's configuration load it. Such an nginx does not tell berth why it refuses
// one. So it gets the text without what is optional, and then, as one that does tell, with it.
func (p *Proxy) adopt(ctx context.Context, last marked, v view, mayReload bool) (proxyctl.Result, error) {
	const why = "nginx does not have berth's configuration yet"
	known := p.unknown
	p.unknown = p.optional()
	more := len(p.unknown) > 0
	if err := p.ask(p.asked); err != nil {
		return proxyctl.Result{}, err
	}
	res, err := p.reload(ctx, why, last, v, mayReload)
	p.unknown = known
	if askErr := p.ask(p.asked); askErr != nil && err == nil {
		err = askErr
	}
	if err != nil || !more {
		return res, err
	}
	if v, err = p.look(ctx); err != nil {
		return res, err
	}
	p.version = v.version
	full, err := p.reload(ctx, why, p.has, v, mayReload)
	if err != nil || full.Action == proxyctl.None {
		return res, err
	}
	full.Changes = res.Changes
	return full, nil
}

// prepare puts the text where an nginx that is down will find it when it starts, if that is safe, and returns the reason
// why it is not live yet. last is the last good text, which is another one than that in the file if berth was killed while
// nginx judged that.
func (p *Proxy) prepare(ctx context.Context, there, last marked, reason error) error {
	p.follower.Settle()
	want := p.want.text
	if p.opts.Binary == "" { // nobody says what this nginx does not know
		want = p.plain().text
	}
	// An nginx that is down may be another one than that which took the file: it may know less.
	unproven := there.text == p.want.text && (p.opts.Binary != "" && !p.vouched || p.opts.Binary == "" && time.Since(p.down) > startTime)
	if there.text != want && there.text != p.want.text || there.text != last.text || unproven {
		if err := p.validateOptional(ctx); err != nil {
			return p.restore(there, last, err)
		}
		p.vouched = true
		if there.text != "" && p.opts.Binary == "" && !unproven {
			return p.restore(there, last, reason)
		}
		if p.opts.Binary != "" {
			want = p.want.text // as validated
		}
		if there.text != want {
			if err := p.conf.KeepForeign(last.text); err != nil {
				return err
			}
			if err := p.conf.Write(p.opts.File, want); err != nil {
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

// plain is p.want without what is optional.
func (p *Proxy) plain() marked {
	if m, err := mark(p.asked, p.opts.Socket, p.optional()); err == nil {
		return m
	}
	return p.want
}

// optional are the directives that the text can do without.
func (p *Proxy) optional() map[string]bool {
	names := map[string]bool{}
	top, _ := parseText(p.asked) // which ask could
	for _, name := range optionals(p.asked, top) {
		names[name] = true
	}
	return names
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

// validateOptional is validate, without what nginx does not know and the text can do without.
func (p *Proxy) validateOptional(ctx context.Context) error {
	err := p.validate(ctx, p.want.text)
	for p.learns(err) {
		err = p.validate(ctx, p.want.text)
	}
	return err
}
