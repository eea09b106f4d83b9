package catalog

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"github.com/hashicorp/consul/api"
)

// needsCertificate is an http.RoundTripper without a client certificate. Its errors say so if that may be the cause.
type needsCertificate struct{ http.RoundTripper }

// ExplainTLS wraps a TLS transport without a client certificate, so that errors mention a certificate that Consul may require. With
// TLS 1.3 Consul rejects a client after the client's handshake is complete. Its first request may then fail with only "broken
// pipe", before Consul's reason has arrived. NewClient calls ExplainTLS for an http.Transport.
func ExplainTLS(base http.RoundTripper, config *api.Config) http.RoundTripper {
	tls := config.TLSConfig
	if config.Scheme != "https" || tls.CertFile != "" || len(tls.CertPEM) > 0 {
		return base
	}
	return needsCertificate{base}
}

// RoundTrip sends the request.
func (t needsCertificate) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(req)
	if err != nil && req.Context().Err() == nil && isClosed(err) {
		err = fmt.Errorf("%w: does Consul require a client certificate? set it with %s and %s", err, api.HTTPClientCert, api.HTTPClientKey)
	}
	return res, err
}

// isClosed reports whether the other side closed the connection without an answer. HTTP/2 has no specific error for this.
func isClosed(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) ||
		strings.Contains(err.Error(), "http2: client conn")
}
