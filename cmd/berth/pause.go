package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"berth/registrar/group/store"
	"berth/templater/catalog"
)

func pauseCommand() *cobra.Command {
	var pause catalog.Pause
	var list bool
	var form string
	cmd := onConsul(&cobra.Command{
		Use:   "pause SERVICE...",
		Short: "Make requests for a service wait until it is resumed",
		Long: `Make new requests for services wait at the proxy until berth resume, for example during a data migration. Services are
named as in Consul. A request that has waited for --max gets a page with status 503. Responses that have begun continue.

A pause is stored in Consul and survives restarts. A new pause replaces the current one.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				for _, name := range []string{"max", "reason"} {
					if cmd.Flags().Changed(name) {
						return fmt.Errorf("--%s cannot be combined with --list", name)
					}
				}
				return arguments()(cmd, args)
			}
			if cmd.Flags().Changed("format") {
				return errors.New("--format needs --list")
			}
			return atLeastOne("SERVICE")(cmd, args)
		},
		ValidArgsFunction: completeServices(serviceNames),
	}, func(ctx context.Context, g *groupStore, services []string) error {
		if err := checkFormat(form); err != nil {
			return err
		}
		if list {
			return g.listPaused(ctx, form)
		}
		if pause.Max < catalog.MinPause || pause.Max > catalog.MaxPause {
			return asUsageError(fmt.Errorf("--max must be from 1s to 5m, not %s", pause.Max))
		}
		if err := validServices(services); err != nil {
			return err
		}
		pause.Since, pause.By = time.Now().UTC().Truncate(time.Second), operator()
		return forEach(services, func(service string) error {
			p := pause
			p.Service = service
			return g.pause(ctx, p)
		})
	})
	cmd.Flags().DurationVar(&pause.Max, "max", 30*time.Second, "how long a request waits at most, from 1s to 5m")
	cmd.Flags().StringVar(&pause.Reason, "reason", "paused by hand", "reason to show in --list")
	cmd.Flags().BoolVar(&list, "list", false, "list the paused services")
	formatFlag(cmd, &form)
	cmd.Flags().Lookup("format").Usage = "output of --list: table or json"
	return cmd
}

func resumeCommand() *cobra.Command {
	return onConsul(&cobra.Command{
		Use:               "resume SERVICE...",
		Short:             "Resume a paused service; waiting requests go first",
		Long:              "End the pause of services, named as in Consul. Waiting requests continue immediately. Services that are not paused do not change.",
		Args:              atLeastOne("SERVICE"),
		ValidArgsFunction: completeServices(pausedNames),
	}, func(ctx context.Context, g *groupStore, services []string) error {
		if err := validServices(services); err != nil {
			return err
		}
		return forEach(services, func(service string) error { return g.resume(ctx, service) })
	})
}

// forEach does something with each service. The error of one service does not stop the rest, except that a silent Consul is waited
// for only once.
func forEach(services []string, do func(service string) error) error {
	var errs []error
	for i, service := range services {
		err := do(service)
		errs = append(errs, err)
		if rest := services[i+1:]; len(rest) > 0 && errors.As(err, new(*givenUpError)) {
			errs = append(errs, fmt.Errorf("%s: not tried", strings.Join(rest, ", ")))
			break
		}
	}
	return errors.Join(errs...)
}

// validServices returns a usage error for an invalid service name.
func validServices(services []string) error {
	for _, service := range services {
		if err := store.ValidService(service); err != nil {
			return asUsageError(err)
		}
	}
	return nil
}

// pause writes a pause. It keeps the start time of an existing pause.
func (g *groupStore) pause(ctx context.Context, p catalog.Pause) error {
	before, err := g.pausedPair(ctx, p.Service)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Service, err)
	}
	if before == nil {
		listed, err := g.services(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Service, err)
		}
		if !slices.Contains(listed, p.Service) {
			return fmt.Errorf("%s: Consul has no such service%s; pause a service while it has a registered instance", p.Service,
				didYouMean(closest(p.Service, listed)...))
		}
	} else if old, err := catalog.ParsePause(before); err == nil {
		p.Since = old.Since
	}
	err = g.try(ctx, func(ctx context.Context) error {
		_, err := g.consul.KV().Put(p.Pair(), new(api.WriteOptions).WithContext(ctx))
		return store.Explain("write "+p.Pair().Key, err)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.Service, err)
	}
	_, err = fmt.Fprintf(g.out, "%s: paused; requests wait up to %s\n", p.Service, p.Max)
	return err
}

// resume ends a pause. A service without a pause may have been resumed by another operator, but an unknown name is an error.
func (g *groupStore) resume(ctx context.Context, service string) error {
	pair, err := g.pausedPair(ctx, service)
	if err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	if pair == nil {
		listed, err := g.services(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", service, err)
		}
		limited, cancel := context.WithTimeout(ctx, time.Second) // only an extra, and Consul has just answered
		defer cancel()
		meant := didYouMean(closest(service, pausedNames(limited, g.consul))...)
		if !slices.Contains(listed, service) {
			return fmt.Errorf("%s: not paused, and Consul has no such service%s; berth pause --list shows the paused services", service, meant)
		}
		_, err = fmt.Fprintf(g.out, "%s: not paused%s\n", service, meant)
		return err
	}
	err = g.try(ctx, func(ctx context.Context) error {
		_, err := g.consul.KV().Delete(pair.Key, new(api.WriteOptions).WithContext(ctx))
		return store.Explain("delete "+pair.Key, err)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	_, err = fmt.Fprintf(g.out, "%s: resumed\n", service)
	return err
}

// services returns the names of the services in Consul.
func (g *groupStore) services(ctx context.Context) (names []string, err error) {
	err = g.try(ctx, func(ctx context.Context) error {
		listed, meta, err := g.consul.Catalog().Services(new(api.QueryOptions).WithContext(ctx))
		names = slices.Collect(maps.Keys(listed))
		return store.ExplainRead("the services", meta, err)
	})
	return names, err
}

// pausedPair returns the key of a service's pause, nil if it is not paused.
func (g *groupStore) pausedPair(ctx context.Context, service string) (pair *api.KVPair, err error) {
	err = g.try(ctx, func(ctx context.Context) (err error) {
		var meta *api.QueryMeta
		pair, meta, err = g.consul.KV().Get(catalog.PausedPrefix+service, new(api.QueryOptions).WithContext(ctx))
		return store.ExplainRead(catalog.PausedPrefix+service, meta, err)
	})
	return pair, err
}

// pausedJSON is a paused service in a list.
type pausedJSON struct {
	Service string    `json:"service"`
	Max     string    `json:"max"`
	Since   time.Time `json:"since"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
}

// listPaused prints what is paused. A key that pauses nothing is an error.
func (g *groupStore) listPaused(ctx context.Context, form string) error {
	var pairs api.KVPairs
	var meta *api.QueryMeta
	err := g.try(ctx, func(ctx context.Context) (err error) {
		pairs, meta, err = g.consul.KV().List(catalog.PausedPrefix, new(api.QueryOptions).WithContext(ctx))
		return store.ExplainRead(catalog.PausedPrefix, meta, err)
	})
	if err != nil {
		return err
	}
	var list []pausedJSON
	var errs []error
	if meta.ResultsFilteredByACLs {
		errs = append(errs, errors.New("the token does not see all paused services"))
	}
	for _, pair := range pairs {
		p, err := catalog.ParsePause(pair)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, pausedJSON{p.Service, p.Max.String(), p.Since, p.By, p.Reason})
	}
	switch {
	case form == formatJSON:
		err = encodeLines(g.out, list)
	case len(pairs) == 0 && len(errs) == 0:
		_, err = fmt.Fprintln(g.out, "nothing is paused")
	case len(list) > 0:
		t := tabwriter.NewWriter(g.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "SERVICE\tMAX\tSINCE\tBY\tREASON")
		for _, p := range list {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", cell(p.Service), p.Max, when(p.Since), cell(p.By), cell(p.Reason))
		}
		err = t.Flush()
	}
	return errors.Join(append(errs, err)...)
}

// pausedNames returns the services that are paused.
func pausedNames(ctx context.Context, consul *api.Client) (names []string) {
	pairs, _, _ := consul.KV().List(catalog.PausedPrefix, new(api.QueryOptions).WithContext(ctx))
	for _, pair := range pairs {
		if p, err := catalog.ParsePause(pair); err == nil {
			names = append(names, p.Service)
		}
	}
	return names
}
