package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// pemUntil returns a key and a certificate that is valid until a time.
func pemUntil(t *testing.T, at time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: at}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}

// The metric follows the files: it tells of a renewed certificate, and of none that is gone.
func TestCertificateExpiry(t *testing.T) {
	dir := t.TempDir()
	first, second := time.Unix(2_000_000_000, 0), time.Unix(2_100_000_000, 0)
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("shop.pem", pemUntil(t, first))
	write("shop.pem.ocsp", []byte("no certificate"))
	e := newExpiries(dir)
	expect := func(lines ...string) {
		t.Helper()
		want := ""
		if len(lines) > 0 {
			want = "# HELP berth_certificate_expiry_timestamp_seconds When a certificate of the TLS directory expires.\n" +
				"# TYPE berth_certificate_expiry_timestamp_seconds gauge\n" + strings.Join(lines, "\n") + "\n"
		}
		if err := testutil.CollectAndCompare(e, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	}
	line := func(name string, at time.Time) string {
		return fmt.Sprintf("berth_certificate_expiry_timestamp_seconds{certificate=%q} %d", name, at.Unix())
	}
	expect(line("shop.pem", first))
	write("new.pem", pemUntil(t, second))
	write("shop.pem", append(pemUntil(t, second), '\n'))
	expect(line("new.pem", second), line("shop.pem", second))
	for _, name := range []string{"new.pem", "shop.pem"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	expect()
}
