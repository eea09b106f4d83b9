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

	"golang.org/x/sys/unix"

	"berth/proxyctl"
)

// maxReply bounds what is read from the master's socket; `show servers state` of 10,000 servers is 0.7 MB.
const maxReply = 16 << 20

// master speaks to HAProxy's master process over the unix socket given with -S. The socket stays open after a reply,
// so each command has a connection of its own that is closed for writing.
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

// command sends one line and returns the whole reply. A connection that breaks after the command was sent is no
// error but an incomplete reply: a master that executes itself anew closes its sockets.
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
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", fmt.Errorf("%w: send %q: %w", proxyctl.ErrUnreachable, line, err)
	}
	if err := conn.CloseWrite(); err != nil {
		return "", fmt.Errorf("%w: send %q: %w", proxyctl.ErrUnreachable, line, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	reply, err := io.ReadAll(io.LimitReader(conn, maxReply))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("%w: no answer to %q within %s", proxyctl.ErrUnreachable, line, m.timeout)
	}
	return string(reply), nil
}

// processes is what `show proc` says.
type processes struct {
	worker int   // the worker that serves new connections
	failed int   // reloads that failed since the last that did not; 3.2 does not count them back to 0
	old    []int // workers that only finish what they have
}

var failedReloads = regexp.MustCompile(`\[failed: (\d+)\]`)

func (m master) processes(ctx context.Context) (processes, error) {
	reply, err := m.command(ctx, "show proc")
	if err != nil {
		return processes{}, err
	}
	p := parseProcesses(reply)
	if p.worker == 0 {
		return p, fmt.Errorf("%w: no worker in the master's list of processes: %s", proxyctl.ErrUnreachable, oneLine(reply))
	}
	return p, nil
}

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
		case f[1] != "worker":
		case old:
			p.old = append(p.old, pid)
		case p.worker == 0:
			p.worker = pid
		}
	}
	if p.worker == 0 && len(p.old) > 0 {
		// 3.2 lists the worker that goes on serving after a failed reload under the old ones.
		p.worker, p.old = p.old[0], p.old[1:]
	}
	return p
}

// reload makes the master load its configuration file into a new worker, and returns when that one answers. HAProxy
// from 3.0 on says how it went; 2.6 says nothing, so its list of processes is read until it tells.
func (m master) reload(ctx context.Context) (processes, error) {
	before, err := m.processes(ctx)
	if err != nil {
		return before, err
	}
	reply, err := m.command(ctx, "reload")
	if err != nil {
		return before, err
	}
	if strings.HasPrefix(reply, "Success=0") {
		return before, fmt.Errorf("%w by haproxy: %s", proxyctl.ErrRefused, alerts(reply))
	}
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	for {
		now, err := m.processes(ctx)
		switch {
		case err == nil && now.worker != before.worker:
			if err = m.answers(ctx, now.worker); err == nil {
				return now, nil
			}
		case err == nil && now.failed > before.failed:
			return now, fmt.Errorf("%w by haproxy: the reload failed, its log says why", proxyctl.ErrRefused)
		}
		if !pause(ctx, 5*time.Millisecond) {
			if err == nil {
				err = fmt.Errorf("worker %d is still the one that serves", before.worker)
			}
			return before, fmt.Errorf("reload: no new worker within %s: %w", m.timeout, err)
		}
	}
}

// answers is nil when the worker that commands reach is the one with this pid.
func (m master) answers(ctx context.Context, pid int) error {
	reply, err := m.command(ctx, "@1 show info")
	if err != nil {
		return err
	}
	want := fmt.Sprintf("Pid: %d\n", pid)
	if !strings.Contains(reply, want) {
		return fmt.Errorf("the new worker %d does not answer yet", pid)
	}
	return nil
}

// generation is the mark of the text that the serving worker runs, "" if it has none.
func (m master) generation(ctx context.Context) (string, error) {
	reply, err := m.command(ctx, "@1 show env "+markName)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(reply) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), markName+"="); ok {
			return value, nil
		}
	}
	return "", nil
}

// sharesNetwork says whether the master is known to live in this process's network namespace.
func (m master) sharesNetwork(ctx context.Context) bool {
	conn, err := m.dial(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid) // 0 when the peer is in another pid namespace
		}
	})
	if err != nil || pid == 0 {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && own == its
}

// alerts picks from HAProxy's messages the ones that say what is wrong, in one line.
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

// oneLine makes a foreign text fit for a log line.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 1000 {
		s = strings.ToValidUTF8(s[:1000], "") + " …"
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
