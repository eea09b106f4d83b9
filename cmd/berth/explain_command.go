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
		Short: "Say step by step why something is served or not, and what to do",
		Long: `Say how far a container, a service or a request has come on its way, by what that is known, and what to do: which labels
were read and left out, which address was taken and why, what probes say, what Consul has, which route takes a request and which
lose, and what the proxy has. A container is named as for docker, or by its service in a compose file; a URL may lack http://.

On a container's own Docker host its registrar is asked for all that it knows; of other hosts, what their berths publish in
Consul is shown.

Exits with 0 when it has explained, 1 on an error, 2 if there is nothing by this name, and 3 if
neither a berth nor Consul answers.`,
		ValidArgsFunction: completeNames,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("give one container, service or URL, as in: berth explain shop_web_1")
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
				fmt.Fprintln(cmd.ErrOrStderr(), "not complete:", visible(why, ""))
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
