package haproxy

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // it is how HAProxy names a certificate
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"berth/deploy/testenv"
)

// certified is a directory with certificates.
type certified struct {
	dir string
	ca  *testenv.CA
}

func newCertified(t testing.TB) certified {
	t.Helper()
	c := certified{dir: t.TempDir()}
	if err := os.Chmod(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.ca = testenv.NewCA(t, c.dir)
	return c
}

// entry issues a certificate for a host, and returns its lines in a crt-list.
func (c certified) entry(t testing.TB, host string) string {
	t.Helper()
	c.ca.Issue(t, host, host)
	path, key := filepath.Join(c.dir, host+".pem"), filepath.Join(c.dir, host+"-key.pem")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, private...), 0o644); err != nil { // HAProxy's key would be in host.pem.key
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return fmt.Sprintf("# %X/00 %s\n%[2]s\n", sha1.Sum(block.Bytes), path) //nolint:gosec // it is HAProxy's fingerprint
}

// A list is changed at run time, except for what the running HAProxy cannot be given.
func TestCompareLists(t *testing.T) {
	c := newCertified(t)
	a, b := c.entry(t, "a.com"), c.entry(t, "b.com")
	outdated := c.entry(t, "z.com")
	z := c.entry(t, "z.com")
	large := c.entry(t, "large.com")
	chain, err := os.ReadFile(c.dir + "/large.com.pem")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.dir+"/large.com.pem", bytes.Repeat(chain, 20), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(host string) string { return filepath.Join(c.dir, host+".pem") }
	fixed := "# changes with the directory: 12\n" + at("fixed.com") + "\n"
	shown := regexp.MustCompile("/00 .*")
	const first, alone = "is now the first in its list", "only HAProxy can read it"
	for name, tt := range map[string]struct{ was, is, want string }{
		"nothing":                 {a + b, a + b, "nothing"},
		"one comes":               {a, a + b, "add certificate " + at("b.com")},
		"one goes":                {a + b, a, "remove certificate " + at("b.com")},
		"one is renewed":          {a + outdated, a + z, "renew certificate " + at("z.com")},
		"the first is renewed":    {outdated + a, z + a, "renew certificate " + at("z.com")},
		"it is in order":          {a + b + z, a + z + b, "nothing"},
		"another is the first":    {b, a + b, first},
		"the first goes":          {a + b, b, first},
		"what has no fingerprint": {a + fixed, a + strings.Replace(fixed, "12", "13", 1), alone},
		"it comes":                {a, a + fixed, alone},
		"it stays":                {a + fixed, a + fixed + b, "add certificate " + at("b.com")},
		"it goes":                 {a + fixed, a, "remove certificate " + at("fixed.com")},
		"what HAProxy shows":      {a + shown.ReplaceAllString(b, "/"), a + b, "nothing"},
		"it has options":          {a + at("b.com") + "\n", a + at("b.com") + " [alpn h2] b.com\n", alone},
		"the files are newer":     {a + z, a + outdated, "nothing"},
		"it is too large":         {a, a + large, "a command takes at most 14000"},
		"there are no files":      {a, a + strings.ReplaceAll(b, "b.com", "nobody.com"), "nothing"},
		"of several things":       {a + outdated + b, a + z, "renew certificate " + at("z.com") + ", and 1 more"},
	} {
		path := "/x.certificates.crt-list"
		config := func(content string) *config { return &config{maps: map[string]entries{path: parseList(content)}} }
		got := compareMaps(config(tt.was), config(tt.is))
		if !strings.Contains(got.String(), tt.want) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if strings.Contains(got.String(), "PRIVATE KEY") {
			t.Errorf("%s: a key is told", name)
		}
	}
}

// HAProxy's own report takes precedence over the text.
func TestFoundCertificates(t *testing.T) {
	const fingerprint, other = "58B1A50E0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F", "3C0D12CA51F4CB87962BD3621953777F228D122F"
	text := parseList("# " + fingerprint + "/07 /a.pem\n/a.pem\n# fixed\n/b.pem\n# " + fingerprint + "/08 /c.pem /c.key\n/c.pem\n# " + fingerprint + "/09 /d.pem\n/d.pem\n")
	found := fingerprints("Filename: /a.pem\nStatus: Used\nSHA1 FingerPrint: " + fingerprint + "\n\nFilename: /b.pem\nSHA1 FingerPrint: " + other + "\n\nFilename: /c.pem\nSHA1 FingerPrint: " + other +
		"\n\nFilename: /e.pem\nSHA1 FingerPrint: " + other + "\n")
	found["/a.pem"] = isFirst + found["/a.pem"]
	is := text.withFound(found)
	for path, want := range map[string]string{"/a.pem": text["/a.pem"], "/b.pem": text["/b.pem"], "/c.pem": other + "/", "/d.pem": "", "/e.pem": other + "/"} {
		if is[path] != want {
			t.Errorf("%s: %q, want %q", path, is[path], want)
		}
	}
	if l := parseLoaded(text["/c.pem"]); l.first || l.sha1 != fingerprint || l.digest != "08" || strings.Join(l.files, " ") != "/c.pem /c.key" {
		t.Errorf("%+v", l)
	}
}

func TestMergeList(t *testing.T) {
	base, to := "# 1\n/a\n# 1\n/b\n", "# 2\n/a\n# 2\n/b\n# 2\n/c\n"
	if got := mergeList(base, to, map[string]bool{"/b": true, "/c": true}); got != "# 2\n/a\n# 1\n/b\n" {
		t.Errorf("%q", got)
	}
}
