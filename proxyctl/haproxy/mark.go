package haproxy

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// markName is the environment variable by which a configuration written by berth is known, in the file and in the worker
// that runs it. HAProxy takes any number of global sections.
const markName = "BERTH_GENERATION"

const markLine = "    setenv " + markName + " "

// mark appends to a text its own fingerprint. HAProxy takes a last line without an end for a truncated file.
func mark(text string) string {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return fmt.Sprintf("%s\n# By this mark berth knows which configuration HAProxy runs.\nglobal\n%s%x\n", text, markLine, sha256.Sum256([]byte(text)))
}

// generation is the mark in a text, "" if it is not berth's.
func generation(text string) string {
	_, after, marked := strings.Cut(text, "\n"+markLine)
	if !marked {
		return ""
	}
	value, _, _ := strings.Cut(after, "\n")
	return value
}
