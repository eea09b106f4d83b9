package group

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/group/session/sessiontest"
	"berth/registrar/group/store"
)

// A holder whose session is lost during a change finishes it, and reports under its next session.
func TestSessionLostWhileApplying(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.apply("one")
		w.within(10*time.Second, "somebody applies", func() bool { return w.roll().Held && len(w.instances[w.roll().Holder].applied) > 0 })
		in, pair := w.instances[w.roll().Holder], w.c.Key(store.RollingKey("app"))
		w.c.Invalidate(pair.Session)
		w.settles(time.Minute, "applied 1")
		expect(t, in.id+" applied", len(in.applied), 1)
	})
}

// A holder whose session is lost during its drain goes back into service, and has its turn later: another may be draining.
func TestSessionLostWhileDraining(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.apply("one")
		w.within(time.Second, "somebody drains", func() bool { return w.roll().Held && len(w.out) > 0 })
		in, pair := w.instances[w.roll().Holder], w.c.Key(store.RollingKey("app"))
		w.c.Invalidate(pair.Session)
		in.wire.Break(sessiontest.None)
		w.settles(time.Minute, "applied 1")
		expect(t, in.id+" applied", len(in.applied), 1)
	})
}

// A halt that could not be written because the session was lost is written later.
func TestSessionLostWhileFailing(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		in := w.start("app-1", Rolling)
		w.failsWith("sick")
		w.apply("sick")
		w.within(10*time.Second, "it applies", func() bool { return len(in.applied) > 0 })
		w.c.Invalidate(w.c.Key(store.RollingKey("app")).Session)
		w.within(time.Minute, "it is halted", func() bool { return w.roll().Halted != nil && !w.roll().Held })
		w.start("app-2", Rolling)
		w.settles(time.Second, "failed 0", "waiting 0")
	})
}

// A hanging target is given up at the deadline, wherever it hangs.
func TestHangs(t *testing.T) {
	for call, says := range map[string]string{"apply": "failed 0", "resume": "failed 0", "drain": "waiting 0"} {
		t.Run(call, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				in := w.start("app-1", Rolling)
				w.settles(time.Second, "applied 0")
				in.hangs = call
				w.apply("one")
				took := w.within(3*deadline, "it "+says, func() bool {
					r := w.report("app-1")
					return w.says("app-1") == says && r.Reason != "waits for its turn"
				})
				if took < deadline {
					t.Errorf("gave up after %v", took)
				}
				reason := w.report("app-1").Reason
				want := "not finished after 20s"
				if call == "drain" {
					want = "cannot be taken out of service: context deadline exceeded"
				}
				if !strings.HasPrefix(reason, want) {
					t.Errorf("reason: %s", reason)
				}
				expect(t, "halted", w.roll().Halted != nil, call != "drain")
				in.hangs = ""
				w.apply("two")
				w.settles(time.Minute, "applied 2")
			})
		})
	}
}

// An instance that ends meanwhile halts nothing, begins nothing more, and lets the next one continue.
func TestInstanceEnds(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.mu.Lock()
		w.fails = func(id string, _ Wanted) error {
			if id == "app-3" {
				return fmt.Errorf("restart: %w", ErrStopping)
			}
			return nil
		}
		w.mu.Unlock()
		w.apply("one")
		w.settles(time.Minute, "applied 1", "applying 0")
		expect(t, "app-3", w.says("app-3"), "applying 0")
		w.within(drainTime+applyTime+time.Second, "the lock is free", func() bool { return !w.roll().Held })
		w.settles(time.Minute, "applied 1", "applying 0")
		w.sleep(time.Minute)
		w.settles(0, "applied 1", "applying 0")
		if h := w.roll().Halted; h != nil {
			t.Errorf("halted: %+v", h)
		}
		expect(t, "app-3 applied", len(w.instances["app-3"].applied), 1)
	})
}

// Instances that wait for a slow holder name it.
func TestWaitsForSlowHolder(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		for _, in := range w.instances {
			in.hangs = "apply"
		}
		w.apply("one")
		w.sleep(slowTurn + time.Second)
		synctest.Wait()
		r := w.roll()
		for id := range w.instances {
			if got := w.report(id); id != r.Holder {
				expect(t, "reason of "+id, got.Reason, fmt.Sprintf("waits for its turn: %s has been applying since %s", r.Holder, r.Since.Format(time.RFC3339)))
			}
		}
	})
}

func TestNone(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(None)
		w.settles(time.Second, "applied 0")
		w.apply("one")
		w.settles(time.Second, "waiting 0")
		expect(t, "reason", w.report("app-2").Reason, "waits for a restart: its strategy is none")
		w.sleep(10 * time.Minute)
		w.settles(0, "waiting 0")
		late := w.start("app-6", None)
		expect(t, "one that starts now runs", late.runs.Config.Version, 1)
		w.restart("")
		w.settles(time.Minute, "applied 1")
		expect(t, "most out at once", w.most, 1)
		w.applyWith("two", AtOnce)
		w.settles(5*time.Second, "applied 2")
	})
}

// All together, without waiting for each other or for the end of draining.
func TestAtOnce(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(AtOnce)
		w.settles(time.Second, "applied 0")
		w.apply("one")
		took := w.settles(time.Minute, "applied 1")
		if most := atOnceDrain + applyTime + 100*time.Millisecond; took > most {
			t.Errorf("took %v, more than %v", took, most)
		}
		expect(t, "most out at once", w.most, 5)
		w.failsWith("sick")
		w.apply("sick")
		w.settles(time.Minute, "failed 1")
		expect(t, "out of service", len(w.out), 0)
		w.most = 0
		w.applyWith("fine", Rolling)
		w.settles(time.Minute, "applied 3")
		expect(t, "most out at once", w.most, 1)
	})
}

// A change that does not disrupt the instance needs no lock.
func TestCalmly(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling, func(in *instance, _ *Options) { in.disrupts = false })
		w.settles(time.Second, "applied 0")
		w.apply("one")
		if took := w.settles(time.Minute, "applied 1"); took > applyTime+100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		expect(t, "out of service", w.most, 0)
		if w.c.Key(store.RollingKey("app")) != nil {
			t.Error("took the lock")
		}
	})
}

func (w *world) restarts() (all []int) {
	for _, in := range w.instances {
		all = append(all, in.restarts)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestRestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.restart("")
		w.sleep(time.Second)
		w.five(Rolling)
		w.settles(time.Second, "applied 0")
		expect(t, "restarts", fmt.Sprint(w.restarts()), "[0]")
		w.restart("")
		carried := func(n uint64) func() bool {
			return func() bool {
				for id := range w.instances {
					if r := w.report(id); r.Restart != n || r.State != store.Applied {
						return false
					}
				}
				return true
			}
		}
		w.within(time.Minute, "order 2 is carried out", carried(2))
		expect(t, "restarts", fmt.Sprint(w.restarts()), "[1]")
		expect(t, "most out at once", w.most, 1)
		w.restart(AtOnce)
		w.within(5*time.Second, "order 3 is carried out", carried(3))
		expect(t, "restarts", fmt.Sprint(w.restarts()), "[2]")
		// Consul has lost its data: the numbers start over.
		_, client := w.c.wire()
		if _, err := client.KV().Delete(store.RestartKey("app"), nil); err != nil {
			t.Fatal(err)
		}
		w.within(time.Second, "no order", carried(0))
		w.restart("")
		w.within(time.Minute, "order 1 is carried out", carried(1))
		expect(t, "restarts", fmt.Sprint(w.restarts()), "[3]")
		late := w.start("app-6", Rolling)
		w.within(time.Second, "the new one too", carried(1))
		expect(t, "its restarts", late.restarts, 0)
	})
}

// An instance that exists before its Applier carries out only what was ordered after its start.
func TestRestartOfOldInstance(t *testing.T) {
	for ago, want := range map[time.Duration]int{time.Minute: 0, -time.Minute: 1} {
		in(t, func(t *testing.T, w *world) {
			w.restart("")
			down := sessiontest.Refuse
			in := w.start("app-1", Rolling, func(in *instance, o *Options) {
				o.Started = time.Now().Add(ago)
				in.wire.Break(down) // so that First learns nothing
			})
			in.wire.Break(sessiontest.None)
			w.within(time.Minute, "it is carried out", func() bool { return w.report("app-1").Restart == 1 })
			expect(t, fmt.Sprintf("started %v after the order: restarts", ago), in.restarts, want)
		})
	}
}

func TestFiles(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		logo := store.Item{Service: "app", File: "logo.png"}
		for n := range 2 {
			if _, err := w.store.Apply(context.Background(), logo, store.Change{Text: []byte{byte(n)}}); err != nil {
				t.Fatal(err)
			}
			w.within(time.Minute, "all have the file", func() bool {
				for id := range w.instances {
					if r := w.report(id); r.State != store.Applied || r.Files["logo.png"] != uint64(n+1) {
						return false
					}
				}
				return true
			})
		}
		if err := w.store.Remove(context.Background(), logo, ""); err != nil {
			t.Fatal(err)
		}
		w.within(time.Minute, "none has the file", func() bool {
			for id := range w.instances {
				if r := w.report(id); r.State != store.Applied || len(r.Files) > 0 {
					return false
				}
			}
			return true
		})
		expect(t, "most out at once", w.most, 1)
	})
}

// changes changes the data of all instances.
func (w *world) changes() {
	w.sleep(0)
	for _, in := range w.instances {
		in.mu.Lock()
		in.wants++
		in.mu.Unlock()
		select {
		case in.changed <- struct{}{}:
		default:
		}
	}
}

func (w *world) uptodate() bool {
	for _, in := range w.instances {
		if in.data != in.wants {
			return false
		}
	}
	return len(w.out) == 0
}

// External data of the templates changes in all instances alike, but has no version.
func TestData(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.apply("one")
		w.five(Rolling)
		w.changes()
		w.within(time.Minute, "all have it", w.uptodate)
		expect(t, "most out at once", w.most, 1)

		// It fails on the first instance: the others leave it alone for a while.
		sick := true
		w.mu.Lock()
		w.fails = func(string, Wanted) error {
			if sick {
				return errSick
			}
			return nil
		}
		w.mu.Unlock()
		w.changes()
		w.settles(time.Minute, "failed 1", "waiting 1")
		expect(t, "most out at once", w.most, 1)
		tries := func() (n int) {
			for _, in := range w.instances {
				n += len(in.applied)
			}
			return n
		}
		before := tries()
		w.sleep(dataHold / 2)
		expect(t, "tries meanwhile", tries(), before)
		sick = false
		w.within(2*dataHold, "all have it", w.uptodate)

		// It is retried at once when it changes again.
		sick = true
		w.changes()
		w.settles(time.Minute, "failed 1", "waiting 1")
		sick = false
		w.changes()
		if took := w.within(time.Minute, "all have it", w.uptodate); took > dataHold/2 {
			t.Errorf("took %v", took)
		}
		expect(t, "most out at once", w.most, 1)
	})
}

// The data of the working version is followed while a newer version is halted.
func TestDataWhileHalted(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.apply("fine")
		w.five(Rolling)
		w.failsWith("sick")
		w.apply("sick")
		w.settles(time.Minute, "failed 1", "waiting 1")
		w.changes()
		w.within(time.Minute, "all have it", w.uptodate)
		w.settles(time.Second, "failed 1", "waiting 1")
		if h := w.roll().Halted; h == nil || h.Version != 2 {
			t.Errorf("halted: %+v", h)
		}
	})
}

// A change that cannot be prepared leaves everything unchanged, and is reported.
func TestCannotPrepare(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.five(Rolling)
		w.settles(time.Second, "applied 0")
		in := w.instances["app-2"]
		in.mu.Lock()
		in.bad = errors.New(`render app.conf: function "cgf" not defined`)
		in.mu.Unlock()
		w.apply("one")
		w.settles(time.Minute, "applied 1", "failed 0")
		r := w.report("app-2")
		expect(t, "reason", r.Reason, in.bad.Error())
		expect(t, "version that failed", r.FailedVersion, 1)
		expect(t, "applied", len(in.applied), 0)
		in.mu.Lock()
		in.bad = nil
		in.mu.Unlock()
		w.settles(2*prepareAgain, "applied 1")
		if n := strings.Count(in.log.String(), "version=1 why=\"render"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, in.log)
		}
	})
}

// A flapping instance writes at most one report a second.
func TestReportsAreThrottled(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		in := w.start("app-1", AtOnce)
		w.settles(time.Second, "applied 0")
		before := in.wire.putsOf(store.AppliedKey("app", "app-1"))
		for n := range 100 {
			in.mu.Lock()
			in.bad = fmt.Errorf("problem %d", n)
			in.mu.Unlock()
			in.changed <- struct{}{}
			w.sleep(100 * time.Millisecond)
		}
		if n := in.wire.putsOf(store.AppliedKey("app", "app-1")) - before; n > 10+reportBurst+1 || n < 5 {
			t.Errorf("%d reports in 10 s", n)
		}
		w.within(2*time.Second, "the last is written", func() bool { return w.report("app-1").Reason == "problem 99" })
	})
}

// Consul's absence changes nothing; what was applied meanwhile follows later.
func TestConsulAway(t *testing.T) {
	for _, f := range []sessiontest.Fault{sessiontest.Hang, sessiontest.Refuse, sessiontest.NoLeader} {
		in(t, func(t *testing.T, w *world) {
			w.apply("one")
			w.five(Rolling)
			w.settles(time.Second, "applied 1")
			for _, in := range w.instances {
				in.wire.Break(f)
			}
			w.apply("two")
			w.sleep(5 * time.Minute)
			for id, in := range w.instances {
				expect(t, id+" runs", in.runs.Config.Version, 1)
				expect(t, id+" applied", len(in.applied), 0)
				in.mu.Lock()
				if n := strings.Count(in.log.String(), "cannot read"); n > 4*5 {
					t.Errorf("%s complained %d times", id, n)
				}
				in.mu.Unlock()
				in.wire.Break(sessiontest.None)
			}
			w.settles(2*time.Minute, "applied 2")
			expect(t, "most out at once", w.most, 1)
		})
	}
}

// A missing configuration does not count as an applied one.
func TestConfigurationGone(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.apply("one")
		w.five(Rolling)
		w.settles(time.Second, "applied 1")
		_, client := w.c.wire()
		if _, err := client.KV().DeleteTree("berth/config/app", nil); err != nil {
			t.Fatal(err)
		}
		w.sleep(time.Minute)
		w.settles(0, "applied 1")
		w.apply("two")
		w.settles(time.Minute, "applied 2")
	})
}

// Lost or late answers from Consul cost time, and leave no lock behind.
func TestAnswersLost(t *testing.T) {
	for _, f := range []sessiontest.Fault{sessiontest.Lost, sessiontest.Late} {
		in(t, func(t *testing.T, w *world) {
			w.five(Rolling)
			w.settles(time.Second, "applied 0")
			in := w.instances["app-1"]
			in.wire.breakWrites(f)
			w.apply("one")
			w.sleep(30 * time.Second)
			in.wire.breakWrites(sessiontest.None)
			w.settles(2*time.Minute, "applied 1")
			expect(t, "most out at once", w.most, 1)
			w.within(2*session.TTL, "the lock is free", func() bool { return !w.roll().Held })
		})
	}
}

// Another text under the same number is another configuration.
func TestWrittenByHand(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.apply("one")
		w.five(Rolling)
		w.settles(time.Second, "applied 1")
		_, client := w.c.wire()
		if _, err := client.KV().Put(&api.KVPair{Key: "berth/config/app", Flags: 1, Value: []byte("one, by hand")}, nil); err != nil {
			t.Fatal(err)
		}
		w.within(time.Minute, "all run it", func() bool {
			for id := range w.instances {
				if r := w.report(id); r.State != store.Applied || r.Sum != store.Sum([]byte("one, by hand")) {
					return false
				}
			}
			return true
		})
		expect(t, "most out at once", w.most, 1)
	})
}

func TestID(t *testing.T) {
	version := func(n uint64, sum string) store.Header { return store.Header{Version: n, Sum: sum} }
	files := func(name string, n uint64) map[string]store.Header {
		return map[string]store.Header{name: version(n, "ab"), "other": version(1, "cd")}
	}
	ids := map[string]int{}
	for n, w := range []Wanted{
		{},
		{Config: store.Version{Header: version(1, "ab")}},
		{Config: store.Version{Header: version(2, "ab")}},
		{Config: store.Version{Header: version(1, "cd")}},
		{Config: store.Version{Header: version(1, "ab")}, Restart: 1},
		{Config: store.Version{Header: version(1, "ab")}, Files: files("logo", 1)},
		{Config: store.Version{Header: version(1, "ab")}, Files: files("logo", 2)},
		{Config: store.Version{Header: version(1, "ab")}, Files: files("icon", 2)},
	} {
		if before, is := ids[w.ID()]; is {
			t.Errorf("%d is as %d", n, before)
		}
		ids[w.ID()] = n
		w.Config.Index, w.Config.By, w.Config.ByHand = 7, "nolan", true
		if _, is := ids[w.ID()]; !is {
			t.Errorf("%d is not itself", n)
		}
	}
}
