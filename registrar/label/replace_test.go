package label

import (
	"slices"
	"strings"
	"testing"
)

// composed returns a container made by compose v2 that asks to start before the one it replaces.
func composed(changes ...func(*Container)) Container {
	c := web(label("com.docker.compose.project", "shop"), label("com.docker.compose.service", "app"), label("com.docker.compose.version", "2.40.3"),
		label("SERVICE_REPLACE", "start-first"), label("SERVICE_STOP_SIGNAL", "TERM"))
	c.StopSignal = 18
	for _, change := range changes {
		change(&c)
	}
	return c
}

func TestStartsFirst(t *testing.T) {
	without := func(name string) func(*Container) { return func(c *Container) { delete(c.Labels, name) } }
	for _, tt := range []struct {
		name   string
		in     Container
		policy []Rule
		asked  bool
		why    string // "" = it fits
	}{
		{"it fits", composed(), nil, true, ""},
		{"in quotes", composed(label("SERVICE_REPLACE", ` "start-first" `)), nil, true, ""},
		{"in lower case", composed(without("SERVICE_REPLACE"), label("service_replace", "start-first")), nil, true, ""},
		{"not asked for", composed(without("SERVICE_REPLACE")), nil, false, ""},
		{"empty", composed(label("SERVICE_REPLACE", "")), nil, false, ""},
		{"stop-first", composed(label("SERVICE_REPLACE", "stop-first")), nil, false, ""},
		{"another word", composed(label("SERVICE_REPLACE", "yes")), nil, true, "use start-first or stop-first"},
		{"in the environment", composed(without("SERVICE_REPLACE"), env("SERVICE_REPLACE=start-first")), nil, true, "make it a label"},
		{"allowed", composed(), []Rule{{Keys: []string{"replace", "stop_signal"}}}, true, ""},
		{"not allowed", composed(), []Rule{{Keys: []string{"stop_signal"}}}, true, "the policy does not allow it"},
		{"its signal is not allowed", composed(), []Rule{{Keys: []string{"replace"}}}, true, "stop_signal: SIGCONT"},
		{"docker-compose 1", composed(label("com.docker.compose.version", "1.29.2")), nil, true, "use docker compose (v2)"},
		{"compose 10", composed(label("com.docker.compose.version", "10.0.0")), nil, true, ""},
		{"docker run", composed(without("com.docker.compose.project")), nil, true, "it did not create this one"},
		{"no real signal", composed(without("SERVICE_STOP_SIGNAL")), nil, true, "the real signal in SERVICE_STOP_SIGNAL"},
		{"Docker's own signal", composed(func(c *Container) { c.StopSignal = 15 }), nil, true, "stop_signal: SIGCONT"},
		{"one at a time", composed(label("SERVICE_SINGLE", "true")), nil, true, "SERVICE_SINGLE"},
		{"one at a time, whatever the policy", composed(label("SERVICE_SINGLE", "true")), []Rule{{Keys: []string{"replace", "stop_signal"}}}, true, "SERVICE_SINGLE"},
		{"one at a time, perhaps", composed(label("SERVICE_SINGLE", "maybe")), nil, true, "SERVICE_SINGLE"},
		{"many at a time", composed(label("SERVICE_SINGLE", "no")), nil, true, ""},
		{"a port of the host", composed(func(c *Container) { c.HostPorts = []uint16{8080, 8443} }), nil, true, "the host port 8080"},
		{"the host's network", composed(func(c *Container) { c.HostNetwork = true }), nil, true, "its own network"},
		{"another's network", composed(func(c *Container) { c.NetworkOf = "vpn" }), nil, true, "its own network"},
		{"an ID", composed(label("SERVICE_ID", "app")), nil, true, "SERVICE_ID"},
		{"an ID of a port", composed(label("SERVICE_8080_ID", "app")), nil, true, "SERVICE_ID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked, why := StartsFirst(tt.in, tt.policy)
			if asked != tt.asked || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
				t.Errorf("asked %t, why %q; want %t, %q", asked, why, tt.asked, tt.why)
			}
			if alone := AsksToStartFirst(tt.in.Labels); alone != tt.asked && tt.name != "in the environment" {
				t.Errorf("its labels ask for it: %t", alone)
			}
			h := host
			h.Policy = tt.policy
			_, reasons := Instances(tt.in, h)
			said := slices.ContainsFunc(reasons, func(r string) bool {
				return strings.Contains(r, "SERVICE_REPLACE=") && strings.Contains(r, tt.why) || strings.Contains(r, "SERVICE_REPLACE is ignored")
			})
			if said != (tt.why != "") {
				t.Errorf("reasons %q", reasons)
			}
		})
	}
}

// A container that is started first has its own service ID from the start, and keeps it when compose renames it. All others
// have an ID by name.
func TestServiceIDBesideTheOld(t *testing.T) {
	replaced := func(c *Container) {
		c.ID, c.Name = "bbbbbbbbbbbb0000", "aaaaaaaaaaaa_shop-app-1"
		c.Labels[ReplaceLabel] = "app-1"
	}
	renamed := func(c *Container) { c.Name = "shop-app-1" }
	for name, tt := range map[string]struct {
		in   Container
		want string
	}{
		"before":       {composed(replaced), "vm:shop-app-1-bbbbbbbbbbbb:8080"},
		"after":        {composed(replaced, renamed), "vm:shop-app-1-bbbbbbbbbbbb:8080"},
		"never one":    {composed(renamed), "vm:shop-app-1-0123456789ab:8080"},
		"not asked":    {composed(renamed, label("SERVICE_REPLACE", "")), "vm:shop-app-1:8080"},
		"does not fit": {composed(renamed, label("SERVICE_SINGLE", "1")), "vm:shop-app-1:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "never one" {
				tt.in.ID = "0123456789abcdef"
			}
			got, reasons := Instances(tt.in, host)
			if len(got) != 1 || got[0].ID != strings.Replace(tt.want, "vm:", host.Name+":", 1) {
				t.Errorf("got %+v (%q), want %s", got, reasons, tt.want)
			}
			for _, key := range replaceKeys {
				if _, is := got[0].Meta[key]; is {
					t.Errorf("%s is metadata", key)
				}
			}
		})
	}
}

func TestReplaceIsForTheWholeContainer(t *testing.T) {
	_, reasons := Instances(composed(label("SERVICE_8080_REPLACE", "stop-first"), label("SERVICE_8080_SINGLE", "1")), host)
	for _, want := range []string{"SERVICE_8080_REPLACE is ignored: it applies to the whole container", "SERVICE_8080_SINGLE is ignored"} {
		if !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, want) }) {
			t.Errorf("reasons %q, want %q", reasons, want)
		}
	}
}

func TestReplaces(t *testing.T) {
	marked := map[string]string{ReplaceLabel: "app-1"}
	for _, tt := range []struct {
		name       string
		labels     map[string]string
		old, later string
	}{
		{"0123456789ab_shop-app-1", marked, "0123456789ab", "shop-app-1"},
		{"shop-app-1", marked, "", "shop-app-1"},
		{"0123456789ab_shop-app-1", nil, "", "0123456789ab_shop-app-1"},
		{"0123456789AB_shop-app-1", marked, "", "0123456789AB_shop-app-1"},
		{"0123456789ab_", marked, "", "0123456789ab_"},
		{"0123456789abc_app", marked, "", "0123456789abc_app"},
	} {
		if old, later := Replaces(tt.name, tt.labels); old != tt.old || later != tt.later {
			t.Errorf("%s: %q, %q; want %q, %q", tt.name, old, later, tt.old, tt.later)
		}
	}
}
