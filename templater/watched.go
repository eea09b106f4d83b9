package templater

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul-template/dependency"
)

// answerTime is what a query may take beyond the time it was told to wait.
const answerTime = 10 * time.Second

// lostStateGrace is three times what a registrar takes at most to notice that its
// registrations are gone.
const lostStateGrace = 30 * time.Second

// watched is a dependency that retries for ever and tells how each of its queries
// went. Its view sees answers only: one that sees an error blocks until somebody
// takes it, waits a whole blocking query before it notices that Consul is back, and
// says so to nobody when nothing has changed.
type watched struct {
	dependency.Dependency
	outcomes chan<- outcome
	stop     chan struct{}
	answered bool // belongs to the view's fetching goroutine
}

// outcome is how a query went, told when it failed, and when one has worked for the
// first time or after a failure.
type outcome struct {
	from *watched
	err  error
}

func newWatched(d dependency.Dependency, outcomes chan<- outcome) *watched {
	return &watched{Dependency: d, outcomes: outcomes, stop: make(chan struct{})}
}

// Stop is called once, by the watcher.
func (w *watched) Stop() {
	close(w.stop)
	w.Dependency.Stop()
}

// Fetch returns an answer, or dependency.ErrStopped after Stop.
func (w *watched) Fetch(clients *dependency.ClientSet, opts *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	ask := *opts
	if _, ok := w.Dependency.(*dependency.HealthServiceQuery); ok {
		// Keeps an agent from answering out of its streaming cache, which learns
		// of a change 75 ms late.
		ask.Near = "_agent"
	}
	data, meta, err := w.fetch(clients, ask)
	if err == nil && w.answered {
		return data, meta, nil
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.Multiplier = 100*time.Millisecond, 5*time.Second, 2
	for err != nil {
		if errors.Is(err, dependency.ErrStopped) || !w.tell(err) || !w.sleep(wait.NextBackOff()) {
			return nil, nil, dependency.ErrStopped
		}
		ask.WaitIndex = 0 // answered at once, whether anything has changed or not
		data, meta, err = w.fetch(clients, ask)
	}
	if !w.tell(nil) {
		return nil, nil, dependency.ErrStopped
	}
	w.answered = true
	if meta.LastIndex < opts.WaitIndex {
		// This Consul has lost its state. Waiting with the old index gives the
		// registrars time to register everything again before it is believed.
		grace := *opts
		grace.WaitTime = min(opts.WaitTime, lostStateGrace)
		return w.Fetch(clients, &grace)
	}
	return data, meta, nil
}

// fetch is the dependency's own Fetch with a deadline, which Consul's client lacks:
// a server that is frozen, not dead, would be waited for without end.
func (w *watched) fetch(clients *dependency.ClientSet, opts dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	if w.Type() != dependency.TypeConsul {
		return w.Dependency.Fetch(clients, &opts) // a file is silent until it changes
	}
	type answer struct {
		data any
		meta *dependency.ResponseMetadata
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		data, meta, err := w.Dependency.Fetch(clients, &opts)
		answers <- answer{data, meta, err}
	}()
	deadline := answerTime
	if opts.WaitIndex > 0 {
		deadline += opts.WaitTime + opts.WaitTime/16 // Consul's own jitter
	}
	expired := time.NewTimer(deadline)
	defer expired.Stop()
	select {
	case a := <-answers:
		return a.data, a.meta, a.err
	case <-expired.C:
		return nil, nil, fmt.Errorf("%s: no answer in %s", w, deadline)
	case <-w.stop:
		return nil, nil, dependency.ErrStopped
	}
}

// tell reports false if the dependency was stopped.
func (w *watched) tell(err error) bool {
	if err != nil {
		err = fmt.Errorf("%w", err) // the library's errors log themselves with a stack trace
	}
	select {
	case w.outcomes <- outcome{w, err}:
		return true
	case <-w.stop:
		return false
	}
}

// sleep reports false if the dependency was stopped.
func (w *watched) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.stop:
		return false
	}
}
