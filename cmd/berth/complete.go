package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/registrar/group/store"
	"berth/registrar/rollout"
)

// flagValues are the completions of flags with few values.
var flagValues = map[string][]string{
	"proxy":                 {kindHAProxy, kindNginx},
	"deregister":            {"always", "on-success"},
	"log-format":            {"text", "json", "auto"},
	"format":                {formatTable, formatJSON},
	"log-level":             {"debug", "info", "warn", "error"},
	"haproxy-reload-signal": {"USR2", "HUP", "USR1"},
	"strategy":              {"rolling", "at-once", "none"},
	"order":                 {rollout.StartFirst, rollout.StopFirst},
	"failure-action":        {rollout.Pause, rollout.Continue, rollout.Rollback},
	"ready":                 {"tcp", "http:/", "https:/", "none"},
	"listen":                {"127.0.0.1:9651", "127.0.0.1:9652", "0.0.0.0:9651", "0.0.0.0:9652", "none"},
}

// setCompletion sets the completions of the flags of a command and its subcommands. Other flags complete files if they take one,
// otherwise nothing.
func setCompletion(cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		setCompletion(below)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		complete := cobra.NoFileCompletions
		switch _, group := placeOf(f.Name); {
		case flagValues[f.Name] != nil:
			complete = cobra.FixedCompletions(flagValues[f.Name], cobra.ShellCompDirectiveNoFileComp)
		case f.Name == "config":
			complete = cobra.FixedCompletions([]string{"yml", "yaml"}, cobra.ShellCompDirectiveFilterFileExt)
		case strings.HasSuffix(f.Name, "-directory"):
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
		case strings.HasSuffix(f.Name, "-container"):
			complete = completeContainers
		case f.Name == "network":
			complete = completeNetworks
		case slices.Contains([]string{"FILE", "SOCKET", "PROGRAM", "COMMAND"}, group), f.Name == "file":
			return
		}
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete) // fails where it is registered already
	})
	takesCommand := strings.Contains(cmd.Use, "-- ") // and its arguments: files, or anything
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !takesCommand {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}

// placeOf returns the group of a flag and what stands for its value in --help.
func placeOf(flag string) (title, value string) {
	for _, g := range flagGroups {
		for _, entry := range g.flags {
			if name, value, _ := strings.Cut(entry, " "); name == flag {
				return g.title, value
			}
		}
	}
	return "", ""
}

// completeContainers offers the names of the running containers.
func completeContainers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := askDocker(func(ctx context.Context, client *docker.Client) (names []string) {
		list, _ := client.ListContainers(docker.ListContainersOptions{Context: ctx})
		for _, c := range list {
			for _, name := range c.Names {
				if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") && !slices.Contains(args, name) {
					names = append(names, cobra.CompletionWithDesc(name, c.Image))
				}
			}
		}
		return names
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeGroup offers the possible values of the arguments with these names.
func completeGroup(names []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (offered []string, _ cobra.ShellCompDirective) {
		if len(args) == len(names) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		name := strings.Trim(names[len(args)], "[]")
		if name == "FILE" {
			return nil, cobra.ShellCompDirectiveDefault
		}
		c, err := readConfig(cmd.Flags())
		g := &groupStore{}
		if err != nil || g.connect(c) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second) // a shell waits for it
		defer cancel()
		if name == "SERVICE" {
			return groupNames(ctx, g.consul), cobra.ShellCompDirectiveNoFileComp
		}
		service, err := store.ParseService(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		item := store.Item{Service: service}
		switch {
		case name == "NAME":
			files, _ := g.Files(ctx, service)
			for _, file := range slices.Sorted(maps.Keys(files)) {
				offered = append(offered, visible(file, ""))
			}
			return offered, cobra.ShellCompDirectiveNoFileComp
		case len(args) > 1 && names[1] == "NAME":
			item.File = args[1]
		}
		kept, _ := g.History(ctx, item)
		for _, h := range kept {
			offered = append(offered, cobra.CompletionWithDesc(strconv.FormatUint(h.Version, 10), when(h.At)+" "+visible(h.By, "")))
		}
		return offered, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeServices offers services that are not named yet.
func completeServices(names func(context.Context, *api.Client) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (offered []string, _ cobra.ShellCompDirective) {
		c, err := readConfig(cmd.Flags())
		g := &groupStore{}
		if err != nil || g.connect(c) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second) // a shell waits for it
		defer cancel()
		for _, name := range slices.Sorted(slices.Values(names(ctx, g.consul))) {
			if store.ValidService(name) == nil && !slices.Contains(args, name) {
				offered = append(offered, name)
			}
		}
		return offered, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNames offers the services and the containers, which are asked for at the same time.
func completeNames(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var services, containers []string
	var both sync.WaitGroup
	both.Go(func() { services, _ = completeServices(serviceNames)(cmd, nil, toComplete) })
	both.Go(func() { containers, _ = completeContainers(cmd, nil, toComplete) })
	both.Wait()
	return append(services, containers...), cobra.ShellCompDirectiveNoFileComp
}

// completeNetworks offers the names of Docker's networks.
func completeNetworks(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := askDocker(func(_ context.Context, client *docker.Client) (names []string) {
		list, _ := client.ListNetworks()
		for _, n := range list {
			names = append(names, n.Name)
		}
		return names
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// askDocker returns the answer to ask, nil if Docker takes longer than a second: a shell waits for it.
func askDocker(ask func(context.Context, *docker.Client) []string) []string {
	client, err := dockerClient()
	if err != nil {
		return nil
	}
	client.SetTimeout(time.Second)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return ask(ctx, client)
}
