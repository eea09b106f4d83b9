package label

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
)

// ParseSignal reads a signal as Docker does: a number, or a name in any case, with or without SIG, like TERM, sigquit or
// SIGRTMIN+3.
func ParseSignal(s string) (int, error) {
	n, err := signal.ParseSignal(s)
	if err != nil {
		n = fromOtherEnd(strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	}
	switch {
	case n > 0 && SignalName(int(n)) != "":
		return int(n), nil
	case err == nil:
		return 0, fmt.Errorf("there is no signal %s: use a name like SIGTERM", s)
	}
	return 0, fmt.Errorf("%s is no signal: use a name like SIGTERM or a number", quote(s))
}

// fromOtherEnd reads the names of real-time signals for which Docker counts from the other end of their range, like
// RTMIN+30, which Docker calls RTMAX. It returns 0 for all others.
func fromOtherEnd(name string) syscall.Signal {
	first, last := signal.SignalMap["RTMIN"], signal.SignalMap["RTMAX"]
	n, sign := first, syscall.Signal(1)
	digits, ok := strings.CutPrefix(name, "RTMIN+")
	if !ok {
		n, sign = last, -1
		digits, ok = strings.CutPrefix(name, "RTMAX-")
	}
	offset, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || syscall.Signal(offset) > last-first {
		return 0
	}
	return n + sign*syscall.Signal(offset)
}

// SignalName returns the name of a signal that Docker understands, or "" if there is no such signal.
func SignalName(n int) string {
	var found string
	for name, s := range signal.SignalMap {
		if int(s) == n && name != "CLD" && name != "IOT" && name != "POLL" { // other names of CHLD, ABRT and IO
			found = "SIG" + name
		}
	}
	return found
}
