package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"berth/registrar/group/format"
	"berth/registrar/group/store"
)

func configCommand() *cobra.Command {
	return parentCommand("config", "Manage the versioned configuration of a service",
		`Change the configuration that all instances of a service share, and show which version each instance runs. It is stored
in Consul's KV: the value of berth/config/SERVICE is the text as you wrote it, and the key's flags are its version.

SERVICE is the service's name in Consul. The group prod of app is the service app-prod; you can also write app.prod.`,
		configApplyCommand(), configStatusCommand(), configGetCommand(), configHistoryCommand(), configDiffCommand(), configRollbackCommand())
}

// parentCommand makes a command that only groups its subcommands.
func parentCommand(name, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Long:  long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), didYouMean(cmd.SuggestionsFor(args[0])...))
		},
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
		DisableFlagsInUseLine:      true,
	}
	cmd.AddCommand(below...)
	return cmd
}

// pacing says how the instances take up a change, and whether to wait for them.
type pacing struct {
	strategy string
	wait     time.Duration
}

func (r *pacing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.strategy, "strategy", "", "how instances take up the change: rolling (one at a time), at-once, or none (at their next restart) (default: each instance's own strategy)")
	cmd.Flags().DurationVar(&r.wait, "wait", 0, "how long to wait until every instance has done it and is ready; otherwise exit with 1 and the reason")
}

func (r *pacing) check() error {
	if r.wait < 0 {
		return asUsageError(fmt.Errorf("--wait must not be negative: %s", r.wait))
	}
	return checkStrategy(r.strategy)
}

// pace returns the strategy in words.
func (r *pacing) pace() string {
	switch r.strategy {
	case "rolling":
		return "one at a time"
	case "at-once":
		return "all at once"
	case "none":
		return "at their next restart"
	}
	return "each by its own strategy"
}

func configApplyCommand() *cobra.Command {
	var number versionNumber
	var raw bool
	var how pacing
	cmd := groupCommand("apply", "Apply a configuration to a service",
		`Make the text of FILE the next version of a service's configuration; - means standard input. berth checks TOML, YAML and
JSON first, and tells them apart by the extension of FILE or by the text itself. For any other text, set --raw.

The instances then take it up by themselves. With --wait, wait until every instance runs the version and is ready. If one
does not, or if the change is halted because it failed on one, exit with 1 and a line for each instance that does not run
it.

A version that is not higher than the current one is refused, with exit code 1. An unchanged text makes no new version,
unless --version is set.`,
		[]string{"FILE"}, func(ctx context.Context, g *groupStore, args []string) error {
			if err := how.check(); err != nil {
				return err
			}
			text, err := readText(g.stdin, args[0])
			if err != nil {
				return err
			}
			kind := rawFormat
			if !raw {
				if kind, err = checkText(args[0], text); err != nil {
					return err
				}
			}
			return g.applyConfig(ctx, store.Change{Text: text, Version: uint64(number), Strategy: how.strategy, Format: kind}, how, "")
		})
	cmd.Flags().Var(&number, "version", "version number, higher than the current one (default: the next)")
	cmd.Flags().BoolVar(&raw, "raw", false, "accept any text without checking it")
	how.flags(cmd)
	return cmd
}

// applyConfig applies a configuration, prints the result, and waits for the instances if requested. The note describes the
// text.
func (g *groupStore) applyConfig(ctx context.Context, c store.Change, how pacing, note string) error {
	c.By = operator()
	h, applied, err := g.put(ctx, store.Item{Service: g.service}, c)
	if err != nil {
		return fmt.Errorf("%s: %w", g.service, err)
	}
	if applied {
		err = g.announce(ctx, fmt.Sprintf("%s: %s applied%s", g.service, numbered(h), note), how)
	} else {
		_, err = fmt.Fprintf(g.out, "%s: %s has this text already\n", g.service, numbered(h))
	}
	if err != nil || how.wait == 0 {
		return err
	}
	return g.wait(ctx, order{version: h.Version, sum: h.Sum}, how.wait)
}

// announce prints what was done and which instances follow, and warns if none does.
func (g *groupStore) announce(ctx context.Context, done string, how pacing) error {
	s, err := g.status(ctx)
	registered, reporting := 0, 0
	for _, m := range s.Members {
		if m.Registered {
			registered++
		}
		if m.Report != nil {
			reporting++
		}
	}
	warning := ""
	switch {
	case err != nil:
		warning = fmt.Sprintf("cannot tell which instances follow: %v", err)
	case registered == 0 && reporting == 0:
		warning = fmt.Sprintf("no instance of %s is registered in Consul, so none applies it%s", g.service, g.similarService(ctx))
	case reporting == 0:
		warning = fmt.Sprintf("none of the %[2]d instances of %[1]s takes its configuration from berth, so none applies it", g.service, registered)
	case reporting == 1:
		done += ": 1 instance follows"
	default:
		done += fmt.Sprintf(": %d instances follow, %s", reporting, how.pace())
	}
	if warning != "" {
		fmt.Fprintln(g.stderr, "warning:", visible(warning, ""))
	}
	_, err = fmt.Fprintln(g.out, done)
	return err
}

func configGetCommand() *cobra.Command {
	return groupCommand("get", "Print the configuration of a service",
		"Print the current configuration of a service, or an older version that is still kept, exactly as it was written.",
		[]string{"[VERSION]"}, func(ctx context.Context, g *groupStore, args []string) error {
			return g.print(ctx, store.Item{Service: g.service}, args)
		})
}

// print prints the current version of an item, or the one whose number is given.
func (g *groupStore) print(ctx context.Context, i store.Item, args []string) error {
	numbers, err := versionArguments(args)
	if err != nil {
		return err
	}
	var number versionNumber // the current one
	if len(numbers) == 1 {
		number = numbers[0]
	}
	v, err := g.version(ctx, i, number)
	if err != nil {
		return err
	}
	return writeText(g.out, v.Text)
}

func configHistoryCommand() *cobra.Command {
	return historyCommand("List the versions of a service's configuration", "the configuration of a service", nil)
}

// historyCommand makes a command that lists the versions of the configuration or, with a NAME, of a file.
func historyCommand(short, what string, args []string) *cobra.Command {
	var form string
	cmd := groupCommand("history", short,
		fmt.Sprintf("List the last %d versions of %s, newest first.", store.Kept, what),
		args, func(ctx context.Context, g *groupStore, args []string) error {
			if err := checkFormat(form); err != nil {
				return err
			}
			i, err := g.item(args)
			if err != nil {
				return err
			}
			kept, err := g.history(ctx, i)
			if err != nil {
				return err
			}
			if len(kept) == 0 {
				return g.none(ctx, i, 0)
			}
			if form == formatJSON {
				return encodeLines(g.out, kept)
			}
			t := tabwriter.NewWriter(g.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "VERSION\tAPPLIED\tBY\tSTRATEGY\tFORMAT\tSUM")
			for _, h := range kept {
				fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", h.Version, when(h.At), cell(h.By), cell(h.Strategy), cell(h.Format), cell(h.Sum))
			}
			return t.Flush()
		})
	formatFlag(cmd, &form)
	return cmd
}

func configDiffCommand() *cobra.Command {
	cmd := groupCommand("diff", "Compare versions of a service's configuration",
		`Compare two versions of a service's configuration. With one VERSION, compare it with the current version. Without one,
compare the current version with its predecessor. The exit code is that of diff: 0 without differences, 1 with
differences, 2 on any error.`,
		[]string{"[VERSION]", "[VERSION]"}, func(ctx context.Context, g *groupStore, args []string) error {
			return g.diff(ctx, store.Item{Service: g.service}, args)
		})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if err != nil && !errors.Is(err, differs{}) {
			err = diffFailed{err}
		}
		return err
	}
	return cmd
}

func (g *groupStore) diff(ctx context.Context, i store.Item, args []string) error {
	numbers, err := versionArguments(args)
	if err != nil {
		return err
	}
	var older, newer store.Version
	if len(numbers) == 2 {
		newer, err = g.version(ctx, i, numbers[1])
	} else {
		newer, err = g.version(ctx, i, 0)
	}
	if err != nil {
		return err
	}
	if len(numbers) == 0 {
		older, err = g.before(ctx, i, newer)
	} else {
		older, err = g.version(ctx, i, numbers[0])
	}
	if err != nil {
		return err
	}
	text := udiff.Unified(title(i, older), title(i, newer), string(older.Text), string(newer.Text))
	if text == "" {
		return nil
	}
	if err := writeText(g.out, []byte(text)); err != nil {
		return err
	}
	return differs{}
}

// title returns the name of a version in the header of a diff.
func title(i store.Item, v store.Version) string {
	byHand := ""
	if v.ByHand {
		byHand = " (not applied by berth)"
	}
	return fmt.Sprintf("%s %s%s", named(i), numbered(v.Header), byHand)
}

func configRollbackCommand() *cobra.Command {
	var how pacing
	cmd := groupCommand("rollback", "Apply an older version of a service's configuration again",
		`Make the text of VERSION the next version of a service's configuration. The default is the version that the current one
replaced.`,
		[]string{"[VERSION]"}, func(ctx context.Context, g *groupStore, args []string) error {
			numbers, err := versionArguments(args)
			if err == nil {
				err = how.check()
			}
			if err != nil {
				return err
			}
			i := store.Item{Service: g.service}
			now, err := g.version(ctx, i, 0)
			if err != nil {
				return err
			}
			var old store.Version
			if len(numbers) == 1 {
				old, err = g.version(ctx, i, numbers[0])
			} else {
				old, err = g.before(ctx, i, now)
			}
			if err != nil {
				return err
			}
			c := store.Change{Text: old.Text, Strategy: how.strategy, Format: old.Format}
			if !now.ByHand && now.Sum != old.Sum {
				c.Version = now.Version + 1 // a concurrent change wins
			}
			return g.applyConfig(ctx, c, how, fmt.Sprintf(", the text of %s", numbered(old.Header)))
		})
	how.flags(cmd)
	return cmd
}

// item returns the service's configuration or, where a name is given, the file.
func (g *groupStore) item(args []string) (store.Item, error) {
	if len(args) == 0 {
		return store.Item{Service: g.service}, nil
	}
	if err := store.ValidFile(args[0]); err != nil {
		return store.Item{}, asUsageError(err)
	}
	return store.Item{Service: g.service, File: args[0]}, nil
}

// checkText returns the format of a text, and an error with the position of a syntax error.
func checkText(file string, text []byte) (string, error) {
	name := file
	if file == "-" {
		name = "standard input"
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return "", fmt.Errorf("%s is empty; set --raw to apply it anyway", name) // most likely a command before a pipe has failed
	}
	_, kind, err := format.Parse(text, format.KindOf(file))
	if err != nil {
		return "", fmt.Errorf("%s: %w; set --raw to apply it unchecked", name, err)
	}
	return string(kind), nil
}

func formatFlag(cmd *cobra.Command, form *string) {
	cmd.Flags().StringVar(form, "format", formatTable, "table or json")
}

func checkFormat(form string) error {
	if !slices.Contains(flagValues["format"], form) {
		return asUsageError(fmt.Errorf("--format must be table or json, not %q", form))
	}
	return nil
}

// encodeLines prints values as JSON, each on a line.
func encodeLines[T any](w io.Writer, values []T) error {
	out := json.NewEncoder(w)
	for _, v := range values {
		if err := out.Encode(v); err != nil {
			return err
		}
	}
	return nil
}

// cell returns a text from Consul as a table shows it.
func cell(text string) string { return cmp.Or(visible(text, ""), "-") }
