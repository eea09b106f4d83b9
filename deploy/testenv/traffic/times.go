//go:build e2e

package traffic

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Times are durations, sorted where a method asks for it.
type Times []time.Duration

// Sorted sorts them in place.
func (ts Times) Sorted() Times {
	slices.Sort(ts)
	return ts
}

// Within is the time within which this share of them lies, if they are sorted: 0.5 for the median, 1 for all.
func (ts Times) Within(share float64) time.Duration {
	if len(ts) == 0 {
		return 0
	}
	return ts[int(share*float64(len(ts)-1))]
}

// Ms is a duration in milliseconds, for a table.
func Ms(d time.Duration) string {
	digits := 1
	if d >= 100*time.Millisecond {
		digits = 0
	}
	return strconv.FormatFloat(Millis(d), 'f', digits, 64)
}

// Millis is a duration in milliseconds.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// LoadAverage returns the load average of the machine over the last minute.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(b))[0]
}
