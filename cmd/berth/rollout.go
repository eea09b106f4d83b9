package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/registrar"
	"berth/registrar/agent"
	registrardocker "berth/registrar/docker"
	"berth/registrar/group/session"
	"berth/registrar/retry"
	"berth/registrar/rollout"
)

// rolloutFlags are the flags of berth rollout.
type rolloutFlags struct {
	options                                  rollout.Options // set flags override the file
	project, compose                         string
	pull, build, force, watch, resume, abort bool
}

func rolloutCommand() *cobra.Command {
	f := rolloutFlags{options: rollout.Defaults()}
	cmd := &cobra.Command{
		Use:   "rollout SERVICE...",
		Short: "Replace the containers of compose services without a failed request",
		Long: `Replace the containers of compose services after a change of the compose file or of an image, one at a time or
--parallelism at a time:

  1. compose creates the new container
  2. berth waits until it is healthy, registered in Consul and served by
     every balancer, and then watches it for the time of --monitor
  3. berth drains the old container until its last request has ended,
     stops it and removes it

If a new container fails, berth removes it and keeps the old one. Then it exits with 1 and prints the reason and the end of
the new container's log. Ctrl+C also removes the new container. With --order stop-first, nothing is rolled back: continue
with --resume.

SERVICE is a service of a compose file. berth finds the project by the service's containers. deploy.update_config in the
compose file sets the options; a flag of the same name overrides it. Several services are rolled out in the order of their
dependencies.`,
		Args: atLeastOne("SERVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			if err := f.check(cmd.Flags()); err != nil {
				return asUsageError(err)
			}
			consul, err := consulClient(p.config)
			if err != nil {
				return err
			}
			client, err := dockerClient()
			if err != nil {
				return err
			}
			finder := registrar.Finder{Agent: agent.Agent{Client: consul.Agent(), Log: slog.New(slog.DiscardHandler)}, Docker: client}
			c := &rolling{rolloutFlags: f, flags: cmd.Flags(), consul: consul, docker: client, images: registrardocker.ImageEvents(client),
				catalog: rollout.AgentCatalog{Finder: finder, Consul: consul}, out: cmd.OutOrStdout(), log: p.log}
			return c.run(cmd.Context(), args)
		},
		ValidArgsFunction: completeCompose,
	}
	f.flags(cmd.Flags())
	c := newConfig()
	c.commonFlags(cmd.Flags(), "none")
	return cmd
}

func (f *rolloutFlags) flags(flags *pflag.FlagSet) {
	o := &f.options
	flags.StringVarP(&f.project, "project-name", "p", "", "compose project (default: the project in this directory, or the only project with the service)")
	flags.StringVar(&f.compose, "compose", "", "compose command, e.g. 'docker compose -f FILE' (default: the version that created the containers)")
	flags.IntVar(&o.Parallelism, "parallelism", o.Parallelism, "number of containers to replace at a time; 0 means all at once")
	flags.DurationVar(&o.Delay, "delay", o.Delay, "pause between two batches")
	flags.StringVar(&o.Order, "order", o.Order, "start-first, or stop-first for services that cannot run twice")
	flags.DurationVar(&o.Monitor, "monitor", o.Monitor, "how long to watch a new container before the old one is drained")
	flags.StringVar(&o.FailureAction, "failure-action", o.FailureAction, "what to do on failure: rollback, pause (wait for --resume or --abort), or continue with the rest")
	flags.Float64Var(&o.MaxFailureRatio, "max-failure-ratio", o.MaxFailureRatio, "fraction of new containers that may fail before --failure-action applies, 0 to 1")
	flags.DurationVar(&o.ReadyTimeout, "ready-timeout", o.ReadyTimeout, "how long to wait until a new container serves")
	flags.DurationVar(&o.DrainTimeout, "drain-timeout", o.DrainTimeout, "how long requests and websockets may continue on an old container")
	flags.BoolVar(&f.pull, "pull", false, "pull the images first; with --watch, every minute")
	flags.BoolVar(&f.build, "build", false, "build the images first")
	flags.BoolVar(&f.force, "force", false, "also replace containers that match the compose file")
	flags.BoolVar(&f.watch, "watch", false, "keep running, and roll out whenever the image's name refers to a new image on this host")
	flags.BoolVar(&f.resume, "resume", false, "continue an interrupted rollout")
	flags.BoolVar(&f.abort, "abort", false, "undo the last step of an interrupted rollout; the remaining old containers serve again")
}

// check returns an error for flags that exclude each other.
func (f *rolloutFlags) check(flags *pflag.FlagSet) error {
	var set []string
	for _, name := range []string{"resume", "abort", "watch"} {
		if flags.Changed(name) {
			set = append(set, "--"+name)
		}
	}
	if len(set) > 1 {
		return fmt.Errorf("%s exclude each other", strings.Join(set, " and "))
	}
	if err := f.checkUsed(flags); err != nil {
		return err
	}
	if err := f.options.Validate(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	return nil
}

// checkUsed returns an error for a flag without effect: an interrupted rollout keeps its options.
func (f *rolloutFlags) checkUsed(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(flag *pflag.Flag) {
		switch name := flag.Name; {
		case f.watch && name == "build":
			err = errors.New("--watch and --build exclude each other: --watch follows images that are built elsewhere")
		case (f.resume || f.abort) && begins(name):
			err = fmt.Errorf("--%s cannot be combined with --resume or --abort: they use the options of the interrupted rollout", name)
		}
	})
	return err
}

// begins reports whether a flag affects only the start of a rollout.
func begins(name string) bool {
	return slices.Contains([]string{"pull", "build", "force", "parallelism", "delay", "order", "monitor", "failure-action", "max-failure-ratio", "ready-timeout", "drain-timeout"}, name)
}

// understand returns the options of a service from its file, overridden by flags.
func (f *rolloutFlags) understand(flags *pflag.FlagSet, o rollout.Options) rollout.Options {
	for name, take := range map[string]func(){
		"parallelism":       func() { o.Parallelism = f.options.Parallelism },
		"delay":             func() { o.Delay = f.options.Delay },
		"order":             func() { o.Order = f.options.Order },
		"monitor":           func() { o.Monitor = f.options.Monitor },
		"failure-action":    func() { o.FailureAction = f.options.FailureAction },
		"max-failure-ratio": func() { o.MaxFailureRatio = f.options.MaxFailureRatio },
		"ready-timeout":     func() { o.ReadyTimeout = f.options.ReadyTimeout },
		"drain-timeout":     func() { o.DrainTimeout = f.options.DrainTimeout },
	} {
		if flags.Changed(name) {
			take()
		}
	}
	return o
}

// rolling is a call of berth rollout.
type rolling struct {
	rolloutFlags
	flags   *pflag.FlagSet
	consul  *api.Client
	docker  rollout.Docker
	images  registrardocker.Stream // of what gives a name to another image
	catalog rollout.Catalog
	out     io.Writer
	log     *slog.Logger

	who    rollout.Who
	name   string // of the project
	labels map[string]string
}

func (c *rolling) say(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

func (c *rolling) run(ctx context.Context, services []string) error {
	slices.Sort(services)
	services = slices.Compact(services)
	for _, service := range services {
		if err := c.find(ctx, service); err != nil {
			return err
		}
	}
	compose, err := rollout.NewCompose(c.labels, c.compose)
	if err != nil && !c.abort { // that needs no compose, whose file may be gone
		return err
	}
	engine, err := rollout.Engine(c.docker)
	if err != nil {
		return err
	}
	c.who = rollout.Who{By: operator(), Engine: engine}
	switch {
	case c.resume || c.abort:
		for _, service := range services {
			if err := c.finish(ctx, compose, service); err != nil {
				return fmt.Errorf("%s: %w", service, err)
			}
		}
		return nil
	case c.watch:
		return c.follow(ctx, compose, services)
	}
	return c.all(ctx, compose, services)
}

// find finds the project of a service. All services must be in one project.
func (c *rolling) find(ctx context.Context, service string) error {
	projects, err := rollout.Find(ctx, c.docker, service)
	if err != nil {
		return err
	}
	name := c.project
	if name == "" {
		name = c.name
	}
	if name == "" {
		dir, _ := os.Getwd()
		name = rollout.ProjectOf(dir, projects)
	}
	names := slices.Sorted(maps.Keys(projects))
	switch {
	case name == "" && len(names) == 1:
		name = names[0]
	case name == "" && len(names) > 1:
		return fmt.Errorf("%s is a service of the projects %s: choose one with --project-name", service, strings.Join(names, ", "))
	case name == "":
		return fmt.Errorf("no container of service %s on this host: start it with 'docker compose up -d %s'", service, service)
	case projects[name] == nil:
		return fmt.Errorf("no container of service %s of project %s on this host: start it with 'docker compose up -d %s'", service, name, service)
	}
	c.name, c.labels = name, projects[name]
	return nil
}

// all rolls out services one at a time.
func (c *rolling) all(ctx context.Context, compose rollout.Compose, services []string) error {
	file, err := compose.Config(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range services { // all of them before anything is done
		s, there := file[name]
		s.Options = c.understand(c.flags, s.Options)
		file[name] = s
		switch {
		case !there:
			errs = append(errs, fmt.Errorf("%s is no longer in the compose file of project %s: remove it with 'docker compose up -d --remove-orphans'", name, c.name))
		case s.Alone != "" && s.Options.Order != rollout.StopFirst:
			errs = append(errs, errors.New(s.Alone))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, name := range services {
		if err := c.fetch(ctx, compose, file[name]); err != nil {
			return err
		}
	}
	for _, name := range rollout.Sort(services, file) {
		if err := c.one(ctx, compose, file[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// fetch pulls and builds the image of a service if requested.
func (c *rolling) fetch(ctx context.Context, compose rollout.Compose, s rollout.Service) error {
	switch {
	case c.pull && s.Image != "":
		c.say("%s: pulling its image", s.Name)
		if err := compose.Pull(ctx, s.Name); err != nil {
			return err
		}
	case c.pull && !c.build:
		c.say("%s: nothing to pull: its image is built here, set --build to build it", s.Name)
	case c.pull:
		c.say("%s: nothing to pull: its image is built here", s.Name)
	}
	if c.build {
		c.say("%s: building its image", s.Name)
		return compose.Build(ctx, s.Name)
	}
	return nil
}

// one rolls a service out.
func (c *rolling) one(ctx context.Context, compose rollout.Compose, s rollout.Service) error {
	return c.locked(ctx, compose, s.Name, func(ctx context.Context, keeper *session.Keeper) (*rollout.Lock, rollout.State, error) {
		begin := rollout.Plan{}.Begin(c.who, s.Options)
		lock, err := rollout.Take(ctx, c.consul, keeper, c.name, s.Name, begin)
		return lock, begin, err
	}, func(ctx context.Context, r *rollout.Rollout) (left bool, err error) {
		plan, err := c.plan(ctx, compose, s)
		if err != nil {
			return false, err
		}
		if plan.Empty() {
			c.say("%s: nothing to replace: its containers match the compose file (--force replaces them anyway)", s.Name)
			return false, nil
		}
		r.State = plan.Begin(c.who, s.Options)
		if err := r.Save(ctx, r.State); err != nil {
			return false, err
		}
		c.say("%s: %d to replace, %s", s.Name, r.State.Total, how(r.State.Total, s.Options))
		return r.Run(ctx)
	})
}

// how describes the order in which this number of containers is replaced.
func how(total int, o rollout.Options) string {
	stopped := o.Order == rollout.StopFirst
	switch n := o.Parallelism; {
	case total == 1 && stopped:
		return "stopping the old one first"
	case total == 1:
		return "starting the new one first"
	case n == 1 && stopped:
		return "one at a time, stopping the old one first"
	case n == 1:
		return "one at a time"
	}
	pace := "all at once"
	if n := o.Parallelism; n > 0 && n < total {
		pace = fmt.Sprintf("%d at a time", n)
	}
	if stopped {
		pace += ", stopping the old ones first"
	}
	return pace
}

// plan returns what has to be replaced.
func (c *rolling) plan(ctx context.Context, compose rollout.Compose, s rollout.Service) (rollout.Plan, error) {
	containers, err := rollout.Containers(ctx, c.docker, c.name, s.Name)
	if err != nil {
		return rollout.Plan{}, err
	}
	hash, err := compose.Hash(ctx, s.Name)
	if err != nil {
		return rollout.Plan{}, err
	}
	image, err := rollout.ImageOf(c.docker, s, containers)
	if err != nil {
		return rollout.Plan{}, err
	}
	if why := s.Fits(containers, image); why != "" {
		return rollout.Plan{}, errors.New(why)
	}
	return rollout.NewPlan(containers, hash, image, max(len(containers), s.Replicas), c.force), nil
}

// finish continues an interrupted rollout, or undoes its last step.
func (c *rolling) finish(ctx context.Context, compose rollout.Compose, service string) error {
	return c.locked(ctx, compose, service, func(ctx context.Context, keeper *session.Keeper) (*rollout.Lock, rollout.State, error) {
		return rollout.TakeOver(ctx, c.consul, keeper, c.name, service, c.who, func(held *rollout.HeldError) {
			c.say("%s: waiting until Consul notices the end of the rollout by %s", service, held.By)
		})
	}, func(ctx context.Context, r *rollout.Rollout) (left bool, err error) {
		if c.resume {
			c.say("%s: resuming, %d of %d were already replaced", service, r.State.Replaced, r.State.Total)
			return r.Run(ctx)
		}
		if err := r.Undo(ctx); err != nil {
			return true, err
		}
		c.say("%s: aborted: %d of %d are replaced, the old ones among the rest serve", service, r.State.Replaced, r.State.Total)
		return false, nil
	})
}

const (
	// lockTime is how long Consul may take to report whether a rollout of the service runs.
	lockTime = 15 * time.Second
	// endTime is how long the end of a rollout may take in Consul.
	endTime = 10 * time.Second
)

// locked does something while it holds the lock of a service's rollout.
func (c *rolling) locked(ctx context.Context, compose rollout.Compose, service string,
	take func(context.Context, *session.Keeper) (*rollout.Lock, rollout.State, error),
	do func(context.Context, *rollout.Rollout) (left bool, err error)) error {
	keeper := session.New(session.Options{Consul: c.consul, Name: "berth rollout " + c.name + "/" + service, Behavior: api.SessionBehaviorRelease, Log: c.log})
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx)) // it ends after what ^C has begun
	ended := make(chan struct{})
	go func() { defer close(ended); keeper.Run(keeping) }()
	defer func() { stop(); <-ended }()

	limited, cancel := ctx, context.CancelFunc(func() {})
	if !c.resume && !c.abort { // these wait
		limited, cancel = context.WithTimeout(ctx, lockTime)
	}
	lock, state, err := take(limited, keeper)
	cancel()
	if err != nil {
		return err
	}
	held, release := lock.Session.While(ctx)
	defer release()
	r := &rollout.Rollout{
		Project: c.name, Service: service, State: state,
		Up: compose.Up, Docker: c.docker, Catalog: c.catalog, Save: lock.Save, Say: c.say,
		Balancers: func(ctx context.Context) ([]rollout.Serving, error) { return rollout.Balancers(ctx, c.consul) },
	}
	left, err := do(held, r)
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	if left {
		if leave := lock.Leave(after); leave != nil && !errors.Is(leave, session.ErrLost) {
			err = errors.Join(err, leave)
		}
		return err
	}
	return errors.Join(err, lock.Finish(after))
}

// watchInterval is how often to check the images without an event from Docker.
const watchInterval = time.Minute

// follow rolls out services whenever their image's name refers to another image than their containers use.
func (c *rolling) follow(ctx context.Context, compose rollout.Compose, services []string) error {
	wake := make(chan struct{}, 1)
	notice := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	following, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		delays := retry.Delays()
		for following.Err() == nil {
			err := c.images(following, func() { delays.Reset(); notice() }, func(registrardocker.Message) { notice() })
			c.log.Debug("Docker's events failed, trying again", "err", err)
			retry.Pause(following, delays.NextBackOff())
		}
	}()
	defer func() { stop(); <-ended }()
	c.say("watching the images of %s", strings.Join(services, ", "))
	if c.pull { // which is not said again every minute
		file, _ := compose.Config(ctx) // that it cannot be read is logged below
		for _, name := range services {
			if s, there := file[name]; there && s.Image == "" {
				c.say("%s: nothing to pull: its image is built here", name)
			}
		}
	}
	failed := map[string]string{} // images that did not work, by service
	for {
		if err := c.followOnce(ctx, compose, services, failed); err != nil && ctx.Err() == nil {
			c.log.Error("rollout failed, still watching", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		case <-time.After(watchInterval):
		}
	}
}

// followOnce rolls out services with a new image, except images that failed.
func (c *rolling) followOnce(ctx context.Context, compose rollout.Compose, services []string, failed map[string]string) error {
	file, err := compose.Config(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range rollout.Sort(services, file) {
		if c.pull && file[name].Image != "" {
			errs = append(errs, compose.Pull(ctx, name))
		}
		containers, err := rollout.Containers(ctx, c.docker, c.name, name)
		if err != nil {
			return err
		}
		image, err := rollout.ImageOf(c.docker, file[name], containers)
		if err != nil || image == "" || image == failed[name] ||
			!slices.ContainsFunc(containers, func(is rollout.Container) bool { return is.ImageID != image }) {
			errs = append(errs, err)
			continue
		}
		pull := c.pull
		c.pull = false
		if err = c.all(ctx, compose, []string{name}); errors.As(err, new(*rollout.FailedError)) { // else it may work the next time
			failed[name] = image
		}
		c.pull = pull
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// completeCompose offers the services of the compose projects that run here.
func completeCompose(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := askDocker(func(ctx context.Context, client *docker.Client) []string {
		return rollout.Services(ctx, client)
	})
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
}
