package group

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"berth/registrar/group/session/sessiontest"
	"berth/registrar/group/store"
)

// act is an event in a group.
type act struct {
	what  string
	which int // index among the living instances
	then  time.Duration
}

// Whatever happens: of the living instances, never two are out of service, and in the end all run the newest version that
// works, or stand where the newest one was halted.
func TestAnything(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // each plays minutes
		if err := flag.Set("rapid.checks", "25"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = flag.Set("rapid.checks", f.DefValue) }()
	}
	happens := rapid.SampledFrom([]string{"apply", "apply", "apply sick", "restart", "data", "kill", "stop", "start", "start", "hang", "lose", "late"})
	rapid.Check(t, func(rt *rapid.T) {
		acts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) act {
			return act{happens.Draw(t, "what"), rapid.IntRange(0, 9).Draw(t, "which"), time.Duration(rapid.IntRange(0, 8000).Draw(t, "then")) * time.Millisecond}
		}), 1, 15).Draw(rt, "acts")
		problem, logs := "", ""
		synctest.Test(t, func(t *testing.T) { problem, logs = play(t, acts) })
		if problem != "" {
			rt.Log(logs)
			rt.Fatal(problem)
		}
	})
}

// play returns what is wrong in the end, and the instances' logs.
func play(t *testing.T, acts []act) (problem, logs string) {
	w := newWorld(t)
	defer func() {
		w.end()
		for id, in := range w.instances {
			logs += id + ":\n" + in.log.String()
		}
	}()
	w.failsWith("sick")
	newest := w.apply("fine")
	sick := false
	w.five(Rolling)
	started := 5
	for _, act := range acts {
		ids := slices.Sorted(maps.Keys(w.instances))
		var in *instance
		if len(ids) > 0 {
			in = w.instances[ids[act.which%len(ids)]]
		}
		brief := func(f sessiontest.Fault) {
			in.wire.Break(f)
			w.sleep(2 * time.Second) // too short to lose a session
			in.wire.Break(sessiontest.None)
		}
		switch {
		case act.what == "apply":
			newest, sick = w.apply(fmt.Sprint("fine ", act)), false
		case act.what == "apply sick":
			newest, sick = w.apply(fmt.Sprint("sick ", act)), true
		case act.what == "restart":
			w.restart("")
		case act.what == "data":
			w.changes()
		case act.what == "start":
			if h := w.roll().Halted; sick && (h == nil || h.Version != newest) {
				break // it would not become ready, which does not concern the Applier
			}
			started++
			w.start(fmt.Sprint("app-", started), Rolling)
		case in == nil:
		case act.what == "kill":
			in.dies()
		case act.what == "stop":
			in.stops()
		case act.what == "hang":
			brief(sessiontest.Hang)
		case act.what == "lose":
			brief(sessiontest.Lost)
		case act.what == "late":
			brief(sessiontest.Late)
		}
		w.sleep(act.then)
	}
	w.sleep(3 * time.Minute) // enough for an expired session, a held change, and a turn for everyone
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.most > 1 {
		return fmt.Sprintf("%d were out of service at once", w.most), ""
	}
	if len(w.out) > 0 {
		return fmt.Sprintf("out of service in the end: %v", w.out), ""
	}
	for id, in := range w.instances {
		r := w.report(id)
		stands := r.State == store.Applied && in.runs.Config.Version == newest
		if sick {
			stands = (r.State == store.Failed || r.State == store.Waiting && strings.HasPrefix(r.Reason, "halted by ")) &&
				!strings.Contains(string(in.runs.Config.Text), "sick")
		}
		if !stands || r.Version != in.runs.Config.Version {
			return fmt.Sprintf("of %d, sick %t: %s runs %d and reports %+v", newest, sick, id, in.runs.Config.Version, r), ""
		}
		if in.data != in.wants {
			return fmt.Sprintf("%s has not followed its data", id), ""
		}
	}
	return "", ""
}
