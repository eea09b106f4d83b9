package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth/cmd/berth/status"
)

func explainCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain CONTAINER | SERVICE | URL",
		Short: "Explain step by step why something is served or not, and what to do",
		Long: `Explain how far a container, a service or a request gets, with the evidence, and what to do. The explanation covers the
labels that were read or ignored, the address and the reason for it, the probes, Consul's records, the winning and losing
routes, and the state of the proxy.

Name a container as in docker, or by its compose service. In a URL, http:// is optional.

On the container's own Docker host, the registrar gives every detail. For other hosts, the explanation uses what their
berths publish in Consul.

Exit codes:

  0  the explanation was printed
  1  error
  2  there is nothing by this name
  3  neither a berth nor Consul answers`,
		ValidArgsFunction: completeNames,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("give one container, service or URL, for example: berth explain shop_web_1")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readConfig(cmd.Flags())
			if err != nil {
				return asUsageError(err)
			}
			doc, err := c.document(cmd.Context(), cmd, "")
			if err != nil {
				return err
			}
			list, err := doc.Explain(strings.TrimPrefix(args[0], "/"), c.hostReport(cmd.Context(), cmd))
			if errors.Is(err, status.ErrNotKnown) {
				return code{err, exitNotKnown}
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				err = e.Encode(list)
			} else {
				err = printExplanations(out, list, isTerminal(out) && os.Getenv("NO_COLOR") == "")
			}
			if err != nil {
				return err
			}
			for _, why := range doc.Incomplete {
				fmt.Fprintln(cmd.ErrOrStderr(), "incomplete:", visible(why, ""))
			}
			return nil
		},
	}
	statusFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printExplanations prints explanations for people.
func printExplanations(out io.Writer, list []status.Explanation, coloured bool) error {
	w := &strings.Builder{}
	for n, e := range list {
		if n > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, visible(e.About, ""))
		for _, s := range e.Steps {
			mark, colour := "✗", "\x1b[31m"
			if s.Passed {
				mark, colour = "✓", "\x1b[32m"
			}
			if coloured {
				mark = colour + mark + "\x1b[0m"
			}
			at := ""
			if !s.At.IsZero() {
				at = "  " + s.At.Local().Format("2006-01-02 15:04:05.000")
			}
			fmt.Fprintf(w, "%s %s%s\n", mark, visible(s.Step, ""), at)
			for _, line := range s.Evidence {
				wrapText(w, 4, line)
			}
		}
		wrapText(w, 0, "→ "+e.Verdict)
		for _, do := range e.Do {
			wrapText(w, 2, "do: "+do)
		}
	}
	_, err := io.WriteString(out, w.String())
	return err
}
