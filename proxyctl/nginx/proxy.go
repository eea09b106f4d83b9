// Package nginx brings a running nginx to a configuration text: by its file and a reload, and where the text has Lua
// balancers, by telling these their servers. It is for open-source nginx from 1.22 on.
package nginx

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/disk"
)

// Options say where the nginx is.
type Options struct {
	File    string        // its configuration file; the directory must be writable
	Socket  string        // control socket that nginx listens on; its directory is for nginx and berth alone
	Binary  string        // nginx program for validating a candidate; "" leaves that to the running nginx
	Timeout time.Duration // of one exchange, of a validation, and of a reload; 0 = 10 s
	Log     *slog.Logger

	// ClosingTime is how long before a reload the clients of an nginx before 1.27.4 are told to come back over new
	// connections, where the configuration can do that (see closing.go). Without it, the 100 ms in which old workers go on
	// after a reload are the time for that.
	ClosingTime time.Duration

	// Reload tells nginx to load its file anew. nil sends SIGHUP to its master process, which must be one that can be
	// seen from here.
	Reload func(context.Context) error
	// ReloadOnly leaves Lua balancers alone: their servers are those in the file.
	ReloadOnly bool
	// Version, if not nil, is called with the version of nginx when that becomes known, changes, or, as "", is not known any
	// more. It says whether another text is rendered for it.
	Version func(version string) (rendered bool)
	// Prepared, if not nil, is called when nginx is down and a good configuration is in place for its start.
	Prepared func()
}

// Proxy is one nginx. It implements proxyctl.Proxy.
type Proxy struct {
	opts     Options
	control  control
	log      errorLog
	conf     *disk.File
	follower *disk.Follower

	asked  string // text of the last Apply
	want   marked // the text with its mark
	has    marked // what nginx was brought to last
	judged bool   // nginx, or a check before it, has said yes or no to the text

	running string      // the version of the nginx that runs, or ran until just now; "" if it is not known
	version string      // the one that was reported
	program programFile // whose version binary is
	binary  string
	stale   string    // a text that was rendered for another version
	another time.Time // until then a text for this one may come

	before   []int       // workers that served until the last reload
	closing  *time.Timer // ends an announcement of a reload
	overlaps time.Time   // until then they may serve still, if they cannot be seen
	down     time.Time   // since when nginx does not say what it runs; zero if it does
	vouched  bool        // nginx -t has taken the file since then
	warned   bool        // that there is no worker_shutdown_timeout
	declined string      // what the Lua balancer said when it last took no servers
	find     func() (master int, err error)
}

// overlap is how long nginx's old workers serve beside the new ones after a reload: its master waits 100 ms before it
// tells them to stop (ngx_master_process_cycle).
const overlap = 150 * time.Millisecond

// startTime is how long an nginx that has berth's file, as far as is known, may be down before it is told to load it: it
// may never have.
const startTime = 10 * time.Second

// New returns a Proxy; nothing is read or dialled before Apply.
func New(opts Options) *Proxy {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	opts.Socket = absolute(opts.Socket)
	p := &Proxy{
		opts:    opts,
		control: control{opts.Socket, opts.Timeout},
		log:     errorLog{path: filepath.Join(filepath.Dir(opts.Socket), "error.log")},
		conf:    &disk.File{Path: opts.File, Marked: isMarked, Log: opts.Log},
		find:    findMaster,
	}
	if opts.Prepared != nil {
		p.find = childMaster
	}
	p.follower = &disk.Follower{Proxy: "nginx", Write: p.follow}
	return p
}

// errNothing refuses a text that nginx would take, and serve nothing.
var errNothing = fmt.Errorf("%w: it has no server block, so nginx would serve nothing", proxyctl.ErrRefused)

// Apply implements proxyctl.Proxy: by its Lua balancers where only their servers differ, else by a verified reload. The
// same text again is a look at what nginx runs, and a repair of what differs. While nginx is down, a text replaces the
// file only if there is none, or if it was validated: a bad file would keep nginx from starting.
func (p *Proxy) Apply(ctx context.Context, c proxyctl.Config, mayReload bool) (proxyctl.Result, error) {
	again := c.Text == p.asked && p.want.config != nil
	p.judged = false
	if p.asked == "" {
		p.forgetClosing()
	}
	if !again {
		if err := p.ask(c.Text); err != nil {
			p.judged = true
			return proxyctl.Result{}, err
		}
	}
	if err := p.conf.Place(c.Files, again); err != nil {
		return proxyctl.Result{}, err
	}
	// nginx makes the control socket for everybody: its directory is what keeps others away.
	if err := os.MkdirAll(filepath.Dir(p.opts.Socket), 0o750); err != nil {
		return proxyctl.Result{}, fmt.Errorf("nginx's control socket: %w", err)
	}
	res, err := p.apply(ctx, mayReload)
	p.judged = err == nil || errors.Is(err, proxyctl.ErrRefused)
	return res, err
}

// ask makes a text the one that is wanted.
func (p *Proxy) ask(text string) error {
	p.asked, p.want = text, marked{}
	m, err := mark(text, p.opts.Socket)
	switch {
	case err != nil:
		return err
	case !m.config.serves:
		return errNothing
	}
	p.want = m
	return nil
}

func (p *Proxy) apply(ctx context.Context, mayReload bool) (proxyctl.Result, error) {
	v, down := p.look(ctx)
	if down == nil {
		p.down, p.vouched = time.Time{}, false
		if err := p.setVersion(ctx, v.version); err != nil {
			return proxyctl.Result{}, err
		}
	}
	there, err := p.onDisk()
	switch {
	case err != nil:
		return proxyctl.Result{}, err
	case down != nil:
		return p.unseen(ctx, there, v, down, mayReload)
	}
	why := ""
	switch {
	case there.text == "":
		why = "the configuration file was removed"
	case there.generation.Shape == "": // nginx may have loaded it, and its mark says nothing then
		why = "the configuration file is not as berth wrote it"
	case v.generation.SameShape(p.want.generation):
		var res proxyctl.Result
		res, why, err = p.change(ctx, there, v)
		if err != nil {
			return res, err
		}
		if why == "" {
			if there.text != p.want.text {
				err = p.follower.Problem(p.want.generation)
				p.follower.Put(ctx, p.want.text, p.want.generation)
			}
			return res, err
		}
	case !v.generation.SameShape(there.generation):
		why = "nginx runs another configuration than its file"
	}
	return p.reload(ctx, why, p.lastGood(there, v.generation), v, mayReload)
}

// look asks what nginx runs. A worker of before the last reload does not count while it goes.
func (p *Proxy) look(ctx context.Context) (view, error) {
	v, err := p.control.look(ctx)
	if err != nil || v.generation == p.has.generation {
		return v, err
	}
	p.settle(ctx, v)
	return p.control.look(ctx)
}

// Close returns when the configuration file is in step with what nginx runs.
func (p *Proxy) Close() {
	p.follower.Settle()
	p.forgetClosing()
}

// Tend removes files that no configuration refers to any more, and the control socket of an nginx that was killed, which
// would keep it from starting.
func (p *Proxy) Tend(context.Context) time.Duration {
	if p.judged && p.conf.Littered() {
		p.follower.Settle()
		p.conf.Sweep(p.want.text, p.has.text)
	}
	if p.down.IsZero() {
		return 0
	}
	p.removeStale()
	return staleAfter / 2
}

// onDisk is the configuration file. Most of the time it is the text that is wanted.
func (p *Proxy) onDisk() (marked, error) {
	text, err := disk.Read(p.opts.File)
	if err != nil || text == p.want.text {
		return p.want, err
	}
	return unmark(text, p.opts.Socket), nil
}

// validate has the nginx program, if there is one, check text as a candidate next to the file that it may replace.
func (p *Proxy) validate(ctx context.Context, text string) error {
	if p.opts.Binary == "" {
		return nil
	}
	return p.conf.Validate(ctx, p.opts.Timeout, p.opts.Binary+" -t", text, func(ctx context.Context, file string) error {
		return check(ctx, p.opts.Binary, file)
	})
}

// follow writes the file for servers that nginx's balancers have already, unless its program refuses it.
func (p *Proxy) follow(ctx context.Context, text string) error {
	if err := p.validate(ctx, text); err != nil {
		return err
	}
	p.conf.ForgetGood() // of an earlier berth that was killed; nginx has taken the file since
	return p.conf.Write(p.opts.File, text)
}
