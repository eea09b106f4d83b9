package nginx

import (
	"fmt"
	"strings"
)

// directive is a directive of nginx's configuration, simple or with a block, and its place in the text.
type directive struct {
	words  []string // its name and arguments, without quotes
	block  []*directive
	isOpen bool   // it has a block, or a body
	body   string // of a block of Lua code

	start, end  int // from its first word to behind the ; or }
	open, close int // of the braces
}

func (d *directive) name() string { return d.words[0] }

// is says whether the directive has this name and a block.
func (d *directive) is(name string) bool { return d.isOpen && d.name() == name }

// parser reads the language as ngx_conf_read_token does. Lua blocks are read as lua-nginx-module does: up to the brace
// that closes them, wherever Lua's strings and comments have others.
type parser struct {
	text     string
	at       int
	comments []comment
}

// comment is the text behind a #, and its place.
type comment struct {
	text string
	at   int
}

// parseText returns the directives of a text. The error for a text that is no configuration names the line.
func parseText(text string) ([]*directive, error) { return (&parser{text: text}).parse() }

func (p *parser) parse() ([]*directive, error) {
	all, closed, err := p.directives()
	if err == nil && closed {
		err = p.problem(p.at-1, "a } too many")
	}
	return all, err
}

func (p *parser) problem(at int, what string) error {
	return fmt.Errorf("line %d: %s", 1+strings.Count(p.text[:min(at, len(p.text))], "\n"), what)
}

// directives reads up to the end of the text or of the block, and says which it was.
func (p *parser) directives() (all []*directive, closed bool, err error) {
	for {
		p.skipSpace()
		if p.at == len(p.text) {
			return all, false, nil
		}
		if p.text[p.at] == '}' {
			p.at++
			return all, true, nil
		}
		d, err := p.directive()
		if err != nil {
			return nil, false, err
		}
		all = append(all, d)
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
			d.isOpen, d.open = true, p.at
			p.at++
			return d, p.block(d)
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

// block reads on behind the opening brace.
func (p *parser) block(d *directive) error {
	if strings.HasSuffix(d.name(), "_by_lua_block") {
		if err := p.skipLua(); err != nil {
			return err
		}
		d.body = p.text[d.open+1 : p.at]
		p.at++
	} else {
		block, closed, err := p.directives()
		if err != nil {
			return err
		}
		if !closed {
			return p.problem(d.start, d.name()+" has no }")
		}
		d.block = block
	}
	d.close, d.end = p.at-1, p.at
	return nil
}

func (p *parser) skipSpace() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\r', '\n':
			p.at++
		case '#':
			from := p.at + 1
			p.skipLine()
			p.comments = append(p.comments, comment{strings.TrimSpace(p.text[from:p.at]), from})
		default:
			return
		}
	}
}

func (p *parser) skipLine() {
	if n := strings.IndexByte(p.text[p.at:], '\n'); n >= 0 {
		p.at += n
		return
	}
	p.at = len(p.text)
}

// word reads one, quoted or not.
func (p *parser) word() (string, error) {
	var w strings.Builder
	quote := p.text[p.at]
	quoted := quote == '"' || quote == '\''
	start := p.at
	if quoted {
		p.at++
	}
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch {
		case c == '\\' && p.at+1 < len(p.text):
			p.at++
			w.WriteString(unescape(p.text[p.at]))
			p.at++
			continue
		case quoted && c == quote:
			p.at++
			return w.String(), nil
		case !quoted && strings.IndexByte(" \t\r\n;", c) >= 0:
			return w.String(), nil
		case !quoted && c == '{' && !strings.HasSuffix(p.text[start:p.at], "$"):
			return w.String(), nil
		}
		w.WriteByte(c)
		p.at++
	}
	if quoted {
		return "", p.problem(start, "a quote that is not closed")
	}
	return w.String(), nil
}

// unescape returns what a backslash and a character stand for.
func unescape(c byte) string {
	switch c {
	case '"', '\'', '\\':
		return string(c)
	case 't':
		return "\t"
	case 'r':
		return "\r"
	case 'n':
		return "\n"
	}
	return "\\" + string(c)
}

// skipLua goes to the brace that closes a block of Lua code.
func (p *parser) skipLua() error {
	start, depth := p.at, 1
	for p.at < len(p.text) {
		rest := p.text[p.at:]
		switch c := rest[0]; {
		case strings.HasPrefix(rest, "--") && longBracket(rest[2:]) < 0:
			p.skipLine()
			continue
		case strings.HasPrefix(rest, "--"):
			p.at += 2
			continue
		case c == '[' && longBracket(rest) >= 0:
			end := "]" + strings.Repeat("=", longBracket(rest)) + "]"
			n := strings.Index(rest, end)
			if n < 0 {
				return p.problem(p.at, "a long bracket of Lua that is not closed")
			}
			p.at += n + len(end)
			continue
		case c == '"' || c == '\'':
			if err := p.skipLuaString(c); err != nil {
				return err
			}
			continue
		case c == '{':
			depth++
		case c == '}':
			depth--
			if depth == 0 {
				return nil
			}
		}
		p.at++
	}
	return p.problem(start, "a block of Lua code has no }")
}

// longBracket returns the level of the long bracket that a text begins with, -1 if it begins with none.
func longBracket(s string) int {
	if !strings.HasPrefix(s, "[") {
		return -1
	}
	rest := strings.TrimLeft(s[1:], "=")
	if !strings.HasPrefix(rest, "[") {
		return -1
	}
	return len(s) - 1 - len(rest)
}

func (p *parser) skipLuaString(quote byte) error {
	for n := p.at + 1; n < len(p.text); n++ {
		switch p.text[n] {
		case '\\':
			n++
		case '\n':
			return p.problem(p.at, "a string of Lua that is not closed")
		case quote:
			p.at = n + 1
			return nil
		}
	}
	return p.problem(p.at, "a string of Lua that is not closed")
}
