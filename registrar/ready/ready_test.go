package ready

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth/registrar/label"
)

// answering starts a server that answers each request with a beginning and then with the same text forever. It returns its
// URL, and how much it could send.
func answering(t *testing.T, begin, forever string) (url string, sent *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	sent = &atomic.Int64{}
	block := bytes.Repeat([]byte(forever), 1+1000/len(forever))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 4096)) // the request
				_, err := c.Write([]byte(begin))
				for n := 0; err == nil; n, err = c.Write(block) {
					sent.Add(int64(n))
				}
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/", sent
}

// An endless answer costs a probe little: it reads no more than a normal answer has, and fails unless the header was
// complete.
func TestAnswersWithoutEnd(t *testing.T) {
	for name, tt := range map[string]struct{ begin, forever, err string }{
		"a header's value":     {"HTTP/1.1 200 OK\r\nX: ", "x", "exceeded 65536 bytes"},
		"headers":              {"HTTP/1.1 200 OK\r\n", "A: b\r\n", "exceeded 65536 bytes"},
		"provisional answers":  {"", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "exceeded 65536 bytes"},
		"a status line":        {"HTTP/1.1 200 ", "x", "exceeded 65536 bytes"},
		"a body":               {"HTTP/1.1 200 OK\r\n\r\n", "x", ""},
		"a body that is wrong": {"HTTP/1.1 500 No\r\n\r\n", "x", "500"},
	} {
		t.Run(name, func(t *testing.T) {
			url, sent := answering(t, tt.begin, tt.forever)
			began := time.Now()
			err := Try(t.Context(), label.Ready{Kind: label.ReadyHTTP, URL: url})
			if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("Try() = %v, want %q", err, tt.err)
			}
			t.Logf("the server could send %d bytes within %v", sent.Load(), time.Since(began))
		})
	}
}

// A reason does not repeat the address, and omits Go's names for the failed step.
func TestReason(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	url, _ := answering(t, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "x")
	for _, tt := range []struct {
		how  label.Ready
		want string
	}{
		{label.Ready{Kind: label.ReadyTCP, Address: address}, "connection refused"},
		{label.Ready{Kind: label.ReadyHTTP, URL: "http://" + address + "/health"}, "connection refused"},
		{label.Ready{Kind: label.ReadyHTTP, URL: url}, "answers 503 Service Unavailable"},
	} {
		if got := Reason(Try(t.Context(), tt.how), tt.how); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.how, got, tt.want)
		}
	}
	if got := Reason(&net.OpError{Op: "dial", Err: context.DeadlineExceeded}, label.Ready{}); got != "no answer within 1s" {
		t.Errorf("%q", got)
	}
}
