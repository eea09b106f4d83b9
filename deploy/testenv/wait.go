package testenv

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Eventually waits until f returns nil, and returns how long that took. It fails the test after the given time.
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

// Until is Eventually for a condition without a reason.
func Until(t testing.TB, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	return Eventually(t, within, what, func() error {
		if !ok() {
			return errors.New("not yet")
		}
		return nil
	})
}

// Test ports are below the kernel's range for outgoing connections, which begins at 32768: a connection could take a port
// between its choice and its use. The examples use ports below 21000.
const firstPort, lastPort = 21000, 32767

// FreeAddress returns an IP address with an unused TCP port. The port stays reserved until the test ends, also against
// tests of other packages that run at the same time.
func FreeAddress(t testing.TB, ip string) string {
	t.Helper()
	for {
		port := strconv.Itoa(firstPort + rand.IntN(lastPort-firstPort+1))
		// A socket in the abstract namespace is visible to all processes that share the ports, and disappears with its
		// process.
		held, err := net.Listen("unix", "@berth-test-port-"+port)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { held.Close() })
		address := net.JoinHostPort(ip, port)
		l, err := net.Listen("tcp", address)
		switch {
		case err == nil:
			l.Close()
			return address
		case !errors.Is(err, syscall.EADDRINUSE):
			t.Fatal(err)
		}
	}
}

// FreePort returns a TCP port of 127.0.0.1 like FreeAddress.
func FreePort(t testing.TB) string {
	t.Helper()
	return Port(FreeAddress(t, "127.0.0.1"))
}

// Port returns the port of an address.
func Port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// Dir returns a directory for one test that containers of another user can read. Its name is short enough for a unix
// socket's path.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// File writes a file atomically, readable by containers of another user, and returns its path.
func File(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	err := os.WriteFile(path+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
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

// Wait waits until the log contains a text.
func (l *Log) Wait(t testing.TB, text string) {
	t.Helper()
	Eventually(t, 10*time.Second, "the log says "+strconv.Quote(text), func() error {
		if all := l.String(); !strings.Contains(all, text) {
			return errors.New("it is\n" + all)
		}
		return nil
	})
}
