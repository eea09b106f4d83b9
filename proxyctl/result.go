package proxyctl

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrRefused marks an error that lies in the configuration itself: the proxy, or a check before it, said no.
var ErrRefused = errors.New("configuration refused")

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

// HoldError is what Apply returns for a first text that is not believed yet: it would take all servers from backends
// that the last good text has servers for. Everything else that it says of servers is done.
type HoldError struct {
	Backends []string
	For      time.Duration // how long it is held back still
}

func (e *HoldError) Error() string {
	what := "backend " + e.Backends[0] + " would lose all its servers"
	if n := len(e.Backends); n > 1 {
		what = fmt.Sprintf("backends %s would lose all their servers", strings.Join(e.Backends[:min(n, 5)], ", "))
		if n > 5 {
			what = fmt.Sprintf("backends %s and %d more would lose all their servers", strings.Join(e.Backends[:5], ", "), n-5)
		}
	}
	return "holding back: " + what + "; the first configuration after a start is applied when it has servers for all that had some, or when the time for that is over (consul-grace)"
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
}

// Config is what a proxy is to run.
type Config struct {
	Text string
	// Files are the files that the text refers to, path to content. A path tells its content, so another content makes another
	// text: two configurations of the same text are the same.
	Files map[string]string
}
