package label

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// Ready is the condition for registering an instance as passing. It is comparable.
type Ready struct {
	Kind     ReadyKind
	Address  string // host:port for ReadyTCP
	URL      string // for ReadyHTTP: a status of 2xx is ready
	Method   string // for ReadyHTTP, "" = GET
	Host     string // for ReadyHTTP: the Host header, "" = the URL's host
	Headers  string // for ReadyHTTP: further headers as on the wire, "Name: value\r\n" each
	Insecure bool   // for ReadyHTTP with https: accept any certificate
}

// ReadyKind is a way to decide whether an instance is ready.
type ReadyKind string

// The kinds of readiness.
const (
	ReadyNone        ReadyKind = ""            // once its container runs
	ReadyTCP         ReadyKind = "tcp"         // its port accepts a connection
	ReadyHTTP        ReadyKind = "http"        // it answers a request
	ReadyHealthcheck ReadyKind = "healthcheck" // Docker's HEALTHCHECK says healthy
)

// String returns the condition for an operator.
func (r Ready) String() string {
	switch r.Kind {
	case ReadyNone:
		return "at once"
	case ReadyTCP:
		return r.Address + " accepts"
	case ReadyHTTP:
		return r.URL + " answers"
	default:
		return "Docker's HEALTHCHECK says healthy"
	}
}

// Request returns the request of ReadyHTTP.
func (r Ready) Request(ctx context.Context) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, nil)
	if err != nil {
		return nil, err
	}
	header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(r.Headers + "\r\n"))).ReadMIMEHeader()
	if err != nil {
		return nil, fmt.Errorf("headers for %s: %w", r.URL, err)
	}
	req.Header, req.Host = http.Header(header), r.Host
	return req, nil
}

// readiness returns how to decide whether an instance is ready. at is where the registrar reaches the port. Without at, and
// on a port that is not TCP, an instance that would be asked over TCP is ready once its container runs.
func readiness(c Container, p Port, choice, at string, checks []Check) (r Ready, err error) {
	scheme, path, _ := strings.Cut(choice, ":")
	scheme, path = strings.ToLower(strings.TrimSpace(scheme)), plainPath(strings.TrimSpace(path))
	if path == "" {
		choice = scheme
	}
	switch {
	case choice == "":
		r = defaultReadiness(at, checks)
	case choice == "none":
	case choice == "healthcheck":
		r.Kind = ReadyHealthcheck
		if c.Health == "" {
			err = errors.New("SERVICE_READY=healthcheck: the container has no HEALTHCHECK: give it one, or use tcp or http:/path")
		}
	case choice == "tcp":
		r = Ready{Kind: ReadyTCP, Address: at}
	case choice == "http" || choice == "https":
		err = fmt.Errorf("SERVICE_READY=%s has no path: write it like http:/health", choice)
	case (scheme == "http" || scheme == "https") && !strings.HasPrefix(path, "//"):
		r = Ready{Kind: ReadyHTTP, URL: scheme + "://" + at + path, Insecure: scheme == "https"}
		if bad := validPath(path); bad != nil {
			err = fmt.Errorf("SERVICE_READY: %w", bad)
		}
	default:
		err = fmt.Errorf("SERVICE_READY=%s is not known: use tcp, http:/path, https:/path, healthcheck or none", quote(choice))
	}
	if (p.Protocol != "tcp" || at == "") && r.Kind != ReadyHealthcheck {
		r = Ready{}
	}
	return r, err
}

// defaultReadiness prefers Docker's HEALTHCHECK if it is among the checks, then the first HTTP check, then a connection.
func defaultReadiness(at string, checks []Check) Ready {
	if slices.ContainsFunc(checks, func(c Check) bool { return c.Health }) {
		return Ready{Kind: ReadyHealthcheck}
	}
	if n := slices.IndexFunc(checks, func(c Check) bool { return c.Definition.HTTP != "" }); n >= 0 {
		return fromCheck(checks[n], at)
	}
	return Ready{Kind: ReadyTCP, Address: at}
}

// fromCheck returns the request of an HTTP check, directed at the container itself. Whether to trust its certificate is up
// to the check.
func fromCheck(check Check, at string) Ready {
	d := check.Definition
	scheme, rest, _ := strings.Cut(d.HTTP, "://")
	r := Ready{Kind: ReadyHTTP, URL: scheme + "://" + at + rest[strings.IndexByte(rest, '/'):], Method: d.Method, Insecure: scheme == "https"}
	header := http.Header(d.Header).Clone()
	r.Host = header.Get("Host")
	header.Del("Host")
	var lines strings.Builder
	_ = header.Write(&lines) // sorted; a Builder cannot fail
	r.Headers = lines.String()
	return r
}
