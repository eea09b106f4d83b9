package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth/registrar/group/store"
)

func fileCommand() *cobra.Command {
	return parentCommand("file", "Manage the versioned files of a service",
		`Change the files that all instances of a service share. They are stored in Consul's KV as berth/files/SERVICE/NAME, up to
511 KB each. Every instance writes them to its files directory. Like the configuration, they have versions and a history.`,
		filePutCommand(), fileGetCommand(), fileListCommand(), fileRemoveCommand(),
		historyCommand("List the versions of a file of a service", "a file of a service", []string{"NAME"}))
}

func filePutCommand() *cobra.Command {
	var name string
	var number versionNumber
	cmd := groupCommand("put", "Add or replace a file of a service",
		`Make FILE the next version of a file of a service; - means standard input. A version that is not higher than the current
one is refused, with exit code 1. An unchanged file makes no new version, unless --version is set.`,
		[]string{"FILE"}, func(ctx context.Context, g *groupStore, args []string) error {
			if args[0] == "-" && name == "" {
				return asUsageError(errors.New("standard input has no name: set one with --name"))
			}
			i, err := g.item([]string{cmp.Or(name, filepath.Base(args[0]))})
			if err != nil {
				return err
			}
			text, err := readText(g.stdin, args[0])
			if err != nil {
				return err
			}
			h, applied, err := g.put(ctx, i, store.Change{Text: text, Version: uint64(number), By: operator(), Format: rawFormat})
			if err != nil {
				return fmt.Errorf("%s: %w", named(i), err)
			}
			if !applied {
				_, err := fmt.Fprintf(g.out, "%s: %s is this file already\n", named(i), numbered(h))
				return err
			}
			return g.announce(ctx, fmt.Sprintf("%s: %s applied", named(i), numbered(h)), pacing{})
		})
	cmd.Flags().StringVar(&name, "name", "", "name of the file on the instances (default: the name of FILE)")
	cmd.Flags().Var(&number, "version", "version number, higher than the current one (default: the next)")
	return cmd
}

func fileGetCommand() *cobra.Command {
	return groupCommand("get", "Print a file of a service",
		"Print the current version of a file of a service, or an older version that is still kept, byte for byte.",
		[]string{"NAME", "[VERSION]"}, func(ctx context.Context, g *groupStore, args []string) error {
			i, err := g.item(args[:1])
			if err != nil {
				return err
			}
			return g.print(ctx, i, args[1:])
		})
}

func fileListCommand() *cobra.Command {
	var form string
	cmd := groupCommand("list", "List the files of a service", "List the files of a service and their current versions.",
		nil, func(ctx context.Context, g *groupStore, _ []string) error {
			if err := checkFormat(form); err != nil {
				return err
			}
			files, err := g.fileHeaders(ctx)
			if err != nil {
				return err
			}
			names := slices.Sorted(maps.Keys(files))
			if form == formatJSON {
				var list []fileJSON
				for _, name := range names {
					list = append(list, fileJSON{name, files[name]})
				}
				return encodeLines(g.out, list)
			}
			if len(names) == 0 {
				_, err := fmt.Fprintf(g.out, "%s has no files%s\n", g.service, g.similarService(ctx))
				return err
			}
			t := tabwriter.NewWriter(g.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "NAME\tVERSION\tAPPLIED\tBY\tSUM")
			for _, name := range names {
				h := files[name]
				fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", cell(name), h.Version, when(h.At), cell(h.By), cell(h.Sum))
			}
			return t.Flush()
		})
	formatFlag(cmd, &form)
	return cmd
}

// fileJSON is a file in a list.
type fileJSON struct {
	Name string `json:"name"`
	store.Header
}

func fileRemoveCommand() *cobra.Command {
	return groupCommand("rm", "Remove a file of a service",
		"Remove a file of a service, also on its instances. Its history is kept, and its next version gets the next number.",
		[]string{"NAME"}, func(ctx context.Context, g *groupStore, args []string) error {
			i, err := g.item(args)
			if err != nil {
				return err
			}
			err = g.try(ctx, func(ctx context.Context) error { return g.Remove(ctx, i, operator()) })
			if errors.Is(err, store.ErrNone) {
				return g.none(ctx, i, 0)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", named(i), err)
			}
			_, err = fmt.Fprintf(g.out, "%s removed\n", named(i))
			return err
		})
}
