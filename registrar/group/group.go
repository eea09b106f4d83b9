// Package group brings what an operator decides for a service to each of its instances: one after the other or all at once,
// taking instances out of service if necessary, and back to what worked if the change fails.
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

// Strategies for applying a disruptive change to the instances of a group.
const (
	Rolling = "rolling" // one after the other, each drained before and ready afterwards
	AtOnce  = "at-once" // all together
	None    = "none"    // only at the next start or restart order
)

// Wanted is what an instance should run.
type Wanted struct {
	Config  store.Version           // the zero Version = nothing was applied
	Files   map[string]store.Header // by name
	Restart uint64                  // incremented with each restart order
}

// ID identifies w among everything ever wanted of the service; it is the same on each instance.
func (w Wanted) ID() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %d", w.Config.Version, w.Config.Sum, w.Restart)
	for _, name := range slices.Sorted(maps.Keys(w.Files)) {
		fmt.Fprintf(&b, " %q %d %s", name, w.Files[name].Version, w.Files[name].Sum)
	}
	return fmt.Sprintf("%d-%s", w.Config.Version, store.Sum([]byte(b.String())))
}

// ErrStopping is returned by a Target and its Changes when the instance ends. It says nothing about the change. The Applier
// then begins nothing more, and releases the lock.
var ErrStopping = errors.New("the instance is stopping")

// Target is an instance that an Applier changes. Its methods are called from the Applier's goroutine, one at a time, and
// must return soon after ctx is done.
type Target interface {
	// Prepare computes what w changes, without side effects. An error means that w cannot be applied here, and the instance
	// stays as it is. A w.Restart greater than that of the last applied change (at first, than that of First) is a restart
	// order, and its Change is not Empty.
	Prepare(ctx context.Context, w Wanted) (Change, error)
	// Drain takes the instance out of service and returns when it is drained. If ctx is done earlier, the instance stays out
	// of service: at-once allows it a second.
	Drain(ctx context.Context, reason string) error
	// Resume puts the instance back into service and returns when it is ready. It may be called even if Drain failed.
	Resume(ctx context.Context) error
}

// Change is the difference between what an instance runs and what it should run.
type Change interface {
	Empty() bool    // nothing differs
	Disrupts() bool // the instance cannot serve meanwhile: it must hold the group's lock and be drained
	// Apply carries out the change and returns when the instance is ready again. Revert undoes it in the same way, however
	// far Apply got.
	Apply(ctx context.Context) error
	Revert(ctx context.Context) error
}
