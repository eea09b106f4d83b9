package nginx

import (
	"context"
	"os"
	"strings"
	"time"
)

// On a reload, nginx closes its clients' keep-alive connections, and a request under way on one is lost. From 1.27.4
// on, keepalive_min_timeout prevents that. For an older nginx, a file announces the reload to its clients: while the file exists,
// a configuration that checks for it (if (-f …)) closes each connection with the next answer. After a while, hardly any
// connection is left that the reload could close under a request.

// ClosingFile returns the path of this file for an nginx with this configuration file.
func ClosingFile(file string) string { return absolute(file) + ".closing" }

// announce tells nginx's clients to reconnect, and gives them time to do so. ended must be called when the reload has succeeded
// or failed.
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

// forgetClosing removes the file, which a killed berth may have left. Without a reload, no client needs to close connections.
func (d *driver) forgetClosing() { _ = os.Remove(ClosingFile(d.opts.File)) }
