package haproxy

import (
	"fmt"
	"strings"

	"berth/proxyctl"
)

// mostLineWords is how many words HAProxy takes on a line of its file.
const mostLineWords = 64

// lexicalError returns what keeps HAProxy from telling the words and blocks of a text apart, as an error that wraps
// proxyctl.ErrRefused. From HAProxy 3.4 on the master dies of such a text as far as its socket goes: it serves on and takes no
// command until somebody sends it SIGUSR2.
func lexicalError(text string) error {
	refuse := func(number int, format string, args ...any) error {
		err := fmt.Errorf("%w: line %d: %s", proxyctl.ErrRefused, number, fmt.Sprintf(format, args...))
		if section := sectionAt(text, number); section != "" {
			err = &proxyctl.RefusalError{Section: section, Err: err}
		}
		return err
	}
	var blocks []int // lines of the .if that are open
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

// hasOpenQuote says whether a line ends within quotes, by the rules of words.
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
