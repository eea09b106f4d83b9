package supervise

import (
	"path/filepath"
	"strings"
)

// OptionValues returns all values of an option in a command line, in order.
func OptionValues(args []string, option string) []string {
	var values []string
	for i, arg := range args[:max(len(args)-1, 0)] {
		if value := args[i+1]; arg == option && !strings.HasPrefix(value, "-") {
			values = append(values, value)
		}
	}
	return values
}

// SamePath reports whether two paths are the same once they are absolute. It does not follow links.
func SamePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return a == b && errA == nil && errB == nil
}
