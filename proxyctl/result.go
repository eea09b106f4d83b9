package proxyctl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrRefused marks an error that lies in the configuration itself: the proxy, or a check before it, said no.
var ErrRefused = errors.New("configuration refused")

// RefusalError is a refusal that says whose text is at fault. It wraps ErrRefused.
type RefusalError struct {
	Section string // the backend, listen section or upstream
	Err     error
}

func (e *RefusalError) Error() string { return e.Err.Error() }
func (e *RefusalError) Unwrap() error { return e.Err }

// ErrUnreachable marks an error that lies in the way to the proxy: it is not running or its socket is not there.
var ErrUnreachable = errors.New("proxy not reachable")

// ErrNotYet is what Apply returns when only a reload brings the proxy to the text, and none may be done yet.
var ErrNotYet = errors.New("the newest configuration waits for the next reload")

// PortError is a refusal because of one address that the proxy cannot listen on. It wraps ErrRefused.
type PortError struct {
	Port    int
	Address string // as it is written in the configuration, or as the proxy says it
	Reason  string // another program listens there
}

func (e *PortError) Error() string {
	return fmt.Sprintf("%v: bind %s: %s", ErrRefused, e.Address, e.Reason)
}

func (e *PortError) Unwrap() error { return ErrRefused }

// HoldError is what Apply returns for a first text that is not believed yet: it would take all servers from backends that have
// some in the last good text. If berth wrote that one, servers of all other backends come and go; a file that berth did not
// write stays as it is.
type HoldError struct {
	Backends []string
	File     string        // that berth did not write, and that has the servers; "" if berth wrote it
	For      time.Duration // time left of the hold; 0 if it lasts until a text has servers for all, as with a File
}

func (e *HoldError) Error() string {
	what := "backend " + e.Backends[0]
	their, them := "its", "it"
	if n := len(e.Backends); n > 1 {
		what, their, them = "backends "+strings.Join(e.Backends[:min(n, 5)], ", "), "their", "all of them"
		if n > 5 {
			what += fmt.Sprintf(" and %d more", n-5)
		}
	}
	what = fmt.Sprintf("holding back: %s would lose all %s servers", what, their)
	if e.File != "" {
		return fmt.Sprintf("%s, which are in %s, a file that berth did not write: give the template servers for %s, or start berth with --take-over to replace the file anyway",
			what, e.File, them)
	}
	return what + "; the first configuration after a start is applied once it has servers for every backend that had some, or after consul-grace"
}

// Ports reads a port or a range of ports, like 80 or 1000-1009; first is 0 for anything else.
func Ports(s string) (first, last int) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if err != nil || err2 != nil {
		return 0, 0
	}
	return first, min(last, 65535)
}

// Action says what Apply did.
type Action string

// The actions of a Result.
const (
	None    Action = "none"    // the proxy already runs this text
	Runtime Action = "runtime" // the running workers took the changes
	Reload  Action = "reload"  // the proxy loaded the text into new workers, which serve
)

// Change is what became of the servers of one backend.
type Change struct {
	Backend        string
	Before, After  int // number of servers
	Added, Removed int
	// In are the addresses, as in the text, of servers that get requests of the backend and did not before, and Out those of servers
	// that get no new ones any more. One that has moved is in both.
	In, Out []string
}

// String is the sentence an operator reads: "app: 2 → 5 servers".
func (c Change) String() string {
	servers := "servers"
	if c.After == 1 {
		servers = "server"
	}
	if c.Before == c.After {
		return fmt.Sprintf("%s: %d %s, %d replaced or changed", c.Backend, c.After, servers, max(c.Added, c.Removed))
	}
	return fmt.Sprintf("%s: %d → %d %s", c.Backend, c.Before, c.After, servers)
}

// Result is what Apply did, read back from the proxy.
type Result struct {
	Action     Action
	Reason     string   // of a reload: why nothing less would do; of a change at run time: what it was
	Changes    []Change // sorted by backend
	OldWorkers int      // workers of earlier configurations that still finish their connections; as of a reload, or of a look
	Leaving    int      // servers that were removed and still finish their connections
	// Generation is the mark of the text that the proxy runs, "" if it is not known. Backends and Servers count the backends that
	// have servers in it, and these.
	Generation        string
	Backends, Servers int
}

// Config is what a proxy is to run.
type Config struct {
	Text string
	// Files are the files that the text refers to, path to content. A path tells its content, so another content makes another
	// text: two configurations of the same text are the same.
	Files map[string]string
}
