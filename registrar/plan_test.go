package registrar

import (
	"slices"
	"testing"
)

// A key that is left out does not make a registered container one that is not.
func TestVerdicts(t *testing.T) {
	reasons := []string{`port 80/tcp: "SERVICE_A.B" is left out`}
	if got := (Planned{Reasons: reasons}).Verdicts(); !slices.Equal(got, []string{"not registered: " + reasons[0]}) {
		t.Errorf("of one that registers nothing: %q", got)
	}
	if got := (Planned{Reasons: reasons, Instances: make([]PlannedInstance, 1)}).Verdicts(); !slices.Equal(got, []string{"registered, but " + reasons[0]}) {
		t.Errorf("of one that registers something: %q", got)
	}
}
