package templates

import (
	"crypto/rsa"
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

	"berth/templates/route"
)

// certificate is a certificate that a proxy can load.
type certificate struct {
	File, Key string   // paths, which may be the same
	Names     []string // of hosts, in lower case; none if berth may not read it
	readable  bool     // by berth
}

// certificateFiles returns the files with these names in a directory that a proxy can load, by name: a single one that it
// cannot load makes it refuse the whole configuration. It reports the others.
func certificateFiles(directory string, names []string, report func(string)) []certificate {
	var all []certificate
	for _, name := range slices.Sorted(slices.Values(names)) {
		switch filepath.Ext(name) {
		case ".key", ".ocsp", ".issuer", ".sctl":
			continue // belongs to another file
		}
		c, problem := readCertificate(filepath.Join(directory, name))
		if problem != "" {
			report(certificateProblem(c.File, problem))
			continue
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		report(fmt.Sprintf("TLS: there is no certificate in %q, so HTTPS is off; put PEM files there, each with a certificate, its chain and its key", directory))
	}
	return all
}

// namedCertificates returns the certificates that nginx serves, each with the names that no other before it has: the first
// one, which is for clients that ask for another host, may have none. It reports a file whose hosts are not known.
func namedCertificates(files []certificate, report func(string)) []certificate {
	var all []certificate
	taken := map[string]bool{}
	for _, c := range files {
		c.Names = slices.DeleteFunc(c.Names, func(name string) bool { return taken[name] })
		for _, name := range c.Names {
			taken[name] = true
		}
		switch {
		case len(c.Names) > 0 || len(all) == 0:
			all = append(all, c)
		case !c.readable:
			report(certificateProblem(c.File, "berth may not read it and so does not know its hosts; make it readable for berth, and put its key into a file of its own"))
		}
	}
	return all
}

// certificateProblem returns the line that reports a file.
func certificateProblem(file, why string) string {
	return fmt.Sprintf("certificate %.200q in %q: %s", filepath.Base(file), filepath.Dir(file), why)
}

// listedFile matches a path that a crt-list takes as it is, where blanks end it and [ begins options, and nginx, to which $
// begins a variable.
var listedFile = regexp.MustCompile(`^/[A-Za-z0-9_.*+@%=,~/-]*$`)

// readCertificate returns what is in a file, or why a proxy would not load it. What berth may not read it leaves to the
// proxy, which may have been started by root.
func readCertificate(file string) (c certificate, problem string) {
	c = certificate{File: file, Key: file}
	if !listedFile.MatchString(file) {
		return c, "its path may only have letters, digits and _.*+@%=,~/-, to be named in a configuration; rename it"
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
		return c, "it is cut off; copy it there again, and rename it into place"
	case len(chain) == 0:
		return c, "there is no certificate in PEM form in it; remove it, or put one there"
	case err != nil && !notAllowed:
		return c, fmt.Sprintf("it has no private key, and there is none in %s; put it there", filepath.Base(keyFile))
	}
	if _, err := tls.X509KeyPair(text, key); err != nil && !notAllowed {
		return c, strings.TrimPrefix(err.Error(), "tls: ") + "; put the certificate there again, with its key"
	}
	certificates, err := x509.ParseCertificates(chain)
	if err != nil {
		return c, fmt.Sprintf("a certificate of its chain makes no sense (%v); put the chain there again", err)
	}
	for _, parsed := range certificates {
		// What OpenSSL's default security level 2 takes.
		if k, ok := parsed.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			return c, fmt.Sprintf("the RSA key of %.100q has %d bits and OpenSSL asks for 2048; issue it anew", parsed.Subject, k.N.BitLen())
		}
	}
	c.Names = certificateNames(certificates[0])
	return c, ""
}

// certificateNames returns the hosts that a certificate is for, each once. Those that no client can ask for are left out.
func certificateNames(c *x509.Certificate) []string {
	names := c.DNSNames
	if len(names) == 0 {
		names = []string{c.Subject.CommonName}
	}
	var all []string
	for _, name := range names {
		name = strings.ToLower(name)
		if route.IsHostName(strings.TrimPrefix(name, "*.")) && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// parsePEM returns the certificates of a file in DER form, whether it has a private key, and whether its last block has an
// end.
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
