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

// Render reads every template again, executes it and returns the texts by template name. It waits for the data they need until
// ctx is done. An error names the template, the line and the reason, or the missing data. Render never returns an older text for
// a failing template, nor a text without a failing partial. Run has to be running. Safe from any goroutine; calls are executed
// one after the other.
func (t *Templater) Render(ctx context.Context) (map[string]Published, error) {
	answer := make(chan reply, 1)
	select {
	case t.orders <- order{ctx, answer}:
		r := <-answer // arrives at the latest when ctx is done
		return r.texts, r.err
	case <-t.stopped:
		return nil, errStopped
	case <-ctx.Done():
		return nil, fmt.Errorf("the templater is not running: %w", ctx.Err())
	}
}

// Changed returns a channel that receives a value when the result of Render would differ from the last one: data or a template's
// file has changed, and so have the texts, or Render would now fail or stop failing. Several changes may be one value.
func (t *Templater) Changed() <-chan struct{} { return t.changed }

// begin starts an order.
func (t *Templater) begin(o order) {
	select {
	case <-t.changed: // the order includes this change
	default:
	}
	t.order = &o
	t.templates.Reread(false)
	t.templates.Outdated()
	t.render()
}

// rendered answers a pending order once all its data is there; without an order it signals a change of the texts.
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

// tooLate returns why an order was not completed in time.
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

// stop fails the pending order and all later ones when Run ends.
func (t *Templater) stop() {
	close(t.stopped)
	if t.order != nil {
		t.answer(nil, errStopped)
	}
}
