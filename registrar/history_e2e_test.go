//go:build e2e

package registrar_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
)

// happening is an event seen by a test.
type happening struct {
	at        time.Time // for Docker's events, Docker's own time
	container string    // its name; "" = not Docker's event
	what      string
}

// follow collects Docker's events for the harness's containers.
func (l *harness) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "docker", "events", "--since", strconv.FormatInt(time.Now().Unix(), 10),
		"--filter", "type=container", "--filter", "label="+harnessLabel+"="+l.name, "--format", "{{json .}}")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it would outlive a test that crashes
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for dec := json.NewDecoder(out); ; {
			var e struct {
				Action   string
				Actor    struct{ Attributes map[string]string }
				TimeNano int64 `json:"timeNano"`
			}
			if dec.Decode(&e) != nil {
				return
			}
			what := e.Action
			switch what {
			case "kill":
				what += " " + e.Actor.Attributes["signal"]
			case "die":
				what += " " + e.Actor.Attributes["exitCode"]
			}
			l.mu.Lock()
			l.events = append(l.events, happening{time.Unix(0, e.TimeNano), e.Actor.Attributes["name"], "docker " + what})
			l.mu.Unlock()
		}
	})
	l.t.Cleanup(func() {
		cancel()
		done.Wait()
		_ = cmd.Wait() // it was killed
	})
}

// dockerSaid returns the times at which Docker did something to a container.
func (l *harness) dockerSaid(c container, what string) (at []time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.container == c.name && e.what == "docker "+what {
			at = append(at, e.at)
		}
	}
	return at
}

// history is what happened to a container, and to its service in Consul, in order of time.
type history struct {
	l      *harness
	c      container
	mu     sync.Mutex
	consul []happening
}

// watch starts to collect the history of a service, before its container exists, or of the containers.
func (l *harness) watch(service string) *history {
	h := &history{l: l, c: container{name: l.name + "-" + service, service: service}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { h.follow(ctx) })
	l.t.Cleanup(func() {
		cancel()
		done.Wait()
		if l.t.Failed() {
			l.t.Logf("history of %s:\n%s", service, strings.Join(h.lines(), "\n"))
		}
	})
	return h
}

// follow follows Consul's catalog with blocking queries.
func (h *history) follow(ctx context.Context) {
	before := map[string]string{}
	for index := uint64(0); ctx.Err() == nil; {
		entries, meta, err := h.l.consul.Health().Service(h.c.service, "", false, (&api.QueryOptions{WaitIndex: index, WaitTime: 10 * time.Second}).WithContext(ctx))
		now := time.Now()
		if err != nil || meta.LastIndex < index {
			index = 0
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		index = meta.LastIndex
		statuses := map[string]string{}
		for _, e := range entries {
			statuses[e.Service.ID] = e.Checks.AggregatedStatus()
		}
		h.mu.Lock()
		for _, id := range slices.Sorted(maps.Keys(statuses)) {
			if before[id] != statuses[id] {
				h.consul = append(h.consul, happening{at: now, what: statuses[id]})
			}
		}
		for id := range before {
			if statuses[id] == "" {
				h.consul = append(h.consul, happening{at: now, what: "gone"})
			}
		}
		h.mu.Unlock()
		before = statuses
	}
}

// all returns everything that happened, with the relevant ones of Docker's events.
func (h *history) all() []happening {
	h.mu.Lock()
	out := slices.Clone(h.consul)
	h.mu.Unlock()
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	for _, e := range h.l.events {
		verb, _, _ := strings.Cut(strings.TrimPrefix(e.what, "docker "), " ")
		if e.container == h.c.name && slices.Contains([]string{"start", "kill", "die", "pause", "unpause"}, verb) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b happening) int { return a.at.Compare(b.at) })
	return out
}

func (h *history) lines() (out []string) {
	for _, e := range h.all() {
		out = append(out, e.at.Format("15:04:05.000000 ")+e.what)
	}
	return out
}

// expect waits until exactly this has happened, in this order, and returns the times.
func (h *history) expect(within time.Duration, want ...string) []time.Time {
	h.l.t.Helper()
	var at []time.Time
	h.l.eventually(within, fmt.Sprintf("the history of %s is %q", h.c.service, want), func() error {
		var got []string
		at = nil
		for _, e := range h.all() {
			got, at = append(got, e.what), append(at, e.at)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	return at
}
