package templater

import "time"

// lasting tells when to say again that something is still not as it should be: after a minute, five, ten, twenty, forty, and
// then every hour.
type lasting struct {
	since time.Time // zero = all is well
	next  time.Duration
	said  bool // that it lasts
	was   bool // well, once
}

// note takes in whether all is well. It returns whether that is to be said, and for how long all was not well as far as that was
// said. That all is well is said the first time, and after it was said that it was not.
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
