package templates

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// The metric has the existing certificates, by name only.
func TestExpiries(t *testing.T) {
	e, reg, dir := NewExpiries(), prometheus.NewPedanticRegistry(), t.TempDir()
	reg.MustRegister(e)
	o := Options{TLSDirectory: dir, Expiries: e}
	put := func(name string) string {
		certificate, key := newECCertificate(t, "a.com")
		intermediate, _ := newECCertificate(t, "ca")
		write(t, filepath.Join(dir, name), certificate, intermediate, key)
		block, _ := pem.Decode([]byte(certificate))
		parsed, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("berth_certificate_expiry_timestamp_seconds{certificate=%q} %d\n", name, parsed.NotAfter.Unix())
	}
	check := func(want ...string) {
		t.Helper()
		renderWith(t, oneService(), o, inOrder)
		text := strings.Join(want, "")
		if text != "" {
			text = "# HELP berth_certificate_expiry_timestamp_seconds When a certificate is no longer valid, in seconds since 1970: the first one of its file.\n" +
				"# TYPE berth_certificate_expiry_timestamp_seconds gauge\n" + text
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(text)); err != nil {
			t.Error(err)
		}
	}
	check()
	a, b := put("a.pem"), put("b.crt")
	write(t, filepath.Join(dir, "c.pem"), "garbage")
	check(a, b)
	if err := os.Remove(filepath.Join(dir, "a.pem")); err != nil {
		t.Fatal(err)
	}
	check(b)
}
