package proxyctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/proxyctl/configfile"
)

// Marked is a text with its mark, as it is written to the file, and C, the configuration that a driver reads in it.
type Marked[C any] struct {
	Text       string
	Generation configfile.Generation // the zero one for a file that is not as berth wrote it
	Config     *C                    // nil if the text is no configuration
}

// Snapshot describes what a proxy runs, as the proxy says.
type Snapshot struct {
	Generation configfile.Generation // of the text that its worker has loaded; the zero one if that has no mark of berth's
	OldWorkers int                   // workers of earlier configurations that still finish their connections
	// Unmarked says why the proxy does not say what it runs, though it can be told to load the file: it is brought to berth's
	// configuration by a reload.
	Unmarked string
	// Down says that the proxy does not run, or cannot be told anything: the file is prepared for its start.
	Down bool
	// Starting says that an unmarked proxy may be on its way up with the file: if that is berth's, it gets some time first.
	Starting bool
}

// Plan says how the running proxy gets to a text.
type Plan[O fmt.Stringer] struct {
	Reload string // why nothing less than a reload does, "" if Ops do
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

// Grammar reads and compares a proxy's texts. Its methods have no effects, and none keeps a text in memory for longer than
// the configurations made from it.
type Grammar[C any] interface {
	// Mark reads a text as it was rendered, and gives it its mark. before is the configuration of a similar text, or nil.
	// The error wraps ErrRefused if the proxy would not take the text, or serve nothing with it; the Config is set as far as
	// it can be read even so.
	Mark(text string, before *C) (Marked[C], error)
	// Unmark reads a file, which may be anybody's.
	Unmark(file string, before *C) Marked[C]
	// IsMarked says whether berth wrote a file, whatever became of it since.
	IsMarked(file string) bool
	// Beside returns the contents of the files that a text has beside it under names that stay the same, by path. nil = none.
	Beside(text string) map[string]string
	// Between returns contents for the files that a text has beside it with which the proxy, should it start, serves what it can
	// both with the text before and with this one.
	Between(from, to string) map[string]string
	// AtFault returns the backend, listen section or upstream of a text that a complaint about the text means, "" if that is none or
	// cannot be told. It may be called from any goroutine.
	AtFault(text, complaint string) string
	// Count returns how many backends have servers, and how many servers these are.
	Count(c *C) (backends, servers int)
	// Changes says for each backend how its servers differ.
	Changes(before, after *C) []Change
	// Serves returns the names of what a text, which may be anybody's, passes requests to: of backends that have servers, and
	// of whatever else has.
	Serves(c *C) map[string]bool
	// SameFrame says whether two texts agree in what the catalog does not decide. If they do not, somebody has changed the
	// template.
	SameFrame(a, b *C) bool
}

// Driver does what differs between proxies, for configurations C and changes O of servers at run time. The engine calls its
// methods from one goroutine, but for Check and Servers, which are called from others meanwhile, and Tend, which has one of its own.
// Each call has its own deadline.
type Driver[C any, O fmt.Stringer] interface {
	Grammar[C]

	// Inspect asks the proxy what it runs. The error of one that is down says how that is known. The driver remembers the
	// servers that it has seen, for Observe.
	Inspect(ctx context.Context) (Snapshot, error)
	// Runs says whether the proxy that was last inspected has the servers of a text, whatever its Generation says: the mark that
	// HAProxy tells is in its environment, which outlasts a reload with a file that has none.
	Runs(c *C) bool
	// Observe says which text the proxy that was last inspected runs, but for its servers: Plan begins there.
	Observe(base Marked[C])
	// Plan says how to get to a text from the servers that were observed, or that the last Run or Reload left. Backends that
	// are the same in alike, unless it is nil, are taken to be right as they are.
	Plan(to Marked[C], alike *C) Plan[O]
	// Run carries out the plan to a text, which may have nothing to do, and reads back what came of it. An error that wraps
	// ErrUnexpected says what the proxy did not take: a reload puts it right. After any error the proxy has to be inspected.
	Run(ctx context.Context, to Marked[C], plan Plan[O]) error
	// Before returns the configuration from which Changes are counted: last, or the proxy's own servers where the driver
	// knows them.
	Before(last *C) *C
	// Merge returns the text of base with the servers that the backends have in to, where those are all that differs and the
	// running proxy takes them. Backends in keep stay as they are in base. With reload, the result is to be loaded:
	// it may have all servers that are safe to load, if only a reload changes them. "" stands for base as it is.
	Merge(base, to *C, keep []string, reload bool) string

	// Binary returns the program that checks a file, "" if there is none.
	Binary() string
	// Check has the program check a file. The error wraps ErrRefused if it says no.
	Check(ctx context.Context, file string) error
	// StartsWith says whether a proxy that is down is known, without a program, to start with a text if it would with what
	// is in the file.
	StartsWith(to, there *C) bool
	// Precheck finds out what the program does not see, before the file is replaced: an address in use, say.
	Precheck(ctx context.Context, last, to Marked[C]) error
	// Reload has the proxy load its file, which has this text by now, and returns when new workers serve with it. last is
	// the text that it ran. A LoadedError says that it did load the text, and cannot stay with it:
	// then it is called once more, with the texts swapped.
	Reload(ctx context.Context, last, to Marked[C]) (Snapshot, error)

	// Tend looks after draining servers, and whatever else can wait. It returns in what time to call it again, 0 for not
	// before something was applied.
	Tend(ctx context.Context) time.Duration
	// Draining returns how many servers were removed and still finish their connections.
	Draining() int

	// Servers is that of Proxy.
	Servers(ctx context.Context) ([]Server, error)
}

// ErrUnexpected marks what the proxy says or does that it should not; a reload puts it right.
var ErrUnexpected = errors.New("unexpected")

// LoadedError is the error of a Reload when the proxy did load the text, and cannot stay with it.
type LoadedError struct{ Err error }

func (e *LoadedError) Error() string { return e.Err.Error() }
func (e *LoadedError) Unwrap() error { return e.Err }
