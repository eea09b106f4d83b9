// Package group brings what an operator decides for a service to each of its instances: one after the other or all at once,
// out of service meanwhile where that is needed, and back to what worked where it does not work.
package group

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/registrar/group/store"
)

// Strategies, in which the instances of a group take up a change that disrupts them.
const (
	Rolling = "rolling" // one after the other, each drained before and ready afterwards
	AtOnce  = "at-once" // all together
	None    = "none"    // not before the next start, or order to restart
)

// Wanted is what an instance is to run.
type Wanted struct {
	Config  store.Version           // the zero Version = nothing was applied
	Files   map[string]store.Header // by name
	Restart uint64                  // grows by one with each order to restart
}

// ID returns what tells w from anything else that was ever wanted of the service; it is the same on each of its instances.
func (w Wanted) ID() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %d", w.Config.Version, w.Config.Sum, w.Restart)
	for _, name := range slices.Sorted(maps.Keys(w.Files)) {
		fmt.Fprintf(&b, " %q %d %s", name, w.Files[name].Version, w.Files[name].Sum)
	}
	return fmt.Sprintf("%d-%s", w.Config.Version, store.Sum([]byte(b.String())))
}

// ErrStopping is returned by a Target, and by its Changes, when the instance ends: that says nothing about the change. The
// Applier then begins nothing more, and gives the lock back.
var ErrStopping = errors.New("the instance is stopping")

// Target is an instance that an Applier changes. Its methods are called from the Applier's goroutine, one at a time, and
// return soon when ctx is done.
type Target interface {
	// Prepare works out what w changes, and touches nothing. An error means that w cannot be applied here: what runs stays.
	// A w.Restart greater than that of the last change that was applied (at first, than that of First) is an order to
	// restart, and then the Change is not Empty.
	Prepare(ctx context.Context, w Wanted) (Change, error)
	// Drain takes the instance out of service and returns when it is drained. If ctx is done before that, the instance stays
	// out of service: at-once gives it a second.
	Drain(ctx context.Context, reason string) error
	// Resume puts the instance back and returns when it is ready. It may be called without Drain having succeeded.
	Resume(ctx context.Context) error
}

// Change is a difference between what an instance runs and what it is to run.
type Change interface {
	Empty() bool    // nothing differs
	Disrupts() bool // the instance cannot serve meanwhile: it needs the group's lock and to be drained
	// Apply carries it out and returns when the instance is ready again; Revert takes it back, likewise, however far Apply
	// came.
	Apply(ctx context.Context) error
	Revert(ctx context.Context) error
}
