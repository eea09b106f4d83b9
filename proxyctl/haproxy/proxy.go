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
	"strings"
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
	opts    Options
	master  master
	running string // the text that the serving worker is known to run; "" = not known
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

// Apply implements proxyctl.Proxy by a verified reload. While HAProxy is down, a text replaces the file only if there
// is none, or if it was validated: a bad file would keep HAProxy from starting.
func (p *Proxy) Apply(ctx context.Context, text string) (proxyctl.Result, error) {
	if !strings.HasSuffix(text, "\n") {
		text += "\n" // HAProxy takes a last line without end for a truncated file
	}
	onDisk, err := readFile(p.opts.File)
	if err != nil {
		return proxyctl.Result{}, err
	}
	if text == p.running && text == onDisk {
		return proxyctl.Result{Action: proxyctl.None}, nil
	}
	after := parse(text)
	if len(binds(after)) == 0 {
		return proxyctl.Result{}, fmt.Errorf("%w: it has no frontend or listen section with a bind line, so HAProxy would serve nothing", proxyctl.ErrRefused)
	}
	if err := p.validate(ctx, text); err != nil {
		return proxyctl.Result{}, err
	}
	if _, err := p.master.processes(ctx); err != nil {
		return proxyctl.Result{}, p.prepare(text, onDisk, err)
	}
	before := parse(p.before(onDisk))
	if err := p.tryAddresses(ctx, newAddresses(before, after)); err != nil {
		return proxyctl.Result{}, err
	}
	now, err := p.install(ctx, text, onDisk)
	if err != nil {
		return proxyctl.Result{}, err
	}
	p.running = text
	return proxyctl.Result{Action: proxyctl.Reload, Changes: changes(before, after), OldWorkers: len(now.old)}, nil
}

// before is the best knowledge of what the serving worker runs.
func (p *Proxy) before(onDisk string) string {
	if p.running != "" {
		return p.running
	}
	return onDisk
}

// prepare puts text where a HAProxy that is down will find it when it starts, if that is safe, and returns the
// reason why it is not live yet.
func (p *Proxy) prepare(text, onDisk string, reason error) error {
	p.running = ""
	if text == onDisk || (onDisk != "" && p.opts.Binary == "") {
		return reason
	}
	if err := writeFile(p.opts.File, text); err != nil {
		return err
	}
	p.opts.Log.Info("configuration written, HAProxy will start with it", "file", p.opts.File)
	return reason
}

// install replaces the file and reloads; when that fails the last good file goes back.
func (p *Proxy) install(ctx context.Context, text, onDisk string) (processes, error) {
	if err := writeFile(p.opts.File, text); err != nil {
		return processes{}, err
	}
	now, err := p.master.reload(ctx)
	if err == nil {
		if err := writeFile(p.good(), text); err != nil {
			p.opts.Log.Warn("cannot keep a copy of the good configuration", "err", err)
		}
		return now, nil
	}
	// What was refused is not running; what timed out may be.
	if !errors.Is(err, proxyctl.ErrRefused) {
		p.running = ""
	}
	return now, errors.Join(err, p.restore(onDisk))
}

func (p *Proxy) restore(onDisk string) error {
	last := p.running
	if last == "" {
		if good, err := readFile(p.good()); err == nil && good != "" {
			last = good
		} else {
			last = onDisk
		}
	}
	if last == "" {
		return nil
	}
	return writeFile(p.opts.File, last)
}

// validate has the haproxy program, if there is one, check text as a candidate next to the file that it may replace.
func (p *Proxy) validate(ctx context.Context, text string) error {
	if p.opts.Binary == "" {
		return nil
	}
	candidate := filepath.Join(filepath.Dir(p.opts.File), "."+filepath.Base(p.opts.File)+".candidate")
	if err := os.WriteFile(candidate, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write candidate: %w", err)
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
		return fmt.Errorf("%w by haproxy -c: %s", proxyctl.ErrRefused, alerts(string(out)))
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

func writeFile(path, text string) error {
	if err := renameio.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
