package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
	"berth/proxyctl/unixcred"
)

// maxReply limits what is read from the master's socket; `show servers state` of 10,000 servers is 0.7 MB.
const maxReply = 16 << 20

// master talks to HAProxy's master process over the unix socket given with -S. The socket stays open after a reply, so each
// command has its own connection, which is closed for writing.
type master struct {
	path    string
	timeout time.Duration // of one command
}

func (m master) dial(ctx context.Context) (*net.UnixConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
	}
	return conn.(*net.UnixConn), nil
}

// command sends one line, optionally followed by a payload, and returns the whole reply. A connection that breaks after the
// command was sent is an incomplete reply, not an error: a master that re-executes itself closes its sockets.
func (m master) command(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	conn, err := m.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
	}
	told, _, _ := strings.Cut(line, "\n") // the rest may be a key
	told = shorten(told, 100)
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", fmt.Errorf("%w: send %q: %w", proxyctl.ErrUnreachable, told, err)
	}
	if err := conn.CloseWrite(); err != nil {
		return "", fmt.Errorf("%w: send %q: %w", proxyctl.ErrUnreachable, told, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	reply, err := io.ReadAll(io.LimitReader(conn, maxReply+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("%w: no answer to %q within %s", proxyctl.ErrUnreachable, told, m.timeout)
	case len(reply) > maxReply:
		return "", fmt.Errorf("the answer to %q is longer than %d bytes", told, maxReply)
	}
	return string(reply), nil
}

// processes is the reply to `show proc`.
type processes struct {
	worker  int    // the worker that serves new connections
	version string // of the master, which loads configurations: "3.0.11" of 3.0.11-1+deb13u5
	failed  int    // failed reloads since the last successful one; 3.2 does not reset them to 0
	old     []int  // workers that only finish their connections
}

var leadingVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+`)

var failedReloads = regexp.MustCompile(`\[failed: (\d+)\]`)

func parseProcesses(reply string) processes {
	var p processes
	old := false
	for line := range strings.Lines(reply) {
		switch {
		case strings.HasPrefix(line, "# old workers"):
			old = true
			continue
		case strings.HasPrefix(line, "# "):
			old = false
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		switch {
		case f[1] == "master":
			if sub := failedReloads.FindStringSubmatch(line); sub != nil {
				p.failed, _ = strconv.Atoi(sub[1])
			}
			p.version = leadingVersion.FindString(f[len(f)-1])
		case f[1] != "worker":
		case old:
			p.old = append(p.old, pid)
		case p.worker == 0:
			p.worker = pid
		}
	}
	if p.worker == 0 && len(p.old) > 0 {
		// After a failed reload, 3.2 lists the worker that keeps serving among the old ones.
		p.worker, p.old = p.old[0], p.old[1:]
	}
	return p
}

// errSilent is a refusal without a reason, as from HAProxy before 3.0.
var errSilent = fmt.Errorf("%w by haproxy: the reload failed; see its log", proxyctl.ErrRefused)

// reload makes the master load its configuration file, which has this mark, into a new worker, and returns when that worker
// answers. HAProxy 3.0 and later report the result; with 2.6, reload polls until the result shows. tell is another way to tell
// HAProxy to reload; nil uses the socket.
func (m master) reload(ctx context.Context, tell func(context.Context) error, want configfile.Generation) (processes, error) {
	before, _, err := m.status(ctx, "")
	if err != nil {
		return before.processes, err
	}
	if tell == nil {
		tell = m.tellReload
	}
	if err := proxyctl.Tell(ctx, m.timeout, tell); err != nil {
		return before.processes, err
	}
	within, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	reason := fmt.Errorf("worker %d still serves", before.worker)
	for {
		now, _, err := m.status(within, "")
		switch {
		case err == nil && (now.worker != before.worker || before.generation != want && now.generation == want):
			// In a restarted container, the worker has the same PID as its predecessor.
			reason = fmt.Errorf("%w: worker %d does not answer", proxyctl.ErrUnreachable, now.worker)
			if err = m.answers(within, now.worker); err == nil {
				return now.processes, nil
			}
		case err == nil && now.failed > before.failed:
			return now.processes, errSilent
		}
		if err != nil && within.Err() == nil {
			reason = err
		}
		if !pause(within, 5*time.Millisecond) {
			return before.processes, fmt.Errorf("reload: no new worker within %s: %w", m.timeout, reason)
		}
	}
}

func (m master) tellReload(ctx context.Context) error {
	reply, err := m.command(ctx, "reload")
	if err == nil && strings.HasPrefix(reply, "Success=0") {
		err = fmt.Errorf("%w by haproxy: %s", proxyctl.ErrRefused, alerts(reply))
	}
	return err
}

// answers returns nil if commands reach the worker with this PID.
func (m master) answers(ctx context.Context, pid int) error {
	reply, err := m.worker(ctx, "show info")
	if err != nil {
		return err
	}
	want := fmt.Sprintf("Pid: %d\n", pid)
	if !strings.Contains(reply, want) {
		return fmt.Errorf("the new worker %d does not answer yet", pid)
	}
	return nil
}

// VersionHere returns the version of HAProxy that a text must suit, as proxyctl.VersionHere does. It asks the HAProxy that
// listens on the master socket.
func VersionHere(ctx context.Context, binary, socket string, timeout time.Duration) string {
	return proxyctl.VersionHere(ctx, binary, func(ctx context.Context) (string, error) {
		reply, err := master{socket, timeout}.command(ctx, "show proc")
		return parseProcesses(reply).version, err
	}, timeout)
}

// worker sends commands to the serving worker in one exchange. A command to the master goes first; otherwise 3.2 may leave all of
// them unanswered while it starts.
func (m master) worker(ctx context.Context, commands ...string) (string, error) {
	reply, err := m.command(ctx, "show proc; @1 "+strings.Join(commands, "; @1 "))
	_, reply, _ = strings.Cut(reply, "\n\n")
	return reply, err
}

// snapshot is what HAProxy shows about itself.
type snapshot struct {
	processes
	generation configfile.Generation // of the text that the serving worker has loaded
	state      state
	maps       map[string]entries // by path
	backends   map[string]bool    // whether requests may go to each
}

// inspect reads everything. file is the configuration file.
func (m master) inspect(ctx context.Context, file string) (snapshot, error) {
	v, rest, err := m.status(ctx, "; @1 show servers state")
	if err == nil {
		if v.state, err = parseState(rest); err != nil {
			err = fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
		}
	}
	if err == nil {
		v.maps, err = m.maps(ctx, file)
	}
	if err == nil {
		v.backends, err = m.backends(ctx)
	}
	return v, err
}

// status reads everything except the servers. rest is the answer to more.
func (m master) status(ctx context.Context, more string) (v snapshot, rest string, err error) {
	reply, err := m.command(ctx, "show proc; @1 show env "+markName+more)
	if err != nil {
		return snapshot{}, "", err
	}
	const unset = "Variable not found"
	at := strings.Index(reply, markName+"=")
	if at < 0 {
		at = strings.Index(reply, unset)
	}
	if at < 0 {
		return snapshot{}, "", fmt.Errorf("%w: its worker does not answer: %s", proxyctl.ErrUnreachable, oneLine(reply))
	}
	v.processes = parseProcesses(reply[:at])
	env, rest := nextLine(reply[at:])
	value, _ := strings.CutPrefix(env, markName+"=")
	v.generation = configfile.ParseGeneration(value)
	return v, rest, nil
}

// sharesNetwork reports whether the master is known to be in this process's network namespace.
func (m master) sharesNetwork(ctx context.Context) bool {
	conn, err := m.dial(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	return unixcred.SharesNetwork(conn)
}

// alerts extracts the alerts from HAProxy's messages, on one line.
func alerts(messages string) string {
	var out []string
	for line := range strings.Lines(messages) {
		rest, ok := strings.CutPrefix(line, "[ALERT]")
		if !ok {
			continue
		}
		if _, text, ok := strings.Cut(rest, " : "); ok {
			rest = text
		}
		out = append(out, strings.TrimSpace(rest))
	}
	if len(out) == 0 {
		return oneLine(messages)
	}
	return oneLine(strings.Join(out, "; "))
}

// oneLine shortens a foreign text to one line for the log.
func oneLine(s string) string {
	return shorten(strings.Join(strings.Fields(s), " "), 1000)
}

func shorten(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + " …"
	}
	return s
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
