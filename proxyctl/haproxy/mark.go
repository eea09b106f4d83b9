package haproxy

import (
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
	if text, _, found := strings.Cut(file, markHead); found {
		if m := mark(text, before); m.Text == file {
			return m
		}
	}
	return marked{Text: file, Config: parse(file, before)}
}

// Unmarked is the text that was rendered, of a file that berth has written: what berth render compares.
func Unmarked(file string) string {
	if m := unmark(file, nil); m.Generation.Shape != "" {
		return m.Config.text()
	}
	return file
}

// isMarked says whether berth wrote the file, whatever became of it since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }
