package haproxy

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/proxyctl"
)

// When a backend has no server left, HAProxy immediately answers 503 to requests that it has already assigned to the backend,
// including those waiting for a retry. Only later requests wait in the frontend. So the last server of a backend lingers: HAProxy
// keeps it unchanged, except for its checks, until another server comes or the wait time is over, and an entry in held.map makes
// later requests wait. The rest of the driver treats a lingering server as out of service, like any other that left.

// lingering is an entry of held.map and the lingering servers of its backend; none if the entry is stale.
type lingering struct {
	servers []lingerer
	path    string    // of the map
	since   time.Time // when they began to linger
	until   time.Time // zero while a change may end it
	busy    bool      // Tend is ending it
}

// lingerer is one lingering server.
type lingerer struct {
	name    string
	checked bool
	gone    bool     // it is not in the text, and will drain
	leave   []string // commands that take it out of service
}

// has reports whether a server of the entry's backend lingers. The entry may be nil.
func (l *lingering) has(name string) bool {
	return l != nil && slices.ContainsFunc(l.servers, func(s lingerer) bool { return s.name == name })
}

// holdMap is the name of the map with the wait times of backends, in milliseconds, where they differ from the standard.
const holdMap = "hold.map"

// held returns the path of the map of held backends, "" if the configuration has none.
func (c *config) held() string {
	path, _ := c.mapNamed(heldMap)
	return path
}

// hold returns how long requests wait for a server of a backend.
func (c *config) hold(backend string, standard time.Duration) time.Duration {
	_, is := c.mapNamed(holdMap)
	if ms, err := strconv.Atoi(is[backend]); err == nil && ms >= 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return standard
}

// usable reports whether a server gets requests.
func (s server) usable() bool { return !s.draining && !s.disabled && s.weight > 0 }

// usable reports whether any server of the backend gets requests.
func (b *backend) usable() bool {
	for _, s := range b.all() {
		if s.usable() {
			return true
		}
	}
	return false
}

// serves reports whether a backend other than this one has a usable server at the address of s.
func (c *config) serves(other string, s server) bool {
	for name, b := range c.backends {
		if name == other || !s.address.IsValid() {
			continue
		}
		for _, is := range b.servers {
			if is.address == s.address && is.usable() {
				return true
			}
		}
	}
	return false
}

// linger changes ops, which bring HAProxy to a text: the last servers of backends linger, and lingering servers leave once
// another one has come. New servers are added first, and entries of held.map are deleted last.
func (d *driver) linger(ops []op, to *config) []op {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.planned = d.ended
	path, touched := to.held(), map[string]bool{}
	for backend := range d.lingering {
		touched[backend] = false
	}
	for _, o := range ops {
		if !o.isEntry() && path != "" {
			touched[o.backend] = true
		}
	}
	var begin, leave, release []op
	stays := map[serverName]bool{}
	for _, backend := range slices.Sorted(maps.Keys(touched)) {
		l, is := d.lingering[backend], to.backends[backend]
		names := d.lingers(backend, l, to)
		for n, name := range names {
			stays[serverName{backend, name}] = true
			if touched[backend] || l == nil || len(l.servers) == 0 {
				s, _ := d.now.backends[backend].get(name)
				begin = append(begin, op{kind: opLinger, backend: backend, name: name, server: s, value: path, again: l != nil || n > 0})
			}
		}
		if len(names) > 0 || l == nil {
			continue
		}
		for _, s := range l.servers {
			has, stays := is.get(s.name)
			do := func(kind opKind) {
				leave = append(leave, op{kind: kind, backend: backend, name: s.name, server: has})
			}
			switch {
			case !stays:
				has.checked = s.checked // the server may come back before it is deleted
				do(opRemove)
			case has.disabled:
				do(opMaint)
			case has.weight == 0:
				do(opWeight)
			}
			if stays && has.checked {
				do(opCheck)
			}
		}
		release = append(release, op{kind: opMapDelete, backend: l.path, name: backend})
	}
	if len(begin)+len(leave)+len(release) == 0 {
		return ops
	}
	var out, last []op
	for _, o := range ops {
		switch {
		case stays[serverName{o.backend, o.name}] && o.kind != opMove:
		case o.kind == opRemove || o.kind == opMaint:
			last = append(last, o)
		default:
			out = append(out, o)
		}
	}
	return slices.Concat(out, begin, last, leave, release)
}

// lingers returns the servers of a backend that linger in a text. l is its entry, if there is one.
func (d *driver) lingers(backend string, l *lingering, to *config) (names []string) {
	is := to.backends[backend]
	if is == nil || is.usable() || to.held() == "" || to.hold(backend, d.opts.RouteHold) <= 0 || d.opts.ReloadOnly || d.opts.Socket == "" || d.unmanageable[backend] {
		return nil
	}
	was := d.now.backends[backend]
	if l != nil && len(l.servers) > 0 {
		for _, s := range l.servers {
			if has, _ := was.get(s.name); !to.serves(backend, has) {
				names = append(names, s.name)
			}
		}
		return names
	}
	// One is enough: of two dead servers, HAProxy would try one after the other without a pause. A server that is still in the
	// text is most likely to be alive.
	for _, name := range slices.Sorted(maps.Keys(was.all())) {
		_, stays := is.get(name)
		if s := was.servers[name]; s.usable() && !s.agent && !to.serves(backend, s) && (len(names) == 0 || stays) {
			names = []string{name}
			if stays {
				break
			}
		}
	}
	return names
}

// disguise returns the state of these backends with lingering servers shown as they are in c: drained, in maintenance, or gone.
// It also returns the lingering servers. held are the entries of held.map, and path is its file.
func (d *driver) disguise(c *config, st state, backends []string, path string, held entries) (state, map[string]*lingering) {
	found := map[string]*lingering{}
	for backend := range held {
		found[strings.Clone(backend)] = &lingering{path: path}
	}
	if len(held) == 0 {
		return st, found
	}
	st = maps.Clone(st)
	for _, backend := range backends {
		l := found[backend]
		if l == nil {
			continue
		}
		list := slices.Clone(st[backend])
		for i := range list {
			was := &list[i]
			if was.disabled || was.weight == 0 || was.checking {
				continue
			}
			s, known := c.backends[backend].get(was.name)
			at := backend + "/" + was.name
			is := lingerer{name: strings.Clone(was.name), checked: was.checked, gone: !known || s.draining, leave: []string{"set server " + at + " state maint"}}
			if known && !s.draining && !s.disabled && s.weight == 0 {
				was.weight = 0
				is.leave = []string{"set server " + at + " weight 0"}
			} else {
				was.disabled = true
			}
			if is.checked {
				is.leave = append(is.leave, "enable health "+at)
			}
			l.servers = append(l.servers, is)
		}
		st[backend] = list
	}
	return st, found
}

// setLingering stores the entries found in held.map, for the backends in only, or for all if only is nil.
func (d *driver) setLingering(found map[string]*lingering, only []string, c *config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.lingering
	d.lingering = map[string]*lingering{}
	for backend, l := range found {
		old := before[backend]
		l.busy = old != nil && old.busy
		if only != nil && old != nil && !slices.Contains(only, backend) {
			d.lingering[backend] = old
			continue
		}
		if len(l.servers) > 0 {
			l.since = time.Now()
			if old != nil && len(old.servers) > 0 {
				l.since = old.since
			}
			l.until = l.since.Add(c.hold(backend, d.opts.RouteHold))
		}
		d.lingering[backend] = l
	}
}

// hideLingering marks lingering servers as not usable.
func (d *drains) hideLingering(servers []proxyctl.Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, s := range servers {
		if d.lingering[s.Backend].has(s.Name) {
			servers[i].Usable = false
		}
	}
}

// claim keeps Tend from ending lingering in the backends of ops, or in all backends if ops is empty. It returns when Tend is not
// about to do so, and reports whether Tend has ended any since linger was called.
func (d *drains) claim(ctx context.Context, ops []op) (changed bool) {
	for {
		d.mu.Lock()
		wait := d.ending
		busy := false
		for backend, l := range d.lingering {
			if len(ops) == 0 || slices.ContainsFunc(ops, func(o op) bool {
				return o.backend == backend || o.kind == opMapDelete && o.name == backend && ownMap(o.backend)
			}) {
				l.until = time.Time{}
				busy = busy || l.busy
			}
		}
		changed = d.ended != d.planned
		d.mu.Unlock()
		if !busy {
			return changed
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return false
		}
	}
}

// ends returns when lingering ends, by backend.
func (d *drains) ends() map[string]time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	ends := map[string]time.Time{}
	for backend, l := range d.lingering {
		if !l.until.IsZero() {
			ends[backend] = l.until
		}
	}
	return ends
}

// unclaim restores the end times from before claim, because nothing has changed since.
func (d *drains) unclaim(ends map[string]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for backend, until := range ends {
		if l := d.lingering[backend]; l != nil {
			l.until = until
		}
	}
}

// awaitEnds waits until Tend is not about to end any lingering, and returns how often it has started to.
func (d *drains) awaitEnds(ctx context.Context) (begun int) {
	for {
		d.mu.Lock()
		wait, begun := d.ending, d.begun
		d.mu.Unlock()
		if wait == nil {
			return begun
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return begun
		}
	}
}

// endHolds takes servers out of service that have lingered for the whole wait time.
func (d *drains) endHolds(ctx context.Context) {
	due, lines := d.beginEnds()
	if len(due) == 0 {
		return
	}
	paths := slices.Compact(slices.Sorted(maps.Values(due)))
	before, err := d.master.entries(ctx, paths)
	if err == nil {
		var all []string
		for _, backend := range slices.Sorted(maps.Keys(due)) {
			if _, held := before[due[backend]][backend]; held { // otherwise HAProxy was restarted, and none lingers
				all = append(all, lines[backend]...)
			}
		}
		if len(all) > 0 {
			_, err = d.master.worker(ctx, all...)
		}
	}
	var after map[string]entries
	if err == nil {
		after, err = d.master.entries(ctx, paths)
	}
	if err != nil {
		d.opts.Log.Debug("cannot end the wait for servers, trying again", "err", err)
	}
	d.endEnds(due, before, after)
}

// beginEnds returns the backends whose time is over with the paths of their maps, and the commands for each.
func (d *drains) beginEnds() (due map[string]string, lines map[string][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due, lines = map[string]string{}, map[string][]string{}
	for _, backend := range slices.Sorted(maps.Keys(d.lingering)) {
		l := d.lingering[backend]
		if l.until.IsZero() || l.until.After(time.Now()) || len(due) == mostTries {
			continue
		}
		l.busy = true
		due[backend] = l.path
		for _, s := range l.servers {
			lines[backend] = append(lines[backend], s.leave...)
		}
		lines[backend] = append(lines[backend], "del map "+l.path+" "+backend)
	}
	if len(due) > 0 {
		d.begun++
		d.ending = make(chan struct{})
	}
	return due, lines
}

// endEnds records which of the entries are gone. after is nil if that is unknown.
func (d *drains) endEnds(due map[string]string, before, after map[string]entries) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for backend, path := range due {
		l := d.lingering[backend]
		if l == nil {
			continue
		}
		l.busy = false
		if _, held := after[path][backend]; held || after == nil {
			if !l.until.IsZero() {
				l.until = time.Now().Add(lastTry)
			}
			continue
		}
		delete(d.lingering, backend)
		d.ended++
		if _, held := before[path][backend]; !held {
			continue
		}
		d.opts.Log.Info("no new server for "+backend+" came in time: its requests no longer wait, and HAProxy's last server for it is out of service", "backend", backend)
		for _, s := range l.servers {
			if s.gone {
				d.list[serverName{backend, s.name}] = &draining{since: time.Now(), next: time.Now(), wait: firstTry}
			}
		}
	}
	close(d.ending)
	d.ending = nil
}
