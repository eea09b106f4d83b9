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

// costly is how long a refused reload takes at least if it has kept listeners closed for a while.
const costly = time.Second

// refusal remembers the last text that was refused. The same text with other servers is not shown to the proxy and its program at
// every change, since each try costs CPU time and a worker, which counts towards mworker-max-reloads. A text that differs in more
// is tried at once. So is a text with a name that did not resolve, as soon as it resolves.
type refusal struct {
	shape string
	err   error
	at    time.Time
	wait  time.Duration // until it is tried again
	slow  bool          // the proxy took long to refuse it, with its listeners closed
	name  *name         // the name that did not resolve, nil if that was not the cause
}

// note remembers an error if it is a refusal. The next try is due after first, doubled with each refusal of the same shape up to
// most. The returned error says when.
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

// still returns the error for a text of this shape as long as it is too early to try it again.
func (r *refusal) still(shape string) error {
	left := r.wait - time.Since(r.at)
	if r.err == nil || r.shape != shape || left <= 0 || r.name != nil && r.name.resolves.Load() {
		return nil
	}
	return r.waits(left)
}

// forget clears the refusal after a text was accepted.
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

// waits returns the error with the time until the next try, or until the next check whether the name resolves.
func (r *refusal) waits(left time.Duration) error {
	if r.name != nil && !r.name.useless.Load() {
		left = min(left, nameTime)
	}
	return &retryError{r.err, left}
}

// retryError says when to try again.
type retryError struct {
	error
	after time.Duration
}

func (e *retryError) Unwrap() error { return e.error }

// unresolved matches what HAProxy and nginx say about a server name that does not resolve.
var unresolved = regexp.MustCompile(`(?:could not resolve address '|host not found in upstream "|host not found in ")([^'":/ ]+)`)

// name is a host name that did not resolve.
type name struct {
	resolves atomic.Bool // it does now, after failing here too
	useless  atomic.Bool // it always resolved here
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

// FaultLine returns the first line of a configuration file that a complaint of a proxy or its program names, 0 if it names none.
// place matches a path and a line number. Lines of other files are ignored.
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
