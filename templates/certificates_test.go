package templates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/templates/route"
)

// newCertificate returns a certificate and its key in PEM form.
func newCertificate(t *testing.T, name string, key any, public any) (certificate, private string) {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	request := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, request, request, public, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func newECCertificate(t *testing.T, name string) (certificate, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newCertificate(t, name, key, &key.PublicKey)
}

func write(t *testing.T, path string, text ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(text, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// certify writes a certificate for a name and its key to a file, and returns a pool with it.
func certify(t *testing.T, path, name string, pools ...*x509.CertPool) *x509.CertPool {
	t.Helper()
	certificate, key := newECCertificate(t, name)
	write(t, path, certificate, key)
	pool := append(pools, x509.NewCertPool())[0]
	pool.AppendCertsFromPEM([]byte(certificate))
	return pool
}

// brokenCertificates fills a directory with files that HAProxy would refuse, next to good ones.
func brokenCertificates(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	certificate, key := newECCertificate(t, "good.com")
	_, other := newECCertificate(t, "other.com")
	weakKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak, weakPrivate := newCertificate(t, "weak.com", weakKey, &weakKey.PublicKey)
	noCertificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")}))
	for name, text := range map[string]string{
		"good-key-first.pem": key + certificate,
		"good-text.pem":      "issued for good.com\n" + certificate + key + "end\n",
		"good-crlf.pem":      strings.ReplaceAll(certificate+key, "\n", "\r\n"),
		"good-pair.crt":      certificate, "good-pair.key": key,
		"good-pair2.pem": certificate, "good-pair2.pem.key": key,
		"*.good.com.pem": certificate + key,
		"good":           certificate + key,

		"bad-empty.pem":        "",
		"bad-garbage.pem":      "garbage",
		"bad-no-key.pem":       certificate,
		"bad-no-key.crt":       certificate,
		"bad-crt-key.crt":      certificate, // not the name that HAProxy expects
		"bad-crt-key.crt.key":  key,
		"bad-key-only.pem":     key,
		"bad-other-key.pem":    certificate + other,
		"bad-cut-off.pem":      certificate + key[:len(key)/2],
		"bad-cut-off-more.pem": certificate + key + certificate[:len(certificate)/2],
		"bad-weak.pem":         weak + weakPrivate,
		"bad-weak-chain.pem":   certificate + key + weak,
		"bad-chain.pem":        certificate + key + noCertificate,
		"bad-certificate.pem":  noCertificate + key,
		"bad name.pem":         certificate + key,
		"bad[name].pem":        certificate + key,
		"bad\nname.pem":        certificate + key,
		"#bad.pem":             certificate + key,
		"README.txt":           "Put certificates here.",

		// HAProxy ignores these files or treats them as part of another.
		".hidden.pem": "garbage", "good.ocsp.ocsp": "garbage", "x.issuer": "garbage", "x.sctl": "garbage", "x.key": "garbage",
	} {
		write(t, at(name), text)
	}
	if err := os.Mkdir(at("directory.pem"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestCertificates(t *testing.T) {
	o := Options{TLSDirectory: t.TempDir()}
	brokenCertificates(t, o.TLSDirectory)
	r := renderWith(t, oneService(), o, inOrder)
	var listed []string
	for line := range strings.Lines(r.files["certificates.crt-list"]) {
		if !strings.HasPrefix(line, "#") {
			listed = append(listed, strings.TrimPrefix(strings.TrimSpace(line), o.TLSDirectory+"/"))
		}
	}
	want := []string{"*.good.com.pem", "good", "good-crlf.pem", "good-key-first.pem", "good-pair.crt", "good-pair2.pem", "good-text.pem"}
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Error(diff)
	}
	for n, reason := range r.leftOut {
		r.leftOut[n] = strings.ReplaceAll(reason, o.TLSDirectory, "DIR")
	}
	golden(t, "testdata/certificates.left-out", strings.Join(r.leftOut, "\n")+"\n")
	checkReasons(t, r.leftOut)
}

func TestTLSNeedsACertificate(t *testing.T) {
	c := oneService()
	c.with("web", "host:web-3:80", "172.18.0.7", 80, route.KeyRedirect, "https")
	o := Options{TLSDirectory: filepath.Join(t.TempDir(), "later")}
	const (
		none       = `TLS: there is no certificate in "<directory>", so HTTPS is off; put PEM files there, each with a certificate, its chain and its key`
		noRedirect = `service "web": its route_redirect is ignored, because there is no certificate for HTTPS; add one, or unset SERVICE_ROUTE_REDIRECT`
	)
	check := func(tls bool, reasons ...string) string {
		t.Helper()
		r := renderWith(t, c, o, inOrder)
		for n := range reasons {
			reasons[n] = strings.ReplaceAll(reasons[n], "<directory>", o.TLSDirectory)
		}
		if diff := cmp.Diff(reasons, r.leftOut); diff != "" {
			t.Error(diff)
		}
		bind := "    bind :8443 ssl crt-list " + r.paths["certificates.crt-list"] + " alpn h2,http/1.1 ssl-min-ver TLSv1.2\n"
		if strings.Contains(r.text, bind) != tls || strings.Contains(r.text, "set-var(txn.insecure)") != tls || strings.Contains(r.text, ":8443") != tls {
			t.Errorf("TLS is not %v:\n%s", tls, r.text)
		}
		return r.text
	}
	check(false, none, noRedirect)
	if err := os.Mkdir(o.TLSDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	check(false, none, noRedirect)
	certify(t, filepath.Join(o.TLSDirectory, "a.pem"), "a.com")
	check(true)
	o.TLSDirectory = ""
	check(false, noRedirect)
}

// HAProxy may read files that berth may not.
func TestCertificateThatBerthMayNotRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	dir := t.TempDir()
	text, key := newECCertificate(t, "a.com")
	write(t, filepath.Join(dir, "a.crt"), text)
	write(t, filepath.Join(dir, "a.key"), key)
	for _, name := range []string{"a.key", "a.crt"} {
		if err := os.Chmod(filepath.Join(dir, name), 0); err != nil {
			t.Fatal(err)
		}
		all := certificates{report: refuse(t)}
		if files := all.list(dir, []string{"a.crt", "a.key"}, ""); len(files) != 1 {
			t.Errorf("%+v", files)
		}
	}
}

// Files are read again only when the sum changes; their problems are reported every time.
func TestCertificatesAreReadWhenTheSumChanges(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.pem")
	none := fmt.Sprintf("TLS: there is no certificate in %q, so HTTPS is off; put PEM files there, each with a certificate, its chain and its key", dir)
	var all certificates
	check := func(sum, problem string) {
		t.Helper()
		var reports []string
		all.report = func(reason string) { reports = append(reports, reason) }
		files := all.list(dir, []string{"a.pem", "a.key"}, sum)
		if want := []string{certificateProblem(file, problem), none}; len(files) > 0 || !slices.Equal(reports, want) {
			t.Errorf("%d files, reports %q, want %q", len(files), reports, want)
		}
	}
	write(t, file, "garbage")
	check("1", "it contains no PEM certificate; remove it, or put one there")
	write(t, file, "-----BEGIN CERTIFICATE-----")
	check("1", "it contains no PEM certificate; remove it, or put one there")
	check("2", "it is truncated; copy it again, and rename it into place")
}

// nginx gets no certificates with unknown hosts, except the first.
func TestCertificateWithoutKnownHosts(t *testing.T) {
	var leftOut []string
	files := []certificate{
		{File: "/tls/a", Key: "/tls/a"},
		{File: "/tls/b", Key: "/tls/b"},
		{File: "/tls/c", Key: "/tls/c.key", Names: []string{"c.com"}, readable: true},
	}
	got := namedCertificates(files, func(reason string) { leftOut = append(leftOut, reason) })
	want := []certificate{
		{File: "/tls/a", Key: "/tls/a"},
		{File: "/tls/c", Key: "/tls/c.key", Names: []string{"c.com"}, readable: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(certificate{})); diff != "" {
		t.Error(diff)
	}
	reasons := []string{`certificate "b" in "/tls": berth may not read it and does not know its hosts; make it readable for berth, and put its key into a separate file`}
	if diff := cmp.Diff(reasons, leftOut); diff != "" {
		t.Error(diff)
	}
}
