package rollout

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func (w *world) expect(versions string) {
	w.t.Helper()
	if got := w.versions(); got != versions {
		w.t.Errorf("containers are %q, want %q\n%s", got, versions, w.said.String())
	}
}

// All are replaced, and never fewer than before are in service; nothing with requests in flight is stopped.
func TestRun(t *testing.T) {
	for name, tt := range map[string]struct {
		n, parallelism int
		delay          time.Duration
		within         time.Duration
	}{
		"one":           {1, 1, 0, 8 * time.Second},
		"one by one":    {5, 1, 0, 40 * time.Second},
		"two at a time": {5, 2, time.Minute, 2*time.Minute + 24*time.Second},
		"all at once":   {5, 0, time.Minute, 8 * time.Second},
		"more than are": {2, 9, time.Minute, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.n)
				o := Defaults()
				o.Parallelism, o.Delay = tt.parallelism, tt.delay
				began := time.Now()
				if left, err := w.begin(o).Run(t.Context()); left || err != nil {
					t.Fatal(left, err)
				}
				w.expect(strings.TrimSpace(strings.Repeat("2 ", tt.n)))
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// Crashed containers are replaced first, and missing ones are created.
func TestFewerThanConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.boxes[1].stopped, w.least = true, 2
		list, err := Containers(t.Context(), w, "shop", "app")
		if err != nil {
			t.Fatal(err)
		}
		plan := NewPlan(list, "hash-2", "image-2", 5, false)
		if plan.Old[0] != w.boxes[1].ID || plan.Extra != 2 {
			t.Errorf("%+v", plan)
		}
		if left, err := w.rollout(plan.Begin(Who{By: "me"}, Defaults())).Run(t.Context()); left || err != nil {
			t.Fatal(left, err)
		}
		w.expect("2 2 2 2 2")
	})
}

// Failures are rolled back, whatever is wrong, and the error says why.
func TestRollback(t *testing.T) {
	for name, tt := range map[string]struct {
		makes func(w *world, b *box)
		says  string
	}{
		"never healthy":               {func(_ *world, b *box) { b.healthy = -1 }, "is unhealthy"},
		"dies soon":                   {func(_ *world, b *box) { b.dies = 200 * time.Millisecond }, "has exited with code 3"},
		"dies when it serves":         {func(_ *world, b *box) { b.dies = 4 * time.Second }, "has exited with code 3"},
		"is restarted when it serves": {func(_ *world, b *box) { b.again = 4 * time.Second }, "was restarted"},
		"is restarted all the time":   {func(_ *world, b *box) { b.healthy, b.again = time.Hour, time.Second }, "was restarted 3 times"},
		"takes too long":              {func(_ *world, b *box) { b.healthy = time.Hour }, "has not been healthy, 2m0s after its start"},
		"is not taken up":             {func(w *world, _ *box) { w.deaf = "lb-2" }, "the balancer lb-2 does not serve shop_app_4"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				w.makes = func(b *box) { tt.makes(w, b) }
				left, err := w.begin(Defaults()).Run(t.Context())
				var failed *FailedError
				if left || !errors.As(err, &failed) {
					t.Fatal(left, err)
				}
				for _, says := range []string{tt.says, "rolled back: the old ones serve", "\n  panic: no \uFFFDdatabase"} {
					if !strings.Contains(err.Error(), says) {
						t.Errorf("it does not say %q: %s", says, err)
					}
				}
				if strings.Contains(tt.says, "unhealthy") && !strings.Contains(err.Error(), "its health check says: no database") {
					t.Errorf("it does not say what the health check says: %s", err)
				}
				w.expect("1 1 1")
			})
		})
	}
}

// A later batch that fails leaves the earlier ones unchanged.
func TestRollbackOfLaterBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.makes = func(b *box) {
			if w.made == 5 {
				b.healthy = -1
			}
		}
		left, err := w.begin(Defaults()).Run(t.Context())
		if left || err == nil || !strings.Contains(err.Error(), "1 of 3 were replaced before") {
			t.Error(left, err)
		}
		w.expect("1 1 2")
	})
}

func TestFailureAction(t *testing.T) {
	second := func(w *world) func(*box) {
		return func(b *box) {
			if w.made == 5 {
				b.healthy = -1
			}
		}
	}
	for name, tt := range map[string]struct {
		o      Options
		left   bool
		says   string
		expect string
	}{
		"pause":                     {Options{Parallelism: 1, FailureAction: Pause}, true, "paused: the old ones keep serving", "1 1 2 2"},
		"continue":                  {Options{Parallelism: 1, FailureAction: Continue}, false, "1 of 3 new containers have failed", "1 2 2"},
		"continue, all at once":     {Options{FailureAction: Continue}, false, "1 of 3 new containers have failed", "1 2 2"},
		"ratio":                     {Options{Parallelism: 1, FailureAction: Rollback, MaxFailureRatio: 0.34}, false, "1 of 3 new containers have failed", "1 2 2"},
		"ratio is exceeded":         {Options{Parallelism: 1, FailureAction: Rollback, MaxFailureRatio: 0.3}, false, "rolled back", "1 1 2"},
		"ratio, the batch goes all": {Options{FailureAction: Rollback, MaxFailureRatio: 0.3}, false, "rolled back", "1 1 1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				w.makes = second(w)
				o := Defaults()
				o.Parallelism, o.FailureAction, o.MaxFailureRatio = tt.o.Parallelism, tt.o.FailureAction, tt.o.MaxFailureRatio
				left, err := w.begin(o).Run(t.Context())
				if left != tt.left || err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Error(left, err)
				}
				w.expect(tt.expect)
				if !left {
					return
				}
				if reason := w.saved[len(w.saved)-1].Reason; !strings.Contains(reason, "unhealthy") {
					t.Errorf("the state says %q", reason)
				}
				if err := w.rollout(w.saved[len(w.saved)-1]).Undo(t.Context()); err != nil {
					t.Error(err)
				}
				w.expect("1 1 2")
			})
		})
	}
}

func TestStopFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		broken bool
		expect string
	}{"works": {false, "2 2 2"}, "does not": {true, "1 1 2"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3)
				w.least = 2
				w.makes = func(b *box) {
					if tt.broken {
						b.healthy = -1
					}
				}
				o := Defaults()
				o.Order = StopFirst
				left, err := w.begin(o).Run(t.Context())
				if left != tt.broken || (err != nil) != tt.broken {
					t.Error(left, err)
				}
				w.expect(tt.expect)
				if !left {
					return
				}
				if err := w.rollout(w.saved[len(w.saved)-1]).Undo(t.Context()); err != nil {
					t.Error(err)
				}
				w.expect(tt.expect) // the old one is gone
			})
		})
	}
}

// A balancer that is away is awaited, as long as its berth may take to come back.
func TestBalancerIsAway(t *testing.T) {
	for name, tt := range map[string]struct {
		gone     bool
		lasts    time.Duration
		min, max time.Duration
		says     string
	}{
		"its proxy does not answer": {false, 20 * time.Second, 20 * time.Second, 40 * time.Second, ""},
		"its berth is restarted":    {true, 20 * time.Second, 20 * time.Second, 40 * time.Second, ""},
		"it is gone for good":       {true, time.Hour, 30 * time.Second, 50 * time.Second, "the balancer lb-2 is gone, so the rollout no longer waits for it"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				r := w.begin(Defaults())
				var began time.Time
				w.onCall = func(_ int, what string) error {
					if strings.HasPrefix(what, "up ") {
						began = time.Now()
					}
					return nil
				}
				w.lost = func(name string) (bool, string) {
					if name != "lb-2" || began.IsZero() || time.Since(began) > tt.lasts {
						return false, ""
					}
					if tt.gone {
						return true, ""
					}
					return false, "no socket"
				}
				if left, err := r.Run(t.Context()); left || err != nil {
					t.Fatal(left, err)
				}
				w.expect("2")
				if took := time.Since(began); took < tt.min || took > tt.max {
					t.Errorf("it took %s", took)
				}
				if !strings.Contains(w.said.String(), tt.says) {
					t.Error(w.said.String())
				}
			})
		})
	}
}

// A container that is registered as several services is awaited until it is registered as all of them, or clearly will not
// be.
func TestServices(t *testing.T) {
	for late, within := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, 0: 1*time.Second + namesTime} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			w.boxes[0].late = time.Second
			w.makes = func(b *box) { b.late = late }
			o := Defaults()
			o.Monitor = 0
			if left, err := w.begin(o).Run(t.Context()); left || err != nil {
				t.Fatal(left, err)
			}
			if took := time.Since(w.boxes[0].started); took < within || took > within+3*time.Second {
				t.Errorf("after %s", took)
			}
		})
	}
}

// If no balancer reports, a rollout relies on Consul and on time, and says so.
func TestBlind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.telling = nil
		w.boxes[0].work = 9 * time.Second
		o := Defaults()
		o.Monitor = 0
		if left, err := w.begin(o).Run(t.Context()); left || err != nil {
			t.Fatal(left, err)
		}
		if took := time.Since(w.boxes[0].started); took < time.Second+settleTime+blindTime {
			t.Errorf("it took %s", took)
		}
		w.expect("2")
		if !strings.Contains(w.said.String(), "warning: the balancers are not known") {
			t.Error(w.said.String())
		}
	})
}

// The in-flight requests of an old container, like a websocket, may take up to the drain timeout, and no longer.
func TestDrainTimeout(t *testing.T) {
	for _, work := range []time.Duration{time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			w.boxes[0].work = work
			if work > time.Minute {
				w.least = 0
			}
			began := time.Now()
			if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil {
				t.Fatal(left, err)
			}
			w.expect("2")
			if took := time.Since(began); took < min(work, 5*time.Minute) || took > min(work, 5*time.Minute)+10*time.Second {
				t.Errorf("it took %s", took)
			}
			if says := strings.Contains(w.said.String(), "after 5m0s: 4 requests or connections are in flight"); says != (work > time.Minute) {
				t.Error(w.said.String())
			}
		})
	}
}

// Whenever ^C ends a rollout, nothing of its last step is left, and as much serves as before.
func TestInterrupted(t *testing.T) {
	each(t, func(t *testing.T, n int) (happened bool) {
		w := newWorld(t, 2)
		r := w.begin(Defaults())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		calls := w.calls
		w.onCall = func(call int, _ string) error {
			if call == calls+n {
				happened = true
				cancel()
			}
			return nil
		}
		left, err := r.Run(ctx)
		if happened && (left || err == nil && w.versions() != "2 2") {
			t.Errorf("call %d: %t %v", n, left, err)
		}
		switch got := w.versions(); got {
		case "1 1", "1 2", "2 2":
		default:
			t.Errorf("call %d: containers are %q\n%s", n, got, w.said.String())
		}
		return happened
	})
}

// Whenever berth is killed, another one continues or undoes the last step, and never fewer than before are in service.
func TestKilled(t *testing.T) {
	for _, resume := range []bool{true, false} {
		each(t, func(t *testing.T, n int) (happened bool) {
			w := newWorld(t, 2)
			r := w.begin(Defaults())
			calls := w.calls
			w.onCall = func(call int, _ string) error {
				if call >= calls+n {
					happened = true
					return errKilled
				}
				return nil
			}
			_, err := r.Run(t.Context())
			if happened && !errors.Is(err, errKilled) {
				t.Errorf("call %d: %v", n, err)
			}
			w.onCall = nil
			if !happened {
				return false
			}
			again := w.rollout(w.saved[len(w.saved)-1])
			if resume {
				if left, err := again.Run(t.Context()); left || err != nil {
					t.Errorf("call %d: %t %v", n, left, err)
				}
				w.expect("2 2")
				return true
			}
			if err := again.Undo(t.Context()); err != nil {
				t.Errorf("call %d: %v", n, err)
			}
			switch got := w.versions(); got {
			case "1 1", "1 2", "2 2":
			default:
				t.Errorf("call %d: containers are %q\n%s", n, got, w.said.String())
			}
			return true
		})
	}
}

// each runs a rollout for each call at which something may happen, until none is left; after the first sixty for every
// seventh.
func each(t *testing.T, play func(t *testing.T, n int) bool) {
	n, played := 1, 0
	for happened := true; happened; played++ {
		synctest.Test(t, func(t *testing.T) { happened = play(t, n) })
		if t.Failed() {
			return
		}
		if n++; played > 60 {
			n += 6
		}
	}
	if played < 50 {
		t.Errorf("only %d calls", played)
	}
}

// A container that an operator has taken out of service stays out when the rollout is rolled back.
func TestDrainedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		w.least = 1
		if err := w.Maintain(t.Context(), "i"+w.boxes[0].ID, true, "disk"); err != nil {
			t.Fatal(err)
		}
		w.makes = func(b *box) { b.healthy = -1 }
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err == nil {
			t.Fatal(left, err)
		}
		w.expect("1d 1")
		w.least = 0

		// Nor is it touched when all of them leave.
		w.makes = nil
		o := Defaults()
		o.Parallelism = 0
		r := w.begin(o)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.onCall = func(_ int, what string) error {
			if what == "maintain" {
				cancel()
			}
			return nil
		}
		if left, err := r.Run(ctx); left || err == nil {
			t.Fatal(left, err)
		}
		w.expect("1d 1")
	})
}

// A proxy that does not report its in-flight requests counts as having some for a while.
func TestBlindBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.blind, w.boxes[0].work = true, 9*time.Second
		began := time.Now()
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil {
			t.Fatal(left, err)
		}
		w.expect("2")
		if took := time.Since(began); took < blindTime || took > blindTime+10*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestNewPlan(t *testing.T) {
	box := func(id, hash, image, status string) Container {
		c := Container{Hash: hash, ImageID: image, Status: status}
		c.ID = id
		return c
	}
	list := []Container{box("a", "h1", "i1", "running"), box("b", "h2", "i2", "running"), box("c", "h2", "i1", "running"), box("d", "h2", "i2", "exited")}
	for name, tt := range map[string]struct {
		hash, image string
		target      int
		force       bool
		want        string
	}{
		"changed":              {"h2", "i2", 4, false, "d a c"},
		"another image":        {"h2", "i3", 4, false, "d a b c"},
		"image is not here":    {"h2", "", 4, false, "d a b c"},
		"hash is not known":    {"", "i2", 4, false, "d a b c"},
		"force":                {"h2", "i2", 4, true, "d a b c"},
		"two more":             {"h2", "i2", 6, false, "d a c +2"},
		"fewer than there are": {"h2", "i2", 2, false, "d a c"},
	} {
		p := NewPlan(list, tt.hash, tt.image, tt.target, tt.force)
		got := strings.Join(p.Old, " ")
		if p.Extra > 0 {
			got += " +" + string(rune('0'+p.Extra))
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if p := NewPlan(list[1:2], "h2", "i2", 1, false); !p.Empty() {
		t.Errorf("%+v", p)
	}
}

// A Consul that is away for a moment while an old one leaves costs that moment; one that refuses ends the rollout.
func TestConsulIsAway(t *testing.T) {
	for name, tt := range map[string]struct {
		err     error
		outcome string
		within  time.Duration
	}{
		"for a moment": {errors.New("no leader"), "2 2", 40 * time.Second},
		"refused":      {errors.New("Unexpected response code: 403 (Permission denied)"), "1 1", 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				w.abrupt = isDenied(tt.err)
				began := time.Now()
				var since time.Time
				w.onCall = func(_ int, what string) error {
					if what == "maintain" && since.IsZero() {
						since = time.Now()
					}
					if !since.IsZero() && time.Since(since) < 5*time.Second && (what == "maintain" || what == "instances" && !isDenied(tt.err)) {
						return tt.err
					}
					return nil
				}
				left, err := w.begin(Defaults()).Run(t.Context())
				if left || isDenied(tt.err) != (err != nil) {
					t.Error(left, err)
				}
				if w.versions() != tt.outcome {
					t.Errorf("containers are %q", w.versions())
				}
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// A Consul that is away for a while costs that while, at any time after the rollout has begun. (Saving waits on its own.)
func TestConsulIsAwayAtAnyMoment(t *testing.T) {
	for _, order := range []string{StartFirst, StopFirst} {
		each(t, func(t *testing.T, n int) (happened bool) {
			w := newWorld(t, 2)
			if order == StopFirst {
				w.least = 0
			}
			o := Defaults()
			o.Order = order
			r := w.begin(o)
			begun, calls, since := false, 0, time.Time{}
			w.onCall = func(_ int, what string) error {
				begun = begun || len(w.saved) > 2 // the first batch
				if begun {
					calls++
				}
				if calls == n {
					happened, since = true, time.Now()
				}
				if happened && time.Since(since) < 12*time.Second && slices.Contains([]string{"instances", "maintain", "balancers"}, what) {
					return errors.New("no leader")
				}
				return nil
			}
			if left, err := r.Run(t.Context()); left || err != nil || w.versions() != "2 2" {
				t.Errorf("%s, call %d: %t %v, containers are %q", order, n, left, err, w.versions())
			}
			return happened
		})
	}
}

// A state that could not be saved does not count as saved: the balancers do not know what to report on.
func TestAddressesAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		failed := false
		w.onCall = func(_ int, what string) error {
			if what == "save" && !failed && len(w.boxes) == 2 && w.saved[len(w.saved)-1].Phase == PhaseReady {
				failed = true
				return errors.New("no")
			}
			return nil
		}
		if left, err := w.begin(Defaults()).Run(t.Context()); left || err != nil || w.versions() != "2" || !failed {
			t.Errorf("%t %v, containers are %q\n%s", left, err, w.versions(), w.said.String())
		}
	})
}

// If nothing is registered, a service that has asked for it is not touched; any other only has to be healthy.
func TestNotRegistered(t *testing.T) {
	for label, refused := range map[string]bool{"SERVICE_NAME": true, "service_8080_name": true, "SERVICE_ROUTE_PATH": true, "SERVICE_TAGS": false, "": false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			w.nobody, w.telling = true, nil
			w.boxes[0].Config.Labels[label] = "x"
			for _, b := range w.boxes {
				b.work = 0 // it gets no requests
				b.drained = b.started
			}
			w.least = 0
			left, err := w.begin(Defaults()).Run(t.Context())
			switch {
			case refused && (left || err == nil || !strings.Contains(err.Error(), "is not registered at this Consul agent") || len(w.boxes) != 2):
				t.Errorf("%s: %t %v", label, left, err)
			case !refused && (err != nil || w.versions() != "2 2"):
				t.Errorf("%s: %v, containers are %q", label, err, w.versions())
			}
		})
	}
}
