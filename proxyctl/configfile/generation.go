package configfile

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Generation is the mark of a text, by which a running proxy reports what it has loaded. Text is a fingerprint of the whole text.
// Shape leaves out servers and everything else that can change in the running proxy.
type Generation struct{ Shape, Text string }

// NewGeneration returns the mark of a text with this shape.
func NewGeneration(shape, text string) Generation {
	return Generation{fingerprint(shape), fingerprint(text)}
}

func fingerprint(s string) string {
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%x", sum[:16])
}

func (g Generation) String() string { return g.Shape + "." + g.Text }

// SameShape reports whether two marks belong to texts that differ at most in what can change in the running proxy.
func (g Generation) SameShape(o Generation) bool { return g.Shape != "" && g.Shape == o.Shape }

// ParseGeneration parses what String returns. It returns the zero Generation for anything else.
func ParseGeneration(s string) Generation {
	shape, text, ok := strings.Cut(strings.TrimSpace(s), ".")
	if !ok {
		return Generation{}
	}
	return Generation{shape, text}
}
