package main

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{
		"text": `^time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) level=INFO msg="registered web" service=web took=4ms err="a \\"b\\"\\nc"\n$`,
		"json": `^\{"time":"[^"]+","level":"INFO","msg":"registered web","service":"web","took":"4ms","err":"a \\"b\\"\\nc"\}\n$`,
		"auto": `^\{"time":`, // w is no terminal
	} {
		var w strings.Builder
		newLogger(&w, Config{LogFormat: format, LogLevel: "info"}).Info("registered web", "service", "web", "took", 4*time.Millisecond, "err", errors.New("a \"b\"\nc"))
		if !regexp.MustCompile(want).MatchString(w.String()) {
			t.Errorf("%s: %s", format, w.String())
		}
	}
	if got := options().Lookup("log-format").DefValue; got != "text" {
		t.Errorf("the default is %s", got)
	}
}
