package catalog

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

// An error that only reports a closed connection is explained if a client certificate may be missing.
func TestExplainTLS(t *testing.T) {
	bare := api.Config{Scheme: "https"}
	for name, tt := range map[string]struct {
		config api.Config
		err    error
		want   bool
	}{
		"closed while it wrote":    {bare, syscall.EPIPE, true},
		"closed while it read":     {bare, syscall.ECONNRESET, true},
		"closed in between":        {bare, io.EOF, true},
		"HTTP/2":                   {bare, errors.New("http2: client conn could not be established"), true},
		"nobody listens":           {bare, syscall.ECONNREFUSED, false},
		"it has a certificate":     {api.Config{Scheme: "https", TLSConfig: api.TLSConfig{CertFile: "client.pem"}}, syscall.EPIPE, false},
		"it has one in its memory": {api.Config{Scheme: "https", TLSConfig: api.TLSConfig{CertPEM: []byte("-")}}, syscall.EPIPE, false},
		"without TLS":              {api.Config{Scheme: "http"}, syscall.EPIPE, false},
	} {
		t.Run(name, func(t *testing.T) {
			req := httptest.NewRequest(http.MethodGet, "/", nil)
			_, err := ExplainTLS(failing{tt.err}, &tt.config).RoundTrip(req)
			if got := strings.Contains(err.Error(), "CONSUL_CLIENT_CERT"); got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("explained: %t, want %t: %v", got, tt.want, err)
			}
		})
	}
}

// A server that requires a certificate is always reported, with its own reason if that arrives in time.
func TestCertificateWanted(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	config := &api.Config{Address: srv.Listener.Addr().String(), Scheme: "https", TLSConfig: api.TLSConfig{InsecureSkipVerify: true}}
	c, err := NewClient(config, 0, time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := c.shared.Status().Leader(); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Fatalf("it says %v", err)
		}
	}
}
