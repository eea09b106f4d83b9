// Package ready probes instances until they are ready.
package ready

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"berth/registrar/label"
)

// Probing starts fast, because most programs listen a few milliseconds after their start. It slows down, so a program that
// never listens costs next to nothing.
const (
	probeFirst   = time.Millisecond
	probesFast   = 32 // probes before it slows down
	probeMost    = 500 * time.Millisecond
	probeTimeout = time.Second

	// maxHeader limits the headers read from an answer. The body is not read.
	maxHeader = 64 << 10
)

// Prober probes an instance once. Tests use a Prober without a network.
type Prober func(ctx context.Context, r label.Ready) error

// Try is the Prober for real instances.
func Try(ctx context.Context, r label.Ready) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if r.Kind == label.ReadyHTTP {
		return tryHTTP(ctx, r)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.Address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func tryHTTP(ctx context.Context, r label.Ready) error {
	req, err := r.Request(ctx)
	if err != nil {
		return err
	}
	// Use a separate connection without proxy or redirects, so that exactly this instance answers.
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader, TLSClientConfig: &tls.Config{InsecureSkipVerify: r.Insecure}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("%s answers %s", r.URL, resp.Status)
	}
	return nil
}

// Reason says why a probe failed, without repeating the probed address.
func Reason(err error, r label.Ready) string {
	var refused syscall.Errno
	var network net.Error
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("no answer within %v", probeTimeout)
	}
	return strings.TrimPrefix(err.Error(), r.URL+" ")
}

// Wait probes an instance until it is ready, and then returns nil, or the error of ctx if ctx ends first. It calls late
// once, with the reason, if the instance takes longer than patience.
func Wait(ctx context.Context, try Prober, r label.Ready, patience time.Duration, late func(error)) error {
	started, told := time.Now(), false
	wait := probeFirst
	for n := 1; ; n++ {
		if n > probesFast {
			wait = min(wait+wait/32, probeMost)
		}
		err := try(ctx, r)
		if err == nil {
			return nil
		}
		if !told && time.Since(started) > patience && ctx.Err() == nil {
			told = true
			late(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
