package templater

import (
	"errors"
	"fmt"
	"time"

	"berth/templater/catalog"
)

// note records the outcome of a query and logs a change.
func (t *Templater) note(u catalog.Update) {
	w := u.Watch
	switch {
	case u.Err == nil && !u.Well:
	case !w.InConsul():
		t.noteOther(u, "keeping the last good configuration")
	case w.Optional():
		if u.Err == nil || catalog.IsRefusal(u.Err) || !t.waiting[w.Key] && t.answers() {
			t.noteOther(u, "continuing without updates")
		}
	case errors.As(u.Err, new(*catalog.HiddenError)):
		t.succeeded(w)
		t.hidden[w.Key] = true
	case u.Err == nil:
		t.answered = true
		t.succeeded(w)
	default:
		if t.consulErr == nil {
			consequence := "keeping the last good configuration"
			if t.unpublished() {
				consequence = "waiting for it"
			}
			t.log.Warn("requests to Consul fail, "+consequence, "err", u.Err)
		}
		t.failing[w] = true
		t.consulErr = u.Err
	}
}

// answers reports whether Consul answers, so an error of an optional dependency concerns only that dependency.
func (t *Templater) answers() bool { return t.answered && t.consulErr == nil }

// noteOther is note for a watch outside Consul, such as a file that a template reads, and for an optional dependency.
func (t *Templater) noteOther(u catalog.Update, consequence string) {
	failed := t.failing[u.Watch]
	switch {
	case u.Err == nil:
		delete(t.failing, u.Watch)
		if failed {
			t.log.Info("can read "+u.Watch.Key+" again", "dependency", u.Watch.Key)
		}
	case !failed:
		t.failing[u.Watch] = true
		t.log.Warn("cannot read "+u.Watch.Key+", "+consequence, "dependency", u.Watch.Key, "err", u.Err)
	}
}

// succeeded clears a watch's failure. Consul answers again once no query to it fails.
func (t *Templater) succeeded(w *catalog.Watch) {
	delete(t.failing, w)
	delete(t.hidden, w.Key)
	for other := range t.failing {
		if other.InConsul() && !other.Optional() {
			return
		}
	}
	if t.consulErr != nil {
		t.consulErr = nil
		t.log.Info("Consul answers again")
	}
}

// hiddenErr names data that the token should see but does not; nil = it sees everything.
func (t *Templater) hiddenErr() error {
	if len(t.hidden) == 0 {
		return nil
	}
	return &catalog.HiddenError{Dependency: andMore(t.hidden)}
}

// logHidden logs once, in one line, what the token does not see, and later that it sees everything. It is called on a tick,
// because each query has its answer by the first tick.
func (t *Templater) logHidden() {
	err := t.hiddenErr()
	switch {
	case err != nil && !t.loggedHidden:
		t.log.Error("the Consul token does not see what the templates need, waiting", "err", err)
	case err == nil && t.loggedHidden:
		t.log.Info("the Consul token sees what the templates need")
	}
	t.loggedHidden = err != nil
}

// updateReady updates the result of Ready and the metric of Consul's health.
func (t *Templater) updateReady() {
	hidden, up := t.hiddenErr(), 0.0
	if t.answered && t.consulErr == nil && hidden == nil {
		up = 1
	}
	t.metrics.consulUp.Set(up)
	switch {
	case t.consulErr != nil:
		t.notReady(fmt.Sprintf("Consul does not answer: %v", t.consulErr))
	case hidden != nil:
		t.notReady(fmt.Sprintf("Waiting for data that Consul hides from the token: %v", hidden))
	default:
		why, waits := t.templates.Status()
		if waits {
			why += ": " + t.waitsFor()
		}
		t.notReady(why)
	}
	why := t.Ready()
	say, lasts := t.lasting.note(why == nil, time.Now())
	var lasted []any
	if lasts > 0 {
		lasted = []any{"for", lasts.Round(time.Second)}
	}
	switch {
	case !say:
	case why != nil:
		t.log.Warn("still not ready", append(lasted, "err", why)...)
	case !t.once:
		t.log.Info("all templates are rendered from the newest data", lasted...)
	}
}

// waitsFor names data that has not arrived.
func (t *Templater) waitsFor() string {
	missing := t.waiting
	if len(missing) == 0 { // a template waits for a list that is not empty
		missing = t.templates.Missing()
	}
	if len(missing) == 0 {
		return "waiting"
	}
	return "waiting for " + andMore(missing)
}

// andMore returns the first of the keys and the number of others.
func andMore(keys map[string]bool) string {
	first := ""
	for key := range keys {
		if first == "" || key < first {
			first = key
		}
	}
	if len(keys) == 1 {
		return first
	}
	return fmt.Sprintf("%s and %d more", first, len(keys)-1)
}

func (t *Templater) notReady(why string) {
	if was := t.why.Swap(&why); was != nil && *was != why {
		t.opts.Changed()
	}
}
