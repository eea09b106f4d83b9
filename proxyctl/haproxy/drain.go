package haproxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// serverName is a server and its backend.
type serverName struct{ backend, name string }

func (n serverName) String() string { return n.backend + "/" + n.name }

// draining is a server that is in no text any more. It gets no new requests, finishes what it has, and is deleted then.
type draining struct {
	since time.Time     // when it began to drain
	next  time.Time     // when to try to delete it; never again if it is zero
	wait  time.Duration // between two tries
}

const (
	firstTry  = 20 * time.Millisecond
	lastTry   = time.Second
	mostTries = 20 // in one exchange: each delete stops all of HAProxy's threads for a moment

	// HAProxy may have very many sessions, so between two looks at them there is this part of the time for requests.
	sessionsPart = 10
)

// drains are the servers that drain. They are looked after by tend, which has a goroutine and connections of its own: what
// brings HAProxy to a text does not wait for it, unless just the server that is being deleted comes back.
type drains struct {
	master *master
	opts   Options

	mu      sync.Mutex
	list    map[serverName]*draining
	deleted []serverName        // since takeDeleted
	busy    map[serverName]bool // which are being deleted
	idle    chan struct{}       // closed when none is any more; nil when none is

	// Only tend uses these.
	looked  time.Time           // at HAProxy's sessions, for the last time
	tunnels map[serverName]bool // servers with one then; nil if that could not be read, and any may have one
}

func newDrains(m *master, opts Options) *drains {
	return &drains{master: m, opts: opts, list: map[serverName]*draining{}}
}

// set makes the servers that drain those of a configuration of which want is the text.
func (d *drains) set(now, want *config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	began := time.Now()
	list := map[serverName]*draining{}
	for backend, b := range now.backends {
		if b == want.backends[backend] {
			continue // what is wanted does not drain
		}
		for name, s := range b.servers {
			if !s.draining {
				continue
			}
			n := serverName{backend, name}
			if list[n] = d.list[n]; list[n] == nil {
				list[n] = &draining{since: began, next: began.Add(firstTry), wait: firstTry}
			}
		}
	}
	d.list = list
}

func (d *drains) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.list)
}

// takeDeleted returns the servers that were deleted since it was called last.
func (d *drains) takeDeleted() []serverName {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.deleted
	d.deleted = nil
	return out
}

// recall takes servers from the list, and returns when none of them is being deleted. It says whether one was: then it may
// be gone.
func (d *drains) recall(ctx context.Context, names []serverName) (deleted bool) {
	for {
		d.mu.Lock()
		var wait chan struct{}
		for _, n := range names {
			delete(d.list, n)
			if d.busy[n] {
				wait = d.idle
			}
		}
		d.mu.Unlock()
		if wait == nil {
			return deleted
		}
		deleted = true
		select {
		case <-wait:
		case <-ctx.Done():
			return false // nothing else will go any more
		}
	}
}

// in are the servers of the list that a configuration has.
func (d *drains) in(c *config) (names []serverName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.list {
		if _, has := c.backends[n.backend].get(n.name); has {
			names = append(names, n)
		}
	}
	return names
}

// tend deletes servers that have finished, and ends those whose time is over. It returns when to call it again, or 0 when
// none drains. A call takes one short exchange, however many servers drain, and now and then a look at all sessions.
func (d *drains) tend(ctx context.Context) time.Duration {
	due := d.due(time.Now())
	over := d.overdue(ctx, due)
	if due = d.begin(due); len(due) > 0 {
		d.end(due, d.delete(ctx, due, over))
	}
	return d.soonest()
}

// due are the servers to try next, and since when they drain.
func (d *drains) due(now time.Time) map[serverName]time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []serverName
	for n, s := range d.list {
		if !s.next.IsZero() && !s.next.After(now) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b serverName) int { return d.list[a].next.Compare(d.list[b].next) })
	out := map[serverName]time.Time{}
	for _, n := range names[:min(len(names), mostTries)] {
		out[n] = d.list[n].since
	}
	return out
}

// overdue are those servers whose time is over: the time for requests, or if one of them has a tunnel, that for tunnels.
func (d *drains) overdue(ctx context.Context, due map[serverName]time.Time) map[serverName]bool {
	over := map[serverName]bool{}
	for n, since := range due {
		ends := since.Add(d.opts.DrainTimeout)
		switch {
		case time.Since(since) >= d.opts.TunnelTimeout:
			over[n] = true
			continue
		case time.Now().Before(ends):
			continue
		}
		if time.Since(d.looked) >= d.opts.DrainTimeout/sessionsPart {
			d.look(ctx)
		}
		over[n] = d.tunnels != nil && !d.tunnels[n] && !d.looked.Before(ends)
	}
	return over
}

// look reads HAProxy's sessions.
func (d *drains) look(ctx context.Context) {
	d.looked, d.tunnels = time.Now(), nil
	reply, err := d.master.worker(ctx, "show sess")
	if err != nil {
		d.opts.Log.Debug("HAProxy's sessions cannot be read: any server that drains may have a tunnel", "err", err)
		return
	}
	d.tunnels = tunnels(reply)
}

// begin returns those servers that are to be deleted still, and has others wait for that.
func (d *drains) begin(due map[serverName]time.Time) map[serverName]time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[serverName]time.Time{}
	busy := map[serverName]bool{}
	for n, since := range due {
		if s := d.list[n]; s != nil && s.since.Equal(since) {
			out[n], busy[n] = since, true
		}
	}
	if len(out) > 0 {
		d.busy, d.idle = busy, make(chan struct{})
	}
	return out
}

// delete tries to delete servers, after cutting the connections of those whose time is over, and returns what HAProxy says
// to each, or nothing if it does not say.
func (d *drains) delete(ctx context.Context, due map[serverName]time.Time, over map[serverName]bool) map[serverName]string {
	names := make([]serverName, 0, len(due))
	lines := make([]string, 0, 2*len(due))
	for n := range due {
		if over[n] {
			d.opts.Log.Info("closing the connections of a server that left: its time is over", "backend", n.backend, "server", n.name)
			lines = append(lines, "shutdown sessions server "+n.String())
		}
		lines, names = append(lines, "del server "+n.String()), append(names, n)
	}
	reply, err := d.master.worker(ctx, lines...)
	out := map[serverName]string{}
	for _, n := range names {
		if err != nil {
			break
		}
		line, rest := nextLine(reply)
		switch line {
		case saidDeleted, saidNoServer, saidReferenced, saidConnected:
			out[n], reply = line, rest
		default:
			err = errors.New(oneLine(line))
		}
	}
	if err != nil {
		d.opts.Log.Debug("deleting servers that have left: they are tried again", "err", err)
	}
	return out
}

// end notes what HAProxy has said.
func (d *drains) end(due map[serverName]time.Time, said map[serverName]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range due {
		s := d.list[n]
		if s == nil { // it was recalled, or HAProxy was reloaded
			s = &draining{}
		}
		switch said[n] {
		case saidDeleted, saidNoServer:
			delete(d.list, n)
			d.deleted = append(d.deleted, n)
		case saidReferenced:
			s.next = time.Time{}
			d.opts.Log.Info("HAProxy keeps a removed server, out of service, until it is reloaded: its configuration refers to it", "backend", n.backend, "server", n.name)
		case saidConnected:
			s.wait = min(2*s.wait, lastTry)
			s.next = time.Now().Add(s.wait)
		default:
			s.next = time.Now().Add(lastTry)
		}
	}
	close(d.idle)
	d.busy, d.idle = nil, nil
}

// soonest is in what time the next server is to be tried, 0 if none is.
func (d *drains) soonest() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	var soonest time.Time
	for _, s := range d.list {
		if !s.next.IsZero() && (soonest.IsZero() || s.next.Before(soonest)) {
			soonest = s.next
		}
	}
	if soonest.IsZero() {
		return 0
	}
	return max(time.Until(soonest), time.Millisecond)
}

// tunnels are the servers that "show sess" lists a tunnel of: a TCP connection, or one that was upgraded, as for
// websockets. HAProxy analyses (an=) neither its requests nor its responses any more.
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
