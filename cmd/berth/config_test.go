package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// configOf reads the configuration for a command with a file and variables.
func configOf(t *testing.T, cmd *cobra.Command, file string, variables ...string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "berth.yml")
	if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BERTH_CONFIG", path)
	for _, kv := range variables {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	return readConfig(cmd.Flags())
}

// Options of other commands count where they are in the file. A variable of that name is nobody's: Docker's links set
// BERTH_PORT for a container called berth.
func TestOptionsOfOtherCommands(t *testing.T) {
	c, err := configOf(t, templaterCommand(), "port: 20001\n", "BERTH_PORT=tcp://10.0.0.1:8080", "BERTH_FILES=x", "BERTH_LOG_LEVEL=warn")
	if err != nil || c.Process.Port != 20001 {
		t.Fatalf("port %d, %v", c.Process.Port, err)
	}
	for option, want := range map[string]string{
		"port": os.Getenv("BERTH_CONFIG") + ": port", "files": "files", "log-level": "BERTH_LOG_LEVEL", "listen": "listen",
	} {
		if got := c.origin(option); got != want {
			t.Errorf("%s is from %q, want %q", option, got, want)
		}
	}
}

// Of a text that has several values, metadata keeps its blanks and a command its commas.
func TestSplitTexts(t *testing.T) {
	for _, tt := range []struct {
		option, text string
		want         []string
	}{
		{"network", "front, back\nside", []string{"front", "back", "side"}},
		{"network", " ", nil},
		{"meta", "title=My shop, route_path=/", []string{"title=My shop", "route_path=/"}},
		{"meta", "title=My shop\nroute_path=/\n", []string{"title=My shop", "route_path=/"}},
		{"file", "a:b:echo 1, 2\nc:d\n", []string{"a:b:echo 1, 2", "c:d"}},
	} {
		if got := split(tt.option, tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("%s %q: %q, want %q", tt.option, tt.text, got, tt.want)
		}
	}
	c, err := configOf(t, serviceCommand(), "", "BERTH_META=title=My shop,route_path=/")
	if want := []string{"title=My shop", "route_path=/"}; err != nil || !slices.Equal(c.Process.Meta, want) {
		t.Errorf("%q, %v, want %q", c.Process.Meta, err, want)
	}
}

// A list where there is to be a text is an error that says how several values are written.
func TestListForText(t *testing.T) {
	_, err := configOf(t, templaterCommand(), "tcp-ports: [5432, 6000-6099]\n")
	if err == nil || !strings.HasSuffix(err.Error(), "tcp-ports must be a string, not the list [5432 6000-6099]: separate several values with commas") {
		t.Error(err)
	}
}

// Weight 0 is no new requests, as in SERVICE_WEIGHT=0.
func TestServiceWeight(t *testing.T) {
	for _, tt := range []struct {
		weight string
		want   int // 0 = Consul's default
		meta   string
	}{
		{"", 1, ""},
		{"7", 7, ""},
		{"0", 0, "0"},
	} {
		c, err := configOf(t, serviceCommand(), "name: www\nport: 20001\n", "BERTH_WEIGHT="+tt.weight)
		if err != nil {
			t.Fatal(err)
		}
		process, err := c.instance("vm")
		if err != nil {
			t.Fatal(err)
		}
		in, err := process.Instance()
		if err != nil || in.Weight != tt.want || in.Meta["weight"] != tt.meta {
			t.Errorf("%q: weight %d, metadata %v, %v", tt.weight, in.Weight, in.Meta, err)
		}
	}
}

// A wrong network or listener is an error at the start that names it.
func TestOptionsOfProxiesInFront(t *testing.T) {
	for _, tt := range []struct{ trusted, listeners, err string }{
		{"10.0.0.0/8,::1", "http,5432", ""},
		{"", "none", ""},
		{"10.0.0.0/99", "none", `trusted-proxies: "10.0.0.0/99" is neither a network`},
		{"10.0.0.0/8", "ftp", `proxy-protocol: "ftp" is neither a port`},
		{"", "http", "proxy-protocol needs trusted-proxies"},
		{" ", "http", "proxy-protocol needs trusted-proxies"},
	} {
		c := newConfig()
		c.allFlags() // the defaults
		c.TrustedProxies, c.ProxyProtocol = tt.trusted, tt.listeners
		err := c.validate()
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// How long requests wait, and how many, are bounded.
func TestRouteHold(t *testing.T) {
	for _, tt := range []struct {
		yaml, err string
		hold      time.Duration
		most      int
	}{
		{"", "", 10 * time.Second, 2000},
		{"route-hold: 0\nroute-hold-max: 0\n", "", 0, 0},
		{"route-hold: 5m\nroute-hold-max: 20000\n", "", 5 * time.Minute, 20000},
		{"route-hold: 301s\n", "route-hold must be from 0 to 5m, not 5m1s", 0, 0},
		{"route-hold-max: -1\n", "route-hold-max must be from 0 to 20000, not -1", 0, 0},
		{"route-hold-max: 20001\n", "route-hold-max must be from 0 to 20000, not 20001", 0, 0},
	} {
		c, err := configOf(t, templaterCommand(), tt.yaml)
		if tt.err != "" {
			if err == nil || !strings.HasSuffix(err.Error(), tt.err) {
				t.Errorf("%q: %v", tt.yaml, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if o, err := c.templateOptions(); err != nil || o.Hold != tt.hold || o.HoldMax != tt.most {
			t.Errorf("%q: %v, %d, %v", tt.yaml, o.Hold, o.HoldMax, err)
		}
	}
}
