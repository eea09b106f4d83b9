package testenv

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"
)

// A port belongs to its test until the test ends, and the kernel gives it to no connection.
func TestFreeAddress(t *testing.T) {
	hold := func(port string) error {
		l, err := net.Listen("unix", "@berth-test-port-"+port) // like a test of another package
		if err == nil {
			l.Close()
		}
		return err
	}
	seen := map[string]bool{}
	t.Run("while the test runs", func(t *testing.T) {
		for range 100 {
			port := FreePort(t)
			if n, err := strconv.Atoi(port); err != nil || n < firstPort || n > lastPort || seen[port] {
				t.Errorf("port %s, %v", port, err)
			}
			if err := hold(port); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("another process can have port %s: %v", port, err)
			}
			seen[port] = true
		}
	})
	for port := range seen {
		if err := hold(port); err != nil {
			t.Errorf("after the test: %v", err)
		}
	}
}
