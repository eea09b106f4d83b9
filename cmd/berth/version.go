package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is stamped in by the linker: -X main.version=v1.2.3.
var version = "dev"

// versionLine is what berth version prints. Where no version was stamped in, it has the commit that Go knows of.
func versionLine() string {
	var commit, at string
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = fmt.Sprintf(" %.12s", s.Value)
			case "vcs.time":
				at = s.Value + ", "
			}
		}
	}
	return fmt.Sprintf("berth %s%s (%s%s, %s/%s)\n", cmp.Or(version, "dev"), commit, at, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
}
