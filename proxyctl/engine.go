package proxyctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"berth/proxyctl/configfile"
)

// EngineOptions configure an Engine.
type EngineOptions struct {
	Name    string        // of the proxy in messages: HAProxy
	File    string        // its configuration file; the directory must be writable
	Checks  string        // the argument for a check by the proxy's program, for messages: -c
	Timeout time.Duration // of a validation; 0 = 10 s
	// Grace is how long the first texts of an unchanged template are held back if they take all servers from a backend that has
	// some in the last good text. 0 = 30 s, negative = no hold.
	Grace time.Duration
	// TakeOver lets the first text replace a file that berth did not write at once. Without it, the first text waits as long as
	// it would leave a backend that has servers in the file without any.
	TakeOver bool
	// Inspect has the proxy inspected before every change, for proxies whose answer to a change does not tell what they run.
	Inspect bool
	// Prepared, if not nil, is called when the proxy is down and a good configuration is in place for its start.
	Prepared func()
	// PortRefused, if not nil, is called when a text is refused because of a port.
	PortRefused func(port int, reason string)
	Log         *slog.Logger
}

// Engine brings a proxy to configurations. It is the same for all kinds of proxies; the driver covers what differs. It implements
// Proxy. Apply is called from one goroutine, Run from another, Servers from any.
//
// Apply writes the auxiliary files, marks the text, asks what the proxy runs and makes a plan: do nothing, change servers at run
// time, or reload and why. It carries out the plan and reads back the result, or restores what was there. Applying the same text
// again checks everything and repairs differences. While the proxy is down, a text replaces the file only if there is none or the
// text was validated, because a bad file would keep the proxy from starting. If a text cannot be applied as a whole, the servers
// of everything that it shares with the running text still come and go at run time.
type Engine[C any, O fmt.Stringer] struct {
	opts   EngineOptions
	driver Driver[C, O]
	conf   *configfile.File
	lazy   *configfile.LazyWriter
	tend   chan struct{} // signals that something was applied

	asked   *string   // text of the last Apply
	again   bool      // the previous Apply had the same text
	want    Marked[C] // the same text with its mark
	fault   error     // why the text is refused without asking the proxy
	blocked error     // why the text cannot be loaded: a file that it refers to was not written
	behind  bool      // the last Apply did not bring the proxy to its text
	refusal refusal   // of the text tried last, by the proxy or its program
	partly  refusal   // of the part that text shares with the running one
	has     Marked[C] // what the proxy was last brought to or seen to run
	old     int       // workers of earlier configurations, as of the last reload or inspection
	sure    bool      // the proxy had exactly has at some time; otherwise has is from a file, and the servers may be newer
	known   bool      // the driver knows the proxy's servers; otherwise it must inspect them

	applied   bool      // a text was applied as a whole since the start
	holds     time.Time // since when the first texts take all servers from a backend
	keep      []string  // the backends that keep their servers until Grace is over
	away      time.Time // since when the proxy does not report what it runs
	validated bool      // the program has accepted the file since then
}

// NewEngine returns an Engine. It reads and dials nothing before Apply.
func NewEngine[C any, O fmt.Stringer](driver Driver[C, O], opts EngineOptions) *Engine[C, O] {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	if opts.Grace == 0 {
		opts.Grace = 30 * time.Second
	}
	e := &Engine[C, O]{opts: opts, driver: driver, tend: make(chan struct{}, 1)}
	e.conf = &configfile.File{Path: opts.File, Marked: driver.IsMarked, Beside: driver.Beside, Between: driver.Between, Log: opts.Log}
	e.lazy = &configfile.LazyWriter{Proxy: opts.Name, Write: e.writeLazily}
	return e
}

// Apply implements Proxy.
func (e *Engine[C, O]) Apply(ctx context.Context, c Config, mayReload bool) (Result, error) {
	e.again = e.asked != nil && *e.asked == c.Text
	if !e.again {
		e.asked = &c.Text
		e.want, e.fault = e.driver.Mark(c.Text, e.want.Config)
		e.fault = e.blame(c.Text, e.fault)
	}
	e.blocked = e.conf.WriteAux(c.Files, e.again)
	res, err := e.apply(ctx, mayReload)
	if err == nil {
		err = e.blocked
	}
	res.Leaving = e.driver.Draining()
	res.OldWorkers = e.old
	if e.has.Config != nil {
		res.Generation = e.has.Generation.Text
		res.Backends, res.Servers = e.driver.Count(e.has.Config)
	}
	if err == nil {
		e.unwatch()
	}
	e.behind = err != nil
	e.applied = e.applied || err == nil
	var port *PortError
	if errors.As(err, &port) && e.opts.PortRefused != nil {
		e.opts.PortRefused(port.Port, port.Reason)
	}
	if (err == nil || errors.Is(err, ErrRefused)) && e.conf.HasStale() && e.lazy.Idle() {
		e.conf.RemoveStale(c.Text, e.has.Text)
	}
	select {
	case e.tend <- struct{}{}:
	default:
	}
	return res, err
}

// Run implements Proxy. It calls Tend whenever that is due, until ctx is done.
func (e *Engine[C, O]) Run(ctx context.Context) {
	for {
		again := after(e.driver.Tend(ctx))
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-e.tend:
		}
	}
}

// Servers implements Proxy.
func (e *Engine[C, O]) Servers(ctx context.Context) ([]Server, error) { return e.driver.Servers(ctx) }

// Close waits until the configuration file matches what the proxy runs.
func (e *Engine[C, O]) Close() {
	e.lazy.Flush()
	e.unwatch()
}

// unwatch stops watching names that did not resolve.
func (e *Engine[C, O]) unwatch() {
	e.refusal.unwatch()
	e.partly.unwatch()
}

// apply brings the proxy to e.want.
func (e *Engine[C, O]) apply(ctx context.Context, mayReload bool) (Result, error) {
	why := ""
	if e.known && e.fault == nil && !e.behind && !e.again && !e.opts.Inspect {
		var (
			res Result
			err error
		)
		if res, why, err = e.change(ctx, e.want, nil); why == "" {
			if err == nil {
				e.lazy.Put(ctx, e.want.Text, e.want.Generation)
			}
			return res, err
		}
	}
	if e.fault != nil && e.want.Config == nil {
		return Result{}, e.fault
	}
	there, err := e.onDisk()
	if err != nil {
		return Result{}, err
	}
	snap, err := e.driver.Inspect(ctx)
	e.known = false
	if err == nil && snap.Unmarked == "" {
		e.away, e.validated, e.old = time.Time{}, false, snap.OldWorkers
	} else if e.away.IsZero() {
		e.away = time.Now()
	}
	if err != nil && !snap.Down {
		return Result{}, err
	}
	last := e.lastGood(there, snap.Generation)
	if err != nil && e.fault != nil {
		return Result{}, e.restore(there, last, e.fault)
	}
	if theirs := e.theirs(last, snap); theirs != nil && err != nil {
		return Result{}, fmt.Errorf("%w; %w", err, theirs)
	} else if theirs != nil {
		return Result{Action: None}, theirs
	}
	goal, held := e.goal(last)
	if err != nil {
		return Result{}, e.prepare(ctx, goal, err)
	}
	if snap.Starting && there.Generation.Shape != "" && there.Text == last.Text && time.Since(e.away) < unmarkedTime {
		return Result{}, e.prepare(ctx, goal, fmt.Errorf("%w: %s", ErrUnreachable, snap.Unmarked))
	}
	res, err := e.bring(ctx, goal, there, last, snap, why, mayReload)
	if err != nil && snap.Unmarked != "" && errors.Is(err, ErrUnreachable) {
		return res, e.prepare(ctx, goal, err)
	}
	if err == nil {
		err = held
	}
	return res, err
}

// theirs returns why a file that berth did not write may not be replaced yet, nil if it may or if berth wrote it. last is the
// last good text. If the proxy runs berth's configuration, and not the file's, the file does not matter.
func (e *Engine[C, O]) theirs(last Marked[C], snap Snapshot) error {
	if e.opts.TakeOver || e.applied || e.fault != nil || last.Text == "" || last.Config == nil ||
		snap.Generation.Shape != "" && !e.driver.Runs(last.Config) || e.driver.IsMarked(last.Text) {
		return nil
	}
	lost, serves := e.driver.Serves(last.Config), e.driver.Serves(e.want.Config)
	maps.DeleteFunc(lost, func(name string, _ bool) bool { return serves[name] })
	if len(lost) == 0 {
		return nil
	}
	return &HoldError{Backends: slices.Sorted(maps.Keys(lost)), File: e.opts.File}
}

// goal returns the text to bring the proxy to now, and the reason if it is not e.want. last is the last good text. A catalog that
// lost data takes away servers but leaves the frame alone; a text with another frame comes from a changed template.
func (e *Engine[C, O]) goal(last Marked[C]) (Marked[C], error) {
	e.keep = nil
	if e.applied || e.opts.Grace < 0 || last.Generation.Shape == "" {
		return e.want, nil
	}
	serves := e.driver.Serves(e.want.Config)
	for _, c := range e.driver.Changes(last.Config, e.want.Config) {
		if c.Before > 0 && c.After == 0 && !serves[c.Backend] {
			e.keep = append(e.keep, c.Backend)
		}
	}
	if len(e.keep) == 0 {
		return e.want, nil
	}
	if e.holds.IsZero() {
		e.holds = time.Now()
	}
	left := e.opts.Grace - time.Since(e.holds)
	if left <= 0 {
		e.keep = nil
	}
	if left <= 0 || !e.driver.SameFrame(last.Config, e.want.Config) {
		return e.want, nil
	}
	m := e.merged(last, true)
	if m.Text == last.Text || m.Text == e.want.Text {
		m = e.merged(last, false)
	}
	return m, &HoldError{Backends: e.keep, For: left}
}

// merged returns base with the servers of the backends that it shares with e.want. reload is as in Driver.Merge.
func (e *Engine[C, O]) merged(base Marked[C], reload bool) Marked[C] {
	text := e.driver.Merge(base.Config, e.want.Config, e.keep, reload)
	if text == "" {
		return base
	}
	m, err := e.driver.Mark(text, base.Config)
	if err != nil || !reload && !m.Generation.SameShape(base.Generation) {
		return base
	}
	return m
}

// bring brings a proxy that has answered to goal. why is a reason for a reload that is already known.
func (e *Engine[C, O]) bring(ctx context.Context, goal, there, last Marked[C], snap Snapshot, why string, mayReload bool) (Result, error) {
	seen := e.has.Config != nil && e.has.Generation.SameShape(snap.Generation)
	runs := last.Generation.SameShape(snap.Generation) // last, apart from its servers
	switch {
	case why != "":
	case snap.Unmarked != "":
		why = snap.Unmarked
	case !e.applied && snap.Generation.Shape == "" && there.Generation.Shape == "": // neither is berth's
		why = "first configuration by berth"
	case there.Text == "":
		why = "the configuration file was removed"
	case there.Generation.Shape == "":
		why = "the configuration file is not as berth wrote it"
	case !runs:
		why = e.opts.Name + " does not run the configuration in its file"
	case !seen && snap.Generation != there.Generation && e.conf.InDoubt():
		why = "an earlier reload was cut short"
	}
	if runs {
		e.driver.Observe(last)
		e.has, e.known = last, true
		if !e.sure {
			plan := e.driver.Plan(last, nil)
			e.sure = plan.Reload == "" && len(plan.Ops) == 0
		}
	}
	if e.fault == nil && why == "" {
		var (
			res Result
			err error
		)
		if res, why, err = e.change(ctx, goal, nil); why == "" {
			switch {
			case err != nil:
			case there.Text == goal.Text && e.conf.InStep(goal.Text):
				e.conf.ForgetGood() // left by an earlier berth that was killed
			default:
				err = e.lazy.Problem(goal.Generation)
				e.lazy.Put(ctx, goal.Text, goal.Generation)
			}
			return res, err
		}
	}
	return e.load(ctx, goal, last, snap, runs && goal.Text == e.want.Text, why, mayReload)
}

// load has the proxy load goal. If common is set, the proxy runs last apart from its servers. What goal shares with last is then
// applied even if goal was refused before or has to wait.
func (e *Engine[C, O]) load(ctx context.Context, goal, last Marked[C], snap Snapshot, common bool, why string, mayReload bool) (Result, error) {
	before, part := e.driver.Before(last.Config), Result{}
	stopped := cmp.Or(e.fault, e.blocked)
	sooner := common && (stopped != nil || e.behind || !mayReload)
	if sooner {
		part = e.changeCommon(ctx)
	}
	waits := stopped != nil || e.refusal.slow || !e.again && e.refusal.still(goal.Generation.Shape) != nil
	if common && mayReload && waits {
		if res, _ := e.reloadCommon(ctx, snap, mayReload); res.Action != "" {
			part, snap.Generation = e.both(part, res, before), e.has.Generation
		}
	}
	if stopped != nil {
		return part, stopped
	}
	res, err := e.reload(ctx, goal, snap, why, mayReload, &e.refusal)
	if err == nil {
		if part.Action != "" {
			res.Changes = e.driver.Changes(before, goal.Config)
		}
		return res, nil
	}
	if common && !sooner && !errors.Is(err, ErrUnreachable) {
		part = e.changeCommon(ctx)
	}
	if common && errors.Is(err, ErrRefused) {
		more, notYet := e.reloadCommon(ctx, snap, mayReload)
		switch {
		case errors.Is(notYet, ErrNotYet):
			return part, notYet
		case more.Action != "":
			part = e.both(part, more, before)
		}
	}
	if part.Action != "" {
		res = part
	}
	return res, err
}

// both returns the combined result of two steps, the second of which is a reload.
func (e *Engine[C, O]) both(first, second Result, before *C) Result {
	if first.Action != "" {
		second.Changes = e.driver.Changes(before, e.has.Config)
	}
	return second
}

// onDisk reads the configuration file, which usually is e.want.
func (e *Engine[C, O]) onDisk() (Marked[C], error) {
	text, err := configfile.Read(e.opts.File)
	switch {
	case err != nil, text == e.want.Text && e.fault == nil:
		return e.want, err
	case text == e.has.Text && e.has.Config != nil:
		return e.has, nil
	}
	return e.driver.Unmark(text, e.want.Config), nil
}

// change brings the proxy to a text at run time. If that is impossible, the string says why, and a reload has to do it. alike is
// as in Driver.Plan.
func (e *Engine[C, O]) change(ctx context.Context, to Marked[C], alike *C) (Result, string, error) {
	plan := e.driver.Plan(to, alike)
	if plan.Reload != "" {
		return Result{}, plan.Reload, nil
	}
	res := Result{Action: None}
	if len(plan.Ops) > 0 {
		res = Result{Action: Runtime, Reason: plan.String(), Changes: e.driver.Changes(e.driver.Before(e.has.Config), to.Config)}
	}
	err := e.driver.Run(ctx, to, plan)
	e.known = err == nil
	switch {
	case errors.Is(err, ErrUnexpected):
		return Result{}, err.Error(), nil
	case err != nil:
		return Result{}, "", err
	}
	e.has, e.sure = to, e.sure || alike == nil
	return res, "", nil
}

// mostTries limits the tries of changeCommon. Each time, the proxy may refuse another server, which the driver notes. The last
// try only restores the text that ran.
const mostTries = 5

// changeCommon first undoes a change that got stuck halfway. It then brings the backends that the running text and e.want share
// to e.want at run time. The file follows. The Result has no Action if there was nothing to do or nothing could be done.
func (e *Engine[C, O]) changeCommon(ctx context.Context) Result {
	// A change that got stuck halfway has left servers that block the same change. But a berth that just started knows the other
	// backends only from the file, and the proxy may have newer servers.
	undo, alike := !e.known && e.sure, e.has.Config
	if e.sure {
		alike = nil
	}
	for try := range mostTries {
		if !e.observe(ctx) {
			return Result{} // the next inspection finds out
		}
		to := e.has
		if !undo && try < mostTries-1 {
			to = e.merged(e.has, false)
		}
		res, why, err := e.change(ctx, to, alike)
		switch {
		case err != nil:
			return Result{}
		case why == "" && undo:
			undo = false
		case why == "":
			if there, err := e.onDisk(); err != nil || there.Text != to.Text {
				e.lazy.Put(ctx, to.Text, to.Generation)
			}
			if res.Action == None {
				return Result{}
			}
			return res
		case e.known: // it takes a reload
			return Result{}
		}
	}
	e.opts.Log.Warn("cannot restore the servers that " + e.opts.Name + " had before a change it refused")
	return Result{}
}

// reloadCommon has the proxy load the running text with the servers that it shares with e.want, for drivers that change servers
// by a reload. The Result has no Action if there was nothing to do or nothing could be done.
func (e *Engine[C, O]) reloadCommon(ctx context.Context, snap Snapshot, mayReload bool) (Result, error) {
	to := e.merged(e.has, true)
	if to.Text == e.has.Text || to.Text == e.want.Text || !e.observe(ctx) {
		return Result{}, nil
	}
	plan := e.driver.Plan(to, nil)
	if plan.Reload == "" {
		return Result{}, nil
	}
	return e.reload(ctx, to, snap, plan.Reload, mayReload, &e.partly)
}

// observe makes sure that the driver knows the proxy's servers. It returns false if the proxy does not run e.has.
func (e *Engine[C, O]) observe(ctx context.Context) bool {
	if !e.known {
		snap, err := e.driver.Inspect(ctx)
		if err != nil || !e.has.Generation.SameShape(snap.Generation) {
			return false
		}
		e.driver.Observe(e.has)
		e.known = true
	}
	return true
}

// reload brings the proxy to a text through its file. why is the reason, and refused the last refusal of such a text.
func (e *Engine[C, O]) reload(ctx context.Context, to Marked[C], snap Snapshot, why string, mayReload bool, refused *refusal) (Result, error) {
	res := Result{Reason: why}
	if err := refused.still(to.Generation.Shape); err != nil && (!e.again || refused.name != nil) {
		return res, err
	}
	if !mayReload {
		return res, ErrNotYet
	}
	e.lazy.Flush()
	there, err := e.onDisk()
	if err != nil {
		return res, err
	}
	last := e.lastGood(there, snap.Generation)
	if err = e.validate(ctx, to.Text); err == nil {
		err = e.blame(to.Text, e.driver.Precheck(ctx, last, to))
	}
	if err != nil {
		return res, refused.note(to.Generation.Shape, err, time.Second, 15*time.Second)
	}
	changes := e.driver.Changes(e.driver.Before(last.Config), to.Config)
	if err := e.conf.Replace(last.Text, to.Text); err != nil {
		return res, err
	}
	began := time.Now()
	e.known = false
	now, err := e.driver.Reload(ctx, last, to)
	err = e.blame(to.Text, err)
	if err != nil && (time.Since(began) < costly || unresolved.MatchString(err.Error())) { // a resolver may be slow
		err = refused.note(to.Generation.Shape, err, 2*time.Second, time.Minute)
	} else if err != nil {
		err = refused.note(to.Generation.Shape, err, 15*time.Second, 10*time.Minute)
		refused.slow = errors.Is(err, ErrRefused)
	}
	if err = e.conf.Replaced(last.Text, err); err != nil {
		var loaded *LoadedError
		if errors.As(err, &loaded) && last.Text != "" {
			if _, backErr := e.driver.Reload(ctx, to, last); backErr != nil {
				err = fmt.Errorf("%w; and the last good configuration cannot be loaded again: %w", err, backErr)
			}
		}
		return res, err
	}
	refused.forget()
	e.has, e.known, e.sure = to, true, true
	e.old = now.OldWorkers
	res.Action, res.Changes = Reload, changes
	return res, nil
}

// lastGood returns the text that the proxy keeps if it refuses another one, as far as is known: the text that berth brought it
// to, or the file, or the copy of the previous file if berth was killed while the proxy judged the new one.
func (e *Engine[C, O]) lastGood(there Marked[C], running configfile.Generation) Marked[C] {
	switch {
	case there.Text != "" && !e.driver.IsMarked(there.Text): // berth did not write it
		return there
	case e.has.Config != nil && e.has.Generation.SameShape(running):
		return e.has
	case there.Generation.SameShape(running) && (there.Generation == running || !e.conf.InDoubt()):
		return there
	case running.Shape != "" && running == e.want.Generation:
		return e.want
	case !e.conf.InDoubt():
		return there
	}
	good, err := configfile.Read(e.conf.Good())
	if err != nil || good == "" {
		return there
	}
	return e.driver.Unmark(good, e.want.Config)
}

// unmarkedTime is how long a proxy that may be starting with berth's file has to come up before it is told to load the file.
const unmarkedTime = 10 * time.Second

// prepare puts a text in place for the start of a proxy that is down, if that is safe, and returns the reason why it is not live
// yet.
func (e *Engine[C, O]) prepare(ctx context.Context, to Marked[C], reason error) error {
	e.lazy.Flush()
	there, err := e.onDisk()
	if err != nil {
		return err
	}
	last := e.lastGood(there, configfile.Generation{})
	if e.blocked != nil {
		return e.restore(there, last, fmt.Errorf("%w; %w", reason, e.blocked))
	}
	inStep := there.Text == to.Text && e.conf.InStep(to.Text)
	if !inStep || there.Text != last.Text || e.driver.Binary() != "" && !e.validated {
		if err := e.validate(ctx, to.Text); err != nil {
			return e.restore(there, last, err)
		}
		starts := e.driver.Binary() != "" || there.Text == "" || there.Generation.Shape != "" && e.driver.StartsWith(to.Config, there.Config)
		if !starts {
			return e.restore(there, last, reason)
		}
		if !inStep {
			if err := e.driver.Precheck(ctx, there, to); err != nil {
				return e.restore(there, last, e.blame(to.Text, err))
			}
			if err := e.conf.KeepForeign(last.Text); err != nil {
				return err
			}
			if err := e.conf.Write(e.opts.File, to.Text); err != nil {
				return err
			}
			e.opts.Log.Info("wrote "+e.opts.File+", "+e.opts.Name+" will start with it", "file", e.opts.File)
		}
		e.conf.ForgetGood()
		e.validated = true
	}
	if e.opts.Prepared != nil {
		e.opts.Prepared()
	}
	return reason
}

// restore replaces a text that was never judged by the last good one. It returns reason, or the error if that fails.
func (e *Engine[C, O]) restore(there, last Marked[C], reason error) error {
	if there.Text == last.Text {
		return reason
	}
	if err := e.conf.Write(e.opts.File, last.Text); err != nil {
		return err
	}
	e.conf.ForgetGood()
	return reason
}

// validate has the proxy's program, if there is one, check a text as a candidate next to the file that it may replace.
func (e *Engine[C, O]) validate(ctx context.Context, text string) error {
	if e.driver.Binary() == "" {
		return nil
	}
	return e.blame(text, e.conf.Validate(ctx, e.opts.Timeout, e.driver.Binary()+" "+e.opts.Checks, text, e.driver.Check))
}

// blame adds to a refusal the section at fault, if the refusal names one, and the file that cannot be read, if a file is missing. It
// must run when the text is refused, because the next text has other line numbers.
func (e *Engine[C, O]) blame(text string, err error) error {
	var known *RefusalError
	if !errors.Is(err, ErrRefused) || errors.As(err, &known) {
		return err
	}
	complaint := err.Error()
	if why := unreadable(complaint, os.Open); why != "" && !strings.Contains(complaint, why) {
		err = fmt.Errorf("%w; %s", err, why)
	}
	if section := e.driver.AtFault(text, complaint); section != "" {
		return &RefusalError{section, err}
	}
	return err
}

// writeLazily writes the file for servers that the proxy already has, unless its program refuses it.
func (e *Engine[C, O]) writeLazily(ctx context.Context, text string) error {
	if err := e.validate(ctx, text); err != nil {
		return err
	}
	if err := e.conf.Write(e.opts.File, text); err != nil {
		return err
	}
	e.conf.ForgetGood() // left by an earlier berth that was killed
	return nil
}
