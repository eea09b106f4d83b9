//go:build e2e

package haproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// served is a HAProxy whose frontend has the certificates of a crt-list, in the directory of its configuration.
type served struct {
	*realHAProxy
	tls  certified
	path string
	pool *x509.CertPool
}

func serve(t *testing.T, image string) *served {
	t.Helper()
	h := startHAProxy(t, image)
	s := &served{realHAProxy: h, path: h.driver.opts.File + ".certificates.crt-list", pool: x509.NewCertPool()}
	s.tls.dir = filepath.Join(h.dir, "tls")
	if err := os.Mkdir(s.tls.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.tls.ca = testenv.NewCA(t, s.tls.dir)
	text, err := os.ReadFile(s.tls.dir + "/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	s.pool.AppendCertsFromPEM(text)
	return s
}

// with is a configuration with this crt-list.
func (s *served) with(list, more string) proxyctl.Config {
	text := s.text("WORD", more+fmt.Sprintf("frontend tls\n  bind unix@%s/tls.sock mode 666 ssl crt-list %s\n  http-request return status 200\n", s.dir, s.path))
	return onlyText(WithMaps(text, map[string]string{s.path: list}))
}

// serial returns the host and the serial number of the certificate for a client that asks for a host.
func (s *served) serial(t *testing.T, host string) string {
	t.Helper()
	conn, err := net.Dial("unix", s.dir+"/tls.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	if err := client.HandshakeContext(context.Background()); err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	c := client.ConnectionState().PeerCertificates[0]
	if _, err := c.Verify(x509.VerifyOptions{Roots: s.pool}); err != nil {
		t.Errorf("%s: %v", host, err)
	}
	return c.Subject.CommonName + " " + c.SerialNumber.String()
}

// Certificates are added, renewed and removed without a reload, and HAProxy would start with the same ones at any time.
func TestE2ECertificates(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		s := serve(t, r.image)
		served := func(host, want string) string {
			t.Helper()
			got := s.serial(t, host)
			if !strings.HasPrefix(got, want+" ") {
				t.Errorf("who asks for %s gets %s, want %s", host, got, want)
			}
			return got
		}
		a := s.tls.entry(t, "a.com")
		s.applied(s.with(a, ""), proxyctl.Reload, "WORD")
		served("b.com", "a.com")
		old := s.tls.entry(t, "b.com")
		s.applied(s.with(a+old, ""), proxyctl.Runtime, "WORD")
		was := served("b.com", "b.com")
		served("nobody.com", "a.com")

		// Both are renewed, and a third one comes.
		a = s.tls.entry(t, "a.com")
		b := s.tls.entry(t, "b.com")
		c := s.tls.entry(t, "c.com")
		s.applied(s.with(a+b+c, ""), proxyctl.Runtime, "WORD")
		if is := served("b.com", "b.com"); is == was {
			t.Error("b.com is not renewed")
		}
		served("c.com", "c.com")
		all := s.with(a+b+c, "")

		// berth and HAProxy are restarted.
		is := served("b.com", "b.com")
		s.berth()
		s.applied(all, proxyctl.None, "WORD")
		s.Close()
		s.restart()
		s.applied(all, proxyctl.None, "WORD")
		if again := served("b.com", "b.com"); again != is {
			t.Errorf("after a restart %s, before %s", again, is)
		}

		// Someone else changes it.
		for _, command := range []string{"del ssl crt-list " + s.path + " " + s.tls.dir + "/c.com.pem", "del ssl cert " + s.tls.dir + "/c.com.pem"} {
			if reply, err := ask(s.dir+"/master.sock", "show proc; @1 "+command); err != nil || !strings.Contains(reply, "deleted") {
				t.Fatalf("%s, %v", reply, err)
			}
		}
		served("c.com", "a.com")
		s.applied(all, proxyctl.Runtime, "WORD")
		served("c.com", "c.com")

		// A certificate that HAProxy refuses, here one without a key, stops nothing else.
		bad := s.tls.entry(t, "d.com")
		path := s.tls.dir + "/d.com.pem"
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		only, _, _ := strings.Cut(string(text), "-----BEGIN EC")
		if err := os.WriteFile(path, []byte(only), 0o644); err != nil {
			t.Fatal(err)
		}
		app := "backend app\n  server a 127.0.0.1:9001\n"
		s.applied(s.with(a+b+c, app), proxyctl.Reload, "WORD")
		first := served("a.com", "a.com")
		a = s.tls.entry(t, "a.com")
		renewed := s.with(a+b+c+bad, app+"  server b 127.0.0.1:9002\n")
		for range 3 {
			if _, err := s.Apply(t.Context(), renewed, true); err == nil {
				t.Error("no error")
			} else if strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("a key is told: %v", err)
			}
		}
		if got := served("d.com", "a.com"); got == first {
			t.Error("a.com is not renewed")
		}
		if has := s.says("show servers state app"); !strings.Contains(has, " b 127.0.0.1 ") {
			t.Errorf("servers %s", has)
		}

		// They are removed.
		s.tls.entry(t, "d.com")
		s.applied(s.with(a+c, app), proxyctl.Runtime, "WORD")
		served("b.com", "a.com")
		served("c.com", "c.com")
	})
}
