//go:build e2e

package traffic

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Throughput requests "/" at an address for a while over the given number of kept connections, each sending its next
// request as soon as it has an answer. It returns the requests per second answered with 200. Requests lost with a
// connection are sent again over a new one. Answers must have a length. It uses less CPU time than Go's HTTP client.
func Throughput(tb testing.TB, address string, connections int, lasts time.Duration) float64 {
	tb.Helper()
	var answered atomic.Int64
	var clients sync.WaitGroup
	errs := make(chan error, connections)
	began := time.Now()
	for range connections {
		clients.Go(func() {
			for time.Since(began) < lasts {
				n, err := askAgain(address, began.Add(lasts))
				answered.Add(n)
				if err != nil && n == 0 {
					errs <- err
					return
				}
			}
		})
	}
	clients.Wait()
	close(errs)
	if err := <-errs; err != nil {
		tb.Fatalf("throughput of %s: %v", address, err)
	}
	return float64(answered.Load()) / time.Since(began).Seconds()
}

// askAgain sends requests over one connection until that ends, and returns the number of answers.
func askAgain(address string, end time.Time) (answered int64, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(5 * time.Second)); err != nil {
		return 0, err
	}
	in := bufio.NewReader(conn)
	for time.Now().Before(end) {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
			return answered, err
		}
		last, err := readAnswer(in)
		if err != nil {
			return answered, err
		}
		answered++
		if last {
			break
		}
	}
	return answered, nil
}

// readAnswer reads an answer, and reports whether the connection ends with it.
func readAnswer(in *bufio.Reader) (last bool, err error) {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return true, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return true, fmt.Errorf("answer %q", bytes.TrimSpace(status))
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return true, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch value = bytes.TrimSpace(value); {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return true, err
			}
		case bytes.EqualFold(name, []byte("Connection")):
			last = last || bytes.EqualFold(value, []byte("close"))
		}
	}
	if length < 0 {
		return true, errors.New("an answer without Content-Length")
	}
	_, err = in.Discard(length)
	return last, err
}

// Rates are numbers per second.
type Rates []float64

// Median returns the middle rate.
func (rs Rates) Median() float64 {
	if len(rs) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(rs))[len(rs)/2]
}
