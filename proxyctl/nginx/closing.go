package nginx

import (
	"context"
	"os"
	"strings"
	"time"
)

// On a reload nginx closes the connections that its clients keep, and a request that is under way on such a connection is
// lost. From 1.27.4 on keepalive_min_timeout prevents that. To the clients of an older nginx a file announces the reload:
// while the file is there, a configuration that looks for it (if (-f …)) closes each connection with the next answer. After
// a while hardly any connection is left that the reload may close under a request.

// ClosingFile returns the path of this file for an nginx with a configuration file.
func ClosingFile(file string) string { return absolute(file) + ".closing" }

// announce tells the clients of nginx to come back over new connections, and gives them time to. ended is to be called when
// the reload has succeeded or failed.
func (d *driver) announce(ctx context.Context, running marked) (ended func()) {
	path := ClosingFile(d.opts.File)
	if running.Config == nil || !strings.Contains(running.Text, path) || running.Config.all.has("http", "keepalive_min_timeout") {
		return func() {}
	}
	if d.closing != nil {
		d.closing.Stop()
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		d.opts.Log.Warn("cannot announce a reload to clients", "err", err)
		return func() {}
	}
	if d.opts.ClosingTime > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(d.opts.ClosingTime):
		}
	}
	return func() { d.closing = time.AfterFunc(overlap, func() { _ = os.Remove(path) }) }
}

// forgetClosing removes the file, which a berth that was killed may have left: without a reload nobody has to close
// connections.
func (d *driver) forgetClosing() { _ = os.Remove(ClosingFile(d.opts.File)) }
