package proxyctl

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"berth/proxyctl/configfile"
)

// costly is the least time of a refused reload that has kept listeners closed for a while.
const costly = time.Second

// refusal remembers the last text that was refused. The same text with other servers is not shown to the proxy and its
// program at every change: that costs a worker, which counts for mworker-max-reloads too, and a processor. A text that
// differs in more is tried at once, and so is one with a name that did not resolve, when it does.
type refusal struct {
	shape string
	err   error
	at    time.Time
	wait  time.Duration // until it is tried again
	slow  bool          // the proxy took its time for it, without listeners
	name  *name         // that did not resolve, nil if that was not the cause
}

// note remembers an error if that is a refusal. The time until the next try is first, and doubles with each refusal of the
// same shape up to most. The error that note returns says when the next try is due.
func (r *refusal) note(shape string, err error, first, most time.Duration) error {
	var port *PortError
	switch {
	case !errors.Is(err, ErrRefused):
		return err
	case errors.As(err, &port): // the driver remembers it
		first, most = time.Second, 15*time.Second
	}
	wait := first
	if r.err != nil && r.shape == shape {
		wait = min(max(2*r.wait, first), most)
	}
	r.forget()
	*r = refusal{shape: shape, err: err, at: time.Now(), wait: wait}
	if m := unresolved.FindStringSubmatch(err.Error()); m != nil {
		r.name = watchName(m[1])
	}
	return r.waits(wait)
}

// still returns the error of a text of this shape while it is too early to try that again.
func (r *refusal) still(shape string) error {
	left := r.wait - time.Since(r.at)
	if r.err == nil || r.shape != shape || left <= 0 || r.name != nil && r.name.resolves.Load() {
		return nil
	}
	return r.waits(left)
}

// forget is for a text that was taken.
func (r *refusal) forget() {
	r.unwatch()
	*r = refusal{}
}

func (r *refusal) unwatch() {
	if r.name != nil {
		r.name.stop()
		r.name = nil
	}
}

// waits returns the error with the time until the next try, or the next look whether the name resolves.
func (r *refusal) waits(left time.Duration) error {
	if r.name != nil && !r.name.useless.Load() {
		left = min(left, nameTime)
	}
	return &retryError{r.err, left}
}

// retryError says in what time to try again.
type retryError struct {
	error
	after time.Duration
}

func (e *retryError) Unwrap() error { return e.error }

// unresolved matches what HAProxy and nginx say of the name of a server that does not resolve.
var unresolved = regexp.MustCompile(`(?:could not resolve address '|host not found in upstream "|host not found in ")([^'":/ ]+)`)

// name is a name that did not resolve.
type name struct {
	resolves atomic.Bool // by now, though it did not here either
	useless  atomic.Bool // it resolves here all the time
	stop     func()
}

// nameTime is the time between two tries to resolve a name.
const nameTime = time.Second

// lookup resolves a name; tests replace it.
var lookup = net.DefaultResolver.LookupHost

// watchName tries to resolve a name until it resolves or stop is called.
func watchName(host string) *name {
	ctx, cancel := context.WithCancel(context.Background())
	n := &name{stop: cancel}
	go func() {
		defer cancel()
		for missed := false; ; {
			within, done := context.WithTimeout(ctx, 5*time.Second)
			_, err := lookup(within, host)
			done()
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				n.resolves.Store(missed)
				n.useless.Store(!missed)
				return
			}
			missed = true
			select {
			case <-ctx.Done():
				return
			case <-time.After(nameTime):
			}
		}
	}()
	return n
}

// FaultLine returns the first line of a configuration file that a proxy, or its program, complains of, 0 if it names none. place
// matches how it names a line, by a path and a number: lines of other files do not count.
func FaultLine(complaint string, place *regexp.Regexp, file string) int {
	for _, m := range place.FindAllStringSubmatch(complaint, -1) {
		// The proxy may see the directory under another path.
		if base := filepath.Base(m[1]); base == filepath.Base(file) || base == filepath.Base(configfile.Candidate(file)) {
			line, _ := strconv.Atoi(m[2])
			return line
		}
	}
	return 0
}
