//go:build man

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// A separate build makes the manual pages: the released program does not need this code.
//
//	go run -tags man ./cmd/berth man build/man/man1
func init() {
	extraCommands = append(extraCommands, func(root *cobra.Command) *cobra.Command {
		return &cobra.Command{
			Use:    "man DIRECTORY",
			Short:  "Write the manual pages",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				at, err := pageDate(os.Getenv("SOURCE_DATE_EPOCH"))
				if err != nil {
					return err
				}
				if err := os.MkdirAll(args[0], 0o755); err != nil {
					return err
				}
				return writeManual(root, args[0], at)
			},
		}
	})
}

// pageDate returns the time that SOURCE_DATE_EPOCH says, in seconds since 1970, and now if it is empty.
func pageDate(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Now().UTC(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH must be seconds since 1970, not %q", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// writeManual writes a page for a command and for each one below it.
func writeManual(cmd *cobra.Command, directory string, at time.Time) error {
	file := filepath.Join(directory, pageName(cmd)+".1")
	if err := os.WriteFile(file, manualPage(cmd, at), 0o644); err != nil {
		return err
	}
	for _, below := range withPages(cmd) {
		if err := writeManual(below, directory, at); err != nil {
			return err
		}
	}
	return nil
}

// withPages returns the commands below one that have a page.
func withPages(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(below *cobra.Command) bool {
		return !below.IsAvailableCommand() || below.IsAdditionalHelpTopicCommand()
	})
}

// pageName returns what a command's page is called, like berth-config-apply.
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manualPage returns the page of a command: the text of its --help, as roff.
func manualPage(cmd *cobra.Command, at time.Time) []byte {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	name := pageName(cmd)
	var p manual
	p.macro("TH", strings.ToUpper(name), "1", at.Format(time.DateOnly), "berth "+version, "berth")
	p.WriteString(".nr HY 0\n.nh\n.ad l\n") // no hyphenation: a hyphen in a name would be taken for a part of it
	p.macro("SH", "NAME")
	p.line(name + " - " + cmd.Short)
	p.macro("SH", "SYNOPSIS")
	for i, call := range calls(cmd) {
		if i > 0 {
			p.macro("br")
		}
		path, rest := call[:len(cmd.CommandPath())], call[len(cmd.CommandPath()):]
		fmt.Fprintf(&p, "\\fB%s\\fP%s\n", roff(path), roff(rest))
	}
	p.macro("SH", "DESCRIPTION")
	p.text(cmp.Or(cmd.Long, cmd.Short+"."))
	if cmd.Example != "" {
		p.macro("SH", "EXAMPLES")
		p.verbatim(cmd.Example)
	}
	if sections := commandSections(cmd); sections != nil {
		p.macro("SH", "COMMANDS")
		p.sections(sections)
	}
	p.macro("SH", "OPTIONS")
	p.sections(flagSections(cmd.Flags()))
	if !cmd.HasParent() {
		p.macro("SH", "ENVIRONMENT")
		p.text(environmentText)
		p.sections(environmentSections())
	}
	var others []string
	if cmd.HasParent() {
		others = append(others, pageName(cmd.Parent()))
	}
	for _, below := range withPages(cmd) {
		others = append(others, pageName(below))
	}
	p.macro("SH", "SEE ALSO")
	for i, other := range others {
		comma := ","
		if i == len(others)-1 {
			comma = ""
		}
		fmt.Fprintf(&p, "\\fB%s\\fP(1)%s\n", roff(other), comma)
	}
	return p.Bytes()
}

// manual is a manual page in roff, as it is written.
type manual struct{ bytes.Buffer }

// macro writes a roff macro. A hyphen stays a hyphen, as mandoc requires in a date.
func (p *manual) macro(name string, args ...string) {
	p.WriteString("." + name)
	for _, arg := range args {
		p.WriteString(` "` + strings.NewReplacer(`"`, `\(dq`, `\-`, "-").Replace(roff(arg)) + `"`)
	}
	p.WriteString("\n")
}

// line writes a line of text.
func (p *manual) line(text string) {
	if strings.HasPrefix(text, ".") { // roff would take it for a macro
		p.WriteString(`\&`)
	}
	p.WriteString(roff(text) + "\n")
}

// text writes paragraphs. As in --help, indented paragraphs stay unchanged.
func (p *manual) text(text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			p.macro("PP")
		}
		if strings.HasPrefix(paragraph, " ") || strings.HasPrefix(paragraph, "\t") {
			p.verbatim(paragraph)
			continue
		}
		for line := range strings.Lines(paragraph) {
			p.line(strings.TrimSpace(line))
		}
	}
}

// verbatim writes unfilled lines.
func (p *manual) verbatim(text string) {
	p.macro("EX")
	for line := range strings.Lines(text) {
		p.line(strings.TrimRight(line, "\n"))
	}
	p.macro("EE")
}

func (p *manual) sections(sections []section) {
	for _, s := range sections {
		p.macro("SS", s.title)
		for _, line := range s.lines {
			p.macro("TP")
			name, value, _ := strings.Cut(line[0], " ")
			if strings.HasSuffix(name, ",") { // it is another name
				name, value = line[0], ""
			}
			p.WriteString(`\fB` + roff(name) + `\fP`)
			if value != "" {
				p.WriteString(` \fI` + roff(value) + `\fP`)
			}
			p.WriteString("\n")
			p.line(line[1])
		}
	}
}

// roffNames are the characters that roff would replace or that some outputs lack: a hyphen must survive copying into a shell.
var roffNames = map[rune]string{'\\': `\(rs`, '-': `\-`, '\'': `\(aq`, '`': `\(ga`, '^': `\(ha`, '~': `\(ti`}

// roff escapes a text for roff.
func roff(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch name := roffNames[r]; {
		case name != "":
			out.WriteString(name)
		case r >= utf8.RuneSelf:
			fmt.Fprintf(&out, `\[u%04X]`, r)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}
