package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The pages of the program are given back, and are there when they are needed.
func TestReleaseMemory(t *testing.T) {
	mapped := func() (kB int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Skip(err)
		}
		_, after, _ := strings.Cut(string(status), "RssFile:")
		if _, err := fmt.Sscan(after, &kB); err != nil {
			t.Fatal(err)
		}
		return kB
	}
	before := mapped()
	releaseMemory()
	if after := mapped(); after > before*3/4 {
		t.Errorf("%d kB of files are mapped, and were %d kB before", after, before)
	}
}
