//go:build e2e

package testenv

import (
	"io"
	"net"
	"testing"
)

// Echo serves TCP connections on a free port of an IP address until the test ends, and returns its address. Each connection
// gets the greeting, and then its own data back.
func Echo(t testing.TB, ip, greeting string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := io.WriteString(conn, greeting); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
	return l.Addr().String()
}
