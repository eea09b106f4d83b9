// Package registrar keeps the services of a Consul agent in step with the containers of a Docker host.
//
// One goroutine owns the state and never waits. Other goroutines watch Docker, call Consul and probe instances, and report
// to it. What to do is a pure function of the state (plan). Docker's events only say where to look, except for the signals
// sent to containers.
package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/registrar/agent"
	"berth/registrar/docker"
	"berth/registrar/label"
	"berth/registrar/ready"
	"berth/registrar/retry"
)

// Options configure a Registrar. Docker, Events, Host, Agent and Log are required.
type Options struct {
	Docker docker.Client
	Events docker.Stream
	Host   func(ctx context.Context) (label.Host, error) // called at every resync
	Agent  agent.Client

	Groups  *Groups                                    // nil = containers take no part in groups
	Start   func(ctx context.Context, id string) error // see docker.Start; nil = no container starts before the one that it replaces
	Catalog *agent.Catalog                             // compared with the agent; nil = not compared
	Token   func() string                              // returns the current token of Agent, "" = none; nil = the token never changes

	Resync       time.Duration      // interval of the full resync; 0 = 1 minute
	ReadyTimeout time.Duration      // an instance not ready by then is registered as critical; 0 = 30 s
	DrainTime    time.Duration      // from Docker's stop signal to SERVICE_STOP_SIGNAL; 0 = 2 s
	Tags         *template.Template // renders further tags from docker inspect; may be nil
	KeepFailed   bool               // a container that ended with an error stays registered, in maintenance mode
	Owner        string             // distinguishes this registrar from others on the same Docker host; may be empty
	Adopt        string             // host name in the IDs of registrations by Registrator to take over; "" = none

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Limits on concurrent calls of one kind. Calls that failed before may hang again, so they have their own places.
const (
	parallel       = 8
	parallelDrains = 32
	parallelAgain  = 4
)

// lane is a set of calls of one kind that share places: either calls that failed before, or all others.
type lane struct {
	kind
	again bool
}

// hostTimeout is the deadline for describing the host, which takes several calls.
const hostTimeout = 30 * time.Second

// Registrar keeps a Consul agent's services in step with the containers of a Docker host. The goroutine of Run owns all of
// its state except status, which mu guards.
type Registrar struct {
	*state
	agent   agent.Agent
	updates updates
	try     ready.Prober
	metrics metrics
	changed chan struct{}

	probing map[*probe]bool  // running probes
	members map[*member]bool // containers that take part in their group
	slots   map[lane]chan struct{}
	work    sync.WaitGroup // goroutines started by Run

	synced     bool                      // Consul has once held everything that it should
	rejections map[rejection]bool        // logged
	orphans    string                    // logged
	lasting    map[string]*retry.Lasting // what failed last, by the names in status
	refusals   map[string]*retry.Lasting // likewise, by the ID of a refused instance
	undone     retry.Lasting             // registrations undone by another program
	inStep     bool                      // logged that all is in step, and nothing has failed since
	routes     map[string]uint16         // logged: which port of a container has the route of the whole container
	blind      bool                      // logged that the catalog cannot be read
	lacking    map[string]string         // logged: why an instance cannot be put into the catalog

	mu     sync.Mutex
	status map[string]error // "docker", "docker events" and "consul": nil = in order
}

// New returns a Registrar; it opens no connection before Run.
func New(opts Options) *Registrar {
	opts.Resync = cmp.Or(opts.Resync, time.Minute)
	opts.ReadyTimeout = cmp.Or(opts.ReadyTimeout, 30*time.Second)
	opts.DrainTime = cmp.Or(opts.DrainTime, 2*time.Second)
	r := &Registrar{
		state:   newState(opts),
		agent:   agent.Agent{Client: opts.Agent, Log: opts.Log},
		updates: updates{wake: make(chan struct{}, 1)},
		try:     ready.Try,
		metrics: newMetrics(opts.Metrics),
		changed: make(chan struct{}, 1),
		probing: map[*probe]bool{},
		members: map[*member]bool{},
		slots:   map[lane]chan struct{}{},
		lasting: map[string]*retry.Lasting{"docker": {}, "docker events": {}, "consul": {}},
		lacking: map[string]string{}, refusals: map[string]*retry.Lasting{},
		status: map[string]error{
			"docker":        errors.New("no answer from Docker yet"),
			"docker events": nil,
			"consul":        errors.New("no answer from Consul yet"),
		},
	}
	for _, k := range []kind{describing, listing, inspecting, reading, changing, beating, comparing, publishing, judging, launching} {
		r.slots[lane{k, false}] = make(chan struct{}, parallel)
		r.slots[lane{k, true}] = make(chan struct{}, parallelAgain)
	}
	r.slots[lane{draining, false}] = make(chan struct{}, parallelDrains)
	r.slots[lane{draining, true}] = make(chan struct{}, parallelAgain)
	return r
}

// Ready returns nil while Docker and Consul answer and all registrations are as desired. Otherwise it returns what is wrong.
func (r *Registrar) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.status["docker"], r.status["docker events"], r.status["consul"])
}

// Changed returns a channel that receives when Report may have a new answer. Only one goroutine can listen.
func (r *Registrar) Changed() <-chan struct{} { return r.changed }

// setStatus records whether Docker or Consul works. It logs changes, and repeats lasting failures now and then.
func (r *Registrar) setStatus(what string, err error) {
	r.mu.Lock()
	before := r.status[what]
	r.status[what] = err
	r.mu.Unlock()
	lasting, works, fails := r.lasting[what], "Consul answers", "requests to Consul fail"
	switch what {
	case "docker":
		works, fails = "Docker answers", "requests to Docker fail"
	case "docker events":
		works, fails = "Docker's event stream is open", "Docker's event stream is broken"
	}
	if err != nil {
		r.inStep = false
		first, _, _ := strings.Cut(err.Error(), "\n") // each failing call adds a line
		if tell, lasts := lasting.Tell(first, time.Now()); tell {
			r.opts.Log.Error(fails+"; registrations stay as they are, trying again", append(retry.For(lasts), "err", oneError(err))...)
		}
		return
	}
	was, lasted := lasting.Over(time.Now())
	switch {
	case was && lasted >= time.Second:
		r.opts.Log.Info(fmt.Sprintf("%s again after %v", works, lasted.Round(time.Second)), retry.For(lasted)...)
	case was || before != nil:
		r.opts.Log.Info(works, retry.For(lasted)...)
	}
}

// oneError returns the first of several errors, with the number of the others.
func oneError(err error) error {
	first, more, several := strings.Cut(err.Error(), "\n")
	if !several {
		return err
	}
	return fmt.Errorf("%s (and %d more)", first, 1+strings.Count(more, "\n"))
}

// Run works until ctx is done, and then returns nil. It leaves the registrations in place, because the containers keep
// running.
func (r *Registrar) Run(ctx context.Context) error {
	r.loop(ctx, false, func(plan) bool { return false })
	return nil
}

// Once brings Consul up to date once. It waits for instances that are not ready until their time is over. The error says
// what was not done.
func (r *Registrar) Once(ctx context.Context) error {
	var err error
	r.opts.Groups, r.opts.Start = nil, nil // nothing would stay to finish the work
	r.loop(ctx, false, func(p plan) bool {
		err = errors.Join(p.docker, p.consul)
		return err != nil || (p.complete && p.unready == 0)
	})
	return cmp.Or(err, ctx.Err())
}
