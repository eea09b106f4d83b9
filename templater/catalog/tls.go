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

// needsCertificate is an http.RoundTripper that has no client certificate, and says so where that may be the reason for a failure.
type needsCertificate struct{ http.RoundTripper }

// ExplainTLS wraps a transport that speaks TLS without a client certificate: a failure says so if Consul may have wanted one. With
// TLS 1.3 Consul refuses a client after that client's handshake is done, so that its first request may fail before Consul's reason has
// arrived, with no more than "broken pipe". NewClient calls ExplainTLS for an http.Transport.
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

// isClosed says whether the other side has closed the connection without an answer. HTTP/2 has no error of its own for it.
func isClosed(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) ||
		strings.Contains(err.Error(), "http2: client conn")
}
