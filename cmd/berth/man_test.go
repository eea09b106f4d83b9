//go:build man

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command that a user sees has a page, with its text, and no page has an error.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SOURCE_DATE_EPOCH", "1000000000")
	if err := writeManual(rootCommand(), dir); err != nil {
		t.Fatal(err)
	}
	pages := 0
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || !cmd.IsAvailableCommand() && cmd.HasParent() {
			return
		}
		pages++
		file := filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			return
		}
		if !strings.Contains(string(text), "2001") || !strings.Contains(string(text), ".SH SYNOPSIS") {
			t.Errorf("%s: no page, or not of the date that was set:\n%.500s", file, text)
		}
		if groff, err := exec.LookPath("groff"); err == nil {
			if out, err := exec.Command(groff, "-man", "-ww", "-z", file).CombinedOutput(); err != nil || strings.Contains(string(out), "error") {
				t.Errorf("%s: %v: %s", file, err, out)
			}
		}
		for _, below := range cmd.Commands() {
			check(below)
		}
	}
	check(rootCommand())
	if pages < 25 {
		t.Errorf("%d pages were checked", pages)
	}
}
