//go:build e2e

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// TestE2EMixedHour plays all that happens to a proxy in an hour, in seconds, under steady requests: none fails, but for
// those that meet HAProxy dead, and in the end HAProxy has just the servers that are wanted.
func TestE2EMixedHour(t *testing.T) {
	for _, image := range testenv.Edges(images(t, "IMAGES_HAPROXY", "IMAGE_HAPROXY")) {
		t.Run(image, func(t *testing.T) {
			r := startHarness(t, image)
			h := r.hour(hour{changes: 300, reloads: 25, pace: 10 * time.Millisecond})
			t.Log(h)
			if h.failed() > 0 {
				t.Errorf("%d requests failed", h.failed())
			}
			// A kept connection gets one more answer by the worker that it was made to, after a reload, too. And when a
			// server moves, HAProxy 2.6 uses those of its connections that were busy then for a moment longer.
			if astray := h.astray().Of(false); len(astray) > 0 {
				t.Errorf("%d requests over new connections went to a server that was removed", len(astray))
			}
			if sent := len(h.others) + len(h.apart) + len(h.after); sent < int(0.9*traffic.Rate*h.lasted.Seconds()) {
				t.Errorf("%d requests in %v: the load was not there", sent, h.lasted)
			}
		})
	}
}

// hour is how much shall happen.
type hour struct {
	changes int // of servers: added, removed, moved, weighed, some of them at once
	reloads int // changes of what is no server
	pace    time.Duration
}

type hourReport struct {
	hour
	version           string
	runtime, reloaded int // texts that went live so
	refused           error
	killed, answered  time.Time        // HAProxy was killed, and answered again
	back              time.Time        // it is known to run the newest text again
	apart             traffic.Requests // those that met it dead
	after             traffic.Requests // those during the first reload after the invalid text
	others            traffic.Requests
	lasted            time.Duration
}

// failed leaves out those that met HAProxy dead. When HAProxy 3.2 has refused a configuration, the next reload makes new
// listening sockets instead of taking over the old ones (its master has no worker to take them from), and what waits in
// the old ones is lost: that is for berth to avoid, if it can.
func (h hourReport) failed() int {
	n := h.others.Failed()
	if !strings.HasPrefix(h.version, "3.2") {
		n += h.after.Failed()
	}
	return n
}

// astray is how many requests went to a server that was removed. A HAProxy that was killed may start with one of those.
func (h hourReport) astray() traffic.Requests {
	_, others := h.others.During(h.killed, h.back)
	return others.Astray()
}

func (h hourReport) String() string {
	return fmt.Sprintf("%d changes of servers, %d of anything else, 1 invalid text, 1 kill -9 of HAProxy, in %.0f s. By commands %d texts, by reloads %d. "+
		"%s; %d and %d went to a server that was removed%s\n  The kill apart: HAProxy answered again after %s ms, and had the newest text for certain after %s ms; %d of %d requests in that time failed.\n"+
		"  The invalid text: %v. During the first reload after it %d of %d requests failed%s",
		h.changes, h.reloads, h.lasted.Seconds(), h.runtime, h.reloaded, h.others, len(h.astray().Of(true)), len(h.astray().Of(false)), h.others.Failures(),
		traffic.Ms(h.answered.Sub(h.killed)), traffic.Ms(h.back.Sub(h.killed)), h.apart.Failed(), len(h.apart), h.refused,
		h.after.Failed(), len(h.after), h.after.Failures())
}

// playing is an hour under way. A Controller brings HAProxy to the texts.
type playing struct {
	*harness
	report  hourReport
	control *proxyctl.Controller
	load    *traffic.Load
	rand    *rand.Rand
	fleet   *fleet
	free    []string // addresses that no server has
	shape   int      // what no server makes up
	counted *counter
}

// counter counts how texts went live.
type counter struct {
	*Proxy
	actions      map[proxyctl.Action]int
	refused      bool
	began, ended time.Time              // the first reload after a text was refused
	live         atomic.Pointer[string] // the text that was applied last, as a whole
}

func (c *counter) Apply(ctx context.Context, config proxyctl.Config, mayReload bool) (proxyctl.Result, error) {
	began := time.Now()
	res, err := c.Proxy.Apply(ctx, config, mayReload)
	c.actions[res.Action]++
	if res.Action == proxyctl.Reload && c.refused && c.began.IsZero() {
		c.began, c.ended = began, time.Now()
	}
	c.refused = c.refused || errors.Is(err, proxyctl.ErrRefused)
	if err == nil {
		c.live.Store(&config.Text)
	}
	return res, err
}

// hour ends the test at once if HAProxy is not brought to what is wanted.
func (r *harness) hour(h hour) hourReport {
	opts := r.options()
	p := &playing{harness: r, report: hourReport{hour: h, version: r.version}, rand: rand.New(rand.NewPCG(1, 2)), counted: &counter{Proxy: New(opts), actions: map[proxyctl.Action]int{}}}
	p.control = proxyctl.New(proxyctl.Options{Proxy: p.counted, Interval: time.Millisecond, Check: 200 * time.Millisecond, Log: opts.Log})
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan error, 1)
	go func() { done <- p.control.Run(ctx) }()
	stop := func() {
		if cancel(); done != nil {
			<-done
			done = nil
		}
	}
	defer stop()

	addresses := r.startApps(40)
	p.fleet, p.free = &fleet{group: group{name: "app"}}, addresses
	for range 10 {
		p.add()
	}
	p.set()
	p.live()
	p.load = traffic.Start(r, r.web)
	began := time.Now()
	p.play()
	p.report.lasted = time.Since(began)
	for _, address := range p.free {
		r.apps[address].SetKeepAlivesEnabled(false) // what HAProxy removed ends its connections, too
	}
	testenv.Eventually(r, 20*time.Second, "HAProxy has the servers that are wanted, and no others", func() error { return r.expect(p.fleet.group) })
	p.report.apart, p.report.others = p.load.End().During(p.report.killed, p.report.answered)
	stop()
	p.report.after, p.report.others = p.report.others.During(p.counted.began, p.counted.ended)
	p.report.runtime, p.report.reloaded = p.counted.actions[proxyctl.Runtime], p.counted.actions[proxyctl.Reload]
	return p.report
}

// play does all in an order that is random, and the same each time.
func (p *playing) play() {
	var steps []func()
	for range p.report.changes {
		steps = append(steps, p.change)
	}
	for range p.report.reloads {
		steps = append(steps, func() { p.shape++ })
	}
	p.rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for i, step := range steps {
		step()
		p.set()
		if p.rand.IntN(5) > 0 { // else the next text comes while this one is applied
			p.live()
		}
		<-time.After(p.report.pace)
		switch i {
		case len(steps) / 3:
			p.invalid()
		case 2 * len(steps) / 3:
			p.kill()
		}
	}
	p.live()
}

func (p *playing) text() string {
	return p.harness.text(fmt.Sprintf("    http-response set-header X-Shape %d\n", p.shape), p.fleet.group)
}

func (p *playing) set() { p.control.Set(onlyText(p.text()), time.Now()) }

// live waits until berth says that the newest text is live, and has HAProxy itself say so, too.
func (p *playing) live() {
	p.Helper()
	testenv.Eventually(p, 20*time.Second, "the newest text is live", func() error {
		if live := p.counted.live.Load(); live == nil || *live != p.text() {
			return fmt.Errorf("status %w", p.control.Ready())
		}
		return p.control.Ready()
	})
	p.has("when the newest text is live")
	if p.load == nil {
		return
	}
	for _, address := range p.free {
		p.load.Left(address)
	}
}

// has sees whether HAProxy has the servers that are wanted, and no others but those that are draining.
func (p *playing) has(when string) {
	p.Helper()
	has, err := p.servers()
	if err != nil {
		p.Fatal(err)
	}
	maps.DeleteFunc(has, func(_, s string) bool { return strings.Contains(s, " admin state 1 ") })
	if err := differ(has, p.fleet.group); err != nil {
		p.Errorf("%s: %v", when, err)
	}
}

// change adds, removes, moves or weighs a server, or several.
func (p *playing) change() {
	for range 1 + max(0, p.rand.IntN(8)-5) {
		i := p.rand.IntN(len(p.fleet.servers))
		switch n := len(p.fleet.servers); p.rand.IntN(4) {
		case 0:
			if n < 25 {
				p.add()
			}
		case 1:
			if n > 4 {
				p.release(p.fleet.servers[i].address)
				p.fleet.servers = append(p.fleet.servers[:i:i], p.fleet.servers[i+1:]...)
			}
		case 2:
			was := p.fleet.servers[i].address
			p.fleet.servers[i].address = p.take()
			p.release(was)
		case 3:
			p.fleet.servers[i].weight = 1 + p.rand.IntN(256)
		}
	}
}

func (p *playing) add() {
	p.fleet.made++
	p.fleet.servers = append(p.fleet.servers, listed{fmt.Sprint("app-", p.fleet.made), p.take(), 100})
}

// take is the address that is free for the longest time.
func (p *playing) take() string {
	a := p.free[0]
	p.free = p.free[1:]
	if p.load != nil {
		p.load.Came(a)
	}
	return a
}

func (p *playing) release(address string) { p.free = append(p.free, address) }

// invalid has berth refuse a text, and goes on as if nothing had been.
func (p *playing) invalid() {
	p.live()
	p.control.Set(onlyText(strings.Replace(p.text(), "frontend http.in\n", "frontend http.in\n    no-such-keyword\n", 1)), time.Now())
	testenv.Eventually(p, 20*time.Second, "the invalid text is refused", func() error {
		if err := p.control.Ready(); !errors.Is(err, proxyctl.ErrRefused) {
			return fmt.Errorf("status %w", err)
		}
		return nil
	})
	p.report.refused = p.control.Ready()
	p.has("after an invalid text")
	p.set()
}

// kill kills HAProxy, and starts it right away.
func (p *playing) kill() {
	p.live()
	p.report.killed = time.Now()
	testenv.MustDocker(p, "kill", p.id)
	testenv.MustDocker(p, "start", p.id)
	p.counted.live.Store(nil)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	testenv.Eventually(p, 20*time.Second, "HAProxy answers again", func() error {
		_, err := testenv.Fetch(p.Context(), client, "http://"+p.web)
		return err
	})
	p.report.answered = time.Now()
	// What is live must be read again: a new text does that.
	p.fleet.servers[0].weight = 1 + p.fleet.servers[0].weight%256
	p.set()
	p.live()
	p.report.back = time.Now()
}
