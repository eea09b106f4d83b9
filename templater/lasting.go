package templater

import "time"

// lasting decides when to repeat that a problem persists: after 1, 5, 10, 20 and 40 minutes, and then every hour.
type lasting struct {
	since time.Time // zero = all is well
	next  time.Duration
	said  bool // the problem was reported as lasting
	was   bool // all was well once
}

// note records whether all is well. It returns whether to log that, and how long a reported problem has lasted. "All is well" is
// logged the first time, and after a problem was logged.
func (l *lasting) note(well bool, now time.Time) (say bool, lasts time.Duration) {
	switch {
	case well:
		if l.said {
			lasts = now.Sub(l.since)
		}
		say = !l.was || l.said
		*l = lasting{was: true}
		return say, lasts
	case l.since.IsZero():
		l.since, l.next = now, time.Minute
	}
	took := now.Sub(l.since)
	if took < l.next {
		return false, 0
	}
	l.said = true
	for l.next <= took {
		l.next = max(5*time.Minute, min(2*l.next, l.next+time.Hour))
	}
	return true, took
}
