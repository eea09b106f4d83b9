package haproxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// serverName is a server and its backend. Without a name, it is the backend itself.
type serverName struct{ backend, name string }

func (n serverName) String() string { return n.backend + "/" + n.name }

func (n serverName) isBackend() bool { return n.name == "" }

// draining is a server or backend that is no longer in the text. It gets no new requests, finishes its current ones, and is then
// deleted, a backend after its servers.
type draining struct {
	since time.Time     // when it began to drain
	next  time.Time     // when to try to delete it; zero = never again
	wait  time.Duration // between two tries
}

const (
	firstTry  = 20 * time.Millisecond
	lastTry   = time.Second
	mostTries = 20 // per exchange: each delete stops all of HAProxy's threads for a moment

	// HAProxy may have very many sessions. They are read at most this many times per DrainTimeout.
	sessionsPart = 10
)

// drains tracks the draining servers. Tend looks after them in its own goroutine and over its own connections. No change of
// HAProxy waits for it, unless a server comes back just while it is being deleted.
type drains struct {
	master *master
	opts   Options

	mu      sync.Mutex
	list    map[serverName]*draining
	deleted []serverName        // since takeDeleted
	busy    map[serverName]bool // being deleted right now
	idle    chan struct{}       // closed when none is busy any more; nil if none is

	lingering map[string]*lingering // by backend
	begun     int                   // how often Tend has started to end lingering
	ended     int                   // how many backends Tend has ended lingering for
	planned   int                   // the value of ended when linger was called
	ending    chan struct{}         // closed when Tend has finished ending lingering; nil if it is not doing so

	// Only Tend uses these.
	looked  time.Time           // when HAProxy's sessions were last read
	tunnels map[serverName]bool // servers that had tunnels then; nil if unknown, so any may have one
}

func newDrains(m *master, opts Options) *drains {
	return &drains{master: m, opts: opts, list: map[serverName]*draining{}}
}

// set lists the servers that drain in now, the state of a HAProxy that was brought to want.
func (d *drains) set(now, want *config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	began := time.Now()
	list := map[serverName]*draining{}
	for backend, b := range now.backends {
		if b == want.backends[backend] {
			continue // nothing in it drains
		}
		add := func(n serverName) {
			if d.lingering[n.backend].has(n.name) {
				return
			}
			if list[n] = d.list[n]; list[n] == nil {
				list[n] = &draining{since: began, next: began.Add(firstTry), wait: firstTry}
			}
		}
		for name, s := range b.servers {
			if s.draining {
				add(serverName{backend, name})
			}
		}
		if now.bare[backend].leaving {
			add(serverName{backend, ""})
		}
	}
	d.list = list
}

// Draining implements proxyctl.Driver.
func (d *drains) Draining() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	servers := 0
	for n := range d.list {
		if !n.isBackend() {
			servers++
		}
	}
	return servers
}

// takeDeleted returns the servers and backends deleted since its last call.
func (d *drains) takeDeleted() []serverName {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.deleted
	d.deleted = nil
	return out
}

// recall takes servers and backends off the list, and returns when none of them is being deleted. It reports whether one was, or
// has been deleted since takeDeleted, and so may be gone.
func (d *drains) recall(ctx context.Context, names []serverName) (deleted bool) {
	for {
		d.mu.Lock()
		var wait chan struct{}
		for _, n := range names {
			delete(d.list, n)
			if d.busy[n] {
				wait = d.idle
			}
			deleted = deleted || slices.Contains(d.deleted, n)
		}
		d.mu.Unlock()
		if wait == nil {
			return deleted
		}
		deleted = true
		select {
		case <-wait:
		case <-ctx.Done():
			return false // nothing else will be deleted
		}
	}
}

// in returns the servers and backends on the list that a configuration has.
func (d *drains) in(c *config) (names []serverName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.list {
		if _, has := c.backends[n.backend].get(n.name); has || n.isBackend() && c.backends[n.backend] != nil {
			names = append(names, n)
		}
	}
	return names
}

// Tend implements proxyctl.Driver. It deletes servers that have finished and backends without servers, closes the connections of
// servers whose time is over, and ends lingering that has lasted long enough. It returns when to call it again, 0 if nothing
// drains or lingers. A call takes one short exchange, however many servers drain, and occasionally reads all sessions.
func (d *drains) Tend(ctx context.Context) time.Duration {
	d.endHolds(ctx)
	if d.needsSessions() {
		d.looked, d.tunnels = time.Now(), nil
		if reply, err := d.master.worker(ctx, "show sess"); err == nil {
			d.tunnels = tunnels(reply)
		} else {
			d.opts.Log.Debug("cannot read HAProxy's sessions: any draining server may have a tunnel", "err", err)
		}
	}
	if names, lines := d.begin(); len(names) > 0 {
		reply, err := d.master.worker(ctx, lines...)
		d.end(names, reply, err)
	}
	return d.soonest()
}

// withServers returns the backends of the servers on the list. They can only be deleted after these.
func (d *drains) withServers() map[string]bool {
	out := map[string]bool{}
	for n := range d.list {
		if !n.isBackend() {
			out[n.backend] = true
		}
	}
	return out
}

// due returns the servers and backends to try next.
func (d *drains) due() (names []serverName) {
	inUse := d.withServers()
	for n, s := range d.list {
		if !s.next.IsZero() && !s.next.After(time.Now()) && !(n.isBackend() && inUse[n.backend]) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b serverName) int { return d.list[a].next.Compare(d.list[b].next) })
	return names[:min(len(names), mostTries)]
}

// needsSessions reports whether HAProxy's sessions must be read to find out which servers have a tunnel.
func (d *drains) needsSessions() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.looked) >= d.opts.DrainTimeout/sessionsPart && slices.ContainsFunc(d.due(), func(n serverName) bool {
		age := time.Since(d.list[n].since)
		return !n.isBackend() && age >= d.opts.DrainTimeout && age < d.opts.TunnelTimeout
	})
}

// isOver reports whether the time of a server is over: the time for requests, or the time for tunnels if it may have one.
func (d *drains) isOver(n serverName) bool {
	since := d.list[n].since
	return time.Since(since) >= d.opts.TunnelTimeout ||
		d.tunnels != nil && !d.tunnels[n] && d.looked.Sub(since) >= d.opts.DrainTimeout
}

// begin returns the commands that delete servers, after closing the connections of those whose time is over.
func (d *drains) begin() (names []serverName, lines []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names = d.due()
	if len(names) == 0 {
		return nil, nil
	}
	d.busy, d.idle = map[serverName]bool{}, make(chan struct{})
	for _, n := range names {
		d.busy[n] = true
		if n.isBackend() {
			lines = append(lines, "del backend "+n.backend)
			continue
		}
		if d.isOver(n) {
			d.opts.Log.Info("closing the connections of removed server "+n.String()+": its time to drain is over", "backend", n.backend, "server", n.name)
			lines = append(lines, "shutdown sessions server "+n.String())
		}
		lines = append(lines, "del server "+n.String())
	}
	return names, lines
}

// end records HAProxy's answer for each.
func (d *drains) end(names []serverName, reply string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range names {
		s := d.list[n]
		if s == nil { // it was recalled, or HAProxy was reloaded
			s = &draining{}
		}
		line, rest := nextLine(reply)
		if n.isBackend() {
			line, rest = lastLine(reply)
		}
		reply = rest
		switch {
		case err == nil && (line == saidDeleted || line == saidNoServer || line == saidBackendDeleted || line == saidNoBackend && n.isBackend()):
			delete(d.list, n)
			d.deleted = append(d.deleted, n)
		case err == nil && line == saidPointedTo:
			s.next = time.Time{}
			d.opts.Log.Info("HAProxy keeps removed backend "+n.backend+", without requests, until its next reload: the configuration refers to it", "backend", n.backend)
		case err == nil && n.isBackend(): // it still has streams
			s.wait = min(2*s.wait, lastTry)
			s.next = time.Now().Add(s.wait)
			d.opts.Log.Debug("HAProxy does not delete removed backend "+n.backend+" yet, trying again", "backend", n.backend, "said", oneLine(line))
		case err == nil && line == saidReferenced:
			s.next = time.Time{}
			d.opts.Log.Info("HAProxy keeps removed server "+n.String()+", out of service, until its next reload: the configuration refers to it", "backend", n.backend, "server", n.name)
		case err == nil && line == saidConnected:
			s.wait = min(2*s.wait, lastTry)
			s.next = time.Now().Add(s.wait)
		case err == nil:
			err = errors.New(oneLine(line))
			fallthrough
		default:
			s.next = time.Now().Add(lastTry)
		}
	}
	if err != nil {
		d.opts.Log.Debug("cannot delete removed servers, trying again", "err", err)
	}
	close(d.idle)
	d.busy, d.idle = nil, nil
}

// soonest returns when the next server or backend is due, 0 if none is.
func (d *drains) soonest() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	var soonest time.Time
	inUse := d.withServers()
	for n, s := range d.list {
		if n.isBackend() && inUse[n.backend] {
			continue
		}
		if !s.next.IsZero() && (soonest.IsZero() || s.next.Before(soonest)) {
			soonest = s.next
		}
	}
	for _, l := range d.lingering {
		if !l.until.IsZero() && (soonest.IsZero() || l.until.Before(soonest)) {
			soonest = l.until
		}
	}
	if soonest.IsZero() {
		return 0
	}
	return max(time.Until(soonest), time.Millisecond)
}

// tunnels returns the servers for which "show sess" lists a tunnel: a TCP connection, or an upgraded one, as for websockets.
// HAProxy no longer analyses its requests or responses (an=).
func tunnels(reply string) map[serverName]bool {
	out := map[serverName]bool{}
	for line := range strings.Lines(reply) {
		if strings.Count(line, ",an=00h,") != 2 {
			continue
		}
		var n serverName
		for _, f := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(f, "be="); ok {
				n.backend = strings.Clone(v)
			}
			if v, ok := strings.CutPrefix(f, "srv="); ok {
				n.name = strings.Clone(v)
			}
		}
		out[n] = true
	}
	return out
}
