// Package docker watches a Docker daemon: it follows the events, lists and inspects the containers, and says as values
// what it has found. It also sends signals to them.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"text/template"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/async"
	"berth/registrar/label"
)

// Client is the part of *docker.Client that is used.
type Client interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	KillContainer(docker.KillContainerOptions) error
}

const (
	callTimeout = 10 * time.Second // of one call
	parallel    = 8                // calls to inspect at once
	retried     = 4                // of these such as failed before: Docker may hang for the same containers again
)

// Update is news of Docker: an Event, or one of the following.
type Update = any

// Connected says that events are heard, or with an error why they are not.
type Connected struct{ Err error }

// Described is what the host is like. With an error it is what it was.
type Described struct {
	Host label.Host
	Err  error
}

// Listed are the IDs of all containers there are. With an error nothing is known of that.
type Listed struct {
	IDs []string
	Err error
}

// Inspected is a container as Docker has it now. With an error nothing is known of that, and it is asked again.
type Inspected struct {
	ID        string
	Running   bool // and not waiting for a restart
	Exited    bool // by itself or not; neither of the two: it is no container that registers anything
	Container label.Container
	Err       error
}

// Watcher watches a Docker daemon. No call holds up another one, or the events.
type Watcher struct {
	Client Client
	Stream Stream
	Host   func(ctx context.Context) (label.Host, error)
	Tags   *template.Template // see FromInspect
	Ended  bool               // list the containers that have ended, too
	Resync time.Duration      // how often the stream is opened anew, and everything is asked for

	// What follows belongs to Run.
	updates    *async.Updates[Update] // from goroutines that Run has started
	containers map[string]*watched
	list, host async.Attempt
	stale      bool // list has to be made again
	outdated   bool // host likewise
	events     int  // how many there were
	listedAt   int  // of these, when the list was asked for
	work       sync.WaitGroup
}

// watched is a container that is there.
type watched struct {
	inspect async.Attempt
	stale   bool // to be inspected
	started int  // number of the event by which it is known, 0 = by a list
}

// inspection is an Inspected for the container that was asked about: another one may have its ID since.
type inspection struct {
	Inspected
	of *watched
}

// streaming says that the event stream is up, and how to close it; or without that that it is down.
type streaming struct{ stop context.CancelFunc }

// Run tells report everything that happens, from one goroutine and in order, until ctx is done. report must not block.
func (w *Watcher) Run(ctx context.Context, report func(Update)) {
	w.updates, w.containers = async.NewUpdates[Update](), map[string]*watched{}
	w.work.Go(func() { w.follow(ctx) })
	defer w.work.Wait()
	resync := time.NewTicker(w.Resync)
	defer resync.Stop()
	wake := time.NewTimer(0)
	defer wake.Stop()
	var reopen context.CancelFunc
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.updates.Wake:
		case <-wake.C:
		case <-resync.C:
			// A stream that has died without a word is not noticed otherwise. The next one begins where this one ended.
			if reopen != nil {
				reopen()
			} else {
				w.stale, w.outdated = true, true
			}
		}
		for _, u := range w.updates.Drain() {
			switch u := u.(type) {
			case streaming:
				if reopen = u.stop; reopen != nil {
					w.stale, w.outdated = true, true
					report(Connected{})
				}
			case Message:
				if ev, relevant := u.event(); relevant {
					w.observe(ev)
					report(ev)
				}
			case Listed:
				report(w.listed(u))
			case Described:
				w.host.Done(u.Err)
				w.outdated = w.outdated || u.Err != nil
				report(u)
			case inspection:
				if u, current := w.inspected(u); current {
					report(u)
				}
			default:
				report(u)
			}
		}
		if next := w.ask(ctx); !next.IsZero() {
			wake.Reset(time.Until(next))
		}
	}
}

// follow keeps the event stream connected.
func (w *Watcher) follow(ctx context.Context) {
	delays := async.Delays()
	for ctx.Err() == nil {
		stream, stop := context.WithCancel(ctx)
		silent := time.AfterFunc(callTimeout, stop) // a daemon that does not answer
		connected := false
		err := w.Stream(stream,
			func() {
				if connected = silent.Stop(); connected {
					delays.Reset()
					w.updates.Add(streaming{stop})
				}
			},
			func(m Message) { w.updates.Add(m) })
		silent.Stop()
		planned := connected && stream.Err() != nil
		stop()
		w.updates.Add(streaming{})
		if planned || ctx.Err() != nil {
			continue
		}
		if errors.Is(err, context.Canceled) {
			err = fmt.Errorf("docker: no answer within %v", callTimeout)
		}
		w.updates.Add(Connected{err})
		select {
		case <-ctx.Done():
		case <-time.After(delays.NextBackOff()):
		}
	}
}

// observe takes note of what is to be inspected.
func (w *Watcher) observe(ev Event) {
	w.events++
	switch ev.Action {
	case Started:
		w.containers[ev.ID] = &watched{stale: true, started: w.events}
	case Changed:
		if c := w.containers[ev.ID]; c != nil {
			c.stale = true
		}
	case Died:
		if c := w.containers[ev.ID]; c != nil && w.Ended {
			w.containers[ev.ID] = &watched{started: c.started}
			return
		}
		delete(w.containers, ev.ID)
	case Removed:
		delete(w.containers, ev.ID)
	}
}

// listed makes all containers of a list stale, and forgets those that are not on it, unless they are newer.
func (w *Watcher) listed(l Listed) Listed {
	w.list.Done(l.Err)
	if w.stale = w.stale || l.Err != nil; l.Err != nil {
		return l
	}
	there := map[string]bool{}
	for _, id := range l.IDs {
		there[id] = true
		if w.containers[id] == nil {
			w.containers[id] = &watched{}
		}
		w.containers[id].stale = true
	}
	maps.DeleteFunc(w.containers, func(id string, c *watched) bool { return !there[id] && c.started <= w.listedAt })
	return Listed{IDs: slices.Sorted(maps.Keys(w.containers))}
}

// inspected takes in what Docker said of a container. It is not current if the container is another one meanwhile.
func (w *Watcher) inspected(in inspection) (u Inspected, current bool) {
	in.of.inspect.Done(in.Err)
	if w.containers[in.ID] != in.of {
		return u, false
	}
	in.of.stale = in.of.stale || in.Err != nil
	if in.Err == nil && !in.Running && !w.Ended {
		delete(w.containers, in.ID)
	}
	return in.Inspected, true
}

// ask starts the calls that are due, and says when the next one is if nothing happens.
func (w *Watcher) ask(ctx context.Context) (next time.Time) {
	now := time.Now()
	due := func(stale bool, a *async.Attempt) bool {
		if stale && !a.Busy && !a.Allowed(now) {
			next = async.Earliest(next, a.At)
		}
		return stale && a.Allowed(now)
	}
	if due(w.outdated, &w.host) {
		w.outdated = false
		w.host.Start()
		w.work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*callTimeout) // it makes two
			defer cancel()
			h, err := w.Host(ctx)
			w.updates.Add(Described{h, err})
		})
	}
	if due(w.stale, &w.list) {
		w.stale, w.listedAt = false, w.events
		w.list.Start()
		w.work.Go(func() {
			ids, err := w.ids(ctx)
			w.updates.Add(Listed{ids, err})
		})
	}
	busy, again := 0, 0
	var ids []string
	for id, c := range w.containers {
		if c.inspect.Busy {
			busy++
			if c.inspect.Err != nil {
				again++
			}
		} else if due(c.stale, &c.inspect) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		c := w.containers[id]
		if failed := c.inspect.Err != nil; failed && again >= retried {
			continue
		} else if failed {
			again++
		}
		if busy++; busy > parallel {
			break // the end of one call wakes the loop
		}
		c.stale = false
		c.inspect.Start()
		w.work.Go(func() { w.updates.Add(inspection{w.inspect(ctx, id), c}) })
	}
	return next
}

func (w *Watcher) ids(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := w.Client.ListContainers(docker.ListContainersOptions{Context: ctx, All: w.Ended})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids, nil
}

func (w *Watcher) inspect(ctx context.Context, id string) Inspected {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	u := Inspected{ID: id}
	c, err := w.Client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: id})
	var none *docker.NoSuchContainer
	switch {
	case errors.As(err, &none):
	case err != nil:
		u.Err = fmt.Errorf("inspect container %.12s: %w", id, err)
	default:
		u.Running, u.Exited = Running(c), c.State.Status == "exited"
		u.Container = FromInspect(c, w.Tags)
	}
	return u
}

// Kill has Docker send a signal to a container.
func Kill(ctx context.Context, client Client, id string, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.KillContainer(docker.KillContainerOptions{Context: ctx, ID: id, Signal: docker.Signal(signal)})
}

// Find returns the ID of the container with this name, ID or beginning of an ID, or name itself if Docker knows none.
func Find(ctx context.Context, client interface {
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
}, name string) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if c, err := client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: name}); err == nil {
		return cmp.Or(c.ID, name)
	}
	return name
}
