package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/proxyctl/configfile"
)

// Marked is a text with its mark, as written to the file, and the configuration that a driver reads from it.
type Marked[C any] struct {
	Text       string
	Generation configfile.Generation // zero if the file is not as berth wrote it
	Config     *C                    // nil if the text is not a configuration
}

// Snapshot describes what a proxy says it runs.
type Snapshot struct {
	Generation configfile.Generation // of the text that its worker has loaded; zero if it has no mark of berth's
	OldWorkers int                   // workers of earlier configurations that are finishing their connections
	// Unmarked says why the proxy does not report what it runs, although it can be told to load the file. A reload brings it to
	// berth's configuration.
	Unmarked string
	// Down means that the proxy does not run or cannot be reached. The file is prepared for its start.
	Down bool
	// Starting means that an unmarked proxy may be starting with the file. If the file is berth's, the proxy gets some time
	// first.
	Starting bool
}

// Plan describes how the running proxy gets to a text.
type Plan[O fmt.Stringer] struct {
	Reload string // why it takes a reload, "" if Ops suffice
	Ops    []O    // changes of servers at run time; none if the proxy has them all
}

// String names the first thing to do.
func (p Plan[O]) String() string {
	switch {
	case p.Reload != "":
		return p.Reload
	case len(p.Ops) == 1:
		return p.Ops[0].String()
	case len(p.Ops) > 1:
		return fmt.Sprintf("%s, and %d more", p.Ops[0], len(p.Ops)-1)
	}
	return "nothing"
}

// Grammar reads and compares a proxy's texts. Its methods have no side effects, and keep a text in memory only as long as the
// configurations made from it.
type Grammar[C any] interface {
	// Mark parses a rendered text and adds its mark. before is the configuration of a similar text, or nil. The error wraps
	// ErrRefused if the proxy would refuse the text, or serve nothing with it. Config is set as far as the text can be read even
	// then.
	Mark(text string, before *C) (Marked[C], error)
	// Unmark parses a file, which berth need not have written.
	Unmark(file string, before *C) Marked[C]
	// IsMarked reports whether berth wrote a file, even if it was changed since.
	IsMarked(file string) bool
	// Beside returns the files that belong to a text and keep their names when they change: path to content, nil if there are
	// none.
	Beside(text string) map[string]string
	// Between returns contents for the Beside files that suit both texts: a proxy that starts with either one serves what it can.
	Between(from, to string) map[string]string
	// AtFault returns the backend, listen section or upstream that a complaint about the text refers to, "" if it is none or
	// unknown. It may be called from any goroutine.
	AtFault(text, complaint string) string
	// Count returns how many backends have servers, and how many servers they have.
	Count(c *C) (backends, servers int)
	// Changes returns how the servers of each backend differ.
	Changes(before, after *C) []Change
	// Serves returns the names of everything a text passes requests to: backends that have servers, and any other targets. The
	// text need not be berth's.
	Serves(c *C) map[string]bool
	// SameFrame reports whether two texts agree in everything that the catalog does not decide. If they differ, the template was
	// changed.
	SameFrame(a, b *C) bool
}

// Driver covers what differs between proxies, for configurations C and run-time changes O of servers. The engine calls its
// methods from one goroutine, except Check and Servers, which may run concurrently, and Tend, which has its own goroutine. Each
// call sets its own deadline.
type Driver[C any, O fmt.Stringer] interface {
	Grammar[C]

	// Inspect asks the proxy what it runs. If the proxy is down, the error says how that is known. The driver remembers the
	// servers it saw for Observe.
	Inspect(ctx context.Context) (Snapshot, error)
	// Runs reports whether the last inspected proxy has the servers of a text, whatever its Generation says. HAProxy keeps berth's
	// mark in its environment, and so even after a reload with a file that has no mark.
	Runs(c *C) bool
	// Observe sets the text that the last inspected proxy runs, apart from its servers. Plan starts there.
	Observe(base Marked[C])
	// Plan returns how to get to a text from the servers that were observed, or that the last Run or Reload left. If alike is not
	// nil, backends that are the same in it are assumed to be right.
	Plan(to Marked[C], alike *C) Plan[O]
	// Run carries out a plan, which may be empty, and reads back the result. An error that wraps ErrUnexpected says what the
	// proxy did not accept; a reload fixes it. After any error, the proxy must be inspected.
	Run(ctx context.Context, to Marked[C], plan Plan[O]) error
	// Before returns the configuration that Changes counts from: the proxy's own servers where the driver knows them, otherwise
	// last.
	Before(last *C) *C
	// Merge returns the text of base with the servers that its backends have in to, for backends that differ in nothing else and
	// whose changes the running proxy accepts. Backends in keep stay as in base. With reload, the result is meant to be loaded:
	// it may have all servers that are safe to load, if only a reload changes them. "" stands for base unchanged.
	Merge(base, to *C, keep []string, reload bool) string

	// Binary returns the program that checks a file, "" if there is none.
	Binary() string
	// Check has the program check a file. The error wraps ErrRefused if the program refuses it.
	Check(ctx context.Context, file string) error
	// StartsWith reports whether a proxy that is down is certain to start with a text, without asking a program, provided it
	// would start with the configuration there.
	StartsWith(to, there *C) bool
	// Precheck finds what the program does not see before the file is replaced, such as an address in use.
	Precheck(ctx context.Context, last, to Marked[C]) error
	// Reload has the proxy load its file, which already has the text of to, and returns when new workers serve it. last is the
	// text that the proxy ran. A LoadedError means that the proxy did load the text but cannot keep it; Reload is then called
	// again with the texts swapped.
	Reload(ctx context.Context, last, to Marked[C]) (Snapshot, error)

	// Tend looks after draining servers and other work that can wait. It returns when to call it again; 0 means only after the
	// next Apply.
	Tend(ctx context.Context) time.Duration
	// Draining returns how many removed servers are still finishing their connections.
	Draining() int

	// Servers is as in Proxy.
	Servers(ctx context.Context) ([]Server, error)
}

// ErrUnexpected marks an answer or a state of the proxy that should not occur. A reload fixes it.
var ErrUnexpected = errors.New("unexpected")

// LoadedError is returned by Reload if the proxy did load the text but cannot keep it.
type LoadedError struct{ Err error }

func (e *LoadedError) Error() string { return e.Err.Error() }
func (e *LoadedError) Unwrap() error { return e.Err }
