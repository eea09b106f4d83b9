package label

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
)

// ParseSignal parses a signal as Docker does: a number, or a name in any case, with or without SIG, like TERM, sigquit or
// SIGRTMIN+3.
func ParseSignal(s string) (int, error) {
	n, err := signal.ParseSignal(s)
	if err != nil {
		n = realTimeSignal(strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	}
	if SignalName(int(n)) == "" {
		return 0, fmt.Errorf("%s is not a signal: use a name like SIGTERM or a number", quote(s))
	}
	return int(n), nil
}

// realTimeSignal parses any RTMIN+n or RTMAX-n, and returns 0 for everything else. Docker names each signal only from the
// nearer end of the range.
func realTimeSignal(name string) syscall.Signal {
	first, last := signal.SignalMap["RTMIN"], signal.SignalMap["RTMAX"]
	for n := first; n <= last; n++ {
		if name == fmt.Sprintf("RTMIN+%d", n-first) || name == fmt.Sprintf("RTMAX-%d", last-n) {
			return n
		}
	}
	return 0
}

// SignalName returns Docker's name of a signal, or "" if the signal does not exist.
func SignalName(n int) string {
	var found string
	for name, s := range signal.SignalMap {
		if int(s) == n && name != "CLD" && name != "IOT" && name != "POLL" { // other names of CHLD, ABRT and IO
			found = "SIG" + name
		}
	}
	return found
}
