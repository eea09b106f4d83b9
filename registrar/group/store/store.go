// Package store keeps operators' decisions for a service in Consul's KV, and the reports of its instances.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// Limit is the largest text in bytes: Consul accepts 512 KB for a value, and the history entry adds a line.
	Limit = 512<<10 - maxHeader
	// Kept is how many versions the history of an item holds, including the current one.
	Kept = 20

	maxHeader = 1 << 10
	timeout   = 5 * time.Second // of a call
)

// ErrNone is returned for an item or a version that does not exist.
var ErrNone = errors.New("there is none")

// Sum returns the first 12 hexadecimal digits of a text's SHA-256, which distinguish texts with the same version.
func Sum(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}

// Store reads and writes through a Consul agent. Its methods may be called from any goroutine. Each makes its calls within
// ctx, which must have a deadline if Consul may be away. Their errors say whether Consul refused something, and what, or did
// not answer, and where.
type Store struct{ consul *api.Client }

// New returns a Store. It makes no call.
func New(consul *api.Client) *Store { return &Store{consul} }

// awayError means that Consul did not answer, or could not do its part. The request may have been carried out.
type awayError struct{ error }

func (e *awayError) Unwrap() error { return e.error }

// refusedError means that Consul refused the request.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// read makes a reading call with its deadline.
func read[T any](ctx context.Context, what string, f func(*api.QueryOptions) (T, *api.QueryMeta, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, meta, err := f(new(api.QueryOptions).WithContext(ctx))
	if err == nil && meta != nil && meta.ResultsFilteredByACLs {
		return out, &refusedError{fmt.Errorf("%s: the token may not see all of it", what)}
	}
	return out, ExplainRead(what, meta, err)
}

// get returns a key, or nil if it does not exist.
func (s *Store) get(ctx context.Context, key string) (*api.KVPair, error) {
	return read(ctx, key, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return s.consul.KV().Get(key, q) })
}

// list returns the keys under a prefix.
func (s *Store) list(ctx context.Context, prefix string) (api.KVPairs, error) {
	return read(ctx, prefix, func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) { return s.consul.KV().List(prefix, q) })
}

// cas writes a key if its index is still that of pair, and reports whether it was.
func (s *Store) cas(ctx context.Context, pair *api.KVPair) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ok, _, err := s.consul.KV().CAS(pair, new(api.WriteOptions).WithContext(ctx))
	return ok, Explain("write "+pair.Key, err)
}

// ExplainRead is Explain for a query. The meta distinguishes Consul from another server, because the client takes any
// server's 404 for a missing key. Consul itself never answers a query with 404.
func ExplainRead(what string, meta *api.QueryMeta, err error) error {
	var status api.StatusError
	if err == nil && meta.LastIndex == 0 || errors.As(err, &status) && status.Code == http.StatusNotFound {
		return &awayError{fmt.Errorf("read %s: something other than Consul answers there; check Consul's address and any proxy in front of it", what)}
	}
	return Explain("read "+what, err)
}

// Explain describes a failed call in a user's words.
func Explain(what string, err error) error {
	var status api.StatusError
	var failed *url.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status) && status.Code < 500 && status.Code != http.StatusTooManyRequests:
		return &refusedError{fmt.Errorf("%s: Consul refuses it: %s", what, oneLine(status.Body))}
	case errors.As(err, &status):
		return &awayError{fmt.Errorf("%s: Consul cannot do it now: %s", what, oneLine(status.Body))}
	case errors.As(err, &failed):
		host := failed.URL
		if u, bad := url.Parse(failed.URL); bad == nil {
			host = u.Host
		}
		return &awayError{fmt.Errorf("%s: Consul at %s does not answer: %w", what, host, failed.Err)}
	}
	return &awayError{fmt.Errorf("%s: Consul's answer is not as expected: %w", what, err)}
}

// oneLine shortens an answer, which may be a whole page, for a message.
func oneLine(text string) string {
	const most = 300
	if text = strings.Join(strings.Fields(text), " "); len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
