package templater

import (
	"fmt"

	"github.com/hashicorp/consul-template/dependency"
)

// note takes in how a query went and logs when that is news.
func (t *Templater) note(o outcome) {
	w := o.from
	if t.watching[w.String()] != w {
		return // removed meanwhile
	}
	if w.Type() != dependency.TypeConsul {
		t.noteLocal(o)
		return
	}
	if o.err == nil {
		t.answered = true
		t.settle(w)
		return
	}
	if t.consulErr == nil {
		consequence := "keeping the last good configuration"
		if t.published == nil {
			consequence = "waiting for it"
		}
		t.log.Warn("consul failed, "+consequence, "err", o.err)
	}
	t.failing[w] = true
	t.consulErr = o.err
}

// noteLocal is note for what is not in Consul, such as a file that a template reads.
func (t *Templater) noteLocal(o outcome) {
	was := t.failing[o.from]
	switch {
	case o.err == nil:
		delete(t.failing, o.from)
		if was {
			t.log.Info("can be read again", "dependency", o.from.String())
		}
	case !was:
		t.failing[o.from] = true
		t.log.Warn("cannot be read, keeping the last good configuration", "dependency", o.from.String(), "err", o.err)
	}
}

// settle forgets that w failed. Consul answers again when no query to it fails.
func (t *Templater) settle(w *watched) {
	delete(t.failing, w)
	for other := range t.failing {
		if other.Type() == dependency.TypeConsul {
			return
		}
	}
	if t.consulErr != nil {
		t.consulErr = nil
		t.log.Info("consul answers again")
	}
}

// updateReady brings what the outside sees of the state up to date.
func (t *Templater) updateReady() {
	t.metrics.consulUp.Set(0)
	if t.answered && t.consulErr == nil {
		t.metrics.consulUp.Set(1)
	}
	switch {
	case t.consulErr != nil:
		t.notReady(fmt.Sprintf("Consul does not answer: %v", t.consulErr))
	case t.published == nil:
		t.notReady(t.whyNothingPublished())
	default:
		t.notReady("")
	}
}

func (t *Templater) whyNothingPublished() string {
	for _, u := range t.units {
		switch {
		case u.failure != "" && !u.rendered:
			return "A template fails: " + u.failure
		case len(u.missing) > 1:
			return fmt.Sprintf("Waiting for Consul's first answer about %s and %d more", u.missing[0], len(u.missing)-1)
		case len(u.missing) == 1:
			return "Waiting for Consul's first answer about " + u.missing[0]
		}
	}
	return "Nothing is rendered yet"
}

func (t *Templater) notReady(why string) {
	t.why.Store(&why)
}
