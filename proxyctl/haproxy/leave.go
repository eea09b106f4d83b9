package haproxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"berth/proxyctl"
)

// leaver is a server that is in no text any more. It gets no new requests, finishes what it has, and is deleted then.
type leaver struct {
	since time.Time     // when it began to leave
	next  time.Time     // when to try to delete it; never again if it is zero
	wait  time.Duration // between two tries
}

// serverName is a server and its backend.
type serverName struct{ backend, name string }

func (n serverName) String() string { return n.backend + "/" + n.name }

const (
	firstTry  = 20 * time.Millisecond
	lastTry   = time.Second
	mostTries = 20 // in one exchange: each delete stops all of HAProxy's threads for a moment
)

// noteLeavers makes the list of leavers that of p.now.
func (p *Proxy) noteLeavers() {
	now := time.Now()
	leaving := map[serverName]*leaver{}
	for backend, b := range p.now.backends {
		if b == p.want.config.backends[backend] {
			continue // what is wanted does not leave
		}
		for name, s := range b.servers {
			if !s.leaving {
				continue
			}
			n := serverName{backend, name}
			if leaving[n] = p.leaving[n]; leaving[n] == nil {
				leaving[n] = &leaver{since: now, next: now.Add(firstTry), wait: firstTry}
			}
		}
	}
	p.leaving = leaving
}

// Tend deletes servers that have finished, and ends those whose time is over. It returns when to call it again, or 0
// when nothing is left to tend to. A call takes one short exchange or two, however many servers are leaving. It also
// removes files that no configuration refers to any more.
func (p *Proxy) Tend(ctx context.Context) time.Duration {
	if p.judged && p.conf.Littered() {
		p.follower.Settle()
		p.conf.Sweep(p.want.text, p.has.text)
	}
	if p.now == nil {
		return 0 // the next Apply looks who is leaving
	}
	now := time.Now()
	var due []serverName
	for n, l := range p.leaving {
		if !l.next.IsZero() && !l.next.After(now) {
			due = append(due, n)
		}
	}
	slices.SortFunc(due, func(a, b serverName) int { return p.leaving[a].next.Compare(p.leaving[b].next) })
	due = due[:min(len(due), mostTries)]
	if len(due) > 0 {
		if err := p.delete(ctx, due); err != nil {
			p.opts.Log.Debug("deleting servers that have left: the next look at HAProxy sorts it out", "err", err)
			for _, n := range due {
				p.leaving[n].next = now.Add(lastTry)
			}
		}
	}
	var soonest time.Time
	for _, l := range p.leaving {
		if !l.next.IsZero() && (soonest.IsZero() || l.next.Before(soonest)) {
			soonest = l.next
		}
	}
	if soonest.IsZero() {
		return 0
	}
	return max(time.Until(soonest), time.Millisecond)
}

// delete tries to delete servers, after cutting the connections of those whose time is over.
func (p *Proxy) delete(ctx context.Context, due []serverName) error {
	overdue, err := p.overdue(ctx, due)
	if err != nil {
		return err
	}
	lines := make([]string, 0, 2*len(due))
	for _, n := range due {
		if overdue[n] {
			p.opts.Log.Info("closing the connections of a server that left: its time is over", "backend", n.backend, "server", n.name)
			lines = append(lines, "shutdown sessions server "+n.String())
		}
		lines = append(lines, "del server "+n.String())
	}
	reply, err := p.master.worker(ctx, lines...)
	if err != nil {
		return err
	}
	for _, n := range due {
		line, rest := nextLine(reply)
		reply = rest
		l := p.leaving[n]
		switch line {
		case saidDeleted, saidNoServer:
			delete(p.leaving, n)
			p.now.forget(n)
		case saidReferenced:
			l.next = time.Time{}
			p.opts.Log.Info("HAProxy keeps a removed server, out of service, until it is reloaded: its configuration refers to it", "backend", n.backend, "server", n.name)
		case saidConnected:
			l.wait = min(2*l.wait, lastTry)
			l.next = time.Now().Add(l.wait)
		default:
			return errors.New(oneLine(line))
		}
	}
	return nil
}

// overdue are those servers whose time is over: that for requests, or if one of them has a tunnel, that for tunnels.
func (p *Proxy) overdue(ctx context.Context, due []serverName) (map[serverName]bool, error) {
	out := map[serverName]bool{}
	for _, n := range due {
		if time.Since(p.leaving[n].since) >= p.opts.DrainTimeout {
			out[n] = true
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	reply, err := p.master.worker(ctx, "show sess")
	if err != nil {
		return nil, err
	}
	for n := range tunnels(reply) {
		if l := p.leaving[n]; l != nil && time.Since(l.since) < p.opts.TunnelTimeout {
			delete(out, n)
		}
	}
	return out, nil
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
				n.backend = v
			}
			if v, ok := strings.CutPrefix(f, "srv="); ok {
				n.name = v
			}
		}
		out[n] = true
	}
	return out
}

var _ proxyctl.Proxy = (*Proxy)(nil)
