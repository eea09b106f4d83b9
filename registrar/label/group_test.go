package label

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestGroup(t *testing.T) {
	restart, hup := Reaction{Restart: true}, Reaction{Signal: 1}
	for _, tt := range []struct {
		name   string
		labels string // separated by spaces
		policy []Rule
		want   Group
		reason string // part of a reason; "" = none
	}{
		{name: "none", labels: "SERVICE_NAME=app"},
		{name: "a configuration", labels: "SERVICE_CONFIG=/etc/app/c.toml", want: Group{Config: "/etc/app/c.toml", OnChange: restart, Strategy: "rolling"}},
		{
			name: "all of it", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_ON_CHANGE=hup SERVICE_CONFIG_STRATEGY=at-once SERVICE_FILES=/f/ SERVICE_ON_FILE=none SERVICE_TOPOLOGY=leader SERVICE_LEADER_PRIORITY=-3",
			want: Group{Config: "/c", OnChange: hup, Strategy: "at-once", Files: "/f", Leader: true, Priority: -3},
		},
		{name: "files do as the configuration does", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_ON_CHANGE=SIGHUP SERVICE_FILES=/f", want: Group{Config: "/c", OnChange: hup, Strategy: "rolling", Files: "/f", OnFile: hup}},
		{name: "a strategy alone is for orders to restart", labels: "SERVICE_CONFIG_STRATEGY=none", want: Group{Strategy: "none"}},
		{name: "a leader is not changed", labels: "SERVICE_TOPOLOGY=leader", want: Group{Leader: true}},
		{name: "relative", labels: "SERVICE_CONFIG=etc/c", reason: `it does not take part in its group: SERVICE_CONFIG="etc/c" is not an absolute path`},
		{name: "..", labels: "SERVICE_CONFIG=/etc/../c", reason: "is not an absolute path, or has a part like .."},
		{name: "the root", labels: "SERVICE_FILES=/", reason: `SERVICE_FILES="/" is not an absolute path`},
		{name: "a directory as the configuration", labels: "SERVICE_CONFIG=/etc/", reason: "SERVICE_CONFIG"},
		{name: "the configuration among the files", labels: "SERVICE_CONFIG=/f/c SERVICE_FILES=/f", reason: "is in the directory of SERVICE_FILES"},
		{name: "a word that is not a signal", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_ON_CHANGE=reload", reason: `"reload" is not known: use restart, none, or a signal like HUP`},
		{name: "a signal that kills", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_ON_CHANGE=KILL", reason: "ends the container: use restart"},
		{name: "the stop signal", labels: "SERVICE_CONFIG=/c SERVICE_ON_FILE=TERM", reason: "ends the container: use restart"},
		{name: "no strategy", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_STRATEGY=canary", reason: `"canary" is not a strategy`},
		{name: "no topology", labels: "SERVICE_CONFIG=/c SERVICE_TOPOLOGY=ring", reason: `"ring" is not a topology`},
		{name: "no priority", labels: "SERVICE_TOPOLOGY=leader SERVICE_LEADER_PRIORITY=high", reason: `"high" is not a number`},
		{name: "a setting of nothing", labels: "SERVICE_ON_FILE=none", reason: "SERVICE_ON_FILE has no effect without SERVICE_FILES"},
		{name: "for a port", labels: "SERVICE_8080_CONFIG=/c", reason: "SERVICE_8080_CONFIG is ignored: it applies to the whole container; set SERVICE_CONFIG"},
		{name: "misspelt", labels: "SERVICE_CONFG=/c", reason: "did you mean SERVICE_CONFIG?"},
		{name: "empty", labels: "SERVICE_CONFIG="},
		{name: "the policy allows it", labels: "SERVICE_CONFIG=/c", policy: []Rule{{Keys: []string{"config"}}}, want: Group{Config: "/c", OnChange: restart, Strategy: "rolling"}},
		{name: "the policy forbids it", labels: "SERVICE_CONFIG=/c", policy: []Rule{{Keys: []string{"name"}}}, reason: "SERVICE_CONFIG is ignored: the policy does not allow it"},
		{
			name: "the policy forbids how", labels: "SERVICE_CONFIG=/c SERVICE_CONFIG_ON_CHANGE=none", policy: []Rule{{Keys: []string{"config"}}},
			reason: "it does not take part in its group: the policy does not allow SERVICE_CONFIG_ON_CHANGE",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := web()
			c.StopSignal, c.StopTimeout = 15, 10*time.Second
			c.Labels = map[string]string{}
			for _, kv := range strings.Fields(tt.labels) {
				key, value, _ := strings.Cut(kv, "=")
				c.Labels[key] = value
			}
			h := host
			h.Policy = tt.policy
			instances, reasons := Instances(c, h)
			if len(instances) != 1 {
				t.Fatalf("it is not registered: %q", reasons)
			}
			if instances[0].Group != tt.want {
				t.Errorf("got %+v, want %+v", instances[0].Group, tt.want)
			}
			if tt.reason == "" && len(reasons) > 0 || tt.reason != "" && !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, tt.reason) }) {
				t.Errorf("reasons %q, want %q", reasons, tt.reason)
			}
			for key := range instances[0].Meta {
				if isGroupKey(key) || key == keyGroup {
					t.Errorf("%s is metadata", key)
				}
			}
		})
	}
}

func TestServiceOfAGroup(t *testing.T) {
	for _, tt := range []struct {
		name   string
		labels map[string]string
		policy []Rule
		ports  int
		want   []string
		reason string
	}{
		{name: "a group", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "prod"}, ports: 1, want: []string{"app-prod"}},
		{name: "the default one", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "default"}, ports: 1, want: []string{"app"}},
		{
			name: "several ports", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "prod", "SERVICE_CONFIG": "/c"}, ports: 2, want: []string{"app-8080-prod", "app-8081-prod"},
			reason: "it takes part only in the group of app-8080-prod, the service of its lowest port",
		},
		{name: "a dot", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "a.b"}, ports: 1, reason: `SERVICE_GROUP="a.b" is not a group name`},
		{
			name: "not allowed", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "test"}, ports: 1, policy: []Rule{{Keys: []string{"name"}}},
			reason: "the policy does not allow SERVICE_GROUP for this container, and without it the container would join another group",
		},
		{name: "the policy's name", labels: map[string]string{"SERVICE_NAME": "app", "SERVICE_GROUP": "test"}, ports: 1, policy: []Rule{{Services: []string{"app"}}}, reason: "does not allow it to register the service app-test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := web()
			c.Labels = tt.labels
			for n := 1; n < tt.ports; n++ {
				c.Ports = append(c.Ports, Port{Number: uint16(8080 + n), Protocol: "tcp"})
			}
			h := host
			h.Policy = tt.policy
			instances, reasons := Instances(c, h)
			var got []string
			for _, in := range instances {
				got = append(got, in.Name)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("services %q, want %q", got, tt.want)
			}
			if tt.reason != "" && !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, tt.reason) }) {
				t.Errorf("reasons %q, want %q", reasons, tt.reason)
			}
		})
	}
}
