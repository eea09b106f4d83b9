package main

import "testing"

func TestNginxVersion(t *testing.T) {
	v := &nginxVersion{}
	if v.set("1.26.3") {
		t.Error("templates that ask for no version would be told something else")
	}
	for _, step := range []struct {
		known      string
		differs    bool
		atLeast125 bool
		atLeast127 bool
	}{
		{known: "1.26.3", differs: false, atLeast125: true, atLeast127: false},
		{known: "1.26.9", differs: false, atLeast125: true, atLeast127: false},
		{known: "1.30.0", differs: true, atLeast125: true, atLeast127: true},
		{known: "", differs: true, atLeast125: false, atLeast127: false},
		{known: "1.22.1", differs: false, atLeast125: false, atLeast127: false},
	} {
		if got := v.set(step.known); got != step.differs {
			t.Errorf("%q: templates would be told something else: %v", step.known, got)
		}
		if got := v.atLeast("1.25.1"); got != step.atLeast125 {
			t.Errorf("%q is at least 1.25.1: %v", step.known, got)
		}
		if got := v.atLeast("1.27.4"); got != step.atLeast127 {
			t.Errorf("%q is at least 1.27.4: %v", step.known, got)
		}
	}
}
