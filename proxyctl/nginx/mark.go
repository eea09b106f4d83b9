package nginx

import (
	"fmt"
	"path/filepath"
	"strings"

	"berth/proxyctl/configfile"
)

// The mark of a text is a separate server on a unix socket, at the end of the http block. It reports which configuration nginx
// runs, and in which process. return answers before any access rule or limit of the http block applies.
const (
	markHead = "\n    # By this server berth knows which configuration nginx runs.\n"
	markTail = "    # End of berth's server.\n"

	generationName = "generation" // the host name of that server
	markLine       = "        server_name " + generationName + ";\n"
)

func markBlock(socket string, g configfile.Generation) string {
	return markHead + "    server {\n" +
		"        listen unix:" + socket + ";\n" + markLine +
		"        access_log off;\n" +
		"        return 200 \"" + g.String() + " $pid $nginx_version\\n\";\n" +
		"    }\n" + markTail
}

// If a template keeps nginx's messages elsewhere, a line at the end makes nginx write the worst of them for berth as well.
const logHead = "\n# Here berth reads why a reload has failed.\nerror_log "

// logLine returns this line. It returns "" if a text does not need it, or has no error_log: the line would then replace the log
// that nginx was built with.
func logLine(c *config, socket string) string {
	path := errorLogPath(socket)
	logs := false
	for _, d := range c.all.block {
		if d.name() == "error_log" && len(d.words) > 1 {
			logs = true
			if d.words[1] == path {
				return ""
			}
		}
	}
	if !logs {
		return ""
	}
	return logHead + path + " emerg;\n"
}

func errorLogPath(socket string) string { return filepath.Join(filepath.Dir(socket), "error.log") }

// mark adds its mark to a text.
func mark(text, socket string) (marked, error) {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	c, err := parse(text)
	if err != nil {
		return marked{}, err
	}
	m := marked{Generation: configfile.NewGeneration(c.shape(), text), Config: c}
	at := len(text)
	block := "\nhttp {" + markBlock(socket, m.Generation) + "}\n"
	for _, d := range c.all.block {
		if d.is("http") {
			at = strings.LastIndexByte(text[:d.close], '\n') + 1
			if strings.TrimSpace(text[at:d.close]) != "" { // the brace shares its line with something else
				at = d.close
			}
			block = markBlock(socket, m.Generation)
			break
		}
	}
	m.Text = text[:at] + block + text[at:] + logLine(c, socket)
	return m, nil
}

// unmark reads a file. The generation is zero if the file is not as berth wrote it.
func unmark(file, socket string) marked {
	if text := Unmarked(file); text != file {
		if m, err := mark(text, socket); err == nil && m.Text == file {
			return m
		}
	}
	c, _ := parse(file)
	return marked{Text: file, Config: c}
}

// isMarked reports whether berth wrote a file, even if it was edited since.
func isMarked(file string) bool { return strings.Contains(file, markLine) }

// Unmarked returns a file without berth's mark, even if the file was edited otherwise. berth render compares such texts.
func Unmarked(file string) string {
	marked := file
	if log := strings.LastIndex(file, logHead); log >= 0 && strings.Count(file[log:], "\n") == 3 && strings.HasSuffix(file, " emerg;\n") {
		marked = file[:log]
	}
	at := strings.LastIndex(marked, markHead)
	if at < 0 {
		return file
	}
	_, tail, closed := strings.Cut(marked[at:], markTail)
	switch head, own := strings.CutSuffix(marked[:at], "\nhttp {"); {
	case !closed:
		return file
	case own && tail == "}\n":
		return head
	}
	return marked[:at] + tail
}

// absolute returns a path that nginx does not resolve from its prefix.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// CheckPath returns an error for a path that needs quotes in a configuration.
func CheckPath(path string) error {
	if strings.ContainsAny(path, " \t\r\n;{}\"'\\$#:") {
		return fmt.Errorf("the path %q must not have blanks, quotes, colons or any of ; { } \\ $ #", path)
	}
	return nil
}
