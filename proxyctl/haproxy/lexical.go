package haproxy

import (
	"fmt"
	"strings"

	"berth/proxyctl"
)

// mostLineWords is the maximum number of words on a line of HAProxy's file.
const mostLineWords = 64

// lexicalError returns an error that wraps proxyctl.ErrRefused if HAProxy could not split the text into words and blocks. With
// such a text, the master of HAProxy 3.4 and later keeps serving but accepts no commands until it gets a SIGUSR2.
func lexicalError(text string) error {
	refuse := func(number int, format string, args ...any) error {
		err := fmt.Errorf("%w: line %d: %s", proxyctl.ErrRefused, number, fmt.Sprintf(format, args...))
		if section := sectionAt(text, number); section != "" {
			err = &proxyctl.RefusalError{Section: section, Err: err}
		}
		return err
	}
	var blocks []int // line numbers of the open .if
	number := 0
	for line := range strings.Lines(text) {
		number++
		if len(line) >= 2*mostLineWords-1 {
			if w, _ := words(line); len(w) > mostLineWords {
				return refuse(number, "%d words, HAProxy takes at most %d", len(w), mostLineWords)
			}
		}
		if strings.ContainsAny(line, `"'`) && hasOpenQuote(line) {
			return refuse(number, "unclosed quote")
		}
		switch first, _, _ := strings.Cut(strings.TrimSpace(line), " "); first {
		case ".if":
			blocks = append(blocks, number)
		case ".elif", ".else", ".endif":
			if len(blocks) == 0 {
				return refuse(number, "%s without .if", first)
			}
			if first == ".endif" {
				blocks = blocks[:len(blocks)-1]
			}
		}
	}
	if len(blocks) > 0 {
		return refuse(blocks[len(blocks)-1], ".if without .endif")
	}
	return nil
}

// hasOpenQuote reports whether a line ends within quotes, by the rules of words.
func hasOpenQuote(line string) bool {
	var quote byte
	for i := 0; i < len(line); i++ {
		switch ch := line[i]; {
		case ch == '\\' && quote != '\'':
			i++
		case quote != 0 && ch == quote:
			quote = 0
		case quote != 0:
		case ch == '"' || ch == '\'':
			quote = ch
		case ch == '#':
			return false
		}
	}
	return quote != 0
}
