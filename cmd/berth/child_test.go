package main

import (
	"strings"
	"testing"
)

func TestProgramIn(t *testing.T) {
	for command, want := range map[string]string{
		"/opt/haproxy/sbin/haproxy -W":  "/opt/haproxy/sbin/haproxy",
		"setpriv --reuid 99 haproxy -W": "haproxy",
		"hapee-lb -W":                   "",
	} {
		if got := programIn(strings.Fields(command), "haproxy"); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}
