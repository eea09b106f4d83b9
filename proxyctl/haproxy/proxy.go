// Package haproxy brings a running HAProxy to a configuration text through its master socket and its configuration
// file, for HAProxy 2.6 to 3.2 in master-worker mode.
package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/proxyctl"
	"berth/proxyctl/disk"
)

// Options say where the HAProxy is.
type Options struct {
	File          string        // its configuration file; the directory must be writable
	Socket        string        // its master socket (haproxy -S); "" if there is none, and then Reload must be set
	Binary        string        // haproxy program for validating a candidate; "" leaves that to the master
	Timeout       time.Duration // of one command, of a validation, and of a reload; 0 = 10 s
	DrainTimeout  time.Duration // for requests in flight on a server that was removed; 0 = 5 min
	TunnelTimeout time.Duration // for tunnels (TCP, websockets) on a server that was removed; 0 = 1 h
	ReloadOnly    bool          // never change servers at run time
	Log           *slog.Logger

	// Reload tells HAProxy to load its file anew; nil does so over the socket. With a socket the result is read back,
	// without one an error of Reload is all that tells of a failure.
	Reload func(context.Context) error
	// Prepared, if not nil, is called when HAProxy is down and a good configuration is in place for its start.
	Prepared func()
}

// Proxy is one HAProxy. It implements proxyctl.Proxy.
type Proxy struct {
	opts     Options
	master   master
	conf     *disk.File
	follower *disk.Follower
	warned   bool // that no hard-stop-after is set

	asked  string // text of the last Apply
	want   marked // the same with its mark
	judged bool   // HAProxy, or a check before it, has said yes or no to the text

	now     *config                // what HAProxy has, with the servers that are leaving; nil if that must be read first
	has     marked                 // the text of which now is
	loaded  disk.Generation        // what its worker has loaded
	leaving map[serverName]*leaver // those in now
	lastID  map[string]int         // highest id of a server ever seen, by backend: a new one is never taken for an old one
	odd     map[string]bool        // backends of which HAProxy showed other servers than it had just loaded
	midway  bool                   // commands of a change were carried out, but not all
	refused map[string]string      // what HAProxy said when it did not add a server, by what it means; of the shape that is loaded
}

// New returns a Proxy; nothing is read or dialled before Apply.
func New(opts Options) *Proxy {
	for at, d := range map[*time.Duration]time.Duration{&opts.Timeout: 10 * time.Second, &opts.DrainTimeout: 5 * time.Minute, &opts.TunnelTimeout: time.Hour} {
		if *at == 0 {
			*at = d
		}
	}
	p := &Proxy{opts: opts, master: master{opts.Socket, opts.Timeout}, lastID: map[string]int{}, refused: map[string]string{}}
	p.conf = &disk.File{Path: opts.File, Marked: isMarked, Log: opts.Log}
	p.follower = &disk.Follower{Proxy: "HAProxy", Write: p.follow}
	return p
}

// Apply implements proxyctl.Proxy: by commands where only servers differ, else by a verified reload. The same text
// again is a look at everything, and a repair of what differs. While HAProxy is down, a text replaces the file only if
// there is none, or if it was validated: a bad file would keep HAProxy from starting.
func (p *Proxy) Apply(ctx context.Context, c proxyctl.Config, mayReload bool) (proxyctl.Result, error) {
	again := c.Text == p.asked && p.want.config != nil
	if !again {
		p.asked, p.want = c.Text, mark(c.Text, p.want.config)
	}
	p.judged = false
	if err := p.conf.Place(c.Files, again); err != nil {
		return proxyctl.Result{}, err
	}
	res, err := p.apply(ctx, again, mayReload)
	p.judged = err == nil || errors.Is(err, proxyctl.ErrRefused)
	return res, err
}

// apply brings HAProxy to p.want. again says that the Apply before was for the same text.
func (p *Proxy) apply(ctx context.Context, again, mayReload bool) (proxyctl.Result, error) {
	if p.opts.Socket == "" {
		return p.applyUnseen(ctx, mayReload)
	}
	why := ""
	if p.now != nil && !again {
		var (
			res proxyctl.Result
			err error
		)
		if res, why, err = p.change(ctx); why == "" {
			if err == nil {
				p.follower.Put(ctx, p.want.text, p.want.generation)
			}
			return res, err
		}
	}
	return p.lookAndApply(ctx, why, mayReload)
}

// Close returns when the configuration file is in step with what HAProxy runs.
func (p *Proxy) Close() { p.follower.Settle() }

// lookAndApply reads what HAProxy runs, and brings it from there to p.want. why is what speaks for a reload already.
func (p *Proxy) lookAndApply(ctx context.Context, why string, mayReload bool) (proxyctl.Result, error) {
	there, err := p.onDisk()
	if err != nil {
		return proxyctl.Result{}, err
	}
	v, down := p.master.look(ctx)
	if down != nil {
		p.now = nil
		return proxyctl.Result{}, p.prepare(ctx, down)
	}
	switch {
	case why != "":
	case there.generation.Shape == "":
		why = "the configuration file is not as berth wrote it"
	case !v.generation.SameShape(there.generation):
		why = "HAProxy runs another configuration than its file"
	case v.generation != there.generation && p.conf.InDoubt():
		why = "an earlier reload was cut short"
	default:
		if p.now == nil || !p.has.generation.SameShape(v.generation) {
			p.now, p.has = there.config, there
		}
		p.loaded = v.generation
		p.see(p.now.as(v.state, p.shown(p.now)), v.state)
		var res proxyctl.Result
		if res, why, err = p.change(ctx); why == "" {
			res.OldWorkers = len(v.old)
			if err == nil && there.text != p.want.text {
				err = p.follower.Problem(p.want.generation)
				p.follower.Put(ctx, p.want.text, p.want.generation)
			}
			return res, err
		}
	}
	return p.reload(ctx, why, v.generation, mayReload)
}

// onDisk is the configuration file. Most of the time it is the text that is wanted.
func (p *Proxy) onDisk() (marked, error) {
	text, err := disk.Read(p.opts.File)
	if err != nil || text == p.want.text {
		return p.want, err
	}
	return unmark(text, p.want.config), nil
}

// change brings HAProxy from p.now to p.want by commands. If that cannot be done, the string says why: then a reload
// has to do it.
func (p *Proxy) change(ctx context.Context) (proxyctl.Result, string, error) {
	todo := compare(p.now, p.want.config)
	if todo.reload == "" {
		todo.reload = p.unfit(todo.ops)
	}
	switch {
	case todo.reload != "":
		return proxyctl.Result{}, todo.reload, nil
	case len(todo.ops) == 0:
		p.arrived(p.want.config.with(p.now))
		return proxyctl.Result{Action: proxyctl.None, Leaving: len(p.leaving)}, "", nil
	}
	before := p.now
	p.midway = true
	seen, err := p.carryOut(ctx, todo.ops)
	switch {
	case errors.Is(err, errUnexpected):
		p.now = nil
		var no *refusal
		if errors.As(err, &no) && no.key(p.want.config) != "" {
			p.refused[no.key(p.want.config)] = err.Error()
		}
		return proxyctl.Result{}, err.Error(), nil
	case err != nil:
		p.now = nil
		return proxyctl.Result{}, "", err
	}
	res := proxyctl.Result{Action: proxyctl.Runtime, Changes: changes(before, p.want.config), Reason: todo.String()}
	p.arrived(seen)
	res.Leaving = len(p.leaving)
	return res, "", nil
}

// carryOut sends the commands for ops, and returns what HAProxy has then, which is what is wanted.
func (p *Proxy) carryOut(ctx context.Context, ops []op) (*config, error) {
	st, err := p.master.exchange(ctx, ops, p.nextID, p.loaded.Shape)
	if err != nil {
		return nil, err
	}
	var backends []string
	for _, o := range ops {
		backends = append(backends, o.backend)
	}
	p.see(p.want.config.with(p.now).as(st, backends), st)
	if rest := compareServers(p.now, p.want.config); rest.reload != "" || len(rest.ops) > 0 {
		return nil, fmt.Errorf("%w: HAProxy took all commands, and yet there remains: %s", errUnexpected, rest)
	}
	return p.now, nil
}

// see takes over what was read of HAProxy's servers.
func (p *Proxy) see(now *config, st state) {
	p.now = now
	for backend, list := range st {
		for _, l := range list {
			p.lastID[backend] = max(p.lastID[backend], l.id)
		}
	}
}

func (p *Proxy) nextID(backend string) int {
	p.lastID[backend]++
	return p.lastID[backend]
}

// arrived notes that HAProxy runs p.want, and has these servers.
func (p *Proxy) arrived(now *config) {
	p.now, p.has, p.midway = now, p.want, false
	p.noteLeavers()
}

// So much at once is done sooner by one reload: HAProxy takes one to two milliseconds for each server that comes or goes,
// and goes through a backend's servers for each that is added to it.
const (
	mostAdded   = 250
	mostRemoved = 500
	mostWork    = 400_000 // servers added times servers in their backends
)

// unfit says why ops are not for the running HAProxy, "" if they are.
func (p *Proxy) unfit(ops []op) string {
	if p.opts.ReloadOnly && len(ops) > 0 {
		return ops[0].String()
	}
	work, added, removed := 0, 0, 0
	for _, o := range ops {
		if p.odd[o.backend] {
			return fmt.Sprintf("HAProxy shows other servers in backend %s than it has loaded", o.backend)
		}
		if o.kind == opRemove {
			removed++
		}
		if o.kind != opAdd {
			continue
		}
		if why := cmp.Or(p.refused[o.backend], p.refused[refusalKey(o.backend, o.server)]); why != "" {
			return "earlier: " + why
		}
		if p.want.config.dynamicCookies(o.backend) {
			return fmt.Sprintf("backend %s: not every HAProxy gives a cookie to a server at run time", o.backend)
		}
		added++
		work += p.want.config.backends[o.backend].count()
	}
	if added > mostAdded || removed > mostRemoved || work > mostWork {
		return fmt.Sprintf("%d servers added and %d removed at once are sooner loaded", added, removed)
	}
	return ""
}

// reload brings HAProxy to p.want by its file. why is the reason, running what its worker has loaded.
func (p *Proxy) reload(ctx context.Context, why string, running disk.Generation, mayReload bool) (proxyctl.Result, error) {
	res := proxyctl.Result{Reason: why}
	if !mayReload {
		return res, proxyctl.ErrNotYet
	}
	p.follower.Settle()
	last, err := p.lastGood(running)
	if err != nil {
		return res, err
	}
	before := last.config
	if p.now != nil {
		before = p.now
	}
	p.now = nil
	now, err := p.load(ctx, last)
	if err != nil {
		p.undo(ctx, last)
		return res, err
	}
	if !running.SameShape(p.want.generation) {
		clear(p.refused)
	}
	if p.warned = p.warned || p.want.config.global("hard-stop-after"); !p.warned {
		p.warned = true
		p.opts.Log.Warn("the configuration sets no hard-stop-after: after a reload an old worker stays as long as its longest connection")
	}
	res.Action, res.Changes, res.OldWorkers = proxyctl.Reload, changes(before, p.want.config), len(now.old)
	p.reconcile(ctx)
	return res, nil
}

// load has HAProxy load p.want, after all checks that can be made before.
func (p *Proxy) load(ctx context.Context, last marked) (processes, error) {
	if len(p.want.config.binds()) == 0 {
		return processes{}, errNoListener
	}
	if err := p.validate(ctx, p.want.text); err != nil {
		return processes{}, err
	}
	if err := p.tryAddresses(ctx, newAddresses(last.config, p.want.config)); err != nil {
		return processes{}, err
	}
	return p.install(ctx, last.text)
}

// undo brings HAProxy's servers back to those of a text, when a change went half the way and then nothing went any more.
func (p *Proxy) undo(ctx context.Context, to marked) {
	if !p.midway {
		return
	}
	v, err := p.master.look(ctx)
	if err != nil || !v.generation.SameShape(to.generation) {
		return
	}
	now := to.config.as(v.state, p.shown(to.config))
	_, err = p.master.exchange(ctx, compareServers(now, to.config).ops, p.nextID, v.generation.Shape)
	if err != nil {
		p.opts.Log.Warn("HAProxy's servers are not as they were before a change that it refused", "err", err)
	}
	p.midway = false
}

// reconcile looks at the servers of a new worker, and repairs what differs from the text that it has loaded. If that
// cannot be (a section is disabled, .if blocks leave out servers), then HAProxy is believed to have what it loaded.
func (p *Proxy) reconcile(ctx context.Context) {
	v, err := p.master.look(ctx)
	if err != nil || !v.generation.SameShape(p.want.generation) {
		return // the next look finds out
	}
	p.loaded, p.odd = v.generation, map[string]bool{}
	p.see(p.want.config.as(v.state, p.shown(p.want.config)), v.state)
	_, why, err := p.change(ctx)
	if why == "" || err != nil {
		return
	}
	seen := p.want.config.as(v.state, p.shown(p.want.config))
	for name, b := range p.want.config.backends {
		if todo := compareBackend(name, seen.backends[name], b); todo.reload != "" || len(todo.ops) > 0 {
			p.odd[name] = true
			p.opts.Log.Warn("HAProxy shows other servers than it has loaded: from now on changes of this backend take a reload", "backend", name, "difference", todo.String(), "reason", why)
		}
	}
	p.arrived(p.want.config)
}

// shown are the backends of which HAProxy shows the servers as they are in the text.
func (p *Proxy) shown(c *config) []string {
	var out []string
	for name := range c.backends {
		if !p.odd[name] {
			out = append(out, name)
		}
	}
	return out
}

// lastGood is what HAProxy runs, as far as is known: the text berth brought it to, the file itself, or if berth was
// killed while HAProxy judged the file, the one before.
func (p *Proxy) lastGood(running disk.Generation) (marked, error) {
	there, err := p.onDisk()
	switch {
	case err != nil || there.text != "" && !isMarked(there.text): // somebody else's
		return there, err
	case p.now != nil && p.has.text != "":
		return p.has, nil
	}
	good, err := disk.Read(p.conf.Good())
	if err != nil || good == "" || there.generation.Text != "" && there.generation == running {
		return there, err
	}
	return unmark(good, nil), nil
}

// prepare puts the text where a HAProxy that is down will find it when it starts, if that is safe, and returns the
// reason why it is not live yet.
func (p *Proxy) prepare(ctx context.Context, reason error) error {
	p.follower.Settle()
	there, err := p.onDisk()
	switch {
	case err != nil:
		return err
	case len(p.want.config.binds()) == 0:
		return errNoListener
	case there.text == p.want.text:
		p.prepared()
		return reason
	}
	if err := p.validate(ctx, p.want.text); err != nil {
		return err
	}
	if there.text != "" && p.opts.Binary == "" {
		return reason
	}
	if err := p.conf.KeepForeign(there.text); err != nil {
		return err
	}
	if err := p.conf.Write(p.opts.File, p.want.text); err != nil {
		return err
	}
	p.opts.Log.Info("configuration written, HAProxy will start with it", "file", p.opts.File)
	p.prepared()
	return reason
}

func (p *Proxy) prepared() {
	if p.opts.Prepared != nil {
		p.opts.Prepared()
	}
}

// install replaces the file and reloads; when that fails the last good text goes back.
func (p *Proxy) install(ctx context.Context, last string) (processes, error) {
	if err := p.conf.Replace(last, p.want.text); err != nil {
		return processes{}, err
	}
	now, err := p.master.reload(ctx, p.opts.Reload, p.want.generation)
	if err == nil {
		err = p.isRead(ctx)
	}
	return now, p.conf.Replaced(last, err)
}

// isRead is nil if the new worker runs the text in the file, and not that of another file.
func (p *Proxy) isRead(ctx context.Context) error {
	running, err := p.master.generation(ctx)
	if err != nil {
		return err
	}
	if running != p.want.generation {
		return fmt.Errorf("HAProxy reloaded, but not from %s: start it with -f %s, and share the directory, not the single file", p.opts.File, p.opts.File)
	}
	return nil
}

// applyUnseen brings a HAProxy without a socket to p.want: nothing can be read back, so an error of the reload is all
// there is to go by. A restart of berth costs one reload.
func (p *Proxy) applyUnseen(ctx context.Context, mayReload bool) (proxyctl.Result, error) {
	there, err := p.onDisk()
	switch {
	case err != nil:
		return proxyctl.Result{}, err
	case there.text == p.want.text && p.loaded == p.want.generation:
		return proxyctl.Result{Action: proxyctl.None}, nil
	case len(p.want.config.binds()) == 0:
		return proxyctl.Result{}, errNoListener
	case !mayReload:
		return proxyctl.Result{}, proxyctl.ErrNotYet
	}
	if err := p.validate(ctx, p.want.text); err != nil {
		return proxyctl.Result{}, err
	}
	res := proxyctl.Result{Action: proxyctl.Reload, Reason: "HAProxy has no master socket", Changes: changes(there.config, p.want.config)}
	if why := compare(there.config, p.want.config).reload; why != "" {
		res.Reason = why
	}
	if err := p.conf.Replace(there.text, p.want.text); err != nil {
		return proxyctl.Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	if err := p.conf.Replaced(there.text, p.opts.Reload(ctx)); err != nil {
		return proxyctl.Result{}, err
	}
	p.loaded = p.want.generation
	return res, nil
}

// validate has the haproxy program, if there is one, check text as a candidate next to the file that it may replace.
func (p *Proxy) validate(ctx context.Context, text string) error {
	if p.opts.Binary == "" {
		return nil
	}
	return p.conf.Validate(ctx, p.opts.Timeout, p.opts.Binary+" -c", text, func(ctx context.Context, file string) error {
		return check(ctx, p.opts.Binary, file)
	})
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
