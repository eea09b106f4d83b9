//go:build e2e

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Prefix begins the names of everything that tests make in Docker; the PID of their process follows.
const Prefix = "berth-e2e-"

var (
	labs      atomic.Int64
	leftovers = sync.OnceValue(func() error { return Remove(Leftover) })
)

// Name is a name for a test's own containers and networks: theirs are it, a dash and more. They are removed at the test's
// end. So is, once, what other test processes left that are gone: a run that crashed could not do it itself.
func Name(t testing.TB) string {
	t.Helper()
	if err := leftovers(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%s%d-%d", Prefix, os.Getpid(), labs.Add(1))
	t.Cleanup(func() {
		if err := Remove(func(other string) bool { return strings.HasPrefix(other, name+"-") }); err != nil {
			t.Error(err)
		}
	})
	return name
}

// Leftover says whether a name is one of a test process that is gone.
func Leftover(name string) bool {
	rest, ours := strings.CutPrefix(name, Prefix)
	number, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(number)
	return ours && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// Remove removes the containers with their volumes, and the networks, that have such names.
func Remove(ours func(name string) bool) error {
	var errs []error
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"container", "ls", "--all", "--format", "{{.Names}}"}, []string{"container", "rm", "--force", "--volumes"}},
		{[]string{"network", "ls", "--format", "{{.Name}}"}, []string{"network", "rm"}},
	} {
		out, err := Docker(append(kind.list, "--filter", "name="+Prefix)...)
		errs = append(errs, err)
		for _, name := range strings.Fields(out) {
			if !ours(name) {
				continue
			}
			// One by one: Docker 20.10 loses count of a network's endpoints when many go at once, and then keeps the
			// network, without anything on it, until it is restarted. That is no reason to fail.
			if _, err := Docker(append(kind.remove, name)...); err != nil && !strings.Contains(err.Error(), "has active endpoints") {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Docker runs a docker command and returns what it prints, without the space around. The error has what it complains of.
func Docker(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("docker", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Image is the image that an environment variable names. The test ends if that is not set.
func Image(t testing.TB, variable string) string {
	t.Helper()
	name := os.Getenv(variable)
	if name == "" {
		t.Fatalf("%s is not set: run the tests with make test, which builds the images and sets it", variable)
	}
	return name
}

// Eventually waits until f returns nil, and says how long that took. It ends the test after the time given.
func Eventually(t testing.TB, within time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := f()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > within {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// FreePort is a TCP port of 127.0.0.1 that nobody listens on.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Log is a log that can be read while it is written.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
