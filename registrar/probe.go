package registrar

import (
	"context"
	"net"
	"time"
)

// Probing begins fast, since most programs listen a few milliseconds after their start, and slows down, so that
// one which never listens costs next to nothing.
const (
	probeFirst   = 2 * time.Millisecond
	probeMost    = 500 * time.Millisecond
	probeTimeout = time.Second
)

// dialFunc is net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// probe returns nil when address accepts a TCP connection, and ctx's error when that ends first. slow is called
// once, with the reason, if it takes longer than patience.
func probe(ctx context.Context, dial dialFunc, address string, patience time.Duration, slow func(error)) error {
	started, told := time.Now(), false
	for wait := probeFirst; ; wait = min(wait+wait/8+1, probeMost) {
		try, cancel := context.WithTimeout(ctx, probeTimeout)
		conn, err := dial(try, "tcp", address)
		cancel()
		if err == nil {
			conn.Close()
			return nil
		}
		if !told && time.Since(started) > patience && ctx.Err() == nil {
			told = true
			slow(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
