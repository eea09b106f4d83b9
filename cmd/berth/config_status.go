package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth/registrar/group/store"
)

func configStatusCommand() *cobra.Command {
	var form string
	cmd := groupCommand("status", "Show which configuration version each instance of a service runs",
		`Print the wanted version of a service's configuration, who applied it and when. For each instance, print the version that
it runs and since when, or the reason why it does not run the wanted one. The exit code is 0 if every instance runs the
wanted version and is ready, otherwise 1.`,
		nil, func(ctx context.Context, g *groupStore, _ []string) error {
			if err := checkFormat(form); err != nil {
				return err
			}
			s, err := g.status(ctx)
			if err != nil {
				return err
			}
			none := !isWanted(s)
			if none && len(s.Members) == 0 {
				return g.none(ctx, store.Item{Service: g.service}, 0)
			}
			if form == formatJSON {
				err = printStatusJSON(g.out, s)
			} else {
				err = printStatus(g.out, s)
			}
			switch behind := behind(s); {
			case err != nil:
				return err
			case none:
				return fmt.Errorf("%s has no configuration", g.service)
			case len(s.Members) == 0:
				return fmt.Errorf("%s: no instance is registered", g.service)
			case behind > 0:
				return fmt.Errorf("%s: %d of %d instances do not run %s", g.service, behind, len(s.Members), numbered(s.Wanted.Header))
			}
			return nil
		})
	formatFlag(cmd, &form)
	return cmd
}

// isWanted reports whether there is a configuration.
func isWanted(s store.Status) bool { return s.Wanted.Sum != "" }

// wanted returns the order to run the current version.
func wanted(s store.Status) order { return order{version: s.Wanted.Version, sum: s.Wanted.Sum} }

// behind counts the instances that do not run the current version.
func behind(s store.Status) (n int) {
	for _, m := range s.Members {
		if !wanted(s).of(m).done {
			n++
		}
	}
	return n
}

func printStatus(w io.Writer, s store.Status) error {
	switch {
	case !isWanted(s):
		fmt.Fprintf(w, "%s: no configuration\n", s.Service)
	case s.Wanted.ByHand:
		fmt.Fprintf(w, "%s: %s, not applied by berth\n", s.Service, numbered(s.Wanted.Header))
	default:
		fmt.Fprintf(w, "%s: %s, applied %s by %s\n", s.Service, numbered(s.Wanted.Header), when(s.Wanted.At), cell(s.Wanted.By))
	}
	if h := wanted(s).halted(s); h != nil {
		fmt.Fprintf(w, "halted %s at %s: %s\n", when(h.At), visible(h.Instance, ""), visible(h.Reason, ""))
	} else if s.Roll.Held {
		fmt.Fprintf(w, "%s is applying it, since %s\n", visible(s.Roll.Holder, ""), when(s.Roll.Since))
	}
	if len(s.Members) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "INSTANCE\tNODE\tVERSION\tSINCE\tSTATE")
	for _, m := range s.Members {
		version, since := "-", "-"
		if r := m.Report; r != nil {
			since = when(r.Since)
			if r.Version > 0 {
				version = strconv.FormatUint(r.Version, 10)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", cell(m.ID), cell(m.Node), version, since, state(s, m))
	}
	return t.Flush()
}

// state says what an instance does.
func state(s store.Status, m store.Member) string {
	if isWanted(s) {
		return wanted(s).of(m).text
	}
	if m.Report == nil {
		return order{}.of(m).text
	}
	return cell(m.Report.State)
}

// statusJSON is the status of a service's configuration without its text.
type statusJSON struct {
	Service   string       `json:"service"`
	Applied   bool         `json:"applied"` // every instance runs the wanted version
	Wanted    *wantedJSON  `json:"wanted"`
	Roll      *rollJSON    `json:"roll"` // null if there never was one
	Instances []memberJSON `json:"instances"`
}

type wantedJSON struct {
	store.Header
	ByHand bool `json:"by_hand,omitempty"` // the text was not applied by berth
}

type rollJSON struct {
	store.Roll
	Held bool `json:"held"` // an instance is at it
}

type memberJSON struct {
	ID         string        `json:"id"`
	Node       string        `json:"node,omitempty"`
	Address    string        `json:"address,omitempty"`
	Port       int           `json:"port,omitempty"`
	Registered bool          `json:"registered"`
	Ready      bool          `json:"ready"`
	Applied    bool          `json:"applied"` // it runs the wanted version and is ready
	Report     *store.Report `json:"report"`
}

func printStatusJSON(w io.Writer, s store.Status) error {
	out := statusJSON{Service: s.Service, Instances: []memberJSON{}}
	if s.Roll != (store.Roll{}) {
		out.Roll = &rollJSON{s.Roll, s.Roll.Held}
	}
	if isWanted(s) {
		out.Wanted = &wantedJSON{s.Wanted.Header, s.Wanted.ByHand}
		out.Applied = len(s.Members) > 0 && behind(s) == 0
	}
	for _, m := range s.Members {
		out.Instances = append(out.Instances, memberJSON{m.ID, m.Node, m.Address, m.Port, m.Registered, m.Ready,
			isWanted(s) && wanted(s).of(m).done, m.Report})
	}
	return json.NewEncoder(w).Encode(out)
}

func restartCommand() *cobra.Command {
	var how pacing
	cmd := groupCommand("restart", "Restart the instances of a service",
		`Restart the instances of a service, for example to run a new program behind the same path or to read settings that are
read only at the start. With the rolling strategy, the instances restart one at a time. Each is taken out of service first,
and the next one follows when it is ready again.`,
		nil, func(ctx context.Context, g *groupStore, _ []string) error {
			if err := how.check(); err != nil {
				return err
			}
			if how.strategy == "none" {
				return asUsageError(errors.New("--strategy for a restart must be rolling or at-once, not none"))
			}
			s, err := g.status(ctx)
			if err != nil {
				return err
			}
			if len(s.Members) == 0 {
				return fmt.Errorf("no instance of %s is registered in Consul, so none restarts%s", g.service, g.similarService(ctx))
			}
			limited, cancel := context.WithTimeout(ctx, g.timeout) // one attempt: if its answer were lost, a second would restart twice
			defer cancel()
			number, err := g.Restart(limited, g.service, operator(), how.strategy)
			if err != nil {
				return err
			}
			if err := g.announce(ctx, g.service+": restart ordered", how); err != nil || how.wait == 0 {
				return err
			}
			return g.wait(ctx, order{restart: number, before: s.Roll.Halted}, how.wait)
		})
	how.flags(cmd)
	cmd.Flags().Lookup("strategy").Usage = "rolling (one instance at a time) or at-once (default: each instance's own strategy)"
	return cmd
}
