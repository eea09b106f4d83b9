package main

import (
	"cmp"
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

// differs ends berth render --diff when something differs: not a failure, but exit code 1 as in diff.
type differs struct{}

func (differs) Error() string { return "the rendered text differs from what is there" }

// diffFailed is an error of berth render --diff, with exit code 2 as in diff.
type diffFailed struct{ error }

func (e diffFailed) Unwrap() error { return e.error }

func renderCommand() *cobra.Command {
	var diff, validate, explain bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Render the templates once and print the results",
		Long: `Render the templates once from the current Consul catalog and print the results. Nothing is written, and no proxy is
touched. If there are several templates (--file), a line with the destination precedes each result.

With --diff, print what would change in the existing files, which berth keeps in step with the running proxy. The exit code
is that of diff: 0 without differences, 1 with differences, 2 on any error. Routes and services that only a running berth
still keeps (--route-grace, --consul-grace) show up as differences.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if diff && explain {
				return asUsageError(errors.New("--diff and --explain exclude each other"))
			}
			defer func() {
				if diff && err != nil && !errors.Is(err, differs{}) {
					err = diffFailed{err}
				}
			}()
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
				if err := r.validate(ctx); err != nil {
					return err
				}
			}
			switch out := cmd.OutOrStdout(); {
			case diff:
				return r.diff(out)
			case explain:
				return r.print(out, r.explained)
			case !validate:
				return r.print(out, r.text)
			}
			return nil
		},
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), "none")
	c.templaterFlags(cmd.Flags())
	cmd.Flags().BoolVar(&diff, "diff", false, "print the differences from the existing files")
	cmd.Flags().BoolVar(&validate, "validate", false, "validate the configuration with the proxy's program; print nothing unless --diff or --explain is set")
	cmd.Flags().BoolVar(&explain, "explain", false, "print the data that each line depends on")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long rendering may take")
	return cmd
}

// rendering holds texts that were rendered once.
type rendering struct {
	*process
	templater *templater.Templater
	templates []templater.Template // the proxy's first
	texts     map[string]templater.Published
}

func (p *process) render(ctx context.Context) (rendering, error) {
	outputs, err := p.plainFiles()
	if err != nil {
		return rendering{}, err
	}
	slices.SortFunc(outputs, func(a, b output) int { return strings.Compare(a.template.Name, b.template.Name) })
	there, err := p.looksAfterProxy(false)
	if err != nil {
		return rendering{}, asUsageError(err)
	}
	if there {
		binary, _ := p.validator() // its error is for validate
		t, err := p.proxyTemplate(ctx, binary)
		if err != nil {
			return rendering{}, err
		}
		outputs = slices.Insert(outputs, 0, output{template: t})
	}
	r := rendering{process: p}
	for _, o := range outputs {
		r.templates = append(r.templates, o.template)
	}
	if r.templater, err = p.newTemplater(outputs, nil, nil); err != nil {
		return rendering{}, err
	}
	r.texts, err = r.templater.Once(ctx)
	return r, err
}

// print writes the texts, each preceded by its destination if there are several.
func (r rendering) print(w io.Writer, text func(templater.Template) string) error {
	for _, t := range r.templates {
		head := ""
		if len(r.templates) > 1 {
			head = "==> " + t.Destination + " <==\n"
		}
		if _, err := io.WriteString(w, head+text(t)); err != nil {
			return err
		}
	}
	return nil
}

// diff writes what would change in the existing files, and returns differs if anything would.
func (r rendering) diff(w io.Writer) error {
	var out strings.Builder
	for _, t := range r.templates {
		there, err := os.ReadFile(t.Destination)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		before, after := string(there), r.text(t)
		if t.Name == r.proxy.common().name {
			before = r.proxy.unmarked(before)
			after = strings.TrimSuffix(after, "\n") + "\n" // berth ends the last line for the proxy
		}
		out.WriteString(udiff.Unified(t.Destination, t.Destination+" (rendered)", before, after))
	}
	if out.Len() == 0 {
		return nil
	}
	if _, err := io.WriteString(w, out.String()); err != nil {
		return err
	}
	return differs{}
}

// text returns a text as it is written to its destination.
func (r rendering) text(t templater.Template) string {
	if t.Name == r.proxy.common().name {
		return r.proxy.text(r.texts[t.Name])
	}
	return r.texts[t.Name].Text
}

// explained returns a text with the dependencies of its lines, grouped by equal dependencies.
func (r rendering) explained(t templater.Template) string {
	var out strings.Builder
	var last []string
	for n, line := range r.templater.Explain(t.Name) {
		if n == 0 || !slices.Equal(last, line.Depends) {
			last = line.Depends
			fmt.Fprintf(&out, "----- from line %d: %s\n", n+1, cmp.Or(strings.Join(last, ", "), "the template only"))
		}
		fmt.Fprintln(&out, line.Text)
	}
	return out.String()
}

// validate has the proxy's program check the proxy's configuration.
func (r rendering) validate(ctx context.Context) error {
	name := r.proxy.common().name
	rendered, ok := r.texts[name]
	if !ok {
		return fmt.Errorf("--validate: %s-config is none, so there is no configuration to validate", name)
	}
	binary, err := r.validator()
	if err != nil {
		return err
	}
	if binary == "" {
		return fmt.Errorf("--validate needs the %[1]s program: set its path with --%[1]s-binary, or run berth where it is installed", name)
	}
	files := maps.Clone(rendered.Files)
	maps.Copy(files, rendered.Maps)
	return r.proxy.validate(ctx, binary, rendered.Text, files)
}
