package registrar

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sigkill = int(unix.SIGKILL)
	sigterm = int(unix.SIGTERM)
)

// Real-time signals as Docker counts them: the C library keeps 32 and 33 for itself. Docker knows names for the first
// fifteen after SIGRTMIN and the fourteen before SIGRTMAX, which is all of them.
const (
	sigrtmin = 34
	sigrtmax = 64
	rtMiddle = 50 // SIGRTMAX-14
)

// parseSignal reads a signal as Docker takes it: a number, or a name in any case, with or without SIG, like TERM,
// sigquit or SIGRTMIN+3.
func parseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if signalName(n) == "" {
			return 0, fmt.Errorf("there is no signal %d: use a name like SIGTERM", n)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := realTime(name); n != 0 {
		return n, nil
	}
	switch name { // other names of signals that unix knows by one name only
	case "CLD":
		name = "CHLD"
	case "IOT":
		name = "ABRT"
	case "POLL":
		name = "IO"
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("%s is no signal: use a name like SIGTERM or a number", quote(s))
}

// realTime is the number of a real-time signal, whose name comes without SIG; 0 if it is none.
func realTime(name string) int {
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, ok := offset(rest, "+"); ok {
			return sigrtmin + n
		}
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		if n, ok := offset(rest, "-"); ok {
			return sigrtmax - n
		}
	}
	return 0
}

// offset is n of "+n", or 0 of "".
func offset(s, sign string) (n int, ok bool) {
	if s == "" {
		return 0, true
	}
	digits, ok := strings.CutPrefix(s, sign)
	if !ok {
		return 0, false
	}
	u, err := strconv.ParseUint(digits, 10, 8)
	return int(u), err == nil && u <= sigrtmax-sigrtmin
}

// signalName is the name of a signal that Docker understands, "" if there is no such signal.
func signalName(n int) string {
	switch {
	case n == sigrtmin:
		return "SIGRTMIN"
	case n == sigrtmax:
		return "SIGRTMAX"
	case n > sigrtmin && n < rtMiddle:
		return fmt.Sprintf("SIGRTMIN+%d", n-sigrtmin)
	case n >= rtMiddle && n < sigrtmax:
		return fmt.Sprintf("SIGRTMAX-%d", sigrtmax-n)
	case n < 1 || n > sigrtmax:
		return ""
	}
	return unix.SignalName(syscall.Signal(n))
}
