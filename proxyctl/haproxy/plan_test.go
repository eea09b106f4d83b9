package haproxy

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestCompare(t *testing.T) {
	const frame = "global\n maxconn 9\ndefaults\n mode http\nfrontend web\n bind :80\n default_backend app\n"
	app := func(servers string) string { return frame + "backend app\n balance roundrobin\n" + servers }
	const two = " server a 10.0.0.1:80\n server b 10.0.0.2:80\n"
	tests := []struct {
		name          string
		before, after string
		ops           []string
		reload        string
	}{
		{name: "equal", before: app(two), after: app(two)},
		{name: "comments, blank lines, blanks and order", before: app(two), after: "# new\n\n" + app(" server   b 10.0.0.2:80 # old\n\n\tserver a  10.0.0.1:80\n")},
		{name: "added", before: app(two), after: app(two + " server c 10.0.0.3:80\n"), ops: []string{"add app/c"}},
		{name: "removed", before: app(two), after: app(" server b 10.0.0.2:80\n"), ops: []string{"remove app/a"}},
		{name: "replaced: what enters comes first", before: app(two), after: app(" server c 10.0.0.3:80\n server b 10.0.0.2:80\n"), ops: []string{"add app/c", "remove app/a"}},
		{name: "the last one removed", before: app(two), after: app(""), ops: []string{"remove app/a", "remove app/b"}},
		{name: "address", before: app(two), after: app(" server a 10.0.0.9:80\n server b 10.0.0.2:81\n"), ops: []string{"move app/a to 10.0.0.9:80", "move app/b to 10.0.0.2:81"}},
		{name: "weight", before: app(two), after: app(" server a 10.0.0.1:80 weight 9\n server b 10.0.0.2:80\n"), ops: []string{"set weight of app/a to 9"}},
		{name: "disabled", before: app(two), after: app(" server a 10.0.0.1:80 disabled\n server b 10.0.0.2:80\n"), ops: []string{"take out app/a"}},
		{name: "enabled", before: app(" server a 10.0.0.1:80 disabled\n"), after: app(" server a 10.0.0.1:80\n"), ops: []string{"put back app/a"}},
		{name: "what could not be added is no obstacle as long as it stays", before: app(" server x name:80\n"), after: app(" server x name:80\n" + two), ops: []string{"add app/a", "add app/b"}},
		{name: "and can be removed", before: app(" server x name:80\n" + two), after: app(two), ops: []string{"remove app/x"}},
		{name: "but not be added", before: app(two), after: app(two + " server x name:80\n"), reload: `backend app: server x: its address "name:80" is not ip:port`},
		{name: "nor changed", before: app(" server x name:80\n"), after: app(" server x 10.0.0.1:80\n"), reload: `backend app: server x: changed: its address "name:80" is not ip:port`},
		{name: "keywords", before: app(two), after: app(" server a 10.0.0.1:80 maxconn 3\n server b 10.0.0.2:80\n"), reload: `backend app: server a: "" became "maxconn 3"`},
		{name: "default-server of a server that stays", before: app(two), after: app(" default-server check\n" + two), reload: "backend app: default-server line added"},
		{name: "a line added", before: app(two), after: strings.Replace(app(two), " bind :80\n", " bind :80\n bind :81\n", 1), reload: "frontend web: bind line added"},
		{name: "a line removed", before: app(two), after: strings.Replace(app(two), " maxconn 9\n", "", 1), reload: "global: maxconn line removed"},
		{name: "a line changed", before: app(two), after: strings.Replace(app(two), ":80\n", ":82\n", 1), reload: "frontend web: bind line changed"},
		{name: "another line instead", before: app(two), after: strings.Replace(app(two), "mode http", "mode tcp", 1), reload: "defaults: mode line changed"},
		{name: "lines swapped", before: app(two), after: strings.Replace(app(two), " bind :80\n default_backend app\n", " default_backend app\n bind :80\n", 1), reload: "frontend web: lines in another order"},
		{name: "a section added", before: app(two), after: app(two) + "backend new\n", reload: "backend new added"},
		{name: "a section removed", before: app(two) + "backend old\n", after: app(two), reload: "backend old removed"},
		{name: "sections swapped", before: frame + "backend a\nbackend b\n", after: frame + "backend b\nbackend a\n", reload: "sections in another order"},
		{name: "conditional blocks", before: app(".if defined(X)\n" + two + ".endif\n"), after: app(".if defined(X)\n" + two + " server c 10.0.0.3:80\n.endif\n"), reload: "it has conditional blocks (.if)"},
		{name: "two servers of one name", before: app(two), after: app(two + " server a 10.0.0.3:80\n"), reload: "backend app has two servers named a"},
		{name: "servers of other sections are none", before: frame + "peers p\n server a 10.0.0.1:80\n", after: frame + "peers p\n server b 10.0.0.1:80\n", reload: "peers p: server line changed"},
		{name: "a name that no command can hold", before: app(` server "a;b" 10.0.0.1:80` + "\n"), after: app(""), reload: "backend app: the name of server a;b cannot be written in a command"},
		{name: "removed, and used by name", before: app(" use-server a if { src 10.1.1.1 }\n" + two), after: app(" use-server a if { src 10.1.1.1 }\n server b 10.0.0.2:80\n"), reload: "backend app: server a removed, but the configuration seems to refer to it"},
		{name: "removed, and looked at from elsewhere", before: app(two) + "frontend g\n acl x srv_is_up(app/a)\n", after: app(" server b 10.0.0.2:80\n") + "frontend g\n acl x srv_is_up(app/a)\n", reload: "backend app: server a removed, but the configuration seems to refer to it"},
		{name: "removed, and tracked", before: app(two + " server t 10.0.0.3:80 track a\n"), after: app(" server b 10.0.0.2:80\n server t 10.0.0.3:80 track a\n"), reload: "backend app: server a removed, but the configuration seems to refer to it"},
		{name: "removed, and a word elsewhere is none of it", before: app(two) + "backend other\n use-server a if TRUE\n server a 10.0.0.1:80\n", after: app(" server b 10.0.0.2:80\n") + "backend other\n use-server a if TRUE\n server a 10.0.0.1:80\n", ops: []string{"remove app/a"}},
		{name: "nor taken out", before: app(` server "a;b" 10.0.0.1:80` + "\n"), after: app(` server "a;b" 10.0.0.1:80 disabled` + "\n"), reload: `backend app: server a;b: its line has quotes or escapes`},
		{name: "a disabled backend", before: app(" disabled\n" + two), after: app(" disabled\n" + two + " server c 10.0.0.3:80\n"), reload: "backend app is disabled"},
		{name: "nothing to do in a disabled backend", before: app(" disabled\n" + two), after: app("\n disabled\n" + two)},
		{name: "one that may be disabled", before: "defaults d\n disabled\n" + app(two), after: "defaults d\n disabled\n" + app(two+" server c 10.0.0.3:80\n"), reload: `defaults d contains "disabled"`},
		{name: "a keyword that all releases take", before: app(two), after: app(two + " server c 10.0.0.3:80 pool-conn-name var(txn.sent)\n"), ops: []string{"add app/c"}},
		{name: "listen sections have servers, too", before: frame + "listen l\n server a 10.0.0.1:80\n", after: frame + "listen l\n server b 10.0.0.1:80\n", ops: []string{"add l/b", "remove l/a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := parse(tt.before, nil)
			got := compare(before, parse(tt.after, before))
			var ops []string
			for _, o := range got.Ops {
				ops = append(ops, o.String())
			}
			if d := cmp.Diff(tt.ops, ops); d != "" || got.Reload != tt.reload {
				t.Errorf("reload: %q, want %q; ops (-want +got):\n%s", got.Reload, tt.reload, d)
			}
			checkPlan(t, before, parse(tt.after, nil))
		})
	}
}

// checkPlan carries out the plan between two configurations on a list of servers, and checks the result.
func checkPlan(t interface{ Fatalf(string, ...any) }, before, after *config) {
	p := compare(before, after)
	if p.Reload != "" {
		if len(p.Ops) > 0 {
			t.Fatalf("a reload and commands, too: %v", p)
		}
		return
	}
	if before.shape() != after.shape() {
		t.Fatalf("commands cannot change %q to %q", before.shape(), after.shape())
	}
	for name, b := range after.backends {
		servers := maps.Clone(before.backends[name].all())
		if servers == nil {
			servers = map[string]server{}
		}
		for _, o := range p.Ops {
			if o.backend != name {
				continue
			}
			s, there := servers[o.name]
			if there == (o.kind == opAdd) {
				t.Fatalf("%v: a server of that name is there: %v", o, there)
			}
			switch o.kind {
			case opAdd:
				if strings.ContainsAny(o.name+o.server.line(1), ";\n\\'\"#<$") {
					t.Fatalf("add server %s %s", o.name, o.server.line(1))
				}
				s = o.server
			case opMove:
				s.address = o.server.address
			case opWeight:
				s.weight = o.server.weight
			case opBack:
				s.disabled = false
			case opMaint:
				s.disabled = true
			}
			servers[o.name] = s
			if o.kind == opRemove {
				delete(servers, o.name)
			}
		}
		if !maps.Equal(servers, b.servers) {
			t.Fatalf("backend %s: %v makes of %v\n%v, want\n%v", name, p.Ops, before.backends[name].all(), servers, b.servers)
		}
	}
}

// The plan from any text to any other leads there, or says that it takes a reload.
func TestPlanLeadsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := texts(t)
		before := parse(a, nil)
		checkPlan(t, before, parse(b, before))
		if (mark(a, nil).Generation.Shape == mark(b, nil).Generation.Shape) != (difference(before.sections, parse(b, nil).sections) == "") {
			t.Fatalf("the mark does not tell the shapes of %q and %q apart, or where there is no difference", a, b)
		}
	})
}

// With servers of every kind in HAProxy (draining, unknown, taken out), the wanted state is reached, too.
func TestPlanFromLiveState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := func(name string) string {
			return fmt.Sprintf(" server %s 10.0.0.%d:80 weight %d%s\n", name, rapid.IntRange(1, 2).Draw(t, "ip"), rapid.IntRange(1, 2).Draw(t, "weight"),
				rapid.SampledFrom([]string{"", "", " disabled"}).Draw(t, "disabled"))
		}
		text := func(what string) string {
			s := "backend app\n"
			for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.ID[string]).Draw(t, what) {
				s += line(name)
			}
			return s
		}
		first, second := parse(text("first"), nil), parse(text("second"), nil)
		now := second.withDraining(first) // servers that are only in first leave
		p := compare(now, second)
		if p.Reload != "" {
			t.Fatalf("reload: %s", p.Reload)
		}
		for _, o := range p.Ops {
			if o.kind == opAdd || o.kind == opRemove {
				t.Fatalf("%v, though only draining servers differ", o)
			}
		}
		back := compare(now, first.withDraining(second))
		for _, o := range back.Ops {
			if _, leaves := second.backends["app"].get(o.name); o.kind == opRemove && !leaves {
				t.Fatalf("%v, which comes back", o)
			}
		}
	})
}
