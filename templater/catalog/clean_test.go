package catalog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// Values that would break their line are dropped, for all templates and in any field.
func TestClean(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dependency.HealthService)
		reason string
	}{
		{"nothing", func(*dependency.HealthService) {}, ""},
		{"id", func(s *dependency.HealthService) { s.ID = "x\n  server evil 6.6.6.6:80" }, `service "web", instance "x\n  server evil 6.6.6.6:80": its id "x\n  server evil 6.6.6.6:80" has a line break`},
		{"carriage return", func(s *dependency.HealthService) { s.ID = "x\ry" }, `its id "x\ry" has a line break`},
		{"zero", func(s *dependency.HealthService) { s.ID = "x\x00y" }, `its id "x\x00y" has a line break`},
		{"next line", func(s *dependency.HealthService) { s.ID = "x\u0085y" }, `its id "x\u0085y" has a line break`},
		{"id with a blank", func(s *dependency.HealthService) { s.ID = "my web" }, ""},
		{"name", func(s *dependency.HealthService) { s.Name = "a\nb" }, `service "a\nb", instance "web-1": its name "a\nb" has`},
		{"node", func(s *dependency.HealthService) { s.Node = "a\tb" }, `its node "a\tb" has`},
		{"address", func(s *dependency.HealthService) { s.Address = "1.2.3.4\nglobal" }, `its address "1.2.3.4\nglobal" has a blank or a control character`},
		{"address with a blank", func(s *dependency.HealthService) { s.Address = "1.2.3.4 weight 0" }, `its address "1.2.3.4 weight 0" has a blank or a control character`},
		{"address of the node", func(s *dependency.HealthService) { s.NodeAddress = "1 2" }, `its address "1 2" has a blank or a control character`},
		{"tagged address", func(s *dependency.HealthService) {
			s.ServiceTaggedAddresses = map[string]api.ServiceAddress{"wan": {Address: "1\n2"}}
		}, `its address "1\n2" has a blank or a control character`},
		{"tagged addresses", func(s *dependency.HealthService) {
			s.ServiceTaggedAddresses = map[string]api.ServiceAddress{}
			for n := range 9 {
				s.ServiceTaggedAddresses[fmt.Sprint(n)] = api.ServiceAddress{Address: fmt.Sprint(n, " ", n)}
			}
		}, `its address "0 0" has`},
		{"tagged address of the node", func(s *dependency.HealthService) {
			s.NodeTaggedAddresses = map[string]string{"lan": "10.0.0.1", "wan": "1\n2"}
		}, `its address "1\n2" has`},
	} {
		s := &dependency.HealthService{ID: "web-1", Name: "web", Node: "n", Address: "10.0.0.1", NodeAddress: "fd00::1%eth0"}
		tt.change(s)
		e := &api.ServiceEntry{
			Node:    &api.Node{Node: s.Node, Address: s.NodeAddress, TaggedAddresses: s.NodeTaggedAddresses},
			Service: &api.AgentService{ID: s.ID, Service: s.Name, Address: s.Address, TaggedAddresses: s.ServiceTaggedAddresses},
		}
		good := &dependency.HealthService{ID: "web-2", Name: "web"}
		list, reasons := clean([]*dependency.HealthService{s, good})
		if got := len(list.([]*dependency.HealthService)); (got == 2) != (tt.reason == "") {
			t.Errorf("%s: %d are left", tt.name, got)
		}
		entries, more := clean([]*api.ServiceEntry{e})
		if got := len(entries.([]*api.ServiceEntry)); (got == 1) != (tt.reason == "") {
			t.Errorf("%s: %d entries are left", tt.name, got)
		}
		if diff := cmp.Diff(reasons, more); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if got := strings.Join(reasons, "\n"); !strings.Contains(got, tt.reason) || (got == "") != (tt.reason == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.reason)
		}
	}

	// A list with one item per line is still a list.
	list, reasons := clean([]*api.ServiceEntry{{Node: &api.Node{}, Service: &api.AgentService{
		ID: "web-1", Tags: []string{"a\nb"}, Meta: map[string]string{"route_host": "a.example.com\nb.example.com"}}}})
	s := list.([]*api.ServiceEntry)[0].Service
	if s.Tags[0] != "a b" || s.Meta["route_host"] != "a.example.com b.example.com" || reasons != nil {
		t.Errorf("%q %q %q", s.Tags, s.Meta, reasons)
	}
	names, reasons := clean([]*dependency.CatalogSnippet{{Name: "a\nb"}, {Name: "hc name"}})
	if got := names.([]*dependency.CatalogSnippet); len(got) != 1 || got[0].Name != "hc name" || len(reasons) != 1 {
		t.Errorf("%v %q", got, reasons)
	}
	nodes, reasons := clean([]*dependency.Node{{Node: "a\nb"}, {Node: "a", Address: "1 2"}, {Node: "b"}})
	if got := nodes.([]*dependency.Node); len(got) != 1 || len(reasons) != 2 {
		t.Errorf("%v %q", got, reasons)
	}
	entry, reasons := clean(&dependency.CatalogNode{Node: &dependency.Node{Node: "a", Meta: map[string]string{"rack": "1\n2"}}, Services: []*dependency.CatalogNodeService{
		{ID: "web-1", Service: "web", Tags: []string{"a\nb"}}, {ID: "x\n  server evil 6.6.6.6:80", Service: "web"}, {ID: "web-2", Service: "web", Address: "1 2"}}})
	n := entry.(*dependency.CatalogNode)
	if len(n.Services) != 1 || n.Services[0].Tags[0] != "a b" || n.Node.Meta["rack"] != "1 2" || len(reasons) != 2 || !strings.Contains(reasons[0], `service "web", instance "x\n  server`) {
		t.Errorf("%+v %q", n, reasons)
	}
	if bad, reasons := clean(&dependency.CatalogNode{Node: &dependency.Node{Node: "a\nb"}}); !isEmpty(bad) || len(reasons) != 1 {
		t.Errorf("%+v %q", bad, reasons)
	}
	if none, reasons := clean(&dependency.CatalogNode{}); !isEmpty(none) || reasons != nil {
		t.Errorf("%+v %q", none, reasons)
	}
	if value, reasons := clean("two\nlines"); value != "two\nlines" || reasons != nil {
		t.Errorf("a key is %q", value)
	}
}
