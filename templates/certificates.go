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
	"slices"
	"strings"
)

// certificateStore lists the certificates in a directory. It remembers what it found, since that of 100 files takes
// milliseconds, and the template asks whenever anything in the catalog changes.
type certificateStore struct {
	report func(string)

	path, sum, text string
	reasons         []string
}

// list returns a crt-list of the files in the directory that HAProxy can load, as a single one that it cannot makes it
// refuse the whole configuration. The sum, which changes with any of the files, is in the text, so that a renewed
// certificate changes it. An empty text means that there is none.
func (s *certificateStore) list(path string, names []string, sum string) string {
	if s.path != path || s.sum != sum {
		s.path, s.sum, s.reasons = path, sum, nil
		s.text = s.read(names)
	}
	for _, reason := range s.reasons {
		s.report(reason)
	}
	return s.text
}

func (s *certificateStore) read(names []string) string {
	leftOut := func(name, why string) {
		s.reasons = append(s.reasons, fmt.Sprintf("certificate %.200q in %q: %s", name, s.path, why))
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(slices.Values(names)) {
		switch filepath.Ext(name) {
		case ".key", ".ocsp", ".issuer", ".sctl":
			continue // belongs to another file
		}
		file := filepath.Join(s.path, name)
		if !isListedFile(file) {
			leftOut(name, "its path may only have letters, digits and _.*+@%=,~/-, to be named in a crt-list; rename it")
			continue
		}
		if problem := certificateProblem(file); problem != "" {
			leftOut(name, problem)
			continue
		}
		fmt.Fprintln(&lines, file)
	}
	if lines.Len() == 0 {
		s.reasons = append(s.reasons, fmt.Sprintf("TLS: there is no certificate in %q, so HTTPS is off; put PEM files there, each with a certificate, its chain and its key", s.path))
		return ""
	}
	return fmt.Sprintf("# %x\n%s", s.sum, &lines)
}

// isListedFile says whether a crt-list takes a path as it is: blanks end it there, and [ begins options.
func isListedFile(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(r rune) bool {
		return !isAlphanumeric(r) && !strings.ContainsRune("_.*+@%=,~/-", r)
	})
}

// certificateProblem says why HAProxy would not load a file, or "". What berth may not read it leaves to HAProxy, which
// may have been started by root.
func certificateProblem(file string) string {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrPermission) {
		return ""
	}
	if err != nil {
		return fmt.Sprintf("it cannot be read: %v", err)
	}
	keyFile := ""
	blocks, complete := pemBlocks(text)
	key := text
	if !slices.ContainsFunc(blocks, isPrivateKey) {
		keyFile = strings.TrimSuffix(file, ".crt") + ".key"
		if key, err = os.ReadFile(keyFile); errors.Is(err, fs.ErrPermission) {
			return ""
		}
	}
	switch {
	case !complete:
		return "it is cut off; copy it there again, and rename it into place"
	case !slices.ContainsFunc(blocks, isCertificate):
		return "there is no certificate in PEM form in it; remove it, or put one there"
	case err != nil:
		return fmt.Sprintf("it has no private key, and there is none in %s; put it there", filepath.Base(keyFile))
	}
	if _, err := tls.X509KeyPair(text, key); err != nil {
		return strings.TrimPrefix(err.Error(), "tls: ") + "; put the certificate there again, with its key"
	}
	for _, b := range slices.DeleteFunc(blocks, func(b *pem.Block) bool { return !isCertificate(b) }) {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return fmt.Sprintf("a certificate of its chain makes no sense (%v); put the chain there again", err)
		}
		// What OpenSSL's default security level 2 takes.
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			return fmt.Sprintf("the RSA key of %.100q has %d bits and OpenSSL asks for 2048; issue it anew", c.Subject, k.N.BitLen())
		}
	}
	return ""
}

// pemBlocks returns the blocks of a file, and whether the last one has its end.
func pemBlocks(text []byte) (blocks []*pem.Block, complete bool) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return blocks, !strings.Contains(string(rest), "-----BEGIN ")
		}
		blocks = append(blocks, block)
		text = rest
	}
}

func isCertificate(b *pem.Block) bool { return b.Type == "CERTIFICATE" }

func isPrivateKey(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") }
