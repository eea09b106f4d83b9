package nginx

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"berth/proxyctl"
)

// The servers are those of the file, as long as nginx runs exactly that.
func TestServersOfProxy(t *testing.T) {
	n := startFake(t, "")
	p := n.proxy()
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); err != nil {
		t.Fatal(err)
	}
	servers, err := p.Servers(t.Context())
	if err != nil || len(servers) != 1 || servers[0].Address.String() != "10.0.0.1:80" || !servers[0].Usable || servers[0].Weight != 1 || servers[0].InFlight != proxyctl.UnknownInFlight {
		t.Errorf("%+v, %v", servers, err)
	}
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Fatal(err)
	}
	var got []string
	servers, err = p.Servers(t.Context())
	for _, s := range servers {
		got = append(got, fmt.Sprint(s.Address))
	}
	slices.Sort(got)
	if err != nil || strings.Join(got, " ") != "10.0.0.1:80 10.0.0.2:80" {
		t.Errorf("%s, %v", got, err)
	}
	n.set(func() { n.running = n.marked(oldText) })
	if servers, err := p.Servers(t.Context()); err == nil || !strings.Contains(err.Error(), "does not run the configuration in") {
		t.Errorf("nginx runs another text than the file's: %+v, %v", servers, err)
	}
	n.kill()
	if servers, err := p.Servers(t.Context()); err == nil {
		t.Errorf("nginx is away: %+v", servers)
	}
}
