package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// driver covers what is specific to HAProxy.
type driver struct {
	opts   Options
	master *master
	*drains
	counter *waitCounter
	warned  bool // whether a missing hard-stop-after was logged

	version proxyctl.Version

	seen   snapshot              // result of the last Inspect
	now    *config               // what HAProxy has, including draining servers; nil if it must be read first
	has    configfile.Generation // of the text that now is based on
	loaded configfile.Generation // of the text that its worker has loaded

	own          map[string]string    // backends that HAProxy may have but no text has, with the defaults sections they were made from
	lastID       map[string]int       // highest server ID ever seen, by backend, so that a new server is never taken for an old one
	unmanageable map[string]bool      // backends for which HAProxy showed other servers than it had just loaded
	refused      map[string]string    // HAProxy's answers when it refused a change, by refusal.key; for the loaded shape
	suspect      map[string]time.Time // when HAProxy last refused a change of a backend, or one that was made with it
	ports        map[int]refusedPort  // ports that HAProxy could not listen on

	visible func(ctx context.Context) bool // reports whether the ports of HAProxy's network are visible from here
}

func newDriver(opts Options) *driver {
	m := &master{opts.Socket, opts.Timeout}
	return &driver{
		opts: opts, master: m, drains: newDrains(m, opts), counter: &waitCounter{master: m, opts: opts},
		version: proxyctl.Version{Name: "HAProxy", Binary: opts.Binary, Timeout: opts.Timeout, Report: opts.Version, Log: opts.Log},
		own:     map[string]string{}, lastID: map[string]int{}, refused: map[string]string{}, suspect: map[string]time.Time{}, ports: map[int]refusedPort{},
		visible: func(ctx context.Context) bool { return opts.Prepared != nil || m.sharesNetwork(ctx) }, // berth's child shares its network
	}
}

var errNoListener = fmt.Errorf("%w: no frontend or listen section has a bind line, so HAProxy would serve nothing", proxyctl.ErrRefused)

// Mark implements proxyctl.Grammar.
func (d *driver) Mark(text string, before *config) (marked, error) {
	d.version.Rendered()
	m := mark(text, before)
	if len(m.Config.binds()) == 0 {
		return m, errNoListener
	}
	if err := lexicalError(text); err != nil {
		return m, err
	}
	if err := d.mapsError(m.Config); err != nil {
		return m, err
	}
	return m, m.Config.claimError()
}

// Unmark implements proxyctl.Grammar.
func (d *driver) Unmark(file string, before *config) marked { return unmark(file, before) }

// IsMarked implements proxyctl.Grammar.
func (d *driver) IsMarked(file string) bool { return isMarked(file) }

// SameFrame implements proxyctl.Grammar. The frame is the global and defaults sections, except named defaults sections that only
// one text has: those may come with the settings in use.
func (d *driver) SameFrame(a, b *config) bool { return difference(a.frame(b), b.frame(a)) == "" }

// Binary implements proxyctl.Driver.
func (d *driver) Binary() string { return d.opts.Binary }

// Check implements proxyctl.Driver.
func (d *driver) Check(ctx context.Context, file string) error {
	return d.judgeLua(check(ctx, d.opts.Env, d.opts.Binary, file), false)
}

const noSocket = "HAProxy has no master socket"

// Inspect implements proxyctl.Driver. Without a socket, it returns the text that was loaded last.
func (d *driver) Inspect(ctx context.Context) (proxyctl.Snapshot, error) {
	if d.opts.Socket == "" {
		s := proxyctl.Snapshot{Generation: d.loaded}
		if d.loaded.Shape == "" {
			s.Unmarked = noSocket // a restart of berth costs one reload
		}
		return s, nil
	}
	begun := d.awaitEnds(ctx)
	v, err := d.master.inspect(ctx, d.opts.File)
	for now := d.awaitEnds(ctx); err == nil && now != begun && ctx.Err() == nil; now = d.awaitEnds(ctx) {
		begun = now
		v, err = d.master.inspect(ctx, d.opts.File) // the first answer may mix states from before and after
	}
	if err != nil {
		d.now = nil
		return proxyctl.Snapshot{Down: true}, err
	}
	d.seen = v
	if err := d.version.Set(ctx, v.version); err != nil {
		return proxyctl.Snapshot{}, err
	}
	return proxyctl.Snapshot{Generation: v.generation, OldWorkers: len(v.old)}, nil
}

// Runs implements proxyctl.Driver.
func (d *driver) Runs(c *config) bool {
	any := false
	for name, b := range c.backends {
		for server := range b.servers {
			if !slices.ContainsFunc(d.seen.state[name], func(l live) bool { return l.name == server }) {
				return false
			}
			any = true
		}
	}
	return any
}

// Observe implements proxyctl.Driver.
func (d *driver) Observe(base marked) {
	if d.now == nil || !d.has.SameShape(base.Generation) {
		d.now, d.has = base.Config, base.Generation
	}
	if d.opts.Socket == "" {
		return
	}
	d.loaded = d.seen.generation
	now := d.now.withBackends(d.seen.backends, d.own, d.unmanageable)
	path, shown := now.held(), d.shown(now)
	st, found := d.disguise(now, d.seen.state, shown, path, d.seen.maps[path])
	d.setLingering(found, nil, now)
	d.observe(now.withState(st, shown).withMaps(d.seen.maps), st)
}

// observe stores the servers that were read from HAProxy.
func (d *driver) observe(now *config, st state) {
	d.now = now
	for backend, list := range st {
		for _, l := range list {
			if highest, known := d.lastID[backend]; !known || l.id > highest {
				d.lastID[strings.Clone(backend)] = l.id
			}
		}
	}
}

// shown returns the backends of c that are not unmanageable.
func (d *driver) shown(c *config) []string {
	var out []string
	for name := range c.backends {
		if !d.unmanageable[name] {
			out = append(out, name)
		}
	}
	return out
}

func (d *driver) nextID(backend string) int {
	d.lastID[backend]++
	return d.lastID[backend]
}

// Plan implements proxyctl.Driver.
func (d *driver) Plan(to marked, alike *config) plan {
	if deleted := d.takeDeleted(); len(deleted) > 0 {
		d.now = d.now.without(deleted)
		for _, n := range deleted {
			if n.isBackend() {
				delete(d.own, n.backend)
				delete(d.seen.backends, n.backend)
			}
		}
	}
	if alike != nil {
		d.now = d.now.assume(alike, to.Config)
	}
	todo := compare(d.now, to.Config)
	if d.opts.Socket == "" && d.has != to.Generation {
		todo.Reload = cmp.Or(todo.Reload, noSocket)
	}
	if todo.Reload == "" {
		todo.Ops = d.linger(todo.Ops, to.Config)
		todo.Reload = d.unfit(todo.Ops, to.Config)
	}
	return todo
}

// Above these limits, one reload is faster: HAProxy takes one to two milliseconds for each server that comes or goes, and walks a
// backend's servers for each server added to it.
const (
	mostAdded   = 250
	mostRemoved = 500
	mostWork    = 400_000 // servers added times servers in their backends

	mostCertified = 100
)

// unfit returns why ops cannot be done in the running HAProxy, "" if they can.
func (d *driver) unfit(ops []op, to *config) string {
	if d.opts.ReloadOnly && len(ops) > 0 {
		return ops[0].String()
	}
	work, added, removed, certificates := 0, 0, 0, 0
	for _, o := range ops {
		if d.unmanageable[o.backend] {
			return fmt.Sprintf("HAProxy shows other servers in backend %s than it has loaded", o.backend)
		}
		if o.isBackend() && !d.dynamic() {
			return o.String()
		}
		switch o.kind {
		case opCertificateAdd, opCertificateSet:
			if why := d.refused[certificateKey(o.name, o.value)]; why != "" {
				return "earlier: " + why
			}
			certificates++
		case opCreate:
			if _, there := d.seen.backends[o.backend]; there {
				return fmt.Sprintf("HAProxy has a backend %s that is in no configuration", o.backend)
			}
			if why := d.refused[creationKey(o.value)]; why != "" {
				return "earlier: " + why
			}
			added++
		case opUnpublish:
			removed++
		}
		if o.kind == opRemove {
			removed++
			if why := d.refused[removalKey(o.backend, o.name)]; why != "" {
				return "earlier: " + why
			}
		}
		if o.kind != opAdd {
			continue
		}
		if why := cmp.Or(d.refused[o.backend], d.refused[refusalKey(o.backend, o.server)]); why != "" {
			return "earlier: " + why
		}
		if to.dynamicCookies(o.backend) {
			return fmt.Sprintf("backend %s: not every HAProxy version gives a cookie to a server added at run time", o.backend)
		}
		added++
		work += to.backends[o.backend].count()
	}
	if certificates > mostCertified {
		return fmt.Sprintf("%d certificates at once: a reload is faster", certificates)
	}
	if added > mostAdded || removed > mostRemoved || work > mostWork {
		return fmt.Sprintf("%d servers added and %d removed at once: a reload is faster", added, removed)
	}
	return ""
}

// Run implements proxyctl.Driver.
func (d *driver) Run(ctx context.Context, to marked, p plan) error {
	if len(p.Ops) == 0 {
		d.commit(to.Config.withDraining(d.now), to)
		return nil
	}
	// A draining server that comes back must not be deleted any more, or it is added again.
	for d.recall(ctx, serversOf(p.Ops)) || d.claim(ctx, p.Ops) {
		if p = d.Plan(to, nil); p.Reload != "" {
			return fmt.Errorf("%w: %s", proxyctl.ErrUnexpected, p.Reload)
		}
	}
	touched := d.noteOwn(p.Ops)
	st, err := d.master.exchange(ctx, p.Ops, d.nextID, d.loaded.Shape)
	var has map[string]entries
	if err == nil {
		has, err = d.master.entries(ctx, changedMaps(p.Ops))
	}
	if err == nil && len(touched) > 0 {
		err = d.readBackends(ctx, touched)
	}
	if err == nil {
		backends := []string{}
		for _, o := range p.Ops {
			if !o.isEntry() {
				backends = append(backends, o.backend)
			}
		}
		now, path := to.Config.withDraining(d.now), to.Config.held()
		if len(touched) > 0 {
			now = now.withBackends(d.seen.backends, d.own, d.unmanageable)
		}
		held, read := has[path]
		st, found := d.disguise(now, st, backends, path, held)
		if read {
			d.setLingering(found, backends, to.Config)
		}
		d.observe(now.withState(st, backends).withMaps(has), st)
		rest := compareServers(d.now, to.Config)
		if rest.Reload == "" && len(rest.Ops) == 0 {
			d.commit(d.now, to)
			return nil
		}
		err = fmt.Errorf("%w: HAProxy accepted all commands, but this change is still missing: %s", proxyctl.ErrUnexpected, rest)
	}
	d.now = nil
	var no *refusal
	if errors.As(err, &no) && no.does == "add backend" {
		delete(d.own, no.server)
	}
	switch {
	case errors.As(err, &no) && no.key(to.Config) != "":
		d.refused[no.key(to.Config)] = err.Error()
	case errors.Is(err, proxyctl.ErrUnexpected):
		for _, o := range p.Ops {
			d.suspect[o.backend] = time.Now() // for a map this is its path, which is no backend's name
		}
	}
	return err
}

// commit records that HAProxy runs a text and has these servers.
func (d *driver) commit(now *config, to marked) {
	d.now, d.has = now, to.Generation
	d.set(now, to.Config)
	d.counter.set(to.Config)
	if len(d.lastID) > len(to.Config.backends) {
		maps.DeleteFunc(d.lastID, func(backend string, _ int) bool { return now.backends[backend] == nil })
	}
}

// dynamic reports whether backends come and go at run time.
func (d *driver) dynamic() bool {
	return d.opts.Socket != "" && !d.opts.ReloadOnly && proxyctl.AtLeast(d.version.Running(), dynamicBackends)
}

// noteOwn records the bare backends that come or go as berth's, and returns them.
func (d *driver) noteOwn(ops []op) (touched []string) {
	for _, o := range ops {
		if !o.isBackend() {
			continue
		}
		touched = append(touched, o.backend)
		if b, there := d.now.bare[o.backend]; there {
			d.own[o.backend] = b.from
		} else {
			d.own[o.backend] = o.value
		}
	}
	return touched
}

// readBackends reads these backends from HAProxy.
func (d *driver) readBackends(ctx context.Context, names []string) error {
	has, err := d.master.backends(ctx, names...)
	if err != nil {
		return err
	}
	if d.seen.backends == nil {
		d.seen.backends = map[string]bool{}
	}
	for _, name := range names {
		delete(d.seen.backends, name)
	}
	maps.Copy(d.seen.backends, has)
	return nil
}

// Before implements proxyctl.Driver.
func (d *driver) Before(last *config) *config {
	if d.now != nil {
		return d.now
	}
	return last
}

// Reload implements proxyctl.Driver.
func (d *driver) Reload(ctx context.Context, last, to marked) (proxyctl.Snapshot, error) {
	d.now = nil
	if d.opts.Socket == "" {
		if err := proxyctl.Tell(ctx, d.opts.Timeout, d.opts.Reload); err != nil {
			return proxyctl.Snapshot{}, err
		}
		d.loaded = to.Generation
		d.commit(to.Config, to)
		return proxyctl.Snapshot{Generation: d.loaded}, nil
	}
	d.recall(ctx, d.in(to.Config))
	ends := d.ends()
	d.claim(ctx, nil)
	began := time.Now()
	now, err := d.master.reload(ctx, d.opts.Reload, to.Generation)
	if err == nil {
		err = d.isRead(ctx, to)
	}
	if err != nil {
		d.unclaim(ends)
		err = d.portError(err, last.Config, to.Config, time.Since(began))
		return proxyctl.Snapshot{}, d.judgeLua(err, to.Config.loadsLua() && !last.Config.loadsLua())
	}
	if !d.seen.generation.SameShape(to.Generation) {
		clear(d.refused)
	}
	clear(d.suspect)
	if d.warned = d.warned || to.Config.global("hard-stop-after"); !d.warned {
		d.warned = true
		d.opts.Log.Warn("the HAProxy configuration sets no hard-stop-after: after a reload, an old worker stays as long as its longest connection")
	}
	d.reconcile(ctx, to)
	return proxyctl.Snapshot{Generation: to.Generation, OldWorkers: len(now.old)}, nil
}

// isRead returns nil if the new worker runs the text in berth's file, not one from another file.
func (d *driver) isRead(ctx context.Context, to marked) error {
	running, _, err := d.master.status(ctx, "")
	if err != nil {
		return err
	}
	if running.generation != to.Generation {
		return fmt.Errorf("HAProxy reloaded, but not from %s: start it with -f %s, and share the directory, not the single file", d.opts.File, d.opts.File)
	}
	return nil
}

// reconcile compares the servers of a new worker with the text that it has loaded, and repairs differences. Where that is
// impossible (a disabled section, servers left out by .if blocks), HAProxy is assumed to have what it loaded.
func (d *driver) reconcile(ctx context.Context, to marked) {
	d.setLingering(nil, nil, to.Config)
	v, err := d.master.inspect(ctx, d.opts.File)
	d.loaded, d.unmanageable = to.Generation, map[string]bool{}
	clear(d.own)
	if err != nil || !v.generation.SameShape(to.Generation) {
		d.commit(to.Config, to) // the next inspection finds out
		return
	}
	d.seen = v
	d.Observe(to)
	seen := d.now
	p := d.Plan(to, nil)
	err = errors.New(p.Reload)
	if p.Reload == "" {
		err = d.Run(ctx, to, p)
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, proxyctl.ErrUnreachable):
		d.commit(to.Config, to)
		return
	}
	for name, b := range to.Config.backends {
		_, isBare := to.Config.bare[name]
		_, there := seen.bare[name]
		if todo := compareBackend(name, seen.backends[name], b); todo.Reload != "" || len(todo.Ops) > 0 || isBare != there {
			d.unmanageable[name] = true
			d.opts.Log.Warn("HAProxy shows other servers in backend "+name+" than it has loaded: changes of this backend now take a reload", "backend", name, "difference", todo.String(), "reason", err)
		}
	}
	d.commit(to.Config, to)
}

// suspectFor is how long a backend is left out of Merge after HAProxy refused a change of it, or one that was made with it.
const suspectFor = time.Minute

// StartsWith implements proxyctl.Driver. Without asking HAProxy, no text is certain to be accepted.
func (d *driver) StartsWith(_, _ *config) bool { return false }

// Merge implements proxyctl.Driver. Servers and backends that take a reload wait until the whole text is loaded.
func (d *driver) Merge(base, to *config, keep []string, reload bool) string {
	if reload || d.opts.Socket == "" || d.opts.ReloadOnly || base.reloadReason != "" || to.reloadReason != "" {
		return ""
	}
	now := d.Before(base)
	left := map[string]bool{}
	for _, name := range keep {
		left[name] = true
	}
	heads := map[string]section{}
	for _, s := range to.sections {
		if s.isProxy() && !left[s.name] && time.Since(d.suspect[s.name]) > suspectFor {
			heads[s.head] = s
		}
	}
	merged := *base
	merged.sections = nil
	var (
		ops  []op
		away []string
	)
	for _, s := range base.sections {
		if s.bare && to.backends[s.name] == nil && !left[s.name] && now.backends[s.name] != nil && !base.refersToBackend(s.name) {
			p := compareBackend(s.name, now.backends[s.name], nil)
			all := slices.Concat(ops, []op{{kind: opUnpublish, backend: s.name}}, p.Ops)
			if p.Reload == "" && d.unfit(all, to) == "" {
				ops, away = all, append(away, s.name)
				continue
			}
		}
		if is, ok := heads[s.head]; ok && s.isProxy() && s.text != is.text && s.inherited == is.inherited && slices.Equal(s.raw, is.raw) {
			p := compareBackend(s.name, now.backends[s.name], is.backend)
			for _, o := range p.Ops {
				if o.kind == opRemove && base.refersTo(o.backend, o.name) {
					p.Reload = "it is referred to"
				}
			}
			all := append(ops, p.Ops...)
			if p.Reload == "" && d.unfit(all, to) == "" {
				ops, s.text = all, is.text
			}
		}
		merged.sections = append(merged.sections, s)
	}
	for _, s := range to.sections {
		was, come := now.backends[s.name], op{kind: opCreate, backend: s.name, value: s.from}
		if now.bare[s.name] == (bare{s.from, true}) {
			come = op{kind: opPublish, backend: s.name}
		} else if was != nil {
			continue
		}
		if !s.bare || base.backends[s.name] != nil || time.Since(d.suspect[s.name]) <= suspectFor || !base.sameDefaults(s.from, to) {
			continue
		}
		p := compareBackend(s.name, was, s.backend)
		all := slices.Concat(ops, []op{come}, p.Ops)
		if p.Reload == "" && d.unfit(all, to) == "" {
			ops = all
			merged.sections = append(merged.sections, s)
		}
	}
	to = d.withoutUnfit(base, to)
	if len(to.maps) > 0 && maps.EqualFunc(base.maps, to.maps, func(_, _ entries) bool { return true }) {
		if p := compareMaps(base, to); p.Reload == "" {
			merged.preamble = mergeMaps(base, to, left, merged.lacks(to))
		}
	}
	if routed := routedTo(away, readMaps(merged.preamble, base)); len(routed) > 0 {
		return d.Merge(base, to, slices.Concat(keep, routed), reload) // they stay as long as their routes
	}
	return merged.text()
}
