// Package page serves berth's status page at /, which shows the status API to people. It is one HTML file with its style and script;
// nothing is fetched from elsewhere.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html"
	"io"
	"net/http"
	"strconv"
	"strings"
)

//go:embed page.html
var source string

// Options say how the page is served. All are optional.
type Options struct {
	Name string // of the berth's host, for the title
}

// Handler serves only the page at /, to GET and HEAD. The page requests v1/status, v1/events, v1/live and v1/actions, and sends POST
// requests to v1/drain, v1/undrain, v1/pause and v1/resume. docs/operate/status.md describes them.
func Handler(o Options) http.Handler {
	text := source
	if o.Name != "" {
		text = strings.Replace(text, "<title>berth</title>", "<title>berth on "+html.EscapeString(o.Name)+"</title>", 1)
	}
	policy := policyFor(text)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Length", strconv.Itoa(len(text)))
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY") // for scanners and browsers that do not know frame-ancestors
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		_, _ = io.WriteString(w, text)
	})
}

// policyFor allows only the page's own script and style, by their hashes. With trusted types, no text can become HTML or script, even
// by mistake.
func policyFor(text string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"script-src " + hashOf(text, "<script>", "</script>"),
		"style-src " + hashOf(text, "<style>", "</style>"),
		"connect-src 'self'",
		"img-src 'self' data:",
		"frame-ancestors 'none'",
		"base-uri 'none'",
		"form-action 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")
}

// hashOf returns the source expression for the text between two tags, which the page has once.
func hashOf(text, from, to string) string {
	_, rest, _ := strings.Cut(text, from)
	inside, _, _ := strings.Cut(rest, to)
	sum := sha256.Sum256([]byte(inside))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
