package store

import (
	"strings"
	"testing"
)

func TestParseService(t *testing.T) {
	for text, want := range map[string]string{
		"app": "app", "app.prod": "app-prod", "app.default": "app", "my.app.prod": "my.app-prod", "my.app.default": "my.app", "a_b-c.x_1": "a_b-c-x_1",
		"": "", ".": "", ".prod": "", "app.": "", "app..": "", "a/b": "", "app.a/b": "", "a b.prod": "", "app.ü": "", "-app": "", "app.-x": "", "..prod": "",
		strings.Repeat("a", 200): strings.Repeat("a", 200), strings.Repeat("a", 198) + ".bb": "",
	} {
		got, err := ParseService(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%q", err)
		}
	}
}

func TestValidFile(t *testing.T) {
	for _, name := range []string{"logo.png", "a b", "..a", "a..", "...", "ü%2F", strings.Repeat("a", 255)} {
		if err := ValidFile(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "../a", "/a", "a/", `a\b`, "a\nb", "a\x00", "\x7f", "\xff", strings.Repeat("a", 256)} {
		if err := ValidFile(name); err == nil {
			t.Errorf("%q is valid", name)
		}
	}
}

func TestKeys(t *testing.T) {
	config, file := Item{Service: "app"}, Item{Service: "app", File: "1"}
	for got, want := range map[string]string{
		config.Key(): "berth/config/app", config.HistoryKey(7): "berth/history/app/7",
		file.Key(): "berth/files/app/1", file.HistoryKey(7): "berth/history/app/files/1/7",
		AppliedKey("app", "host/app:80"): "berth/applied/app/host%2Fapp:80",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestSum(t *testing.T) {
	if got := Sum([]byte("abc")); got != "ba7816bf8f01" {
		t.Error(got)
	}
}
