package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of go test -json, as described by cmd/test2json.
type event struct {
	Action, Package, Test, Output string
}

// results are the outcomes of the tests.
type results struct {
	actions map[test]string   // last action: run, pass, fail or skip
	said    map[test][]string // output of running tests
	shown   map[test]string   // output of top-level tests, shown when they end
	why     map[test]string   // reasons of skipped tests
	last    map[test][]string // last messages of failed tests
	ok      []string          // lines of packages that passed
}

func newResults() *results {
	return &results{actions: map[test]string{}, said: map[test][]string{}, shown: map[test]string{}, why: map[test]string{}, last: map[test][]string{}}
}

// add handles a line of go test -json and returns what to show now: a top-level test's output, once it has ended.
func (r *results) add(line []byte) string {
	var e event
	if len(line) == 0 || json.Unmarshal(line, &e) != nil {
		return string(line) // a message of the go command itself
	}
	t := test{e.Package, e.Test}
	text := strings.TrimSpace(e.Output)
	switch e.Action {
	case "run", "pass", "fail", "skip":
		if e.Test != "" {
			r.actions[t] = e.Action
		}
		if e.Action == "skip" && e.Test != "" {
			r.why[t] = strings.Join(r.said[t], " ")
		}
		if e.Action == "fail" && e.Test != "" {
			r.last[t] = messages(r.said[t])
		}
		if e.Action != "run" {
			delete(r.said, t)
		}
	case "output":
		if strings.HasPrefix(text, "=== ") || strings.HasSuffix(text, "[no test files]") || strings.HasSuffix(text, "[no tests to run]") {
			return ""
		}
		if e.Test == "" && strings.HasPrefix(text, "ok ") {
			r.ok = append(r.ok, text)
		}
		if e.Test != "" && text != "" && !strings.HasPrefix(text, "--- ") {
			r.said[t] = append(r.said[t], text)
		}
	}
	top, _, isPart := strings.Cut(e.Test, "/")
	whole := test{e.Package, top}
	text = r.shown[whole] + e.Output
	if ended := !isPart && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip"); e.Test != "" && !ended {
		r.shown[whole] = text
		return ""
	}
	delete(r.shown, whole)
	return text
}

// mostMessages is how many messages of a failed test are repeated at the end, and mostBytes the length of each.
const mostMessages, mostBytes = 6, 300

// place matches the start of a test message's first line.
var place = regexp.MustCompile(`^[^\s:]+\.go:\d+: `)

// messages returns the first lines of a test's last messages. go test does not mark which are errors.
func messages(said []string) (out []string) {
	for _, line := range said {
		if place.MatchString(line) {
			out = append(out, line[:min(len(line), mostBytes)])
		}
	}
	return out[max(0, len(out)-mostMessages):]
}

// rest returns the output of tests that have not ended.
func (r *results) rest() (out string) {
	for _, t := range slices.SortedFunc(maps.Keys(r.shown), compare) {
		out += r.shown[t]
	}
	return out
}

// count returns how many tests ended with an action, including subtests.
func (r *results) count(action string) (n int) {
	for _, a := range r.actions {
		if a == action {
			n++
		}
	}
	return n
}

// problems returns a line for each problem: a test that was skipped, did not end or did not run, and a package without
// tests.
func (r *results) problems(want []test) (out []string) {
	ran := map[string]bool{} // packages
	for t, action := range r.actions {
		ran[t.pkg] = true
		switch {
		case action == "fail":
			out = append(out, strings.Join(append([]string{fmt.Sprintf("%s failed", t)}, r.last[t]...), "\n    "))
		case action == "run":
			out = append(out, fmt.Sprintf("%s did not end", t))
		case !strings.Contains(t.name, "/") && !slices.Contains(want, t):
			out = append(out, fmt.Sprintf("%s ran, but is not in the source", t))
		}
	}
	for _, t := range want {
		switch {
		case !ran[t.pkg]:
			out = append(out, fmt.Sprintf("%s has end-to-end tests, but none ran", t.pkg))
		case r.actions[t] == "":
			out = append(out, fmt.Sprintf("%s did not run", t))
		}
	}
	return out
}

// skipped returns a line for each skipped test, with the reason.
func (r *results) skipped() (out []string) {
	for _, t := range slices.SortedFunc(maps.Keys(r.why), compare) {
		out = append(out, fmt.Sprintf("%s was skipped: %s", t, r.why[t]))
	}
	return out
}

// print writes the end of the report.
func (r *results) print(out io.Writer, problems []string) {
	fmt.Fprintln(out, "--- end-to-end tests, in short")
	for _, line := range r.skipped() {
		fmt.Fprintln(out, line)
	}
	for _, line := range problems {
		fmt.Fprintln(out, "problem:", line)
	}
	for _, line := range r.ok {
		fmt.Fprintln(out, line)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", r.count("pass"), r.count("fail"), r.count("skip"))
}
