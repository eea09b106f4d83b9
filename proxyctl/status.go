package proxyctl

import "time"

// Status is what a Controller has brought its proxy to, and why not farther.
type Status struct {
	Generation string    // the mark of the text that the proxy runs, "" before the first
	Since      time.Time // since when
	Action     Action    // by which it came to that
	Reason     string    // of that action, as in Result
	OldWorkers int       // workers of earlier configurations that still finish their connections, as of the last reload or look
	Leaving    int       // servers that were removed and still finish their connections
	Backends   int       // that have servers
	Servers    int
	Failure    string    // why the proxy does not run the newest text, "" if it does
	Failing    time.Time // since when
	AtFault    string    // the backend whose text it refuses, as far as it says that
	Refusals   int       // texts that it refused since the start, each counted once
	Drifts     int       // times that it did not run any more what it was brought to, and was repaired
}

// Status returns what the proxy runs. It may be called from any goroutine.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// note keeps what came of an Apply for Status, and tells of servers that came and went.
func (c *Controller) note(n next, res Result, err error) {
	if len(res.Changes) > 0 && c.opts.Live != nil {
		c.opts.Live(res.Changes)
	}
	c.mu.Lock()
	before := c.status
	s := &c.status
	s.Leaving = res.Leaving
	if res.Action != "" && res.Action != Runtime { // a change at run time does not look at them
		s.OldWorkers = res.OldWorkers
	}
	changed := res.Action == Runtime || res.Action == Reload
	if changed || s.Since.IsZero() && err == nil {
		s.Since, s.Action, s.Reason = time.Now(), res.Action, res.Reason
	}
	if res.Generation != "" {
		s.Generation = res.Generation
	}
	switch {
	case res.Backends > 0 || res.Servers > 0 || n.first || n.recovered:
		s.Backends, s.Servers = res.Backends, res.Servers
	default:
		for _, ch := range res.Changes {
			s.Servers += ch.After - ch.Before
			switch {
			case ch.Before == 0 && ch.After > 0:
				s.Backends++
			case ch.Before > 0 && ch.After == 0:
				s.Backends--
			}
		}
	}
	if n.drift && changed {
		s.Drifts++
	}
	failure := ""
	if err != nil && !isNotYet(err) {
		failure = err.Error()
	}
	switch {
	case isNotYet(err):
	case failure == "":
		s.Failure, s.Failing, s.AtFault = "", time.Time{}, ""
	default:
		if s.Failure == "" {
			s.Failing = time.Now()
		}
		if failure != s.Failure && isRefused(err) {
			s.Refusals++
			c.metrics.refusals.Inc()
		}
		s.Failure, s.AtFault = failure, res.AtFault
	}
	after := c.status
	c.mu.Unlock()
	if n.drift && changed {
		c.metrics.drifts.Inc()
	}
	if after.Generation != before.Generation {
		c.metrics.generations.Inc()
		c.metrics.generationTime.Set(float64(time.Now().UnixMilli()) / 1000)
	}
	if after != before && c.opts.Changed != nil {
		c.opts.Changed()
	}
}
