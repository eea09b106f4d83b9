package proxyctl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrRefused marks an error in the configuration itself: the proxy, or a check before it, refused it.
var ErrRefused = errors.New("configuration refused")

// RefusalError is a refusal that names the section at fault. It wraps ErrRefused.
type RefusalError struct {
	Section string // the backend, listen section or upstream
	Err     error
}

func (e *RefusalError) Error() string { return e.Err.Error() }
func (e *RefusalError) Unwrap() error { return e.Err }

// ErrUnreachable marks an error in reaching the proxy: it does not run, or its socket does not exist.
var ErrUnreachable = errors.New("proxy not reachable")

// ErrNotYet is returned by Apply if a text takes a reload and none may be done yet.
var ErrNotYet = errors.New("the newest configuration waits for the next reload")

// PortError is a refusal because of an address that the proxy cannot listen on. It wraps ErrRefused.
type PortError struct {
	Port    int
	Address string // as written in the configuration, or as the proxy reports it
	Reason  string // such as: another program listens there
}

func (e *PortError) Error() string {
	return fmt.Sprintf("%v: bind %s: %s", ErrRefused, e.Address, e.Reason)
}

func (e *PortError) Unwrap() error { return ErrRefused }

// HoldError is returned by Apply for a first text that is not trusted yet, because it would take all servers from backends that
// have some in the last good text. If berth wrote that text, the servers of all other backends still come and go. A file that
// berth did not write stays as it is.
type HoldError struct {
	Backends []string
	File     string        // the file with the servers, if berth did not write it, otherwise ""
	For      time.Duration // remaining time of the hold; 0 if it lasts until a text has servers for all backends, as with a File
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

// Ports parses a port or a range of ports, such as 80 or 1000-1009. first is 0 for anything else.
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
	Runtime Action = "runtime" // the running workers accepted the changes
	Reload  Action = "reload"  // new workers loaded the text and serve it
)

// Change describes how the servers of one backend changed.
type Change struct {
	Backend        string
	Before, After  int // number of servers
	Added, Removed int
	// In lists the addresses, as written in the text, of servers that newly get requests of the backend. Out lists the addresses
	// of servers that no longer get new ones. A server that moved is in both.
	In, Out []string
}

// String returns the sentence that an operator reads: "app: 2 → 5 servers".
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
	Reason     string   // of a reload: why it was needed; of a change at run time: what it was
	Changes    []Change // sorted by backend
	OldWorkers int      // workers of earlier configurations that are finishing their connections, as of the last reload or inspection
	Leaving    int      // removed servers that are finishing their connections
	// Generation is the mark of the text that the proxy runs, "" if unknown. Backends counts the backends that have servers in
	// that text, and Servers counts those servers.
	Generation        string
	Backends, Servers int
}

// Config is the configuration that a proxy should run.
type Config struct {
	Text string
	// Files are the files that the text refers to, path to content. The path identifies the content, so new content means a new
	// text: two configurations with the same text are equal.
	Files map[string]string
}
