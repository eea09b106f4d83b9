package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
	"berth/proxyctl/unixcred"
)

// control is the unix socket on which nginx reports what it runs, and accepts servers if it has a Lua balancer.
type control struct {
	socket  string
	timeout time.Duration // of one exchange
}

// balancerName is the host name of the server that accepts the Lua balancers' servers.
const balancerName = "balancer"

// mostAnswer limits how much of an answer is read.
const mostAnswer = 64 << 20

// ask makes one request on its own connection; each may reach another worker. pid is the process that listens there, nginx's
// master, or 0 if it is not visible from here. Errors wrap proxyctl.ErrUnreachable if no nginx listens, or it does not answer.
func (c control) ask(ctx context.Context, method, host, path, body string) (answer string, pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return "", 0, c.unreachable(err)
	}
	defer conn.Close()
	pid, _ = unixcred.Of(conn.(*net.UnixConn))
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, strings.NewReader(body))
	if err != nil {
		return "", 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", pid, c.unreachable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	switch {
	case err != nil:
		return "", pid, c.unreachable(err)
	case resp.StatusCode != http.StatusOK:
		return "", pid, &statusError{resp.StatusCode, oneLine(string(b))}
	}
	return string(b), pid, nil
}

// statusError is an answer with a status other than 200.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string {
	if e.text == "" || strings.HasPrefix(e.text, "<") { // nginx's own page, with no other words
		return fmt.Sprintf("nginx answers %d %s", e.code, http.StatusText(e.code))
	}
	return fmt.Sprintf("nginx answers %d: %.200s", e.code, e.text)
}

// errSilent is part of the error if no answer comes in time.
var errSilent = errors.New("nginx does not answer")

func (c control) unreachable(err error) error {
	var late interface{ Timeout() bool }
	if errors.As(err, &late) && late.Timeout() {
		return fmt.Errorf("%w: %w on %s within %s", proxyctl.ErrUnreachable, errSilent, c.socket, c.timeout)
	}
	return fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
}

// status is what nginx reports about itself.
type status struct {
	generation configfile.Generation // of the text loaded by the worker that answered
	version    string
	master     int  // 0 if it is not visible from here
	notNginx   bool // another program listens there
}

// errNotOurs is part of the error if the process on the control socket does not have berth's configuration.
var errNotOurs = errors.New("the process on the control socket is not the nginx that berth configures")

// status asks what nginx runs. If that is not berth's configuration, the status contains nginx's master process, if known. While
// an nginx is being replaced in place, the old and the new one answer by turns; the new one counts.
func (c control) status(ctx context.Context) (status, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(poll) {
		s, err := c.askStatus(ctx)
		if err != nil || !isReplaced(s.master) {
			return s, err
		}
		if time.Now().After(end) {
			return status{}, fmt.Errorf("%w: nginx is being replaced, and its successor does not answer yet", proxyctl.ErrUnreachable)
		}
	}
}

// askStatus returns the status reported by one worker of either nginx.
func (c control) askStatus(ctx context.Context) (status, error) {
	answer, pid, err := c.ask(ctx, http.MethodGet, generationName, "/", "")
	var said *statusError
	fields := strings.Fields(answer)
	switch {
	case errors.As(err, &said):
		answer = said.Error()
	case err != nil:
		return status{}, err
	}
	if len(fields) != 3 {
		other := status{notNginx: title(pid) != "" && !isMaster(pid)}
		if isMaster(pid) {
			other.master = pid
		}
		return other, fmt.Errorf("%w: %w: it says %.100q", proxyctl.ErrUnreachable, errNotOurs, answer)
	}
	s := status{generation: configfile.ParseGeneration(fields[0]), version: fields[2]}
	worker, err := strconv.Atoi(fields[1])
	if err != nil {
		return status{}, fmt.Errorf("%w: nginx on %s reports worker %.100q, which is no process ID", proxyctl.ErrUnreachable, c.socket, fields[1])
	}
	s.master = masterOf(pid, worker)
	return s, nil
}

// servers returns the servers that the Lua balancers have.
func (c control) servers(ctx context.Context) (string, error) {
	answer, _, err := c.ask(ctx, http.MethodGet, balancerName, "/servers", "")
	return answer, err
}

// setServers gives the Lua balancers other servers, and reads them back.
func (c control) setServers(ctx context.Context, servers string) error {
	answer, _, err := c.ask(ctx, http.MethodPost, balancerName, "/servers", servers)
	if err == nil && answer != servers {
		err = errors.New("nginx shows other servers than it was given")
	}
	return err
}

// suffix matches what the built-in template appends to a service's name to tell upstreams apart.
var suffix = regexp.MustCompile(`\.[0-9a-f]{8}$`)

// waiting returns, by service, how many requests wait or have waited for a server of the Lua balancers. A custom template need
// not report that; the error is then a statusError.
func (c control) waiting(ctx context.Context) (map[string]proxyctl.WaitingCount, error) {
	answer, _, err := c.ask(ctx, http.MethodGet, balancerName, "/waiting", "")
	if err != nil {
		return nil, err
	}
	counts := map[string]proxyctl.WaitingCount{}
	for line := range strings.Lines(answer) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("nginx reports waiting requests as %.100q", line)
		}
		var numbers [3]int
		for i := range numbers {
			if numbers[i], err = strconv.Atoi(fields[1+i]); err != nil {
				return nil, fmt.Errorf("nginx reports waiting requests as %.100q", line)
			}
		}
		service := suffix.ReplaceAllString(fields[0], "")
		sum := counts[service]
		counts[service] = proxyctl.WaitingCount{
			Now:     sum.Now + numbers[0],
			Total:   sum.Total + numbers[1],
			Longest: max(sum.Longest, time.Duration(numbers[2])*time.Millisecond),
			Paused:  sum.Paused || len(fields) > 4,
		}
	}
	return counts, nil
}

// checkBalancer has nginx make a request through its Lua balancer. An error in Lua code, which nginx -t does not see, results in
// status 500. An unreachable server (502) does not matter, and a custom template need not offer the check (404).
func (c control) checkBalancer(ctx context.Context) error {
	_, _, err := c.ask(ctx, http.MethodGet, balancerName, "/check", "")
	var status *statusError
	if errors.As(err, &status) && (status.code == http.StatusBadGateway || status.code == http.StatusNotFound) {
		return nil
	}
	return err
}

// gone reports whether an error means that no process listens on the socket.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// staleAfter is the age from which a socket without a listener counts as left behind: nginx binds before it listens.
const staleAfter = time.Second

// Running returns the nginx master process that listens on a control socket, 0 if there is none. It removes a socket that a
// killed nginx left behind, because nginx does not start while it exists. It returns an error if the listening process is not
// visible from here, such as one in another container.
func Running(socket string) (pid int, err error) {
	pid, err = unixcred.Running(socket)
	if pid == 0 && err == nil {
		removeStale(socket)
	}
	return pid, err
}

// removeStale removes a socket without a listener, and reports whether there was one.
func removeStale(socket string) bool {
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Type() != fs.ModeSocket || time.Since(info.ModTime()) < staleAfter {
		return false
	}
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED) && os.Remove(socket) == nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
