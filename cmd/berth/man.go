//go:build man

package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The manual pages are made by a build of their own: the program that users have needs nothing of this.
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
				if err := os.MkdirAll(args[0], 0o755); err != nil {
					return err
				}
				return writeManual(root, args[0])
			},
		}
	})
}

// writeManual writes a page for each command, with the text and the examples of its --help.
func writeManual(root *cobra.Command, directory string) error {
	var prepare func(*cobra.Command)
	prepare = func(cmd *cobra.Command) {
		cmd.DisableAutoGenTag = true
		if text := examples[strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")]; text != "" {
			cmd.Example = text
		}
		cmd.InitDefaultHelpFlag()
		for _, below := range cmd.Commands() {
			prepare(below)
		}
	}
	prepare(root)
	at := time.Now().UTC()
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		at = time.Unix(seconds, 0).UTC()
	}
	return doc.GenManTree(root, &doc.GenManHeader{Title: "BERTH", Section: "1", Source: "berth " + version, Manual: "berth", Date: &at}, directory)
}
