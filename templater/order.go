package templater

import (
	"context"
	"errors"
	"fmt"
)

var errStopped = errors.New("the templater has stopped")

// order is a call of Render.
type order struct {
	ctx   context.Context
	reply chan<- reply // does not block
}

type reply struct {
	texts map[string]Published
	err   error
}

// Render executes every template anew, after its file was read again, and returns the texts by the names of the templates.
// It waits for the data that they need until ctx is done. An error names the template, the line and the reason, or the data
// that is missing; no older text is returned in place of one that fails, nor one that lacks a partial that fails. Run has to
// be running. Safe from any goroutine; calls are carried out one after the other.
func (t *Templater) Render(ctx context.Context) (map[string]Published, error) {
	answer := make(chan reply, 1)
	select {
	case t.orders <- order{ctx, answer}:
		r := <-answer // when ctx is done at the latest
		return r.texts, r.err
	case <-t.stopped:
		return nil, errStopped
	case <-ctx.Done():
		return nil, fmt.Errorf("the templater is not at work: %w", ctx.Err())
	}
}

// Changed returns a channel that says that Render would now return other texts than the last time, or fail where it did not,
// or the reverse: data or a template's file has changed since then. Several changes may be one value.
func (t *Templater) Changed() <-chan struct{} { return t.changed }

// begin begins with an order.
func (t *Templater) begin(o order) {
	select {
	case <-t.changed: // the order sees it, too
	default:
	}
	t.order = &o
	t.templates.Reread(false)
	t.templates.Outdated()
	t.render()
}

// rendered answers an order whose data is all there, or else says that the texts have changed.
func (t *Templater) rendered(changed bool) {
	waits, err := t.templates.Behind()
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	changed = changed || failure != t.failure
	t.failure = failure
	switch {
	case t.order == nil && changed:
		notify(t.changed)
	case t.order == nil || waits || len(t.waiting) > 0: // a template may fail because data is missing
	case err != nil:
		t.answer(nil, err)
	default:
		texts, _ := t.templates.Texts()
		t.answer(texts, nil)
	}
}

func (t *Templater) answer(texts map[string]Published, err error) {
	t.order.reply <- reply{texts, err}
	t.order = nil
}

// tooLate returns why an order could not be carried out in time.
func (t *Templater) tooLate() error {
	err := errors.New(t.waitsFor())
	if t.consulErr != nil {
		err = fmt.Errorf("%w: %w", err, t.consulErr)
	} else if hidden := t.hiddenErr(); hidden != nil {
		err = fmt.Errorf("%w: %w", err, hidden)
	}
	if _, fails := t.templates.Behind(); fails != nil {
		err = fmt.Errorf("%w; without it: %w", err, fails)
	}
	return err
}

// stop answers whoever waits, now and later, when Run ends.
func (t *Templater) stop() {
	close(t.stopped)
	if t.order != nil {
		t.answer(nil, errStopped)
	}
}
