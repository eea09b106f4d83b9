package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/proxyctl/supervise"
	"berth/templates/claim"
)

const (
	exitFailed = 1 // or "differs", as in diff
	exitUsage  = 2
)

// usageError is an error in the call of berth: an unknown command, flag or key, or an invalid value.
type usageError struct {
	error
	see string // the command whose --help helps, "" if the error says all
}

// Error returns the error in one line.
func (e usageError) Error() string {
	text, similar, found := strings.Cut(e.error.Error(), "\n\nDid you mean this?\n")
	if found {
		text += didYouMean(strings.Fields(similar)...)
	}
	if e.see != "" {
		text += fmt.Sprintf("; see '%s --help'", e.see)
	}
	return text
}

func (e usageError) Unwrap() error { return e.error }

// asUsageError returns a configuration error as a usage error.
func asUsageError(err error) error {
	if err == nil {
		return nil
	}
	return usageError{error: err}
}

// interrupted is the cause of a context that a signal has cancelled.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return i.signal.String() }

// exitCode returns the exit code for a command's error, and writes the error, one line for each of several.
func exitCode(ctx context.Context, w io.Writer, err error) int {
	var stop interrupted
	var child *supervise.Exit
	var usage usageError
	var own code
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		if own.error != nil {
			fmt.Fprintln(w, "berth:", oneLine(own))
		}
		return own.exit
	case errors.Is(err, differs{}):
		return exitFailed
	case errors.As(context.Cause(ctx), &stop) && !errors.As(err, &child):
		why := ""
		if text := oneLine(err); text != stop.Error() && !errors.Is(err, context.Canceled) {
			why = " (" + text + ")"
		}
		fmt.Fprintf(w, "berth: ended by %s%s\n", stop.signal, why)
		return 128 + int(stop.signal)
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(w, "berth:", strings.TrimRight(line, "\n"))
	}
	switch {
	case errors.As(err, &child):
		return child.Code
	case errors.As(err, &usage), errors.As(err, new(diffFailed)):
		return exitUsage
	}
	return exitFailed
}

// explainUsage turns flag and argument errors of a command and its subcommands into usage errors with suggestions.
func explainUsage(cmd *cobra.Command) {
	for _, below := range cmd.Commands() { // first, or they would inherit what cmd gets
		explainUsage(below)
	}
	explain := cmd.FlagErrorFunc()
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{flagError(cmd, explain(cmd, err)), cmd.CommandPath()}
	})
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err, cmd.CommandPath()}
			}
			return nil
		}
	}
}

// atLeastOne makes a command require at least one argument.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New("name at least one " + what)
		}
		return nil
	}
}

func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %s", invalid.GetFlag().Name, unfit(invalid.GetFlag(), invalid.GetValue()))
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		return fmt.Errorf("%w%s", err, didYouMean(nearest("--", unknown.GetSpecifiedName(), cmd.Flags())...))
	}
	return err
}

// unfit describes the valid values of an option after an invalid one.
func unfit(f *pflag.Flag, text string) string {
	switch kind := f.Value.Type(); kind {
	case "duration":
		return fmt.Sprintf("must be a duration like 200ms, 30s or 1m, not %q", text)
	case "int":
		return fmt.Sprintf("must be a whole number, not %q", text)
	case "bool":
		return fmt.Sprintf("must be true or false, not %q", text)
	default:
		return fmt.Sprintf("must be a %s, not %q", kind, text)
	}
}

// didYouMean returns a suggestion to append to an error, "" if there are no names.
func didYouMean(names ...string) string {
	if len(names) == 0 {
		return ""
	}
	return " (did you mean " + strings.Join(names, " or ") + "?)"
}

// nearest returns the name of the flag most similar to a misspelt one, with a prefix.
func nearest(prefix, misspelt string, flags *pflag.FlagSet) []string {
	misspelt = optionName(misspelt)
	var best string
	least := 1 + min(3, len(misspelt)/3)
	flags.VisitAll(func(f *pflag.Flag) {
		if d := claim.Distance(misspelt, f.Name); d < least && !f.Hidden {
			best, least = f.Name, d
		}
	})
	if best == "" {
		return nil
	}
	return []string{prefix + best}
}

// optionName returns the flag's spelling of a name that is spelt like a variable or a key.
func optionName(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "-", ".", "-").Replace(s))
}

// variableName returns the environment variable of an option.
func variableName(option string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// unknownVariables returns a warning for each variable that looks like an option but is not. It is no error: Kubernetes and
// Docker's links set such variables for a service called berth.
func unknownVariables(all *pflag.FlagSet) []string {
	var warnings []string
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if !ours || value == "" || name == serviceConfigVariable || all.Lookup(optionName(key)) != nil {
			continue
		}
		var like []string
		if fileOnly(optionName(key)) {
			like = []string{"the key " + optionName(key) + " in the file that BERTH_CONFIG names"}
		} else if like = nearest("", key, all); like != nil {
			like[0] = variableName(like[0])
		}
		warnings = append(warnings, "ignored environment variable "+name+": berth has no such option"+didYouMean(like...))
	}
	return warnings
}
