package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/template"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group"
	"berth/registrar/group/leader"
	"berth/registrar/group/session"
	"berth/registrar/group/store"
	"berth/registrar/label"
	service "berth/registrar/process"
	"berth/registrar/retry"
	"berth/templater"
	templategroup "berth/templates/group"
)

const (
	// firstTime is how long the start waits for Consul before the command starts with the existing files.
	firstTime = 10 * time.Second
	// startTime is how long a start usually takes, idleTime the interval of later cleanups.
	startTime, idleTime = 10 * time.Second, 5 * time.Minute
	// locateTime is how long Consul's agent may take to report its address.
	locateTime = 2 * time.Second
	// renderTime is how long a look at the binds waits for data that the templates need.
	renderTime = 10 * time.Second
	// execTime is how long a command of on-change may take.
	execTime = 30 * time.Second
	// stepDownTime is how long an instance that is drained tries to give up the lead.
	stepDownTime = 5 * time.Second
	// bindsTemplate is the name of the template that renders the binds: no path has this form.
	bindsTemplate = "//binds"
	// manifest is the file in the files directory that lists the files berth has written there.
	manifest = ".berth-files"
)

// member makes berth service a member of its group: it brings the applied configuration and files to the command. It is the Target
// of an Applier.
type member struct {
	membership
	config  memberConfig
	name    string // of the service in Consul
	id      string
	service *service.Service // set before start
	consul  *api.Client
	store   *store.Store
	log     *slog.Logger

	templater *templater.Templater // nil = there is nothing to render and no bind
	self      atomic.Pointer[templategroup.Identity]
	table     atomic.Pointer[map[string]any]
	bound     atomic.Pointer[bound] // as the templater saw it last

	applier  func() *group.Applier
	begun    chan *group.Applier // the one that has the command's first start behind it
	sessions *session.Keeper
	election *leader.Election // nil = there is no leader
	draining atomic.Bool
	leads    atomic.Pointer[string] // the tag of its role
	tag      chan struct{}          // there is another one

	environment atomic.Pointer[[]string] // of the command at its next start

	// addresses are the variables of each bind. They belong to the templater's goroutine.
	addresses [][]string

	// These fields belong to the Applier's goroutine, and before that to prepare.
	restarted uint64          // Wanted.Restart that was carried out
	told      map[string]bool // identities of the configurations whose unknown keys were named
}

// bound holds what a command learns about its binds.
type bound struct {
	missing     []templategroup.Binding
	environment []string
}

// newMember returns the member for an instance. It makes no connection before prepare.
func (p *process) newMember(consul *api.Client, in label.Process, id string) (*member, error) {
	c := p.config.Member
	understood, err := c.understand()
	if err != nil {
		return nil, asUsageError(p.config.located(err))
	}
	m := &member{
		membership: understood, config: c, name: in.Name, id: id, consul: consul, store: store.New(consul), log: p.log,
		begun: make(chan *group.Applier, 1), tag: make(chan struct{}, 1),
		addresses: make([][]string, len(understood.binds)), told: map[string]bool{},
	}
	if err := m.merge(store.Version{}); err != nil {
		return nil, asUsageError(err)
	}
	m.environment.Store(&[]string{})
	m.bound.Store(&bound{missing: m.binds})
	if err := m.newTemplater(p, in); err != nil {
		return nil, err
	}
	m.sessions = session.New(session.Options{Consul: consul, Name: "berth " + id, Behavior: api.SessionBehaviorDelete, Log: p.log})
	started := time.Now()
	m.applier = func() *group.Applier {
		o := group.Options{
			Service: m.name, Instance: id, Strategy: c.Strategy, Started: started,
			Timeout: p.config.DrainTime + p.config.StopTimeout + p.config.ReadyTimeout + execTime,
			Target:  m, Consul: consul, Store: m.store, Sessions: m.sessions, Log: p.log,
		}
		if m.templater != nil {
			o.Changed = m.templater.Changed()
		}
		return group.New(o)
	}
	if c.Topology == topologyLeader {
		m.election = leader.New(leader.Options{Consul: consul, Service: m.name, ID: id, Priority: c.Priority, Log: p.log, Changed: m.elected})
	}
	return m, nil
}

func (m *member) newTemplater(p *process, in label.Process) error {
	if len(m.targets) == 0 && len(m.binds) == 0 {
		return nil
	}
	consul, err := consulConfig(p.config)
	if err != nil {
		return err
	}
	name, groupName := strings.TrimSuffix(in.Name, "-"+m.config.Group), cmp.Or(m.config.Group, "default")
	if groupName == "default" {
		name = in.Name
	}
	funcs := templategroup.Funcs(templategroup.Options{
		Config: func() map[string]any { return *m.table.Load() },
		Binds:  m.binds,
		Self:   func() templategroup.Identity { return *m.self.Load() },
	})
	m.self.Store(&templategroup.Identity{Name: name, Group: groupName, Service: in.Name, Instance: templategroup.Instance{
		ID: m.id, Host: in.Address, Port: in.Port, Tags: label.SplitTags(in.Tags),
	}})
	var list []templater.Template
	for _, r := range m.targets {
		list = append(list, templater.Template{Name: r.destination, File: r.template, Source: r.template, Funcs: funcs})
	}
	if len(m.binds) > 0 {
		list = append(list, templater.Template{Name: bindsTemplate, Source: "binds", Text: "{{ binds }}", Funcs: m.bindFuncs})
	}
	m.templater, err = templater.New(templater.Options{
		Consul: consul, Library: libraryConfig(), Templates: list, Grace: p.config.ConsulGrace, VanishLimit: p.config.VanishLimit, Log: p.log,
	})
	return asUsageError(err)
}

// bindFuncs returns the function that records the targets of the binds. Its text changes whenever they do. A bind keeps its
// variables while its service has no instance: a restart without them would not help the command.
func (m *member) bindFuncs(_ func(string), ask templater.Ask) template.FuncMap {
	return template.FuncMap{"binds": func() string {
		for n := range m.binds {
			if now := templategroup.Environment(m.binds[n:n+1], ask); len(now) > 0 {
				m.addresses[n] = now
			}
		}
		b := &bound{templategroup.Unbound(m.binds, ask), slices.Concat(m.addresses...)}
		m.bound.Store(b)
		return fmt.Sprint(*b)
	}}
}

// prepare brings the files up to date before the first start of the command, and returns the Applier that continues from there. It
// waits for strict binds. While Consul does not answer, the command starts with the files of an earlier run, or waits if one of
// them is missing.
func (m *member) prepare(ctx context.Context) (*group.Applier, error) {
	if m.templater == nil && m.files == "" {
		return m.applier(), nil // there is nothing to prepare, and no reason to wait for Consul
	}
	if err := m.awaitBinds(ctx); err != nil {
		return nil, err
	}
	var waits retry.Lasting
	for {
		a := m.applier()
		limited, cancel := context.WithTimeout(ctx, firstTime)
		err := m.prepareFirst(limited, a)
		late := limited.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			return a, nil
		case m.areThere():
			m.log.Warn("starting "+m.name+" with the files of an earlier run", "service", m.name, "instance", m.id, "err", err)
			return m.applier(), nil
		case !late:
			return nil, err
		}
		if tell, lasts := waits.Tell(err.Error(), time.Now()); tell {
			m.log.Warn("waiting for Consul before writing the first files of "+m.name, append([]any{"instance", m.id, "err", err}, retry.For(lasts)...)...)
		}
	}
}

// prepareFirst writes the files before the command runs.
func (m *member) prepareFirst(ctx context.Context, a *group.Applier) error {
	w, err := a.First(ctx)
	if err != nil {
		return err
	}
	c, err := m.change(ctx, w)
	if err == nil {
		err = c.files.Apply()
	}
	if err == nil {
		m.restarted = w.Restart
		m.environment.Store(&c.environment)
	}
	return err
}

// areThere reports whether all rendered files exist from an earlier run.
func (m *member) areThere() bool {
	return !slices.ContainsFunc(m.targets, func(r target) bool {
		_, err := os.Stat(r.destination)
		return err != nil
	})
}

// awaitBinds waits until each bound service has a healthy instance, if the binds are strict.
func (m *member) awaitBinds(ctx context.Context) error {
	if m.config.BindingMode != bindingStrict || len(m.binds) == 0 {
		return nil
	}
	var waits retry.Lasting
	for {
		limited, cancel := context.WithTimeout(ctx, renderTime)
		_, err := m.templater.Render(limited) // other templates may fail without their binds
		cancel()
		missing := m.bound.Load().missing
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case len(missing) == 0:
			waits.Over(time.Now())
			return nil
		}
		var names []string
		for _, b := range missing {
			names = append(names, b.String())
		}
		text := strings.Join(names, ", ")
		if tell, lasts := waits.Tell(text, time.Now()); tell {
			about := append([]any{"instance", m.id, "binds", text}, retry.For(lasts)...)
			if err != nil {
				about = append(about, "err", err)
			}
			m.log.Info("waiting for a healthy instance of each service that "+m.name+" binds", about...)
		}
		again := time.NewTimer(time.Minute) // to say so again
		select {
		case <-m.templater.Changed():
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// start starts the member's work in the group. The returned func stops it, and returns when everything is released.
func (m *member) start() (end func()) {
	running, stop := context.WithCancel(context.Background())
	holding, release := context.WithCancel(context.Background())
	var others, lasting sync.WaitGroup
	lasting.Go(func() { m.sessions.Run(holding) })
	if m.templater != nil {
		others.Go(func() {
			m.locate(running)
			_ = m.templater.Run(running) // it always returns nil
		})
	}
	others.Go(func() {
		for after := startTime; running.Err() == nil; after = idleTime {
			select {
			case <-time.After(after):
				releaseMemory() // one berth runs next to every process
			case <-running.Done():
			}
		}
	})
	if m.election != nil {
		others.Go(func() { m.election.Run(running) })
		others.Go(func() {
			onEach(running, m.tag, func() { _ = m.service.SetTags([]string{*m.leads.Load()}) })
		})
	}
	others.Go(func() {
		select {
		case a := <-m.begun:
			a.Run(running)
		case <-running.Done():
		}
	})
	return func() {
		stop()
		others.Wait()
		release()
		lasting.Wait()
	}
}

// locate finds the address of Consul's agent, which is that of an instance registered without one. Templates must see the same
// address before and after the registration.
func (m *member) locate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, locateTime)
	defer cancel()
	var agent struct {
		Config struct{ NodeName string }
		Member struct{ Addr string }
	}
	if _, err := m.consul.Raw().Query("/v1/agent/self", &agent, new(api.QueryOptions).WithContext(ctx)); err != nil {
		return // the catalog tells when the instance is registered
	}
	self := *m.self.Load()
	self.Instance.Node, self.Instance.Host = agent.Config.NodeName, cmp.Or(self.Instance.Host, agent.Member.Addr)
	m.self.Store(&self)
}

// begin prepares the command's first start. The service calls it.
func (m *member) begin(ctx context.Context) error {
	a, err := m.prepare(ctx)
	if err == nil {
		m.begun <- a
	}
	return err
}

// merged returns the merged configuration, if it is this service's.
func (m *member) merged(service string) (map[string]any, bool) {
	return *m.table.Load(), service == m.name
}

// ready returns why the instance is not ready, nil if it is.
func (m *member) ready() error {
	if s := m.service.State(); !s.Ready || s.Draining {
		return errors.New(cmp.Or(s.Reason, "the command is not ready"))
	}
	return nil
}

// elected sets the instance's tag to its role. The Election calls it; it must not block.
func (m *member) elected(s leader.State) {
	tag := s.Tag()
	m.leads.Store(&tag)
	select {
	case m.tag <- struct{}{}:
	default:
	}
}

// changed gives up the lead when the instance goes out of service, and stands for election when it is in service. The service's
// Run calls it; it must not block.
func (m *member) changed(s service.State) {
	if m.election == nil {
		return
	}
	before := m.draining.Swap(s.Draining)
	switch {
	case s.Draining && !before:
		given := m.leave()
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), stepDownTime)
			defer cancel()
			given(ctx)
		}()
	case s.Ready && !s.Draining:
		m.election.Stand()
	}
}

// leave gives up the lead without blocking. The returned func waits until another instance can take it.
func (m *member) leave() (given func(context.Context)) {
	if m.election == nil {
		return func(context.Context) {}
	}
	resigned := m.election.Resign()
	return func(ctx context.Context) {
		if err := resigned(ctx); err != nil && !errors.Is(err, context.Canceled) {
			m.log.Warn("could not give back the lead of "+m.name+": another instance takes over when Consul notices", "instance", m.id, "err", err)
		}
	}
}
