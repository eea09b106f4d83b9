package registrar

import (
	"testing"

	"berth/registrar/agent"
)

// An empty name, as from an empty variable, does not match the beginning of the only container's ID.
func TestFindEmptyName(t *testing.T) {
	w := newCluster()
	w.hold(owned("vm:a:80", "a", "ENGINE"))
	f := Finder{Agent: agent.Agent{Client: w.Agent}, Docker: w}
	if ids, err := f.Find(t.Context(), ""); err == nil {
		t.Errorf("found %q", ids)
	}
	if ids, err := f.Find(t.Context(), "a"); err != nil || len(ids) != 1 {
		t.Errorf("found %q: %v", ids, err)
	}
}
