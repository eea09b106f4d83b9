package configfile

import "testing"

func TestGeneration(t *testing.T) {
	one, servers, other := NewGeneration("shape", "text"), NewGeneration("shape", "text with servers"), NewGeneration("another", "text")
	for _, tt := range []struct {
		name string
		a, b Generation
		same bool
	}{
		{"itself", one, NewGeneration("shape", "text"), true},
		{"other servers", one, servers, true},
		{"another shape", one, other, false},
		{"none", Generation{}, Generation{}, false},
		{"one and none", one, Generation{}, false},
	} {
		if got := tt.a.SameShape(tt.b); got != tt.same {
			t.Errorf("%s: the same shape: %v", tt.name, got)
		}
	}
	if one == servers || one == other {
		t.Error("different texts have the same mark")
	}
	for s, want := range map[string]Generation{
		one.String(): one, " " + one.String() + "\n": one, "": {}, "nonsense": {}, "a.b": {"a", "b"},
	} {
		if got := ParseGeneration(s); got != want {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}
