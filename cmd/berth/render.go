package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"berth/templater"
)

// differs is the error of berth render --diff that is none: its exit code says that something differs.
type differs struct{}

func (differs) Error() string { return "the rendered text differs from what is there" }

// exitDiffers is as diff has it, but for an error, which is 1 everywhere in berth.
const exitDiffers = 2

func renderCommand() *cobra.Command {
	var diff, validate, explain bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Render once, to standard output",
		Long: `Render the templates once, from what the Consul catalog holds now, and print the texts. Nothing is written,
and no proxy is touched. Where there are several templates (--file), each text has a line with its destination
before it.

With --diff, print what would change in the files that are there, which berth keeps in step with what the proxy
runs, and exit with 0 if nothing would, with 2 if something would. Any error exits with 1, as does a text that
the proxy refuses with --validate.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if diff && explain {
				return errors.New("--diff and --explain are two ways to print a text: choose one")
			}
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := p.render(ctx)
			if err != nil {
				return err
			}
			if validate {
				if err := r.validate(ctx, p); err != nil {
					return err
				}
			}
			switch out := cmd.OutOrStdout(); {
			case diff:
				return r.diff(out)
			case explain:
				return r.explain(out)
			case validate:
				return nil
			default:
				return r.print(out)
			}
		},
	}
	commonFlags(cmd.Flags(), "none")
	templaterFlags(cmd.Flags())
	cmd.Flags().BoolVar(&diff, "diff", false, "print what differs from the files that are there")
	cmd.Flags().BoolVar(&validate, "validate", false, "have the proxy's program check the configuration; without --diff and --explain print nothing")
	cmd.Flags().BoolVar(&explain, "explain", false, "print with each line what data it depends on")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long it may take")
	return cmd
}

// rendering is what was rendered once.
type rendering struct {
	texts     map[string]templater.Published // by the names of the templates
	templater *templater.Templater
	proxy     *proxy
	path      map[string]string // of the destinations, by the names of the templates
}

func (p *process) render(ctx context.Context) (rendering, error) {
	opts, _, err := p.templaterOptions()
	if err != nil {
		return rendering{}, err
	}
	r := rendering{proxy: p.proxy, path: map[string]string{}}
	for _, t := range opts.Templates {
		r.path[t.Name] = t.Destination
	}
	if r.templater, err = templater.New(opts); err != nil {
		return rendering{}, err
	}
	r.texts, err = r.templater.Once(ctx)
	return r, err
}

// names are those of the templates, the proxy's first.
func (r rendering) names() []string {
	names := slices.Sorted(maps.Keys(r.texts))
	slices.SortStableFunc(names, func(a, b string) int {
		switch r.proxy.name {
		case a:
			return -1
		case b:
			return 1
		}
		return 0
	})
	return names
}

// head is the line before a text, if there are several.
func (r rendering) head(out io.Writer, name string) error {
	if len(r.texts) == 1 {
		return nil
	}
	_, err := fmt.Fprintf(out, "==> %s <==\n", r.path[name])
	return err
}

func (r rendering) print(out io.Writer) error {
	for _, name := range r.names() {
		if err := r.head(out, name); err != nil {
			return err
		}
		if _, err := io.WriteString(out, r.texts[name].Text); err != nil {
			return err
		}
	}
	return nil
}

func (r rendering) diff(out io.Writer) error {
	same := true
	for _, name := range r.names() {
		there, err := os.ReadFile(r.path[name])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		before, after := string(there), r.texts[name].Text
		if name == r.proxy.name {
			before = r.proxy.unmarked(before)
			if !strings.HasSuffix(after, "\n") { // berth ends it for the proxy
				after += "\n"
			}
		}
		changes := udiff.Unified(r.path[name], r.path[name]+" (rendered)", before, after)
		if changes == "" {
			continue
		}
		same = false
		if _, err := io.WriteString(out, changes); err != nil {
			return err
		}
	}
	if !same {
		return differs{}
	}
	return nil
}

// explain prints the lines with what they depend on, in groups that depend on the same.
func (r rendering) explain(out io.Writer) error {
	for _, name := range r.names() {
		if err := r.head(out, name); err != nil {
			return err
		}
		var last []string
		for n, line := range r.templater.Explain(name) {
			if n == 0 || !slices.Equal(last, line.Depends) {
				last = line.Depends
				depends := "the template alone"
				if len(last) > 0 {
					depends = strings.Join(last, ", ")
				}
				if _, err := fmt.Fprintf(out, "----- from line %d: %s\n", n+1, depends); err != nil {
					return err
				}
			}
			if _, err := fmt.Fprintln(out, line.Text); err != nil {
				return err
			}
		}
	}
	return nil
}

// validate has the proxy's program check its configuration.
func (r rendering) validate(ctx context.Context, p *process) error {
	rendered, ok := r.texts[p.proxy.name]
	if !ok {
		return fmt.Errorf("--validate: %s-config is none, there is no configuration to check", p.proxy.name)
	}
	binary, err := p.validator()
	if err != nil {
		return err
	}
	if binary == "" {
		return fmt.Errorf("--validate needs the %[1]s program: say where it is with --%[1]s-binary, or run berth where it is", p.proxy.name)
	}
	return p.proxy.validate(ctx, binary, rendered.Text, rendered.Files)
}
