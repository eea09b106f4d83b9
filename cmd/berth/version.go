package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// The linker sets these: -X main.version=v1.2.3. Without them, a build uses Go's build information.
var (
	version = "dev"
	commit  string
	date    string // of the build
)

// build describes a build of berth.
type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"` // of the build; of the commit where that is all that is known
	Go      string `json:"go"`
	System  string `json:"system"`
}

// thisBuild describes the running program.
func thisBuild() build {
	b := build{cmp.Or(version, "dev"), commit, date, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && b.Commit == "":
			b.Commit = fmt.Sprintf("%.12s", s.Value)
		case s.Key == "vcs.time" && b.Date == "":
			b.Date = s.Value
		}
	}
	return b
}

// versionLine is what berth version prints.
func versionLine() string {
	b := thisBuild()
	var more []string
	if b.Commit != "" {
		more = append(more, "commit "+b.Commit)
	}
	if b.Date != "" {
		more = append(more, "built "+b.Date)
	}
	return fmt.Sprintf("berth %s (%s)\n", b.Version, strings.Join(append(more, b.Go, b.System), ", "))
}

func versionCommand() *cobra.Command {
	var form string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, commit, build date and Go version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch form {
			case "text":
				_, err := io.WriteString(cmd.OutOrStdout(), versionLine())
				return err
			case formatJSON:
				return json.NewEncoder(cmd.OutOrStdout()).Encode(thisBuild())
			}
			return asUsageError(fmt.Errorf("--format must be text or json, not %q", form))
		},
	}
	cmd.Flags().StringVar(&form, "format", "text", "text or json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"text", formatJSON}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
