package group

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/registrar/group/store"
)

// calmly is the way to apply a change that does not disrupt the instance.
const calmly = "calmly"

// prepareTime is the deadline of Prepare.
const prepareTime = 30 * time.Second

// prepareAgain is when to prepare again after a failure, even if nothing changes: the file system may have space again, and
// Consul may answer.
const prepareAgain = 15 * time.Second

// plan is what to do next.
type plan struct {
	how string // Rolling, AtOnce or calmly; "" = only report
	standing
	again time.Duration // when to plan again without news, 0 = not at all

	goal    Wanted
	restart uint64 // in the Target's count
	id      string // of what is applied
	why     string
	data    bool   // only the Target's external data changes
	changes uint64 // the number of its changes at the time
	change  Change
}

// dataID identifies a change of the Target's own data while it runs w.
func dataID(w Wanted) string { return w.ID() + "+data" }

// plan decides what to do next, without side effects.
func (a *Applier) plan(ctx context.Context) plan {
	p := plan{goal: a.wanted, id: a.wanted.ID(), restart: a.told, changes: a.changes, standing: standing{state: store.Applied}}
	switch h := a.lock.Halted; {
	case a.have != nil && a.have.ID() == p.id:
	case a.failed.id == p.id:
		p.standing = a.failed.standing
		if a.have == nil {
			return p
		}
		p.goal = *a.have
	case h != nil && h.Wanted == p.id:
		p.standing = standing{state: store.Waiting, reason: halted(h)}
		if a.have != nil {
			p.goal = *a.have
			break
		}
		good, err := a.good(ctx, h)
		if err != nil {
			p.reason += fmt.Sprintf("; cannot read version %d, the last good one: %v", h.Good, err)
			p.again = prepareAgain
			return p
		}
		good.Restart = a.carried
		p.goal, p.id = good, good.ID()
	case a.order.Number > a.carried:
		p.restart++
	}
	if p.data = a.have != nil && a.have.ID() == p.goal.ID(); p.data {
		p.id = dataID(p.goal)
	}
	preparing, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	sent := p.goal
	sent.Restart = p.restart
	var err error
	switch p.change, err = a.opts.Target.Prepare(preparing, sent); {
	case a.ends(ctx, err):
		return p
	case err != nil:
		p.standing = standing{store.Failed, err.Error(), p.goal.Config.Version}
		p.again = prepareAgain
		return p
	case p.change.Empty():
		a.done(p)
		return p
	case a.hold.id == p.id && a.hold.changes == a.changes && time.Now().Before(a.hold.until):
		if p.state == store.Applied {
			p.standing = a.hold.standing
		}
		p.again = time.Until(a.hold.until)
		return p
	}
	p.why = a.why(p)
	p.how = calmly
	if p.change.Disrupts() {
		p.how = a.strategy(p)
	}
	if p.how == None {
		p.how, p.standing = "", standing{state: store.Waiting, reason: "waits for a restart: its strategy is " + None}
	}
	return p
}

// done records that the instance is at the plan's goal.
func (a *Applier) done(p plan) {
	if p.goal.Restart == a.order.Number {
		a.carried = p.goal.Restart
	}
	a.told = p.restart
	a.runs(p.goal)
}

// restarts reports whether the plan carries out a restart order.
func (a *Applier) restarts(p plan) bool { return p.restart > a.told }

// strategy returns the strategy for the plan: that of the newest kind of decision that names one.
func (a *Applier) strategy(p plan) string {
	s := a.opts.Strategy
	if a.restarts(p) {
		if a.order.Strategy != "" {
			s = a.order.Strategy
		}
		if s == None { // the change waits for exactly this order
			s = Rolling
		}
		return s
	}
	for _, name := range a.otherFiles(p) {
		if h := p.goal.Files[name]; h.Strategy != "" {
			s = h.Strategy
		}
	}
	if a.otherConfig(p) && p.goal.Config.Strategy != "" {
		s = p.goal.Config.Strategy
	}
	return s
}

func (a *Applier) otherConfig(p plan) bool {
	return a.have == nil || a.have.Config.Version != p.goal.Config.Version || a.have.Config.Sum != p.goal.Config.Sum
}

// otherFiles returns the names of files that the plan changes, adds or removes, sorted.
func (a *Applier) otherFiles(p plan) []string {
	var before map[string]store.Header
	if a.have != nil {
		before = a.have.Files
	}
	names := map[string]bool{}
	for name, h := range p.goal.Files {
		if old, ok := before[name]; !ok || old.Version != h.Version || old.Sum != h.Sum {
			names[name] = true
		}
	}
	for name := range before {
		if _, ok := p.goal.Files[name]; !ok {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// why describes what the plan carries out.
func (a *Applier) why(p plan) string {
	var why []string
	if p.data {
		return "other data of its templates changed"
	}
	if a.otherConfig(p) {
		why = append(why, by(fmt.Sprintf("configuration %d", p.goal.Config.Version), p.goal.Config.By))
	}
	if names := a.otherFiles(p); len(names) > 0 {
		why = append(why, "files "+strings.Join(names, ", "))
	}
	if a.restarts(p) {
		why = append(why, by(fmt.Sprintf("restart %d", a.order.Number), a.order.By))
	}
	return strings.Join(why, ", ")
}

func by(what, who string) string {
	if who == "" {
		return what
	}
	return what + " by " + who
}
