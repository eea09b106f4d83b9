package render

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"github.com/hashicorp/consul-template/dependency"
)

// Line is a line of a text, with the data it depends on.
type Line struct {
	Text    string
	Depends []string // in consul-template's notation, sorted: health.service(web|passing)
}

// Explain returns the lines of a template's text; nil without such a template or text. A line depends on data if it changes without
// that data: Explain empties each list, key and so on in turn and compares the texts. If the template then fails or uses other
// data, all lines count as dependent on it.
func (s *Set) Explain(name string) []Line {
	i := slices.IndexFunc(s.templates, func(t *tmpl) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	v, err := newVersion(s.templates[i], s.templates[i].current.text)
	if err != nil || !v.update() {
		return nil
	}
	text := v.main.text()
	depends := make([]map[string]bool, strings.Count(text, "\n")+1)
	used := map[string]dependency.Dependency{}
	for f := range v.fragments {
		maps.Copy(used, f.used)
	}
	before := v.failures()
	for _, key := range slices.Sorted(maps.Keys(used)) {
		data, ok := s.brain.Recall(used[key])
		if !ok {
			continue
		}
		s.brain.Remember(used[key], empty(data))
		v.mark(key, time.Time{})
		var lines []int
		if v.update() && v.failures() == before {
			lines = changedLines(text, v.main.text())
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
		s.brain.Remember(used[key], data)
		v.mark(key, time.Time{})
		v.update()
	}
	lines := []Line{}
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		lines = append(lines, Line{Text: line, Depends: slices.Sorted(maps.Keys(depends[n]))})
	}
	return lines
}

// failures returns the errors of all fragments.
func (v *version) failures() string {
	var all []string
	for f := range v.fragments {
		if f.failure != "" {
			all = append(all, f.failure)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// changedLines returns the numbers, from 0, of the lines of before that are missing from after.
func changedLines(before, after string) []int {
	var changed []int
	for _, e := range udiff.Lines(before, after) {
		first := strings.Count(before[:e.Start], "\n")
		last := first
		if e.End > e.Start {
			last = strings.Count(before[:e.End-1], "\n")
		} else if e.Start > 0 {
			continue // lines that exist only without the data
		}
		for n := first; n <= last; n++ {
			changed = append(changed, n)
		}
	}
	return changed
}

// empty returns an empty value of data's type.
func empty(data any) any {
	if data == nil {
		return nil
	}
	t := reflect.TypeOf(data)
	switch t.Kind() {
	case reflect.String:
		return nil // no such key
	case reflect.Slice:
		return reflect.MakeSlice(t, 0, 0).Interface()
	case reflect.Map:
		return reflect.MakeMap(t).Interface()
	case reflect.Pointer:
		return reflect.New(t.Elem()).Interface()
	default:
		return reflect.Zero(t).Interface()
	}
}
