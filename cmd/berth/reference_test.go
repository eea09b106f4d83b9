//go:build man

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// The reference in the repository is what the code says.
func TestReference(t *testing.T) {
	for name, want := range reference() {
		file := filepath.Join("../../docs/reference", name)
		have, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(strings.Split(string(have), "\n"), strings.Split(want, "\n")); diff != "" {
			t.Errorf("%s is not what the code says: run make reference (- file, + code)\n%s", file, diff)
		}
	}
}

// Every command and every option that a user sees is in the reference.
func TestReferenceIsComplete(t *testing.T) {
	pages := reference()
	for _, cmd := range rootCommand().Commands() {
		if cmd.IsAvailableCommand() && !strings.Contains(pages["cli.md"], "\n## berth "+cmd.Name()+"\n") {
			t.Errorf("cli.md has no section on %s: name it in commandGroups", cmd.Name())
		}
	}
	options().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(pages["configuration.md"], "\n| `"+f.Name+"` |") {
			t.Errorf("configuration.md has no option %s: name it in flagGroups", f.Name)
		}
	})
}
