package page

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"berth/cmd/berth/status"
)

func get(method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	Handler(Options{Name: `lb-1 <b>"`}).ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestHeaders(t *testing.T) {
	w := get("GET", "/")
	for name, want := range map[string]string{
		"Content-Type":                 "text/html; charset=utf-8",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "no-referrer",
		"Cache-Control":                "no-store",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	directives := map[string]string{}
	for d := range strings.SplitSeq(w.Header().Get("Content-Security-Policy"), "; ") {
		name, value, _ := strings.Cut(d, " ")
		directives[name] = value
	}
	for name, want := range map[string]string{
		"default-src":               "'none'",
		"connect-src":               "'self'",
		"img-src":                   "'self' data:",
		"frame-ancestors":           "'none'",
		"base-uri":                  "'none'",
		"form-action":               "'none'",
		"require-trusted-types-for": "'script'",
		"trusted-types":             "'none'",
		"script-src":                inline(t, w.Body.String(), "script"),
		"style-src":                 inline(t, w.Body.String(), "style"),
	} {
		if directives[name] != want {
			t.Errorf("%s: %q, want %q", name, directives[name], want)
		}
	}
}

// inline is what allows the only element of that name. The two would hide each other if one were inside a comment of the other.
func inline(t *testing.T, body, element string) string {
	found := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllStringSubmatch(body, -1)
	if len(found) != 1 || strings.Count(body, "<"+element) != 1 {
		t.Fatalf("the page has %d elements %s", len(found), element)
	}
	sum := sha256.Sum256([]byte(found[0][1]))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func TestNothingElseIsServed(t *testing.T) {
	for _, tt := range []struct {
		method, target string
		code           int
	}{
		{"GET", "/", http.StatusOK},
		{"HEAD", "/", http.StatusOK},
		{"GET", "/?x=1", http.StatusOK},
		{"POST", "/", http.StatusMethodNotAllowed},
		{"GET", "/page.html", http.StatusNotFound},
		{"GET", "//", http.StatusNotFound},
	} {
		if w := get(tt.method, tt.target); w.Code != tt.code {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.target, w.Code, tt.code)
		}
	}
}

func TestNameIsEscaped(t *testing.T) {
	if body := get("GET", "/").Body.String(); !strings.Contains(body, "<title>berth on lb-1 &lt;b&gt;&#34;</title>") {
		t.Error("the title is not the berth's name, escaped")
	}
}

// The page knows the steps in their order, and each state.
func TestPageKnowsStepsAndStates(t *testing.T) {
	var steps []string
	for _, step := range status.Steps {
		steps = append(steps, strconv.Quote(string(step)))
	}
	if line := "const steps = [" + strings.Join(steps, ", ") + "];"; !strings.Contains(source, line) {
		t.Errorf("the page lacks %s", line)
	}
	for _, s := range []status.State{status.Serving, status.Degraded, status.Draining, status.Starting, status.Down, status.Unrouted, status.Unknown} {
		if !strings.Contains(source, fmt.Sprintf("[%q, [", s)) {
			t.Errorf("the page does not know the state %s", s)
		}
	}
}

// The policy would stop these, and the page would not work.
func TestPageHasNothingThatItsPolicyForbids(t *testing.T) {
	for _, forbidden := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "https://", ` style="`, ` onclick="`} {
		if strings.Contains(source, forbidden) {
			t.Errorf("the page has %s", forbidden)
		}
	}
}
