package retry

import "time"

// maxTexts is how many texts of one problem are told at once; a problem whose text is always another one waits, too.
const maxTexts = 5

// Lasting tells when a problem that lasts is worth a line in the log: when it begins, after a minute, five, ten, twenty,
// forty, and then every hour. The zero value is a thing in order. It reads no clock.
type Lasting struct {
	since time.Time
	next  time.Duration // from since to the next line
	texts map[string]bool
}

// Tell records that there is the problem, and reports whether to tell of it, and for how long it has been there.
func (l *Lasting) Tell(text string, now time.Time) (tell bool, lasts time.Duration) {
	if l.texts == nil {
		*l = Lasting{since: now, next: time.Minute, texts: map[string]bool{text: true}}
		return true, 0
	}
	lasts = now.Sub(l.since)
	if !l.texts[text] && len(l.texts) < maxTexts {
		l.texts[text], tell = true, true
	}
	for l.next <= lasts {
		l.next, tell = max(5*time.Minute, min(2*l.next, l.next+time.Hour)), true
	}
	return tell, lasts
}

// Over records that the problem is over, and reports whether there was one, and for how long.
func (l *Lasting) Over(now time.Time) (was bool, lasted time.Duration) {
	if l.texts != nil {
		was, lasted = true, now.Sub(l.since)
	}
	*l = Lasting{}
	return was, lasted
}

// For says in the log for how long something has lasted, if that is a while.
func For(lasts time.Duration) []any {
	if lasts < time.Second {
		return nil
	}
	return []any{"for", lasts.Round(time.Second)}
}
