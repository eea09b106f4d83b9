package proxyctl

import (
	"errors"
	"time"
)

// Status describes what a Controller has brought its proxy to, and why the proxy does not run the newest text.
type Status struct {
	Generation string    // the mark of the text that the proxy runs, "" before the first
	Since      time.Time // when it became live, or when this berth first saw it running
	Action     Action    // how it became live; None if it was already running
	Reason     string    // of that action, as in Result
	OldWorkers int       // workers of earlier configurations that are finishing their connections, as of the last reload or inspection
	Leaving    int       // removed servers that are finishing their connections
	Backends   int       // that have servers
	Servers    int
	Failure    string    // why the proxy does not run the newest text, "" if it does
	Failing    time.Time // since when Failure lasts
	AtFault    string    // the backend, listen section or upstream that the proxy refuses, if known
	Refusals   int       // texts that it refused since the start; a repeated try counts once
	Drifts     int       // times that it no longer ran what it was brought to, and was repaired
}

// Status returns what the proxy runs. It may be called from any goroutine.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// note updates Status after an Apply and reports changes.
func (c *Controller) note(n next, res Result, err error) {
	if len(res.Changes) > 0 && c.opts.Live != nil {
		c.opts.Live(res.Changes)
	}
	c.mu.Lock()
	before := c.status
	c.status = before.after(n, res, err, time.Now())
	now := c.status
	c.mu.Unlock()
	c.metrics.note(before, now)
	if now != before && c.opts.Changed != nil {
		c.opts.Changed()
	}
}

// after returns the status after an Apply.
func (s Status) after(n next, res Result, err error, now time.Time) Status {
	changed := res.Action == Runtime || res.Action == Reload
	switch {
	case changed:
		s.Since, s.Action, s.Reason = now, res.Action, res.Reason
	case res.Generation != "" && res.Generation != s.Generation:
		s.Since, s.Action, s.Reason = now, None, ""
	}
	if res.Generation != "" {
		s.Generation, s.Backends, s.Servers = res.Generation, res.Backends, res.Servers
	}
	s.OldWorkers, s.Leaving = res.OldWorkers, res.Leaving
	if n.drift && changed {
		s.Drifts++
	}
	if errors.Is(err, ErrNotYet) {
		return s
	}
	failed := s
	s.Failure, s.Failing, s.AtFault = "", time.Time{}, ""
	if err == nil {
		return s
	}
	s.Failure, s.Failing = err.Error(), failed.Failing
	if failed.Failure == "" {
		s.Failing = now
	}
	if errors.Is(err, ErrRefused) && s.Failure != failed.Failure {
		s.Refusals++
	}
	var refused *RefusalError
	if errors.As(err, &refused) {
		s.AtFault = refused.Section
	}
	return s
}
