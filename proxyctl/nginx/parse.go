package nginx

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"berth/proxyctl"
)

// directive is a directive of nginx's configuration, simple or with a block, and its position in the text. A whole text is the
// block of a directive without words.
type directive struct {
	words    []string // its name and arguments, without quotes
	block    []*directive
	comments []string // in its own block, not in nested ones
	body     string   // of a Lua block
	live     bool     // an upstream whose servers change without a reload, because a Lua balancer of the http block picks them

	start, end  int // from its first word to just after the ; or }
	open, close int // positions of the braces; both 0 if there are none
}

func (d *directive) name() string { return d.words[0] }

// isOpen reports whether the directive has a block or a body.
func (d *directive) isOpen() bool { return d.open > 0 }

// is reports whether the directive has this name and a block.
func (d *directive) is(name string) bool { return d.isOpen() && d.name() == name }

// upstream returns the name of an upstream, "" for any other directive.
func (d *directive) upstream() string {
	if d == nil || len(d.words) != 2 || !d.is("upstream") {
		return ""
	}
	return strings.Clone(d.words[1])
}

// has reports whether the block has a directive, given the names of the blocks around it and its own.
func (d *directive) has(path ...string) bool {
	return slices.ContainsFunc(d.block, func(sub *directive) bool {
		return sub.name() == path[0] && (len(path) == 1 || sub.has(path[1:]...))
	})
}

// without returns the directives of the block except those with these names.
func (d *directive) without(names ...string) []*directive {
	return slices.DeleteFunc(slices.Clone(d.block), func(sub *directive) bool { return slices.Contains(names, sub.name()) })
}

// parser parses the language like ngx_conf_read_token. It reads Lua blocks like lua-nginx-module: up to the closing brace,
// ignoring braces in Lua strings and comments.
type parser struct {
	text string
	at   int
	in   *directive // the block being read
}

// parseText parses a text. The error for an invalid text names the line.
func parseText(text string) (*directive, error) {
	all := &directive{}
	return all, (&parser{text: text}).block(all)
}

func (p *parser) problem(at int, what string) error {
	err := fmt.Errorf("line %d: %s", 1+strings.Count(p.text[:min(at, len(p.text))], "\n"), what)
	if name := p.in.upstream(); name != "" {
		return &proxyctl.RefusalError{Section: name, Err: err}
	}
	return err
}

// block reads the directives of a block and its closing brace, or up to the end of the text.
func (p *parser) block(d *directive) error {
	outer := p.in
	defer func() { p.in = outer }()
	p.in = d
	for {
		p.skipSpace()
		switch {
		case p.at == len(p.text) && outer != nil:
			return p.problem(d.start, d.name()+" has no }")
		case p.at == len(p.text):
			return nil
		case p.text[p.at] == '}' && outer == nil:
			return p.problem(p.at, "unexpected }")
		case p.text[p.at] == '}':
			p.at++
			return nil
		}
		sub, err := p.directive()
		if err != nil {
			return err
		}
		d.block = append(d.block, sub)
	}
}

func (p *parser) directive() (*directive, error) {
	d := &directive{start: p.at}
	for {
		p.skipSpace()
		if p.at == len(p.text) {
			return nil, p.problem(d.start, "the last directive has no ; or }")
		}
		switch c := p.text[p.at]; {
		case c == ';' && len(d.words) > 0:
			p.at++
			d.end = p.at
			return d, nil
		case c == '{' && len(d.words) > 0:
			d.open = p.at
			p.at++
			read := p.block
			if strings.HasSuffix(d.name(), "_by_lua_block") {
				read = p.luaBlock
			}
			err := read(d)
			d.close, d.end = p.at-1, p.at
			return d, err
		case c == ';' || c == '{' || c == '}':
			return nil, p.problem(p.at, fmt.Sprintf("unexpected %q", c))
		}
		word, err := p.word()
		if err != nil {
			return nil, err
		}
		d.words = append(d.words, word)
	}
}

// skipSpace skips to the next word or sign, and keeps the comments in between.
func (p *parser) skipSpace() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\r', '\n':
			p.at++
		case '#':
			line := p.text[p.at : p.at+lineLength(p.text[p.at:])]
			p.in.comments = append(p.in.comments, strings.TrimSpace(line[1:]))
			p.at += len(line)
		default:
			return
		}
	}
}

// lineLength returns the length of the first line of a text, without its end.
func lineLength(s string) int {
	if n := strings.IndexByte(s, '\n'); n >= 0 {
		return n
	}
	return len(s)
}

// word reads a word, quoted or not.
func (p *parser) word() (string, error) {
	var w strings.Builder
	start, quote := p.at, p.text[p.at]
	quoted := quote == '"' || quote == '\''
	if quoted {
		p.at++
	}
	for ; p.at < len(p.text); p.at++ {
		c := p.text[p.at]
		switch {
		case c == '\\' && p.at+1 < len(p.text):
			p.at++
			escaped, known := escapes[p.text[p.at]]
			if !known {
				w.WriteByte(c)
				escaped = p.text[p.at]
			}
			w.WriteByte(escaped)
		case quoted && c == quote:
			p.at++
			return w.String(), nil
		case !quoted && strings.IndexByte(" \t\r\n;", c) >= 0, !quoted && c == '{' && !strings.HasSuffix(p.text[start:p.at], "$"):
			return w.String(), nil
		default:
			w.WriteByte(c)
		}
	}
	if quoted {
		return "", p.problem(start, "unclosed quote")
	}
	return w.String(), nil
}

// escapes are the characters that a backslash changes. Before any other character, a backslash stands for itself.
var escapes = map[byte]byte{'"': '"', '\'': '\'', '\\': '\\', 't': '\t', 'r': '\r', 'n': '\n'}

// luaBlock reads a block of Lua code and its closing brace.
func (p *parser) luaBlock(d *directive) error {
	depth := 1
	for p.at < len(p.text) {
		n := luaToken(p.text[p.at:])
		switch c := p.text[p.at]; {
		case n == 0:
			return p.problem(p.at, "unclosed Lua string or comment")
		case c == '{':
			depth++
		case c == '}':
			depth--
		}
		p.at += n
		if depth == 0 {
			d.body = p.text[d.open+1 : p.at-1]
			return nil
		}
	}
	return p.problem(d.open+1, "a Lua block has no }")
}

var (
	luaString      = regexp.MustCompile(`(?s)^(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')`)
	luaLongBracket = regexp.MustCompile(`^(?:--)?\[(=*)\[`) // of a multi-line string or comment
)

// luaToken returns the length of the string, comment or other character at the start of Lua code, 0 for an unclosed string or
// comment.
func luaToken(code string) int {
	switch code[0] {
	case '"', '\'':
		return len(luaString.FindString(code))
	case '-', '[':
		if m := luaLongBracket.FindStringSubmatch(code); m != nil {
			before, _, closed := strings.Cut(code, "]"+m[1]+"]")
			if !closed {
				return 0
			}
			return len(before) + len(m[1]) + 2
		}
		if strings.HasPrefix(code, "--") {
			return lineLength(code)
		}
	}
	return 1
}
