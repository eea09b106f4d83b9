package templater

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"
)

// Line is a line of a text, with the data that it depends on.
type Line struct {
	Text    string
	Depends []string // as consul-template writes them, sorted: health.service(web|passing)
}

// Explain returns the lines of a template's text. To be called after Once. A line depends on what it would not be the
// same without: each list, key, ... that the template uses is emptied in turn, and the text compared. Where the
// template fails without, or wants other data then, all lines count that it may have been for.
func (t *Templater) Explain(name string) []Line {
	i := slices.IndexFunc(t.pages, func(p *page) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	s := t.pages[i].current
	text := s.main.text
	depends := make([]map[string]bool, strings.Count(text, "\n")+1)
	used := map[string]bool{}
	for u := range s.units {
		for key := range u.used {
			used[key] = true
		}
	}
	t.explaining = true
	defer func() { t.explaining = false }()
	before := s.failures()
	for _, key := range slices.Sorted(maps.Keys(used)) {
		w := t.watching[key]
		if w == nil {
			continue
		}
		data, ok := t.brain.Recall(w.Dependency)
		if !ok {
			continue
		}
		t.brain.Remember(w.Dependency, empty(data))
		s.changed(key, time.Time{})
		var lines []int
		if s.update() && s.failures() == before {
			lines = changedLines(text, s.main.text)
		} else {
			lines = make([]int, len(depends))
			for n := range lines {
				lines[n] = n
			}
		}
		for _, n := range lines {
			if depends[n] == nil {
				depends[n] = map[string]bool{}
			}
			depends[n][key] = true
		}
		t.brain.Remember(w.Dependency, data)
		s.changed(key, time.Time{})
		s.update()
	}
	lines := []Line{}
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		lines = append(lines, Line{Text: line, Depends: slices.Sorted(maps.Keys(depends[n]))})
	}
	return lines
}

// failures are all errors of what the text is made of.
func (s *source) failures() string {
	var all []string
	for u := range s.units {
		if u.failure != "" {
			all = append(all, u.failure)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// changedLines are the numbers, from 0, of the lines of before that are not in after.
func changedLines(before, after string) []int {
	var changed []int
	for _, e := range udiff.Lines(before, after) {
		first := strings.Count(before[:e.Start], "\n")
		last := first
		if e.End > e.Start {
			last = strings.Count(before[:e.End-1], "\n")
		} else if e.Start > 0 {
			continue // lines that are there without the data only
		}
		for n := first; n <= last; n++ {
			changed = append(changed, n)
		}
	}
	return changed
}
