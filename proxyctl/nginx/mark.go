package nginx

import (
	"fmt"
	"path/filepath"
	"strings"

	"berth/proxyctl/disk"
)

// The mark of a text is a server of its own on a unix socket, at the end of the http block. It tells which configuration
// nginx runs, and by which process. return answers before any rule of the http block for access or limits.
const (
	markHead = "\n    # By this server berth knows which configuration nginx runs.\n"
	markTail = "    # End of berth's server.\n"

	generationName = "generation" // the host name of that server
	markLine       = "        server_name " + generationName + ";\n"
)

func markBlock(socket string, g disk.Generation) string {
	return markHead + "    server {\n" +
		"        listen unix:" + socket + ";\n" + markLine +
		"        access_log off;\n" +
		"        return 200 \"" + g.String() + " $pid $nginx_version\\n\";\n" +
		"    }\n" + markTail
}

// marked is a text with its mark, as it is written to the file.
type marked struct {
	text       string
	generation disk.Generation
	config     *config // of the text without the mark; nil if it is no configuration
}

// mark gives a text its mark. unknown are names of directives that nginx does not know: those that are optional are made
// comments.
func mark(text, socket string, unknown map[string]bool) (marked, error) {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	c, err := parse(text)
	if err != nil {
		return marked{}, err
	}
	if out := leaveOut(text, c.top, unknown); out != text {
		text = out
		if c, err = parse(text); err != nil {
			return marked{}, err
		}
	}
	m := marked{generation: disk.NewGeneration(c.shape(), text), config: c}
	at := len(text)
	block := "\nhttp {" + markBlock(socket, m.generation) + "}\n"
	for _, d := range c.top {
		if d.is("http") {
			at = strings.LastIndexByte(text[:d.close], '\n') + 1
			if strings.TrimSpace(text[at:d.close]) != "" { // the brace is on a line with something else
				at = d.close
			}
			block = markBlock(socket, m.generation)
			break
		}
	}
	m.text = text[:at] + block + text[at:]
	return m, nil
}

// unmark reads a file. The generation is the zero one if the file is not as berth wrote it.
func unmark(file, socket string) marked {
	head, rest, found := strings.Cut(file, markHead)
	_, tail, closed := strings.Cut(rest, markTail)
	if found && closed {
		text := head + tail
		if h, ok := strings.CutSuffix(head, "\nhttp {"); ok && tail == "}\n" {
			text = h
		}
		if m, err := mark(text, socket, nil); err == nil && m.text == file {
			return m
		}
	}
	c, _ := parse(file)
	return marked{text: file, config: c}
}

// isMarked says whether berth wrote the file, whatever became of it since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }

// Unmarked is the text that was rendered, of a file that berth has written for an nginx with this control socket: what
// berth render compares.
func Unmarked(file, socket string) string {
	file = unmark(file, absolute(socket)).withoutMark()
	return strings.ReplaceAll(file, unknownPrefix, "")
}

func (m marked) withoutMark() string {
	if m.generation == (disk.Generation{}) {
		return m.text
	}
	head, rest, _ := strings.Cut(m.text, markHead)
	_, tail, _ := strings.Cut(rest, markTail)
	if h, ok := strings.CutSuffix(head, "\nhttp {"); ok && tail == "}\n" {
		return h
	}
	return head + tail
}

// absolute is a path that means the same in nginx, which takes others from its prefix.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

const (
	optional      = "# optional"
	unknownPrefix = "#unknown# "
)

// leaveOut makes comments of the directives with these names that are marked as optional, with their blocks.
func leaveOut(text string, all []*directive, unknown map[string]bool) string {
	if len(unknown) == 0 {
		return text
	}
	var out strings.Builder
	at := 0
	var visit func([]*directive)
	visit = func(list []*directive) {
		for _, d := range list {
			if !unknown[d.name()] || !d.optional(text) {
				visit(d.block)
				continue
			}
			start := strings.LastIndexByte(text[:d.start], '\n') + 1
			end := d.end + strings.IndexByte(text[d.end:], '\n') + 1
			out.WriteString(text[at:start])
			for line := range strings.Lines(text[start:end]) {
				out.WriteString(unknownPrefix + line)
			}
			at = end
		}
	}
	visit(all)
	out.WriteString(text[at:])
	return out.String()
}

// optional says whether the comment on its line says that nginx may do without the directive. It must have its lines for
// itself.
func (d *directive) optional(text string) bool {
	says := d.end
	if d.isOpen {
		says = d.open + 1
	}
	line, _, _ := strings.Cut(text[says:], "\n")
	before := text[strings.LastIndexByte(text[:d.start], '\n')+1 : d.start]
	after, _, _ := strings.Cut(text[d.end:], "\n")
	after = strings.TrimSpace(after)
	return strings.HasPrefix(strings.TrimSpace(line), optional) && strings.TrimSpace(before) == "" && (after == "" || after[0] == '#')
}

// optionals are the names of the directives that are marked as optional.
func optionals(text string, all []*directive) []string {
	var names []string
	for _, d := range all {
		if d.optional(text) {
			names = append(names, d.name())
		}
		names = append(names, optionals(text, d.block)...)
	}
	return names
}

// unknownDirective is the name in nginx's complaint about a directive that it does not know, "" if it is another one.
func unknownDirective(complaint string) string {
	_, rest, found := strings.Cut(complaint, `unknown directive "`)
	name, _, closed := strings.Cut(rest, `"`)
	if !found || !closed {
		return ""
	}
	return name
}

// CheckPath is nil for a path that can be written to a configuration as it is.
func CheckPath(path string) error {
	if strings.ContainsAny(path, " \t\r\n;{}\"'\\$#:") {
		return fmt.Errorf("the path %q must not have blanks, quotes, colons or any of ; { } \\ $ #", path)
	}
	return nil
}
