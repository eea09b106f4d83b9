package configfile

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Generation is the mark of a text, by which a running proxy tells what it has loaded: one fingerprint of all but the
// servers, and whatever else may come and go in the running proxy, and one of the whole.
type Generation struct{ Shape, Text string }

// NewGeneration makes the mark of a text of this shape.
func NewGeneration(shape, text string) Generation {
	return Generation{fingerprint(shape), fingerprint(text)}
}

func fingerprint(s string) string {
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%x", sum[:16])
}

func (g Generation) String() string { return g.Shape + "." + g.Text }

// SameShape says whether two marks are of texts that differ in such things at most.
func (g Generation) SameShape(o Generation) bool { return g.Shape != "" && g.Shape == o.Shape }

// ParseGeneration reads what String wrote. It returns the zero Generation for anything else.
func ParseGeneration(s string) Generation {
	shape, text, ok := strings.Cut(strings.TrimSpace(s), ".")
	if !ok {
		return Generation{}
	}
	return Generation{shape, text}
}
