package haproxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/proxyctl"
)

const tunnelOfA = "0x1: proto=tcpv4 src=127.0.0.1:1 fe=f be=app srv=a ts=00 epoch=0 age=2s calls=3 rate=1 cpu=0 lat=0 rq[f=848001h,i=0,an=00h,ax=] rp[f=80048001h,i=0,an=00h,ax=] scf=[8,1000h,fd=14,rex=59m59s,wex=] exp=1m\n\n"

// startDraining starts a HAProxy whose server app/a drains and has connections.
func startDraining(t *testing.T, set ...func(*Options)) (*masterSocket, *Proxy) {
	const two = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n"
	dir := t.TempDir()
	m := startMaster(t, dir)
	opts := newProxy(dir).driver.opts
	for _, f := range set {
		f(&opts)
	}
	p := New(opts)
	t.Cleanup(p.Close)
	if _, err := p.Apply(t.Context(), onlyText(two), true); err != nil {
		t.Fatal(err)
	}
	m.servers[0].busy = true
	if res, err := p.Apply(t.Context(), onlyText(strings.Replace(two, "  server a 10.0.0.1:80\n", "", 1)), true); err != nil || res.Leaving != 1 {
		t.Fatal(res, err)
	}
	m.commands = nil
	return m, p
}

// overdue makes the draining servers old, and due.
func (p *Proxy) overdue(ago time.Duration) {
	d := p.driver.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.list {
		s.since, s.next = time.Now().Add(-ago), time.Now()
	}
}

// A HAProxy that does not answer questions about draining servers delays no change.
func TestDrainingHoldsUpNothing(t *testing.T) {
	for _, hangs := range []string{"@1 show sess", "@1 del server app/a"} {
		t.Run(hangs, func(t *testing.T) {
			m, p := startDraining(t, func(o *Options) { o.DrainTimeout, o.Timeout = time.Millisecond, time.Minute })
			m.mu.Lock()
			m.hang[hangs] = true
			m.mu.Unlock()
			p.overdue(time.Hour / 2)
			control := proxyctl.New(proxyctl.Options{Proxy: p, Log: p.driver.opts.Log})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = control.Run(ctx) })
			defer running.Wait()
			defer cancel()
			const one = "frontend f\n  bind :80\nbackend app\n  server b 10.0.0.2:80\n"
			for n := range 5 {
				began := time.Now()
				control.Set(onlyText(one+manyServers(n+1)), began)
				live := func() bool {
					m.mu.Lock()
					defer m.mu.Unlock()
					return len(m.servers) == n+3
				}
				for !live() {
					if time.Since(began) > 5*time.Second {
						t.Fatalf("change %d is not live after %v", n, time.Since(began))
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
}

// A server that comes back just when it is being deleted is added again.
func TestBackWhileDeleted(t *testing.T) {
	m, p := startDraining(t)
	p.overdue(time.Minute)
	d := p.driver.drains
	due, lines := d.begin()
	if len(due) != 1 {
		t.Fatalf("due is %v", due)
	}
	type outcome struct {
		res proxyctl.Result
		err error
	}
	done := make(chan outcome)
	go func() {
		res, err := p.Apply(t.Context(), onlyText("frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n"), true)
		done <- outcome{res, err}
	}()
	select {
	case <-done:
		t.Fatal("it came back while it was being deleted")
	case <-time.After(20 * time.Millisecond):
	}
	m.mu.Lock()
	m.servers[0].busy = false
	m.mu.Unlock()
	reply, err := d.master.worker(t.Context(), lines...)
	d.end(due, reply, err)
	if o := <-done; o.err != nil || o.res.Action != proxyctl.Runtime || o.res.Leaving != 0 {
		t.Errorf("%+v, %v", o.res, o.err)
	}
	if want := []string{"del server app/a", "add server app/a 10.0.0.1:80 id 3", "enable server app/a"}; !slices.Equal(m.commands, want) {
		t.Errorf("commands %q, want %q", m.commands, want)
	}
}

// A server that comes back just after it was deleted, unknown to the plan, is added again.
func TestBackWhenDeleted(t *testing.T) {
	m, p := startDraining(t)
	d := p.driver
	to := mark("frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n", d.now)
	plan := d.Plan(to, nil)
	m.servers[0].busy = false
	p.overdue(time.Minute)
	d.Tend(t.Context())
	if err := d.Run(t.Context(), to, plan); err != nil {
		t.Error(err)
	}
	if want := []string{"del server app/a", "add server app/a 10.0.0.1:80 id 3", "enable server app/a"}; !slices.Equal(m.commands, want) {
		t.Errorf("commands %q, want %q", m.commands, want)
	}
}

// HAProxy's sessions are read rarely, and only when a server's time for requests is over. If they cannot be read, any server may
// have a tunnel.
func TestSessionsAreReadRarely(t *testing.T) {
	for _, tt := range []struct {
		name string
		says string
		cut  bool // at the end
	}{
		{"a tunnel", tunnelOfA, false},
		{"none", "\n", true},
		{"more than is read", strings.Repeat("0x1: be=app srv=b\n", maxReply/18+1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, p := startDraining(t, func(o *Options) { o.Timeout = 10 * time.Second })
			m.says["show sess"] = tt.says
			count := func(command string) (n int) {
				m.mu.Lock()
				defer m.mu.Unlock()
				for _, c := range m.commands {
					if c == command {
						n++
					}
				}
				return n
			}
			p.overdue(p.driver.opts.DrainTimeout - time.Minute)
			p.driver.Tend(t.Context())
			if n := count("show sess"); n != 0 {
				t.Errorf("read %d times before anything is due", n)
			}
			for range 5 {
				p.overdue(p.driver.opts.DrainTimeout + time.Minute)
				p.driver.Tend(t.Context())
			}
			if n := count("show sess"); n != 1 {
				t.Errorf("read %d times at once", n)
			}
			if n := count("shutdown sessions server app/a"); (n > 0) != tt.cut {
				t.Errorf("its connections were closed %d times", n)
			}
			p.driver.drains.looked = time.Now().Add(-30 * time.Second)
			p.overdue(p.driver.opts.DrainTimeout + time.Minute)
			p.driver.Tend(t.Context())
			if n := count("show sess"); n != 2 && !tt.cut {
				t.Errorf("read %d times after a while", n)
			}
			p.overdue(p.driver.opts.TunnelTimeout)
			p.driver.Tend(t.Context())
			if n := count("shutdown sessions server app/a"); n == 0 {
				t.Error("its connections are not closed when the time for tunnels is over")
			}
		})
	}
}

// State that grows with backends shrinks with them.
func TestBackendsAreForgotten(t *testing.T) {
	dir := t.TempDir()
	startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	var many strings.Builder
	for i := range 50 {
		fmt.Fprintf(&many, "backend b%d\n  server s 10.0.0.1:80\n", i)
	}
	for _, text := range []string{many.String(), "backend app\n  server s 10.0.0.1:80\n"} {
		if _, err := p.Apply(t.Context(), onlyText("frontend f\n  bind :80\n"+text), true); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.driver.lastID); n != 1 {
		t.Errorf("%d backends are remembered, of 1", n)
	}
}
