package haproxy

import (
	"strings"

	"berth/proxyctl/disk"
)

// markName is the environment variable by which a configuration written by berth is known, in the file and in the worker
// that runs it. HAProxy takes any number of global sections.
const markName = "BERTH_GENERATION"

const (
	markHead = "\n# By this mark berth knows which configuration HAProxy runs.\nglobal\n"
	markLine = "    setenv " + markName + " "
)

// marked is a text with its mark, as it is written to the file.
type marked struct {
	text       string
	generation disk.Generation
	config     *config // of the text without the mark
}

// mark appends to a text its own mark. HAProxy takes a last line without an end for a truncated file. before is as in
// parse.
func mark(text string, before *config) marked {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	c := parse(text, before)
	g := disk.NewGeneration(c.shape(), text)
	return marked{text: text + markHead + markLine + g.String() + "\n", generation: g, config: c}
}

// unmark reads a file. The generation is the zero one if the file is not as berth wrote it.
func unmark(file string, before *config) marked {
	if text, _, found := strings.Cut(file, markHead); found {
		if m := mark(text, before); m.text == file {
			return m
		}
	}
	return marked{text: file, config: parse(file, before)}
}

// Unmarked is the text that was rendered, of a file that berth has written: what berth render compares.
func Unmarked(file string) string { return unmark(file, nil).text }

// isMarked says whether berth wrote the file, whatever became of it since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }
