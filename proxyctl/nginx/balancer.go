package nginx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/proxyctl"
)

// balancerOp is the only change at run time: other servers for the Lua balancers.
type balancerOp string

func (o balancerOp) String() string { return string(o) }

const balancerServers balancerOp = "servers of the Lua balancer"

// tagged is an error that also counts as another one, without its words.
type tagged struct {
	error
	as error
}

func (e tagged) Unwrap() []error { return []error{e.error, e.as} }

// serversOf returns the servers for the Lua balancers of a configuration. Without any, they use those in the file.
func (d *driver) serversOf(c *config) string {
	if d.opts.ReloadOnly {
		return ""
	}
	return c.liveServers()
}

// Run implements proxyctl.Driver. It gives the Lua balancers the servers of a text that otherwise equals what nginx has loaded.
func (d *driver) Run(ctx context.Context, to marked, _ plan) error {
	if to.Config.live && d.servers != d.serversOf(to.Config) {
		err := d.serversErr
		if err == nil {
			err = d.control.setServers(ctx, d.serversOf(to.Config))
		}
		switch {
		case err == nil:
			d.declined = ""
		case errors.Is(err, proxyctl.ErrUnreachable):
			return err
		case d.status.generation.Text != to.Generation.Text:
			return tagged{fmt.Errorf("the Lua balancer refuses its servers: %w", err), proxyctl.ErrUnexpected}
		default: // a reload would not help: the file has the right servers
			if err := d.flush(ctx, err); err != nil {
				return err
			}
		}
	}
	d.runs(to.Config)
	return nil
}

// flush empties the Lua balancers, which refused other servers for reason. They then use the servers in the file.
func (d *driver) flush(ctx context.Context, reason error) error {
	if err := d.control.setServers(ctx, ""); err != nil {
		return fmt.Errorf("nginx's Lua balancer refuses its servers: %w", reason)
	}
	if reason.Error() != d.declined {
		d.declined = reason.Error()
		d.opts.Log.Warn("nginx's Lua balancer refused its servers: it uses those in the file, and changing them takes a reload", "err", reason)
	}
	return nil
}

// startBalancers checks that the Lua balancers of a configuration that was just loaded work, and gives them their servers.
// Balancers that refuse them use the servers in the file.
func (d *driver) startBalancers(ctx context.Context, c *config) error {
	if err := d.control.checkBalancer(ctx); err != nil {
		return fmt.Errorf("%w: its Lua balancer does not work: %w; see nginx's error log", proxyctl.ErrRefused, err)
	}
	err := d.control.setServers(ctx, d.serversOf(c))
	if err == nil || errors.Is(err, proxyctl.ErrUnreachable) {
		return err
	}
	if err = d.flush(ctx, err); err != nil {
		return fmt.Errorf("%w: %w", proxyctl.ErrRefused, err)
	}
	return nil
}

// In an nginx with Lua balancers, requests may wait because a server may refuse connections. They do wait if there is no server.
const (
	mayWait = 1 + iota
	doWait
)

// runs records what nginx runs.
func (d *driver) runs(c *config) {
	d.running = c
	waits := int32(0)
	for _, u := range c.upstreams {
		switch {
		case u.live && (len(u.servers) == 0 || u.isPaused()):
			waits = doWait
		case u.live:
			waits = max(waits, mayWait)
		}
	}
	d.waits.Store(waits)
}

// How often waiting requests are counted: while there are or seem to be any, and while there are none.
const (
	oftenWaiting  = 250 * time.Millisecond
	seldomWaiting = 2 * time.Second
)

// tellWaiting reports waiting requests. It returns when to do so again, 0 if none can wait.
func (d *driver) tellWaiting(ctx context.Context) time.Duration {
	waits := d.waits.Load()
	if waits == 0 || d.opts.Waiting == nil {
		return 0
	}
	counts, err := d.control.waiting(ctx)
	if err != nil {
		return seldomWaiting // the next Apply reports the problem
	}
	d.opts.Waiting.Observe(counts)
	for _, c := range counts {
		if c.Now > 0 {
			waits = doWait
		}
	}
	if waits == doWait {
		return oftenWaiting
	}
	return seldomWaiting
}
