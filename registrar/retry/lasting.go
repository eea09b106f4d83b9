package retry

import "time"

// maxTexts is how many texts of one problem are logged at once. Further texts wait like the first.
const maxTexts = 5

// Lasting decides when a lasting problem deserves a line in the log: when it begins, after 1, 5, 10, 20 and 40 minutes, and
// then every hour. The zero value means no problem. It reads no clock.
type Lasting struct {
	since time.Time
	next  time.Duration // from since to the next line
	texts map[string]bool
}

// Tell records the problem, and reports whether to log it, and how long it has lasted.
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

// Over records the end of the problem, and reports whether there was one, and how long it lasted.
func (l *Lasting) Over(now time.Time) (was bool, lasted time.Duration) {
	if l.texts != nil {
		was, lasted = true, now.Sub(l.since)
	}
	*l = Lasting{}
	return was, lasted
}

// For returns a log attribute with how long something has lasted, or nothing for less than a second.
func For(lasts time.Duration) []any {
	if lasts < time.Second {
		return nil
	}
	return []any{"for", lasts.Round(time.Second)}
}
