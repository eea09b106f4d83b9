package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// engineFake is a Docker daemon. All of its containers run.
type engineFake struct {
	mu       sync.Mutex
	ids      []string
	hangs    map[string]bool // IDs whose inspect blocks until the caller gives up
	inspects map[string]int
	events   chan Message
}

func newEngine(ids ...string) *engineFake {
	return &engineFake{ids: ids, hangs: map[string]bool{}, inspects: map[string]int{}, events: make(chan Message)}
}

func (e *engineFake) ListContainers(docker.ListContainersOptions) (out []docker.APIContainers, _ error) {
	for _, id := range e.ids {
		out = append(out, docker.APIContainers{ID: id})
	}
	return out, nil
}

func (e *engineFake) InspectContainerWithOptions(o docker.InspectContainerOptions) (*docker.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inspects[o.ID]++
	if e.hangs[o.ID] {
		e.mu.Unlock()
		<-o.Context.Done()
		e.mu.Lock()
		return nil, o.Context.Err()
	}
	return &docker.Container{ID: o.ID, State: docker.State{Running: true}}, nil
}

func (e *engineFake) KillContainer(docker.KillContainerOptions) error { return nil }

func (e *engineFake) stream(ctx context.Context, connected func(), message func(Message)) error {
	connected()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-e.events:
			message(m)
		}
	}
}

// watch runs a Watcher until the test's end, and returns what it has reported so far. To be called in a synctest bubble.
func (e *engineFake) watch(t *testing.T, stream Stream) (reported func() []Update) {
	ctx, cancel := context.WithCancel(t.Context())
	var updates []Update
	w := &Watcher{Client: e, Stream: stream, Resync: time.Minute, Host: func(context.Context) (label.Host, error) { return label.Host{}, nil }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, func(u Update) { e.mu.Lock(); defer e.mu.Unlock(); updates = append(updates, u) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() []Update {
		synctest.Wait()
		e.mu.Lock()
		defer e.mu.Unlock()
		return slices.Clone(updates)
	}
}

func inspectedOK(updates []Update) (ids []string) {
	for _, u := range updates {
		if in, ok := u.(Inspected); ok && in.Err == nil {
			ids = append(ids, in.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// However many containers hang, all others are inspected, and those that hang are asked about rarely.
func TestContainersThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 30 {
			ids = append(ids, fmt.Sprintf("c%02d", i))
		}
		e := newEngine(ids...)
		for _, id := range ids[:7] {
			e.hangs[id] = true
		}
		reported := e.watch(t, e.stream)
		if got := inspectedOK(reported()); len(got) != 23 {
			t.Errorf("%d are inspected at once, want 23: %v", len(got), got)
		}
		time.Sleep(15 * time.Second)
		e.events <- startOf("new")
		if got := inspectedOK(reported()); !slices.Contains(got, "new") {
			t.Errorf("one that starts later is not inspected at once: %v", got)
		}
		time.Sleep(10 * time.Minute)
		reported()
		e.mu.Lock()
		n := e.inspects["c00"]
		clear(e.hangs)
		e.mu.Unlock()
		if n < 10 || n > 62 {
			t.Errorf("one that hangs was asked about %d times in ten minutes", n)
		}
		time.Sleep(20 * time.Second)
		if got := inspectedOK(reported()); len(got) != 31 {
			t.Errorf("%d are inspected in the end, want 31: %v", len(got), got)
		}
	})
}

func startOf(id string) (m Message) {
	m.Type, m.Action, m.Actor.ID = "container", "start", id
	return m
}

// What Docker says of a container that was restarted or changed meanwhile is not believed.
func TestInspectedTooEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine("a")
		reported := e.watch(t, e.stream)
		reported()
		e.mu.Lock()
		e.hangs["a"] = true
		e.mu.Unlock()
		e.events <- startOf("a")
		before := len(reported())
		die := startOf("a")
		die.Action = "die"
		e.events <- die
		time.Sleep(time.Minute - time.Second)
		if got := reported()[before:]; len(got) != 1 {
			t.Errorf("reported after its end: %+v", got)
		}
	})
}

// A daemon that takes the connection and does not answer is not waited for.
func TestStreamThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine("a")
		reported := e.watch(t, func(ctx context.Context, _ func(), _ func(Message)) error { <-ctx.Done(); return ctx.Err() })
		time.Sleep(callTimeout)
		var failed []string
		for _, u := range reported() {
			if c, ok := u.(Connected); ok && c.Err != nil {
				failed = append(failed, c.Err.Error())
			}
		}
		if len(failed) != 1 || !strings.Contains(failed[0], "no answer within 10s") {
			t.Errorf("reported: %q", failed)
		}
		time.Sleep(time.Minute)
		if got := inspectedOK(reported()); len(got) != 1 {
			t.Errorf("without a stream nothing is looked at: %v", got)
		}
	})
}

// A stream is opened anew every so often, without a word if it worked.
func TestStreamIsOpenedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine("a")
		opened := 0
		reported := e.watch(t, func(ctx context.Context, connected func(), message func(Message)) error {
			opened++
			return e.stream(ctx, connected, message)
		})
		time.Sleep(10*time.Minute + time.Second)
		for _, u := range reported() {
			if c, ok := u.(Connected); ok && c.Err != nil {
				t.Errorf("reported: %v", c.Err)
			}
		}
		if opened != 11 {
			t.Errorf("opened %d times in ten minutes, want every minute", opened)
		}
	})
}
