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

// TestE2EMixedHour plays everything that happens to a proxy in an hour, in seconds, under steady requests. None fails, except
// those that find HAProxy dead, and in the end HAProxy has exactly the wanted servers.
func TestE2EMixedHour(t *testing.T) {
	for _, image := range testenv.Edges(images(t, "IMAGES_HAPROXY", "IMAGE_HAPROXY")) {
		t.Run(image, func(t *testing.T) {
			r := startHarness(t, image)
			h := r.hour(hour{changes: 300, reloads: 25, pace: 10 * time.Millisecond})
			t.Log(h)
			if h.failed() > 0 {
				t.Errorf("%d requests failed", h.failed())
			}
			// After a reload, too, a kept connection gets one more answer from its old worker. When a server moves, HAProxy 2.6
			// uses its connections that were busy at that time for a moment longer.
			if astray := h.astray().Of(false); len(astray) > 0 {
				t.Errorf("%d requests over new connections went to a server that was removed", len(astray))
			}
			if sent := len(h.others) + len(h.apart) + len(h.after); sent < int(0.9*traffic.Rate*h.lasted.Seconds()) {
				t.Errorf("%d requests in %v: the load was not there", sent, h.lasted)
			}
		})
	}
}

// hour is how much should happen.
type hour struct {
	changes int // of servers: added, removed, moved, or given another weight, sometimes several at once
	reloads int // changes of anything else
	pace    time.Duration
}

type hourReport struct {
	hour
	version           string
	runtime, reloaded int // texts that went live that way
	refused           error
	killed, answered  time.Time        // HAProxy was killed, and answered again
	back              time.Time        // it is known to run the newest text again
	apart             traffic.Requests // requests that found it dead
	after             traffic.Requests // requests during the first reload after the invalid text
	others            traffic.Requests
	lasted            time.Duration
}

// failed leaves out requests that found HAProxy dead. When HAProxy 3.2 has refused a configuration, the next reload opens new
// listening sockets instead of taking over the old ones (its master has no worker to take them from), and requests waiting in the
// old ones are lost. berth should avoid that if it can.
func (h hourReport) failed() int {
	n := h.others.Failed()
	if !strings.HasPrefix(h.version, "3.2") {
		n += h.after.Failed()
	}
	return n
}

// astray is how many requests went to a removed server. A HAProxy that was killed may start with one of those.
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

// playing is an hour in progress. A Controller brings HAProxy to the texts.
type playing struct {
	*harness
	report  hourReport
	control *proxyctl.Controller
	load    *traffic.Load
	rand    *rand.Rand
	fleet   *fleet
	free    []string // addresses without a server
	shape   int      // the part without servers
	counted *counter
}

// counter counts how texts went live.
type counter struct {
	*Proxy
	actions      map[proxyctl.Action]int
	refused      bool
	began, ended time.Time              // the first reload after a text was refused
	live         atomic.Pointer[string] // the last text that was applied as a whole
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

// hour ends the test at once if HAProxy does not get to the wanted text.
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
		r.apps[address].SetKeepAlivesEnabled(false) // removed by HAProxy, it ends its connections, too
	}
	testenv.Eventually(r, 20*time.Second, "HAProxy has the servers that are wanted, and no others", func() error { return r.expect(p.fleet.group) })
	p.report.apart, p.report.others = p.load.End().During(p.report.killed, p.report.answered)
	stop()
	p.report.after, p.report.others = p.report.others.During(p.counted.began, p.counted.ended)
	p.report.runtime, p.report.reloaded = p.counted.actions[proxyctl.Runtime], p.counted.actions[proxyctl.Reload]
	return p.report
}

// play does everything in a random order that is the same each time.
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
		if p.rand.IntN(5) > 0 { // otherwise the next text comes while this one is applied
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

// live waits until berth reports the newest text as live, and checks that HAProxy reports it, too.
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

// has checks that HAProxy has exactly the wanted servers, apart from draining ones.
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

// change adds, removes or moves one or several servers, or changes their weights.
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

// take returns the address that has been free for the longest time.
func (p *playing) take() string {
	a := p.free[0]
	p.free = p.free[1:]
	if p.load != nil {
		p.load.Came(a)
	}
	return a
}

func (p *playing) release(address string) { p.free = append(p.free, address) }

// invalid has berth refuse a text, then continues as if nothing had happened.
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

// kill kills HAProxy, and restarts it at once.
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
