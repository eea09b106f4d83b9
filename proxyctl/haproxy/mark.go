package haproxy

import (
	"regexp"
	"strings"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// markName is the environment variable that identifies a configuration written by berth, in the file and in the worker that runs
// it. HAProxy accepts any number of global sections.
const markName = "BERTH_GENERATION"

const (
	markHead = "\n# By this mark berth knows which configuration HAProxy runs.\nglobal\n"
	markLine = "    setenv " + markName + " "
)

// marked is a text with its mark, and the configuration read from the text without the mark.
type marked = proxyctl.Marked[config]

// mark appends its mark to a text. HAProxy takes a last line without a line end for a truncated file. before is as in parse.
func mark(text string, before *config) marked {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	c := parse(text, before)
	g := configfile.NewGeneration(c.shape(), text)
	return marked{Text: text + markHead + markLine + g.String() + "\n", Generation: g, Config: c}
}

// unmark reads a file. The generation is zero if the file is not as berth wrote it.
func unmark(file string, before *config) marked {
	if text := Unmarked(file); text != file {
		if m := mark(text, before); m.Text == file {
			return m
		}
	}
	return marked{Text: file, Config: parse(file, before)}
}

// Unmarked returns a file without berth's mark at its end, even if the file was edited otherwise. berth render compares such
// texts. A template may have started as a copy of such a file with its mark.
func Unmarked(file string) string {
	at := strings.LastIndex(file, markHead)
	if at < 0 || !onlyMark.MatchString(file[at+len(markHead):]) {
		return file
	}
	return file[:at]
}

var onlyMark = regexp.MustCompile("^" + markLine + `\S+\n?$`)

// isMarked reports whether berth wrote the file, even if it was edited since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }
