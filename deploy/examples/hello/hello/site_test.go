package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text, fails string
		want        config
	}{
		{text: "greeting = \"Sup\"\nredis = \"10.0.0.1:6379\"", want: config{"Sup", "10.0.0.1:6379"}},
		{text: "greeting = \"Sup\"\nredis = \"\"", want: config{"Sup", ""}},
		{text: `greeting = ""`, fails: "greeting is empty"},
		{text: `greeting = "  "`, fails: "greeting is empty"},
		{text: ``, fails: "greeting is empty"},
		{text: `greeting = 5`, fails: "cannot decode"},
		{text: "greeting = \"Sup\"\ngreetng = \"Yo\"", fails: "strict mode"},
		{text: `greeting = `, fails: "toml"},
	} {
		got, err := parse([]byte(tt.text))
		switch {
		case tt.fails != "":
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%q: %v, want an error with %q", tt.text, err, tt.fails)
			}
		case err != nil || got != tt.want:
			t.Errorf("%q: %v, %v, want %v", tt.text, got, err, tt.want)
		}
	}
}

// The answers without Redis.
func TestPages(t *testing.T) {
	h := (&site{greeting: "Sup", host: "box", counter: newCounter("")}).handler()
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"/", 200, "Hosted by box\nSup! What is your name? Ask for /NAME.\n"},
		{"/health", 200, "ok\n"},
		{"/nolan", 503, "there is no Redis at the moment\n"},
		{"/?name=nolan", 503, "there is no Redis at the moment\n"},
		{"/?name=", 400, "a name has 1 to 100 bytes\n"},
		{"/" + strings.Repeat("n", 101), 400, "a name has 1 to 100 bytes\n"},
		{"/two/names", 404, "404 page not found\n"},
	} {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, httptest.NewRequest("GET", tt.path, nil))
		if answer.Code != tt.code || answer.Body.String() != tt.body {
			t.Errorf("%.20s: %d %q, want %d %q", tt.path, answer.Code, answer.Body, tt.code, tt.body)
		}
	}
}
