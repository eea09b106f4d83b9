package unixcred

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestRunning(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "master.sock")
	expect := func(want int) {
		t.Helper()
		if pid, err := Running(socket); pid != want || err != nil {
			t.Errorf("Running: %d, %v, want %d", pid, err, want)
		}
	}
	expect(0)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	expect(os.Getpid())
	l.SetUnlinkOnClose(false)
	l.Close()
	expect(0)
}
