package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/registrar"
)

// Formats of the dry run.
const (
	formatTable = "table"
	formatJSON  = "json"
)

const (
	// reportPath is the path of a registrar's report on its containers.
	reportPath = "/v1/registrar"

	// reportTimeout is the deadline of the report, which the registrar answers from memory.
	reportTimeout = 2 * time.Second
)

// dryRun prints what the named containers register, or all. It asks the running registrar, unless registrar options are given.
// The error says what the report lacks.
func (p *process) dryRun(cmd *cobra.Command, names []string, format string) error {
	report, err := p.report(cmd)
	if err != nil {
		return err
	}
	named, unknown := report.Only(names...)
	if format == formatJSON {
		err = printJSON(cmd.OutOrStdout(), named)
	} else {
		err = printReport(cmd.OutOrStdout(), named, routedServices(report))
	}
	problems := []error{unknown}
	for _, problem := range report.Problems {
		problems = append(problems, fmt.Errorf("this may be out of date: %s", problem))
	}
	return errors.Join(append(problems, err)...)
}

// report gets the report of the running registrar, or makes one.
func (p *process) report(cmd *cobra.Command) (registrar.Report, error) {
	say := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	if given := decidingOptions(cmd.Flags()); len(given) > 0 {
		say("read from Docker and Consul with the given options (%s), not from the running registrar", strings.Join(given, ", "))
	} else if p.config.Listen != "" {
		report, err := runningReport(cmd.Context(), p.config.Listen)
		if err == nil {
			say("as the registrar that runs at %s sees it", p.config.Listen)
			return report, nil
		}
		say("%v: read from Docker and Consul with these options", err)
	}
	r, err := p.newRegistrar()
	if err != nil {
		return registrar.Report{}, err
	}
	return r.Plan(cmd.Context())
}

// decidingOptions returns the given flags that affect what a registrar does.
func decidingOptions(flags *pflag.FlagSet) (given []string) {
	flags.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "dry-run", "once", "format", "listen", "log-format", "log-level":
		default:
			given = append(given, "--"+f.Name)
		}
	})
	return given
}

// runningReport asks the registrar that listens at an address.
func runningReport(ctx context.Context, address string) (report registrar.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	resp, err := get(ctx, address, reportPath)
	if err != nil {
		if ctx.Err() != nil {
			return report, fmt.Errorf("the registrar at %s does not answer", address)
		}
		return report, fmt.Errorf("no registrar runs at %s", address)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return report, fmt.Errorf("the program at %s is not a registrar that answers (%s)", address, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
		return report, fmt.Errorf("the program at %s is not a registrar (%w)", address, err)
	}
	return report, nil
}

// reportHandler answers with a registrar's report.
func reportHandler(ask func(context.Context) (registrar.Report, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), reportTimeout)
		defer cancel()
		report, err := ask(ctx)
		if err != nil {
			http.Error(w, "the registrar is not running", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report) // the client has gone away
	})
}

// printJSON prints an object for each container, one in a line.
func printJSON(w io.Writer, report registrar.Report) error {
	out := json.NewEncoder(w)
	for _, p := range report.Containers {
		if err := out.Encode(p); err != nil {
			return err
		}
	}
	return nil
}

// routedServices returns the services for which an instance asks for a route.
func routedServices(report registrar.Report) map[string]bool {
	routed := map[string]bool{}
	for _, p := range report.Containers {
		for _, i := range p.Instances {
			routed[i.Service] = routed[i.Service] || len(i.Routes) > 0
		}
	}
	return routed
}

// printReport prints a table with a line for each instance, and for each reason why a container registers nothing.
func printReport(w io.Writer, report registrar.Report, routed map[string]bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER\tSERVICE\tINSTANCE\tADDRESS\tREADY WHEN\tROUTES\tSTATE")
	for _, p := range report.Containers {
		name := cmp.Or(p.Container, "-")
		for _, i := range p.Instances {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, i.Service, i.ID, i.Endpoint, cmp.Or(i.ReadyWhen, "-"), routes(i, routed[i.Service]), i)
			said := slices.ContainsFunc(p.Reasons, func(reason string) bool { return strings.Contains(reason, i.NoRoute) })
			if i.NoRoute != "" && !said {
				fmt.Fprintf(t, "%s\t-\t%s\t-\t-\t-\tno route: %s\n", name, i.ID, i.NoRoute)
			}
		}
		if p.Group != "" {
			fmt.Fprintf(t, "%s\t%s\t-\t-\t-\t-\ttakes part in its group: %s\n", name, p.Instances[0].Service, p.Group)
		}
		if p.Replace != "" {
			fmt.Fprintf(t, "%s\t%s\t-\t-\t-\t-\treplaces others: %s\n", name, p.Instances[0].Service, p.Replace)
		}
		for _, verdict := range p.Verdicts() {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t-\t%s\n", name, verdict)
		}
	}
	return t.Flush()
}

// routes shows the routes of an instance. One that asks for none serves those of its service, if others ask for some.
func routes(i registrar.PlannedInstance, others bool) string {
	const most = 3
	switch n := len(i.Routes) - most; {
	case n > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(i.Routes[:most], " "), n)
	case len(i.Routes) > 0:
		return strings.Join(i.Routes, " ")
	case i.NoRoute == "" && others:
		return "its service's"
	}
	return "no route"
}
