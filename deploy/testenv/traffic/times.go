//go:build e2e

package traffic

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Times are durations; some methods need them sorted.
type Times []time.Duration

// Sorted sorts them in place.
func (ts Times) Sorted() Times {
	slices.Sort(ts)
	return ts
}

// Within returns the time within which the given share of them lies, if they are sorted: 0.5 for the median, 1 for all.
func (ts Times) Within(share float64) time.Duration {
	if len(ts) == 0 {
		return 0
	}
	return ts[int(share*float64(len(ts)-1))]
}

// Ms formats a duration in milliseconds for a table.
func Ms(d time.Duration) string {
	digits := 1
	if d >= 100*time.Millisecond {
		digits = 0
	}
	return strconv.FormatFloat(Millis(d), 'f', digits, 64)
}

// Millis returns a duration in milliseconds.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// LoadAverage returns the load average of the machine over the last minute.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(b))[0]
}
