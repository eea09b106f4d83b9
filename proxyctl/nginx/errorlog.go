package nginx

import (
	"cmp"
	"io"
	"os"
	"strings"
)

// errorLog reads the file with nginx's messages of level emerg, which the built-in template places next to the control socket.
// Nothing else says why nginx did not load a configuration.
type errorLog struct {
	path string
	from int64 // where the messages about the latest reload begin
}

// begin records where the messages about the next reload begin.
func (l *errorLog) begin() {
	l.from = 0
	if info, err := os.Stat(l.path); err == nil {
		l.from = info.Size()
	}
}

// mostMessages limits how much of the log is read.
const mostMessages = 64 << 10

// refusal returns nginx's first complaint since begin, and whether nginx has given up. nginx tries five times to bind an address
// in use.
func (l *errorLog) refusal() (first string, final bool) {
	f, err := os.Open(l.path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() < l.from {
		l.from = 0 // the file was emptied
	}
	b, err := io.ReadAll(io.NewSectionReader(f, l.from, mostMessages))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		message := complaint(line)
		// io_setup is no failure: the worker goes on without it. The last line may not be complete yet.
		if message == "" || !strings.HasSuffix(line, "\n") || strings.HasPrefix(message, "io_setup() failed") {
			continue
		}
		first = cmp.Or(first, message)
		final = final || !strings.HasPrefix(message, "bind() to ")
	}
	return first, final
}
