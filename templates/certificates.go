package templates

import (
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // it is how HAProxy names a certificate
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/templates/claim"
)

// certificate is a certificate that a proxy can load.
type certificate struct {
	File, Key string   // paths, which may be the same
	Names     []string // of hosts, in lower case; none if berth may not read it
	// Now changes with the files. It is the comment before the certificate in a crt-list. If HAProxy can load the
	// certificate at run time, it begins with the certificate's SHA1 fingerprint and ends with the files to load
	// (proxyctl/haproxy).
	Now      string
	readable bool      // by berth
	notAfter time.Time // expiry of the file's first certificate
}

// certificates are the certificates of a directory. They are cached, because reading 100 files takes milliseconds and the
// template asks on every change in the catalog.
type certificates struct {
	path, sum string
	files     []certificate
	problems  []string
	report    func(string)
	expiries  *Expiries
}

// besideCertificate are the extensions of files that HAProxy reads with a certificate, except for its key.
var besideCertificate = []string{".ocsp", ".issuer", ".sctl"}

// list returns the certificates among the named files of a directory, sorted by name. It reads them again if the sum has
// changed. It skips and reports files that a proxy cannot load, because a single one would make it refuse the whole
// configuration.
func (s *certificates) list(path string, names []string, sum string) []certificate {
	if s.path != path || s.sum != sum {
		*s = certificates{path: path, sum: sum, report: s.report, expiries: s.expiries}
		for _, name := range slices.Sorted(slices.Values(names)) {
			if ext := filepath.Ext(name); ext == ".key" || slices.Contains(besideCertificate, ext) {
				continue // it belongs to another file
			}
			if c, problem := readCertificate(filepath.Join(path, name)); problem == "" {
				more := func(ext string) bool { return slices.Contains(names, name+ext) }
				if c.Now == "" || slices.ContainsFunc(besideCertificate, more) {
					c.Now = "changes with the directory: " + sum
				}
				s.files = append(s.files, c)
			} else {
				s.problems = append(s.problems, certificateProblem(c.File, problem))
			}
		}
		if len(s.files) == 0 {
			s.problems = append(s.problems, fmt.Sprintf("TLS: there is no certificate in %q, so HTTPS is off; put PEM files there, each with a certificate, its chain and its key", path))
		}
		s.expiries.set(s.files)
	}
	for _, problem := range s.problems {
		s.report(problem)
	}
	return s.files
}

// namedCertificates returns the certificates that nginx serves, and assigns each host name to the first certificate with
// it. The first certificate may have no name: nginx also uses it for unknown hosts. It reports files with unknown hosts.
func namedCertificates(files []certificate, report func(string)) []certificate {
	var all []certificate
	taken := map[string]bool{}
	for _, c := range files {
		c.Names = slices.DeleteFunc(slices.Clone(c.Names), func(name string) bool {
			again := taken[name]
			taken[name] = true
			return again
		})
		switch {
		case len(c.Names) > 0 || len(all) == 0:
			all = append(all, c)
		case !c.readable:
			report(certificateProblem(c.File, "berth may not read it and does not know its hosts; make it readable for berth, and put its key into a separate file"))
		}
	}
	return all
}

// certificateProblem formats the report on a file.
func certificateProblem(file, why string) string {
	return fmt.Sprintf("certificate %.200q in %q: %s", filepath.Base(file), filepath.Dir(file), why)
}

// listedFile matches paths that need no quotes: in a crt-list, a blank ends a path and [ begins options; in nginx, $ begins
// a variable.
var listedFile = regexp.MustCompile(`^/[A-Za-z0-9_.*+@%=,~/-]*$`)

// readCertificate reads a file and returns why a proxy would not load it. It accepts a file that berth may not read,
// because root may have started the proxy.
func readCertificate(file string) (c certificate, problem string) {
	c = certificate{File: file, Key: file}
	if !listedFile.MatchString(file) {
		return c, "its path may contain only letters, digits and _.*+@%=,~/-; rename it"
	}
	keyFile := strings.TrimSuffix(file, ".crt") + ".key"
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrPermission) {
		if _, err := os.Stat(keyFile); err == nil {
			c.Key = keyFile
		}
		return c, ""
	}
	if err != nil {
		return c, fmt.Sprintf("it cannot be read: %v", err)
	}
	c.readable = true
	chain, hasKey, complete := parsePEM(text)
	key := text
	if !hasKey {
		c.Key = keyFile
		key, err = os.ReadFile(keyFile)
	}
	notAllowed := errors.Is(err, fs.ErrPermission) // to read the key
	switch {
	case !complete:
		return c, "it is truncated; copy it again, and rename it into place"
	case len(chain) == 0:
		return c, "it contains no PEM certificate; remove it, or put one there"
	case err != nil && !notAllowed:
		return c, fmt.Sprintf("it has no private key, and there is none in %s; put the key there", filepath.Base(keyFile))
	}
	if _, err := tls.X509KeyPair(text, key); err != nil && !notAllowed {
		return c, strings.TrimPrefix(err.Error(), "tls: ") + "; install the certificate again, with its key"
	}
	all, err := x509.ParseCertificates(chain)
	if err != nil {
		return c, fmt.Sprintf("a certificate in its chain is invalid (%v); install the chain again", err)
	}
	for _, parsed := range all {
		// The minimum of OpenSSL's default security level 2.
		if k, ok := parsed.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			return c, fmt.Sprintf("the RSA key of %.100q has %d bits and OpenSSL requires 2048; issue a new one", parsed.Subject, k.N.BitLen())
		}
	}
	c.Names, c.notAfter = certificateNames(all[0]), all[0].NotAfter
	if !notAllowed {
		digest := sha256.Sum256(slices.Concat(text, key))
		c.Now = fmt.Sprintf("%X/%x %s", sha1.Sum(all[0].Raw), digest[:8], file) //nolint:gosec // it is HAProxy's fingerprint
		if !hasKey {
			c.Now += " " + c.Key
		}
	}
	return c, ""
}

// certificateNames returns the hosts of a certificate, except names that no client can ask for.
func certificateNames(c *x509.Certificate) []string {
	names := c.DNSNames
	if len(names) == 0 {
		names = []string{c.Subject.CommonName}
	}
	var all []string
	for _, name := range names {
		name = strings.ToLower(name)
		if claim.IsHostName(strings.TrimPrefix(name, "*.")) {
			all = append(all, name)
		}
	}
	return all
}

// parsePEM returns the certificates of a file in DER form, and reports whether it has a private key and ends with a
// complete block.
func parsePEM(text []byte) (chain []byte, hasKey, complete bool) {
	for {
		block, rest := pem.Decode(text)
		switch {
		case block == nil:
			return chain, hasKey, !strings.Contains(string(rest), "-----BEGIN ")
		case block.Type == "CERTIFICATE":
			chain = append(chain, block.Bytes...)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			hasKey = true
		}
		text = rest
	}
}
