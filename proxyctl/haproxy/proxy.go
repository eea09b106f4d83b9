// Package haproxy brings a running HAProxy to a configuration text through its master socket and its configuration
// file, for HAProxy 2.6 to 3.2 in master-worker mode.
package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"berth/proxyctl"
)

// Options say where the HAProxy is.
type Options struct {
	File    string        // its configuration file; the directory must be writable
	Socket  string        // its master socket (haproxy -S)
	Binary  string        // haproxy program for validating a candidate; "" leaves that to the master
	Timeout time.Duration // of one command, of a validation, and of a reload; 0 = 10 s
	Log     *slog.Logger
}

// Proxy is one HAProxy. It implements proxyctl.Proxy.
type Proxy struct {
	opts   Options
	master master
}

// New returns a Proxy; nothing is read or dialled before Apply.
func New(opts Options) *Proxy {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	return &Proxy{opts: opts, master: master{opts.Socket, opts.Timeout}}
}

// good is where the last text that HAProxy accepted is kept, so that it can go back even after berth was killed
// between installing a text and hearing what HAProxy says to it.
func (p *Proxy) good() string { return p.opts.File + ".good" }

// foreign is where a configuration is kept that berth found and did not write.
func (p *Proxy) foreign() string { return p.opts.File + ".before-berth" }

// Apply implements proxyctl.Proxy by a verified reload. While HAProxy is down, a text replaces the file only if there
// is none, or if it was validated: a bad file would keep HAProxy from starting. Applying the same text again is how to
// find out whether HAProxy still runs it, and to repair it if not.
func (p *Proxy) Apply(ctx context.Context, text string) (proxyctl.Result, error) {
	text = mark(text)
	onDisk, err := readFile(p.opts.File)
	if err != nil {
		return proxyctl.Result{}, err
	}
	running, down := p.master.generation(ctx)
	if down == nil && text == onDisk && running == generation(text) {
		return proxyctl.Result{Action: proxyctl.None}, nil
	}
	after := parse(text)
	if len(binds(after)) == 0 {
		return proxyctl.Result{}, fmt.Errorf("%w: it has no frontend or listen section with a bind line, so HAProxy would serve nothing", proxyctl.ErrRefused)
	}
	if err := p.validate(ctx, text); err != nil {
		return proxyctl.Result{}, err
	}
	if down != nil {
		return proxyctl.Result{}, p.prepare(text, onDisk, down)
	}
	last := p.lastGood(onDisk, running)
	before := parse(last)
	if err := p.tryAddresses(ctx, newAddresses(before, after)); err != nil {
		return proxyctl.Result{}, err
	}
	if err := p.keepForeign(onDisk); err != nil {
		return proxyctl.Result{}, err
	}
	now, err := p.install(ctx, text, last)
	if err != nil {
		return proxyctl.Result{}, err
	}
	return proxyctl.Result{Action: proxyctl.Reload, Changes: changes(before, after), OldWorkers: len(now.old)}, nil
}

// lastGood is what HAProxy runs, as far as files tell: the file itself, or if berth was killed while HAProxy judged it,
// the last one that it accepted.
func (p *Proxy) lastGood(onDisk, running string) string {
	if onDisk != "" && (generation(onDisk) == "" || generation(onDisk) == running) {
		return onDisk // somebody else's, or the one that runs
	}
	if good, err := readFile(p.good()); err == nil && good != "" && (generation(good) == running || onDisk == "") {
		return good
	}
	return onDisk
}

// prepare puts text where a HAProxy that is down will find it when it starts, if that is safe, and returns the
// reason why it is not live yet.
func (p *Proxy) prepare(text, onDisk string, reason error) error {
	if text == onDisk || (onDisk != "" && p.opts.Binary == "") {
		return reason
	}
	if err := p.keepForeign(onDisk); err != nil {
		return err
	}
	if err := p.write(p.opts.File, text); err != nil {
		return err
	}
	p.opts.Log.Info("configuration written, HAProxy will start with it", "file", p.opts.File)
	return reason
}

// install replaces the file and reloads; when that fails the last good text goes back.
func (p *Proxy) install(ctx context.Context, text, last string) (processes, error) {
	if err := p.write(p.opts.File, text); err != nil {
		return processes{}, err
	}
	now, err := p.master.reload(ctx)
	if err == nil {
		err = p.isRead(ctx, text)
	}
	if err == nil {
		if err := p.write(p.good(), text); err != nil {
			p.opts.Log.Warn("cannot keep a copy of the good configuration", "err", err)
		}
		return now, nil
	}
	if last != "" {
		err = errors.Join(err, p.write(p.opts.File, last))
	}
	return now, err
}

// isRead is nil if the new worker runs this text, and not that of another file.
func (p *Proxy) isRead(ctx context.Context, text string) error {
	running, err := p.master.generation(ctx)
	if err != nil {
		return err
	}
	if running != generation(text) {
		return fmt.Errorf("HAProxy reloaded, but not from %s: start it with -f %s, and share the directory, not the single file", p.opts.File, p.opts.File)
	}
	return nil
}

// keepForeign keeps a configuration that berth did not write, the first time it would overwrite one.
func (p *Proxy) keepForeign(onDisk string) error {
	if onDisk == "" || generation(onDisk) != "" {
		return nil
	}
	if _, err := os.Stat(p.foreign()); err == nil {
		return nil
	}
	if err := p.write(p.foreign(), onDisk); err != nil {
		return err
	}
	p.opts.Log.Warn("the configuration that was there is not berth's: it is replaced, and kept in another file", "file", p.opts.File, "kept", p.foreign())
	return nil
}

// validate has the haproxy program, if there is one, check text as a candidate next to the file that it may replace.
func (p *Proxy) validate(ctx context.Context, text string) error {
	if p.opts.Binary == "" {
		return nil
	}
	candidate := filepath.Join(filepath.Dir(p.opts.File), "."+filepath.Base(p.opts.File)+".candidate")
	if err := p.write(candidate, text); err != nil {
		return err
	}
	defer os.Remove(candidate)
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.opts.Binary, "-c", "-f", candidate)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s -c did not finish within %s", p.opts.Binary, p.opts.Timeout)
	case errors.As(err, &exit):
		return fmt.Errorf("%w by haproxy -c (%w): %s", proxyctl.ErrRefused, err, alerts(string(out)))
	default:
		return fmt.Errorf("validate: %w", err)
	}
}

// tryAddresses refuses an address that another program listens on. HAProxy's own check does not see that, and its
// reload then closes all listeners for two seconds before it gives up.
func (p *Proxy) tryAddresses(ctx context.Context, addresses []string) error {
	if len(addresses) == 0 || !p.master.sharesNetwork(ctx) {
		return nil
	}
	for _, addr := range addresses {
		// HAProxy binds with SO_REUSEPORT, too: what conflicts with this socket conflicts with its.
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			})
		}}
		l, err := lc.Listen(ctx, "tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%w: bind %s: another program listens there", proxyctl.ErrRefused, addr)
		}
		if err == nil {
			l.Close()
		}
	}
	return nil
}

// readFile is the file's text, "" when there is none.
func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return string(b), nil
}

// write replaces a file at once. It has the permissions of the configuration file, which may hold secrets.
func (p *Proxy) write(path, text string) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(p.opts.File); err == nil {
		mode = info.Mode().Perm()
	}
	err := renameio.WriteFile(path, []byte(text), mode)
	var at *fs.PathError
	if errors.As(err, &at) { // it names a temporary file
		err = fmt.Errorf("%w: the directory must be writable for user %d", at.Err, os.Getuid())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
