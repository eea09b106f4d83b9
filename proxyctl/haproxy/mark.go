package haproxy

import (
	"regexp"
	"strings"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// markName is the environment variable by which a configuration written by berth is known, in the file and in the worker
// that runs it. HAProxy takes any number of global sections.
const markName = "BERTH_GENERATION"

const (
	markHead = "\n# By this mark berth knows which configuration HAProxy runs.\nglobal\n"
	markLine = "    setenv " + markName + " "
)

// marked is a text with its mark, and the configuration that was read from it without.
type marked = proxyctl.Marked[config]

// mark appends to a text its own mark. HAProxy takes a last line without an end for a truncated file. before is as in
// parse.
func mark(text string, before *config) marked {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	c := parse(text, before)
	g := configfile.NewGeneration(c.shape(), text)
	return marked{Text: text + markHead + markLine + g.String() + "\n", Generation: g, Config: c}
}

// unmark reads a file. The generation is the zero one if the file is not as berth wrote it.
func unmark(file string, before *config) marked {
	if text := Unmarked(file); text != file {
		if m := mark(text, before); m.Text == file {
			return m
		}
	}
	return marked{Text: file, Config: parse(file, before)}
}

// Unmarked returns a file without berth's mark at its end, whatever else became of it: what berth render compares. A template
// may have begun as a copy of such a file, mark and all.
func Unmarked(file string) string {
	at := strings.LastIndex(file, markHead)
	if at < 0 || !onlyMark.MatchString(file[at+len(markHead):]) {
		return file
	}
	return file[:at]
}

var onlyMark = regexp.MustCompile("^" + markLine + `\S+\n?$`)

// isMarked says whether berth wrote the file, whatever became of it since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }
