package main

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

// What was stamped in is said, as a line and as JSON.
func TestVersion(t *testing.T) {
	version, commit, date = "v1.2.3", "6d0af59c40f2", "2026-11-27"
	t.Cleanup(func() { version, commit, date = "dev", "", "" })
	for _, args := range [][]string{{"version"}, {"--version"}} {
		out, err := berthCommand(t, args...)
		want := "berth v1.2.3 (commit 6d0af59c40f2, built 2026-11-27, " + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")\n"
		if out != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", args, out, err, want)
		}
	}
	out, err := berthCommand(t, "version", "--format", "json")
	var got build
	if err == nil {
		err = json.Unmarshal([]byte(out), &got)
	}
	if want := (build{"v1.2.3", "6d0af59c40f2", "2026-11-27", runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}); got != want || err != nil {
		t.Errorf("%s: %+v, %v, want %+v", out, got, err, want)
	}
	_, err = berthCommand(t, "version", "--format", "table")
	var said strings.Builder
	if code := exitCode(t.Context(), &said, err); code != exitUsage || !strings.Contains(said.String(), `--format must be text or json, not "table"`) {
		t.Errorf("%d %s", code, said.String())
	}
}
