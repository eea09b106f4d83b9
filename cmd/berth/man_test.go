//go:build man

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// Every command that a user sees has a page, which says what its --help says, and nothing in it is bad roff.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2001, 9, 9, 1, 46, 40, 0, time.UTC)
	root := rootCommand()
	if err := writeManual(root, dir, at); err != nil {
		t.Fatal(err)
	}
	groff, noGroff := exec.LookPath("groff")
	mandoc, noMandoc := exec.LookPath("mandoc")
	if noGroff != nil && noMandoc != nil {
		t.Log("neither groff nor mandoc is here: the pages are not rendered")
	}
	var pages []string
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "environment" { // these are topics
			return
		}
		pages = append(pages, pageName(cmd)+".1")
		file := filepath.Join(dir, pageName(cmd)+".1")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			return
		}
		if title := `.TH "` + strings.ToUpper(pageName(cmd)) + `" "1" "2001-09-09" "berth `; !strings.HasPrefix(string(text), title) {
			t.Errorf("%s begins with %.80q, want %s", file, text, title)
		}
		if noGroff == nil {
			if out, err := exec.Command(groff, "-man", "-ww", "-z", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v: %s", file, err, out)
			}
			out, err := exec.Command(groff, "-man", "-Tascii", "-P-cbou", "-rLL=100n", file).Output()
			if err != nil {
				t.Errorf("%s: %v", file, err)
			}
			shown := strings.Join(strings.Fields(string(out)), " ")
			for _, says := range saidByHelp(cmd) {
				if says = strings.Join(strings.Fields(says), " "); !strings.Contains(shown, says) {
					t.Errorf("%s does not say %q:\n%s", file, says, out)
				}
			}
		}
		if noMandoc == nil {
			if out, err := exec.Command(mandoc, "-man", "-Tlint", "-Wwarning", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", file, err, out)
			}
		}
		for _, below := range cmd.Commands() {
			check(below)
		}
	}
	check(root)
	written, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(written) != len(pages) || len(pages) < 30 {
		t.Errorf("%d pages were checked, %d were written: %v", len(pages), len(written), err)
	}
}

// saidByHelp returns the parts of a command's --help.
func saidByHelp(cmd *cobra.Command) []string {
	parts := append(calls(cmd), cmd.Short, cmd.Example)
	parts = append(parts, strings.Split(cmd.Long, "\n\n")...)
	sections := append(commandSections(cmd), flagSections(cmd.Flags())...)
	if !cmd.HasParent() {
		sections = append(sections, environmentSections()...)
	}
	for _, s := range sections {
		parts = append(parts, s.title)
		for _, line := range s.lines {
			parts = append(parts, line[0]+" "+line[1])
		}
	}
	return parts
}

// Nothing in a text is taken for roff.
func TestRoff(t *testing.T) {
	var p manual
	p.text(".TH is 'no' macro\\n\n'nor this\n\n  a -x ~/\"b\" ^` …")
	p.macro("SH", `say "x"`)
	want := "\\&.TH is \\(aqno\\(aq macro\\(rsn\n\\(aqnor this\n" + ".PP\n.EX\n  a \\-x \\(ti/\"b\" \\(ha\\(ga \\[u2026]\n.EE\n" + ".SH \"say \\(dqx\\(dq\"\n"
	if got := p.String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The date is that of SOURCE_DATE_EPOCH. One that is none is an error.
func TestPageDate(t *testing.T) {
	for epoch, want := range map[string]string{"1000000000": "2001-09-09", "0": "1970-01-01", "": time.Now().UTC().Format(time.DateOnly), "2001-09-09": ""} {
		at, err := pageDate(epoch)
		if got := at.Format(time.DateOnly); (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("%q: %s, %v, want %s", epoch, got, err, want)
		}
	}
}
