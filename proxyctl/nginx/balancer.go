package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"berth/proxyctl"
)

// change gives the Lua balancers the servers of p.want, which are all in which it differs from what nginx has loaded. The
// string says why that could not be done: then a reload has to do it.
func (p *Proxy) change(ctx context.Context, there marked, v view) (proxyctl.Result, string, error) {
	res := proxyctl.Result{Action: proxyctl.None, OldWorkers: p.oldWorkers(v)}
	if p.want.config.hasLive() {
		before := p.has.config
		if before == nil {
			before = there.config
		}
		loaded := v.generation.Text == p.want.generation.Text
		if p.opts.ReloadOnly && !loaded {
			return res, cmp.Or(difference(before, p.want.config), "servers of the Lua balancer"), nil
		}
		changed, err := p.bring(ctx)
		switch {
		case errors.Is(err, proxyctl.ErrUnreachable):
			return res, "", err
		case err != nil && !loaded:
			return res, "the Lua balancer does not take servers: " + err.Error(), nil
		case err != nil: // a reload would not help: the right servers are those in the file
			if changed, err = p.flush(ctx, err); err != nil {
				return res, "", err
			}
		default:
			p.declined = ""
		}
		if changed {
			res.Action, res.Reason = proxyctl.Runtime, "servers of the Lua balancer"
			res.Changes = changes(before, p.want.config)
		}
	}
	p.has = p.want
	return res, "", nil
}

// servers are what the Lua balancers of a configuration are to have. Without any, those in the file count.
func (p *Proxy) servers(c *config) string {
	if p.opts.ReloadOnly {
		return ""
	}
	return c.servers()
}

// bring gives the Lua balancers the servers of p.want, and says whether they had others.
func (p *Proxy) bring(ctx context.Context) (changed bool, err error) {
	want := p.servers(p.want.config)
	has, err := p.control.servers(ctx)
	if err != nil || has == want {
		return false, err
	}
	return true, p.control.setServers(ctx, want)
}

// flush takes from the Lua balancers, which did not take servers for the reason given, those that they have, so that the
// file's serve. It says whether they had any.
func (p *Proxy) flush(ctx context.Context, reason error) (changed bool, err error) {
	if has, err := p.control.servers(ctx); err != nil || has != "" {
		changed = true
		if err := p.control.setServers(ctx, ""); err != nil {
			return false, fmt.Errorf("nginx's Lua balancer does not take servers: %w", reason)
		}
	}
	if reason.Error() != p.declined {
		p.declined = reason.Error()
		p.opts.Log.Warn("nginx's Lua balancer does not take servers: those in its file serve, and a change of them is a reload", "err", reason)
	}
	return changed, nil
}

// startBalancer sees that the Lua balancers of a configuration that was just loaded run, and gives them their servers.
func (p *Proxy) startBalancer(ctx context.Context) error {
	if err := p.control.checkBalancer(ctx); err != nil {
		return fmt.Errorf("%w: its Lua balancer does not work: %w; nginx's error log says more", proxyctl.ErrRefused, err)
	}
	return p.fill(ctx, p.want.config)
}

// fill gives the Lua balancers the servers of the configuration that nginx has loaded, or leaves it to those in its file.
func (p *Proxy) fill(ctx context.Context, c *config) error {
	err := p.control.setServers(ctx, p.servers(c))
	if err == nil || errors.Is(err, proxyctl.ErrUnreachable) {
		return err
	}
	if _, err = p.flush(ctx, err); err != nil {
		return fmt.Errorf("%w: %w", proxyctl.ErrRefused, err)
	}
	return nil
}
