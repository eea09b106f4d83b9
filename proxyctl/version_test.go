package proxyctl

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAtLeast(t *testing.T) {
	for _, tt := range []struct {
		version, other string
		want           bool
	}{
		{version: "1.26.3", other: "1.26.3", want: true},
		{version: "1.26.3", other: "1.27.4"},
		{version: "1.30.0", other: "1.27.4", want: true},
		{version: "1.9.15", other: "1.10"},
		{version: "1.10", other: "1.9.15", want: true},
		{version: "1.25", other: "1.25.1"},
		{version: "1.25.3.1", other: "1.25.3", want: true},
		{version: "", other: "1.0"},
		{version: "new", other: "1.0"},
	} {
		if got := AtLeast(tt.version, tt.other); got != tt.want {
			t.Errorf("%q is at least %q: %v", tt.version, tt.other, got)
		}
	}
}

func TestVersionOf(t *testing.T) {
	for script, want := range map[string]string{
		`echo "nginx version: nginx/1.26.3" >&2`:                                                 "1.26.3",
		`echo "nginx version: nginx/1.18.0 (Ubuntu)" >&2`:                                        "1.18.0",
		`echo "nginx version: openresty/1.25.3.1" >&2`:                                           "1.25.3.1",
		`echo "nginx version: nginx/1.26.3" >&2; exit 1`:                                         "",
		`echo "no version" >&2`:                                                                  "",
		`test "$*" = -v && echo "nginx version: nginx/2.0.0"`:                                    "2.0.0",
		`echo "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"`:              "2.6.12",
		`echo "HA-Proxy version 2.2.9-2+deb11u6 2023/12/20 - https://haproxy.org/"`:              "2.2.9",
		`printf "HAProxy version 3.4-dev2 2026/01/01 - https://haproxy.org/\nStatus: dev 9.9\n"`: "3.4",
	} {
		binary := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := VersionOf(t.Context(), binary); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v; want %q", script, got, err, want)
		}
	}
	if got, err := VersionOf(t.Context(), "/nonexistent/nginx"); got != "" || err == nil {
		t.Errorf("no program: %q, %v", got, err)
	}
}
