package templater

import (
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/consul-template/dependency"
)

// note takes in how a query went and logs when that is news.
func (t *Templater) note(o news) {
	w := o.from
	if o.err == nil && !o.well {
		return
	}
	if w.Type() != dependency.TypeConsul {
		t.noteOther(o)
		return
	}
	if o.err == nil {
		t.answered = true
		t.settle(w)
		return
	}
	if t.consulErr == nil {
		consequence := "keeping the last good configuration"
		if t.unpublished() {
			consequence = "waiting for it"
		}
		t.log.Warn("consul failed, "+consequence, "err", o.err)
	}
	t.failing[w] = true
	t.consulErr = o.err
}

// noteOther is note for what is not in Consul, such as a file that a template reads.
func (t *Templater) noteOther(o news) {
	was := t.failing[o.from]
	switch {
	case o.err == nil:
		delete(t.failing, o.from)
		if was {
			t.log.Info("can be read again", "dependency", o.from.key)
		}
	case !was:
		t.failing[o.from] = true
		t.log.Warn("cannot be read, keeping the last good configuration", "dependency", o.from.key, "err", o.err)
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
	case t.unpublished():
		t.notReady(t.whyUnpublished())
	case t.broken() != nil:
		t.notReady("A changed template is not used: " + t.broken().Error())
	case t.proving():
		t.notReady("A changed template is not used yet: " + t.waitsFor())
	default:
		t.notReady("")
	}
}

// broken is why a template's newest version is not used.
func (t *Templater) broken() error {
	for _, p := range t.pages {
		if p.broken != nil {
			return p.broken
		}
	}
	return nil
}

// proving says whether a template's newest version is not complete yet.
func (t *Templater) proving() bool {
	return slices.ContainsFunc(t.pages, func(p *page) bool { return p.next != nil })
}

func (t *Templater) whyUnpublished() string {
	for _, p := range t.pages {
		if u := p.current.main; u.failure != "" && !u.rendered {
			return "A template fails: " + u.failure
		}
	}
	return "Nothing is rendered yet: " + t.waitsFor()
}

// waitsFor says what has not arrived.
func (t *Templater) waitsFor() string {
	first, n := "", len(t.waiting)
	for w := range t.waiting {
		if first == "" || w.key < first {
			first = w.key
		}
	}
	if n == 0 { // an empty list that the template does not take for an answer
		missing := map[string]bool{}
		for s := range t.sources {
			for u := range s.units {
				for _, key := range u.missing {
					missing[key] = true
				}
			}
		}
		if n = len(missing); n > 0 {
			first = slices.Min(slices.Collect(maps.Keys(missing)))
		}
	}
	switch n {
	case 0:
		return "waiting"
	case 1:
		return "waiting for " + first
	default:
		return fmt.Sprintf("waiting for %s and %d more", first, n-1)
	}
}

func (t *Templater) notReady(why string) {
	t.why.Store(&why)
}
