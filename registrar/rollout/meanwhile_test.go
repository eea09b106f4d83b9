package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
)

// ^C during the removal of failed new containers rolls the batch back like at any other time.
func TestInterruptedWhileLeavingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.makes = func(b *box) { b.dies = 4 * time.Second }
		o := Defaults()
		o.FailureAction = Continue
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.onCall = func(_ int, what string) error {
			if len(w.boxes) == 3 && what == "remove" || strings.Contains(w.said.String(), "going on with the others") {
				cancel()
				return ctx.Err()
			}
			return nil
		}
		stop := w.onCall
		w.onCall = func(n int, what string) error {
			err := stop(n, what)
			if err != nil {
				w.onCall = nil
			}
			return err
		}
		left, err := w.begin(o).Run(ctx)
		if left || err == nil {
			t.Error(left, err)
		}
		w.expect("1 1")
	})
}

// Rolling a batch back leaves containers alone that somebody has created meanwhile.
func TestScaledMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.makes = func(b *box) {
			if w.made == 3 {
				b.dies = 4 * time.Second
			}
		}
		w.onCall = func(_ int, what string) error {
			if strings.Contains(w.said.String(), "serves, ") && w.made == 3 {
				w.add()
			}
			return nil
		}
		left, err := w.begin(Defaults()).Run(t.Context())
		if left || err == nil {
			t.Error(left, err)
		}
		w.expect("1 1 2")
	})
}

// Old containers that somebody else has replaced or removed meanwhile are not replaced.
func TestGoneMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.onCall = func(_ int, what string) error {
			if what == "stop" && w.made == 4 { // during the first batch
				w.least = 0
				w.boxes = append(w.boxes[:1:1], w.boxes[3:]...)
			}
			return nil
		}
		left, err := w.begin(Defaults()).Run(t.Context())
		if left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// With stop-first, the rollout does not claim that removed old containers serve, and --resume continues.
func TestStopFirstWithoutNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.least = 0
		o := Defaults()
		o.Order = StopFirst
		w.onCall = func(_ int, what string) error {
			if strings.HasPrefix(what, "up ") {
				return errors.New("no such image")
			}
			return nil
		}
		left, err := w.begin(o).Run(t.Context())
		if !left || err == nil || strings.Contains(err.Error(), "the old ones serve") || !strings.Contains(err.Error(), "--resume") {
			t.Error(left, err)
		}
		w.onCall = nil
		if left, err := w.rollout(w.saved[len(w.saved)-1]).Run(t.Context()); left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// If a container has a port that the balancers do not have, only the other port is awaited.
func TestUnroutedPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.metrics = true
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// A rollout interrupted during the removal of old ones that were not told to stop yet is rolled back if the new ones have
// failed since.
func TestAbortWhenNewOnesHaveFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		killed := false
		w.onCall = func(_ int, what string) error {
			if killed = killed || what == "stop"; killed {
				return errKilled
			}
			return nil
		}
		if left, err := w.begin(Defaults()).Run(t.Context()); !left || !errors.Is(err, errKilled) {
			t.Fatal(left, err)
		}
		w.onCall, w.least = nil, 0
		w.boxes[1].stopped = true
		if err := w.rollout(w.saved[len(w.saved)-1]).Undo(t.Context()); err != nil {
			t.Error(err)
		}
		w.expect("1")
	})
}

// ^C is the cause, whichever call it has ended.
func TestCauseOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		pressed := errors.New("interrupt")
		w.onCall = func(_ int, what string) error {
			if what == "inspect" && len(w.boxes) == 2 && ctx.Err() == nil {
				cancel(pressed)
				return ctx.Err()
			}
			return nil
		}
		if left, err := w.begin(Defaults()).Run(ctx); left || !errors.Is(err, pressed) {
			t.Error(left, err)
		}
		w.expect("1")
	})
}

// A new container that got the maintenance mode of the old one, with its service ID, does not keep it.
func TestInheritedMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.least = 0
		w.makes = func(b *box) { b.drained, b.reason = time.Now(), "rollout of shop/app" }
		o := Defaults()
		o.Order = StopFirst
		if left, err := w.begin(o).Run(t.Context()); left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// A refusal is recognized by Consul's answer, not by an instance's port.
func TestNumberOfAPort(t *testing.T) {
	if !isDenied(fmt.Errorf("drain x: %w", api.StatusError{Code: 403, Body: "Permission denied"})) {
		t.Error("it is not refused")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		failed := 0
		w.onCall = func(_ int, what string) error {
			if what == "maintain" && failed < 5 {
				failed++
				return errors.New("drain vm:shop-app-1:8403: connection refused")
			}
			return nil
		}
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// An agent that comes back empty when an old container is to be drained only costs the time until it has its state again.
func TestAgentLosesItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var since time.Time
		w.onCall = func(_ int, what string) error {
			if since.IsZero() && what == "instances" && len(w.saved) > 0 && w.saved[len(w.saved)-1].Phase == PhaseDrain {
				since = time.Now()
			}
			w.nobody = !since.IsZero() && time.Since(since) < 8*time.Second
			return nil
		}
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil {
			t.Error(left, err)
		}
		w.expect("2")
	})
}

// Whenever berth is killed or interrupted with stop-first, --resume replaces everything, and --abort leaves as many as
// before or says that it does not.
func TestStopFirstIsCutShort(t *testing.T) {
	for _, interrupted := range []bool{false, true} {
		for _, resume := range []bool{true, false} {
			each(t, func(t *testing.T, n int) (happened bool) {
				w := newWorld(t, 2)
				w.least = 0
				w.abrupt = true
				o := Defaults()
				o.Order = StopFirst
				r := w.begin(o)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				calls := w.calls
				w.onCall = func(call int, _ string) error {
					switch {
					case call < calls+n:
						return nil
					case !interrupted:
						happened = true
						return errKilled
					case call == calls+n:
						happened = true
						cancel()
					}
					return nil
				}
				left, err := r.Run(ctx)
				w.onCall = nil
				if !happened {
					return false
				}
				if !left {
					if got := w.versions(); got != "1 1" && got != "1 2" && got != "2 2" {
						t.Errorf("call %d: %q though nothing is left to do: %v", n, got, err)
					}
					return true
				}
				again := w.rollout(w.saved[len(w.saved)-1])
				if resume {
					if left, err := again.Run(t.Context()); left || err != nil {
						t.Errorf("call %d: %t %v", n, left, err)
					}
					w.expect("2 2")
					return true
				}
				err = again.Undo(t.Context())
				if got := w.versions(); err == nil && got != "1 1" && got != "1 2" && got != "2 2" {
					t.Errorf("call %d: %q", n, got)
				}
				return true
			})
		}
	}
}

// The State in Consul may be anything: foreign containers are never removed.
func TestStateNamesOthers(t *testing.T) {
	for _, label := range []string{labelProject, labelService} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			w.boxes[1].Config.Labels[label] = "consul"
			w.least, w.abrupt = 0, true
			if err := w.begin(Defaults()).remove(t.Context(), []string{w.boxes[0].ID, w.boxes[1].ID}); err != nil {
				t.Error(err)
			}
			if len(w.boxes) != 1 || w.boxes[0].Config.Labels[label] != "consul" {
				t.Errorf("%s: containers are %q", label, w.versions())
			}
		})
	}
}

// Labels that are not names of compose's go neither to a terminal nor to compose.
func TestNamesInLabels(t *testing.T) {
	w := &world{t: t}
	for _, label := range []string{labelProject, labelService} {
		for _, name := range []string{"", "-f", "--help", "a b", "a\nb", "\x1b[2J", "$(id)", "../x", "ä"} {
			w.add().Config.Labels[label] = name
		}
	}
	w.add().Config.Labels[labelProject] = "Shop_1.b-2"
	projects, err := Find(t.Context(), w, "app")
	if err != nil || len(projects) != 1 || projects["Shop_1.b-2"] == nil {
		t.Errorf("%q, %v", projects, err)
	}
	if names := Services(t.Context(), w); len(names) != 1 || names[0] != "app" {
		t.Errorf("%q", names)
	}
}

// hanging is a Docker that does not answer for an image until it is closed.
type hanging struct {
	*world
	closed chan struct{}
}

func (h hanging) InspectImage(string) (*docker.Image, error) {
	<-h.closed
	return nil, docker.ErrNoSuchImage
}

func TestImageOfHangingDocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hanging{newWorld(t, 1), make(chan struct{})}
		defer close(h.closed)
		if _, err := ImageOf(h, Service{Image: "app"}, nil); err == nil || !strings.Contains(err.Error(), "Docker has not answered within 10s") {
			t.Error(err)
		}
	})
}
