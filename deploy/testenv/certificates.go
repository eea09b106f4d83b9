package testenv

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// CA issues certificates for one test. They are valid for a day.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a certificate authority, and ca.pem in a directory.
func NewCA(t testing.TB, dir string) *CA {
	t.Helper()
	ca := &CA{dir: dir}
	ca.cert = certificate(t, "ca")
	ca.cert.IsCA, ca.cert.KeyUsage = true, x509.KeyUsageCertSign
	ca.key = ca.issue(t, "ca", ca.cert)
	return ca
}

// Issue makes NAME.pem and NAME-key.pem in the CA's directory: a certificate for a client, and for a server with the given
// host names and IP addresses. Containers of another user can read both.
func (ca *CA) Issue(t testing.TB, name string, hosts ...string) {
	t.Helper()
	c := certificate(t, name)
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, host)
		}
	}
	der, err := x509.MarshalECPrivateKey(ca.issue(t, name, c))
	if err != nil {
		t.Fatal(err)
	}
	ca.store(t, name+"-key.pem", "EC PRIVATE KEY", der)
}

func certificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// issue signs a certificate, stores it and returns its key. The CA's own certificate is signed with that key as well.
func (ca *CA) issue(t testing.TB, name string, c *x509.Certificate) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := ca.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	ca.store(t, name+".pem", "CERTIFICATE", der)
	return key
}

func (ca *CA) store(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	File(t, ca.dir, file, b.String())
}
