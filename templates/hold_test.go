package templates

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"

	"berth/templates/claim"
	"berth/templates/haproxy"
	"berth/templates/route"
)

// A map has the backends with a different wait.
func TestHoldMap(t *testing.T) {
	c := catalog{}
	c.with("usual", "usual-1", "10.0.0.1", 80, route.KeyPath, "/usual", route.KeyHold, "10s")
	c.with("long", "long-1", "10.0.0.2", 80, route.KeyHost, "long.com,also.com", route.KeyPort, "5432", route.KeyHold, "1m500ms")
	c.with("none", "none-1", "10.0.0.3", 80, route.KeyPath, "/none", route.KeyHold, "off")
	c.with("silent", "silent-1", "10.0.0.4", 80, route.KeyPath, "/silent")
	// Clients of a drained server stay with it and have nothing to wait for.
	c.with("drained", "drained-1", "10.0.0.5", 80, route.KeyPath, "/drained", route.KeySticky, "true", claim.KeyWeight, "0")
	c.with("down", "down-1", "10.0.0.6", 80, route.KeyPath, "/down", route.KeySticky, "true").Status = dependency.HealthCritical
	c.with("half", "half-1", "10.0.0.7", 80, route.KeyPath, "/half", route.KeySticky, "true", claim.KeyWeight, "0")
	c.with("half", "half-2", "10.0.0.8", 80, route.KeyPath, "/half", route.KeySticky, "true")
	for hold, want := range map[time.Duration]string{
		10 * time.Second: "drained 0\nlong 60500\nlong.tcp 60500\nnone 0\n",
		0:                "long 60500\nlong.tcp 60500\nusual 10000\n",
	} {
		r := renderWith(t, c, Options{Hold: hold, HoldMax: 7}, inOrder)
		lines := slices.Sorted(strings.Lines(r.files["hold.map"]))
		if diff := cmp.Diff(want, strings.Join(lines, "")); diff != "" {
			t.Errorf("%v: %s", hold, diff)
		}
		if line := fmt.Sprintf("map_str_int(/etc/haproxy/haproxy.cfg.hold.map,%d)", hold.Milliseconds()); strings.Count(r.text, line) != 3 {
			t.Errorf("%v: %s is not in the text for requests, those of the worker before, and connections", hold, line)
		}
	}
}

// A changed wait changes a map, which needs no reload.
func TestHoldChangesNoText(t *testing.T) {
	render := func(hold string) rendered {
		c := catalog{}
		c.with("web", "web-1", "10.0.0.1", 80, route.KeyPath, "/", route.KeyHold, hold)
		return renderWith(t, c, Options{Hold: 10 * time.Second, HoldMax: 2000}, inOrder)
	}
	long, none := render("5m"), render("0")
	if diff := cmp.Diff(long.text, none.text); diff != "" || long.files["hold.map"] == none.files["hold.map"] {
		t.Errorf("%s%q %q", diff, long.files["hold.map"], none.files["hold.map"])
	}
}

// A waiting request checks often enough to see a server within 5 % and 20 ms, and never waits longer than allowed.
func TestPauses(t *testing.T) {
	after := 0
	for n, p := range haproxy.Pauses() {
		if p.After != after || p.Milliseconds > after/20+20 || p.Milliseconds < 10 {
			t.Errorf("pause %d: %+v after %d ms", n, p, after)
		}
		after += p.Milliseconds
	}
	if most := claim.MaxHold.Milliseconds(); int64(after) < most {
		t.Errorf("the pauses end after %d ms, want %d", after, most)
	}
}

// Before 3.0, a connection that misses the end of its wait continues soon after.
func TestInspectDelay(t *testing.T) {
	for _, tt := range []struct{ version, hold, want string }{
		{"2.6", "30s", "35s"}, {"2.6", "0", "35s"}, {"2.6", "31s", "6m"}, {"3.0", "30s", "6m"}, {"", "30s", "35s"},
	} {
		c := catalog{}
		c.with("db", "db-1", "10.0.0.1", 80, route.KeyPort, "5432", route.KeyHold, tt.hold)
		o := Options{Hold: 10 * time.Second, HoldMax: 2000, HAProxyAtLeast: func(other string) bool { return tt.version >= other }}
		if text := renderWith(t, c, o, inOrder).text; !strings.Contains(text, "\n    tcp-request inspect-delay "+tt.want+"\n") {
			t.Errorf("%+v: not in the text", tt)
		}
	}
}

var pauseLine = regexp.MustCompile(`(?m)^    (http-request|tcp-request content) (pause|lua\.pause) [0-9]+(ms)? if \{ var\(txn\.hold\) -m int gt ([0-9]+) \} waits( !\{ stopping \})?$`)

// HAProxy's features decide how requests and connections wait.
func TestHowRequestsWait(t *testing.T) {
	all := len(haproxy.Pauses())
	for _, tt := range []struct {
		version    string
		lua, ports bool
		http, tcp  string // how they wait
		counters   bool
		loads      bool
		leftOut    string
	}{
		{"", true, true, "lua.pause", "lua.pause", false, true, ""},
		{"2.6", true, true, "lua.pause", "lua.pause", false, true, ""},
		{"2.8", true, false, "lua.pause", "", true, true, ""},
		{"3.2", true, true, "pause", "lua.pause", true, true, ""},
		{"3.2", true, false, "pause", "", true, false, ""},
		{"3.2", false, true, "pause", "", true, false, "so TCP connections cannot wait"},
		{"3.2", false, false, "pause", "", true, false, ""},
		{"3.0", false, true, "", "", true, false, "so requests and TCP connections cannot wait"},
		{"3.0", false, false, "", "", true, false, "so requests and TCP connections cannot wait"},
	} {
		o := Options{Hold: 10 * time.Second, HoldMax: 2000, HAProxyLua: func() bool { return tt.lua }, TCPPorts: route.Ports{}}
		if tt.version != "" {
			o.HAProxyAtLeast = func(other string) bool { return tt.version >= other }
		}
		if tt.ports {
			o.TCPPorts = unprivileged
		}
		r := renderWith(t, everyLabel(), o, inOrder)
		by, last := map[string]string{}, 0
		for n, m := range pauseLine.FindAllStringSubmatch(r.text, -1) {
			after, _ := strconv.Atoi(m[4])
			if n%all > 0 && after <= last {
				t.Errorf("%+v: pause after %d ms comes behind the one after %d", tt, after, last)
			}
			by[m[1]], last = m[2], after
		}
		if by["http-request"] != tt.http || by["tcp-request content"] != tt.tcp {
			t.Errorf("%+v: %v", tt, by)
		}
		if loads := strings.Contains(r.text, "\n    lua-load "+r.paths["pause.lua"]+"\n"); r.files["pause.lua"] != "" != tt.loads || tt.loads && !loads {
			t.Errorf("%+v: Lua is loaded: %v", tt, loads)
		}
		if strings.Contains(r.text, "tune.stick-counters") != tt.counters || strings.Contains(r.text, "track-sc3") != (tt.counters && tt.http != "") {
			t.Errorf("%+v: counters", tt)
		}
		leftOut := strings.Join(slices.DeleteFunc(r.leftOut, func(reason string) bool { return !strings.Contains(reason, "Lua") }), "\n")
		if tt.leftOut == "" && leftOut != "" || !strings.Contains(leftOut, tt.leftOut) {
			t.Errorf("%+v: left out %q", tt, leftOut)
		}
	}
}
