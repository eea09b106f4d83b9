package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth/registrar/group/store"
	"berth/registrar/retry"
	"berth/templates/claim"
)

// groupStore is the connection and the context of a command on a service group.
type groupStore struct {
	*store.Store
	consul      *api.Client
	timeout     time.Duration // that a call to Consul may take, with all its attempts
	service     string        // the command's first argument, as in Consul
	stdin       io.Reader
	out, stderr io.Writer
}

// groupCommand makes a command whose first argument is a service. Arguments in brackets are optional.
func groupCommand(name, short, long string, args []string, run func(ctx context.Context, g *groupStore, args []string) error) *cobra.Command {
	args = append([]string{"SERVICE"}, args...)
	return onConsul(&cobra.Command{
		Use:               name + " " + strings.Join(args, " "),
		Short:             short,
		Long:              long,
		Args:              arguments(args...),
		ValidArgsFunction: completeGroup(args),
	}, func(ctx context.Context, g *groupStore, args []string) (err error) {
		if g.service, err = store.ParseService(args[0]); err != nil {
			return asUsageError(err)
		}
		return run(ctx, g, args[1:])
	})
}

// onConsul makes a command run with a connection to Consul.
func onConsul(cmd *cobra.Command, run func(ctx context.Context, g *groupStore, args []string) error) *cobra.Command {
	var timeout time.Duration
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := newProcess(cmd)
		if err != nil {
			return err
		}
		if timeout <= 0 {
			return asUsageError(fmt.Errorf("--timeout must be longer than 0s, not %s", timeout))
		}
		g := &groupStore{timeout: timeout, stdin: cmd.InOrStdin(), out: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
		if err := g.connect(p.config); err != nil {
			return err
		}
		if err := run(cmd.Context(), g, args); err != nil {
			return harmless{err}
		}
		return nil
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), "none")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for Consul")
	return cmd
}

// arguments makes a command require arguments with these names. Those in brackets are optional.
func arguments(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch n := len(args); {
		case n > len(names):
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		case n < len(names) && !strings.HasPrefix(names[n], "["):
			return fmt.Errorf("%s is missing", names[n])
		}
		return nil
	}
}

// connect makes the clients. It sends no request.
func (g *groupStore) connect(c Config) (err error) {
	if g.consul, err = consulClient(c); err != nil {
		return err
	}
	g.Store = store.New(g.consul)
	return nil
}

// try calls f until it succeeds, is refused, or time runs out. It tries again while Consul is away.
func (g *groupStore) try(ctx context.Context, f func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	var last error
	there := false
	_, err := backoff.Retry(limited, func() (struct{}, error) {
		err := f(limited)
		switch {
		case err == nil:
		case decided(err), there:
			err = backoff.Permanent(err)
		default:
			if last == nil || limited.Err() == nil { // a timeout says less than the error before it
				last = err
			}
			there = g.hasLeader(limited) // and has not come back just now, if it fails once more
		}
		return struct{}{}, err
	}, backoff.WithBackOff(retry.Delays()), backoff.WithMaxElapsedTime(0))
	if err != nil && last != nil && limited.Err() != nil && ctx.Err() == nil {
		return &givenUpError{g.timeout, last}
	}
	return err
}

// givenUpError says that Consul has not answered in time.
type givenUpError struct {
	after time.Duration
	last  error
}

func (e *givenUpError) Error() string { return fmt.Sprintf("gave up after %s: %v", e.after, e.last) }
func (e *givenUpError) Unwrap() error { return e.last }

// decided reports whether an error is the answer and not a failure to get one.
func decided(err error) bool {
	return errors.Is(err, store.ErrNone) || errors.As(err, new(*store.NotNewerError)) || errors.As(err, new(*store.TooLargeError))
}

// hasLeader reports whether Consul answers and has a leader.
func (g *groupStore) hasLeader(ctx context.Context) bool {
	leader, err := g.consul.Status().LeaderWithQueryOptions(new(api.QueryOptions).WithContext(ctx))
	return err == nil && leader != ""
}

// put makes a text the current version of an item. If it already is and no version is given, applied is false.
func (g *groupStore) put(ctx context.Context, i store.Item, c store.Change) (h store.Header, applied bool, err error) {
	if c.Version == 0 {
		var now store.Version
		err := g.try(ctx, func(ctx context.Context) (err error) {
			now, err = g.Current(ctx, i)
			return err
		})
		switch {
		case err == nil && !now.ByHand && now.Sum == store.Sum(c.Text):
			return now.Header, false, nil
		case err != nil && !errors.Is(err, store.ErrNone):
			return store.Header{}, false, err
		}
	}
	err = g.try(ctx, func(ctx context.Context) (err error) {
		h, err = g.Apply(ctx, i, c)
		return err
	})
	return h, err == nil, err
}

// version returns a version of an item: the current one for 0.
func (g *groupStore) version(ctx context.Context, i store.Item, number versionNumber) (v store.Version, err error) {
	err = g.try(ctx, func(ctx context.Context) (err error) {
		if number == 0 {
			v, err = g.Current(ctx, i)
		} else {
			v, err = g.At(ctx, i, uint64(number))
		}
		return err
	})
	if errors.Is(err, store.ErrNone) {
		return v, g.none(ctx, i, number)
	}
	return v, err
}

// before returns the version before the current one, or the last applied version if the current text was not applied by
// berth.
func (g *groupStore) before(ctx context.Context, i store.Item, now store.Version) (store.Version, error) {
	number := now.Replaces
	if now.ByHand {
		kept, err := g.history(ctx, i)
		if err != nil {
			return store.Version{}, err
		}
		if len(kept) > 0 {
			number = kept[0].Version
		}
	}
	if number == 0 {
		return store.Version{}, fmt.Errorf("%s has no version before %s", named(i), numbered(now.Header))
	}
	return g.version(ctx, i, versionNumber(number))
}

// history returns the versions of an item that are kept, the newest first.
func (g *groupStore) history(ctx context.Context, i store.Item) (kept []store.Header, err error) {
	err = g.try(ctx, func(ctx context.Context) (err error) {
		kept, err = g.History(ctx, i)
		return err
	})
	return kept, err
}

// fileHeaders returns the current versions of the service's files.
func (g *groupStore) fileHeaders(ctx context.Context) (files map[string]store.Header, err error) {
	err = g.try(ctx, func(ctx context.Context) (err error) {
		files, err = g.Files(ctx, g.service)
		return err
	})
	return files, err
}

// status returns the status of the service.
func (g *groupStore) status(ctx context.Context) (s store.Status, err error) {
	err = g.try(ctx, func(ctx context.Context) (err error) {
		s, err = g.Status(ctx, g.service)
		return err
	})
	return s, err
}

// none returns the error for an item or version that does not exist, with a suggestion.
func (g *groupStore) none(ctx context.Context, i store.Item, number versionNumber) error {
	kept, _ := g.history(ctx, i)
	switch {
	case number > 0 && len(kept) > 0:
		return fmt.Errorf("%s has no version %d: versions %d to %d are kept", named(i), number, kept[len(kept)-1].Version, kept[0].Version)
	case i.File == "":
		return fmt.Errorf("%s has no configuration%s", i.Service, g.similarService(ctx))
	}
	files, _ := g.fileHeaders(ctx)
	return fmt.Errorf("%s has no file %s%s", i.Service, i.File, didYouMean(closest(i.File, slices.Collect(maps.Keys(files)))...))
}

// similarService suggests a service with a similar name, "" if Consul has this one or no similar one.
func (g *groupStore) similarService(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // only an extra, and Consul has just answered
	defer cancel()
	names := serviceNames(ctx, g.consul)
	if slices.Contains(names, g.service) {
		return ""
	}
	return didYouMean(closest(g.service, names)...)
}

// serviceNames returns the services in the catalog.
func serviceNames(ctx context.Context, consul *api.Client) []string {
	found, _, _ := consul.Catalog().Services(new(api.QueryOptions).WithContext(ctx))
	return slices.Collect(maps.Keys(found))
}

// groupNames returns the services in the catalog, and those that have a configuration or files, in order.
func groupNames(ctx context.Context, consul *api.Client) []string {
	names := serviceNames(ctx, consul)
	for _, prefix := range []string{"berth/config/", "berth/files/"} {
		keys, _, _ := consul.KV().Keys(prefix, "/", new(api.QueryOptions).WithContext(ctx))
		for _, key := range keys {
			names = append(names, strings.Trim(strings.TrimPrefix(key, prefix), "/"))
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return store.ValidService(name) != nil })
	slices.Sort(names)
	return slices.Compact(names)
}

// closest returns the name most similar to a misspelt one, if any.
func closest(misspelt string, names []string) []string {
	var best []string
	least := 1 + min(3, (len(misspelt)+1)/3)
	for _, name := range slices.Sorted(slices.Values(names)) {
		if d := claim.Distance(misspelt, name); d > 0 && d < least {
			best, least = []string{name}, d
		}
	}
	return best
}

// named returns the name of an item in a message.
func named(i store.Item) string {
	if i.File == "" {
		return i.Service
	}
	return i.Service + ": " + i.File
}

// numbered returns the name of a version in a message.
func numbered(h store.Header) string {
	if h.Version == 0 { // written by other means
		return "a text without a version"
	}
	return "version " + strconv.FormatUint(h.Version, 10)
}

// versionNumber is the number of a version as a flag or an argument, 0 if none is given.
type versionNumber uint64

func (v *versionNumber) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 {
		return fmt.Errorf("must be a %s, not %q", v.Type(), text)
	}
	*v = versionNumber(n)
	return nil
}

func (v *versionNumber) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(*v), 10)
}

// Type returns what the value must be.
func (*versionNumber) Type() string { return "whole number from 1" }

// versionArguments returns the numbers of versions that are given as arguments.
func versionArguments(args []string) (numbers []versionNumber, err error) {
	for _, arg := range args {
		var v versionNumber
		if err := v.Set(arg); err != nil {
			return nil, asUsageError(fmt.Errorf("VERSION %w", err))
		}
		numbers = append(numbers, v)
	}
	return numbers, nil
}

// checkStrategy returns a usage error for an unknown strategy.
func checkStrategy(strategy string) error {
	if strategy != "" && !slices.Contains(flagValues["strategy"], strategy) {
		return asUsageError(fmt.Errorf("--strategy must be rolling, at-once or none, not %q", strategy))
	}
	return nil
}

// readText reads a file for Consul; - is standard input.
func readText(stdin io.Reader, file string) ([]byte, error) {
	from, name := stdin, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from, name = f, file
	}
	text, err := io.ReadAll(io.LimitReader(from, store.Limit+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > store.Limit:
		return nil, fmt.Errorf("%s is too large: Consul takes up to %d bytes", name, store.Limit)
	}
	return text, nil
}

// operator returns who runs the command, as user@host. With sudo, it is the user who called sudo.
func operator() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	host, _ := os.Hostname()
	return cmp.Or(name, strconv.Itoa(os.Getuid())) + "@" + cmp.Or(host, "unknown")
}

// visible returns an untrusted text that is safe for a terminal: non-printing characters are escaped as in Go, except those in
// keep.
func visible(text, keep string) string {
	var out strings.Builder
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[0])
		case unicode.IsPrint(r) || strings.ContainsRune(keep, r):
			out.WriteRune(r)
		default:
			out.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[size:]
	}
	return out.String()
}

// harmless makes an error with texts from Consul safe for a terminal.
type harmless struct{ error }

func (e harmless) Error() string { return visible(e.error.Error(), "\n") }
func (e harmless) Unwrap() error { return e.error }

// writeText writes a text from Consul byte for byte, and to a terminal without control characters.
func writeText(w io.Writer, text []byte) error {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		text = []byte(visible(string(text), "\n\t"))
	}
	_, err := w.Write(text)
	return err
}

// when returns a time as a table shows it, - for none.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
