package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar"
	"berth/registrar/group/session"
	"berth/registrar/retry"
)

// Prefix begins the keys under which berths publish their parts: berth/status/<role>/<name>.
const Prefix = "berth/status/"

// Rule is the policy that a token needs to publish parts and to read those of other berths.
const Rule = `key_prefix "` + Prefix + `" { policy = "write" } and session_prefix "" { policy = "write" }`

const (
	// mostPublished bounds the value of a key: Consul takes 512 KiB.
	mostPublished = 384 << 10
	// apart is the minimum time between two writes.
	apart    = time.Second
	callTime = 5 * time.Second
)

// Publisher publishes the part of one berth while it runs: only after a change, and at most once a second. Nothing else depends on it;
// failures are retried.
type Publisher struct {
	Consul  *api.Client
	Name    string // of the berth, unique in its role
	Role    string
	Part    func(context.Context) (Part, error)
	Changed <-chan struct{} // the part may differ
	Failed  func()          // counts failures; may be nil
	Log     *slog.Logger

	told atomic.Int64 // writes, for tests and the benchmark
}

// Key returns the key of a berth's part.
func Key(role, name string) string { return Prefix + role + "/" + url.PathEscape(name) }

// Run publishes until ctx is done. Then the key goes with its session.
func (p *Publisher) Run(ctx context.Context) {
	keeper := session.New(session.Options{Consul: p.Consul, Name: "berth status " + p.Role + " " + p.Name, Behavior: api.SessionBehaviorDelete, Log: quiet})
	keeping, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); keeper.Run(keeping) }()
	defer func() { stop(); <-done }()
	var (
		delays  = retry.Delays()
		lasting retry.Lasting
		last    []byte
		by      *session.Session
	)
	for ctx.Err() == nil {
		began := time.Now()
		s, value, err := p.publish(ctx, keeper, by, last)
		var lost <-chan struct{}
		wait := apart
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if p.Failed != nil {
				p.Failed()
			}
			if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell {
				p.Log.Warn("cannot publish this berth's status in Consul: other berths and berth status do not see it", append(retry.For(lasts), "err", err)...)
			}
			wait = delays.NextBackOff()
			if strings.Contains(err.Error(), "Permission denied") {
				wait = time.Minute
			}
		default:
			by, last, lost = s, value, s.Lost()
			delays.Reset()
			if was, lasted := lasting.Over(time.Now()); was {
				p.Log.Info("published this berth's status in Consul again", retry.For(lasted)...)
			}
		}
		if !retry.Pause(ctx, max(0, wait-time.Since(began))) {
			return
		}
		if err == nil {
			select {
			case <-p.Changed:
			case <-lost:
			case <-ctx.Done():
			}
		}
	}
}

// publish writes the part if it differs from the session's last write.
func (p *Publisher) publish(ctx context.Context, keeper *session.Keeper, by *session.Session, last []byte) (*session.Session, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	part, err := p.Part(ctx)
	if err != nil {
		return nil, nil, err
	}
	value := part.encode(mostPublished)
	s, err := keeper.Session(ctx)
	if err != nil {
		if strings.Contains(err.Error(), "Permission denied") {
			err = fmt.Errorf("%w; give the token %s", err, Rule)
		}
		return nil, nil, err
	}
	if s == by && bytes.Equal(value, last) {
		return s, last, nil
	}
	if err := keeper.Put(ctx, s, Key(p.Role, p.Name), value); err != nil {
		return nil, nil, err
	}
	p.told.Add(1)
	return s, value, nil
}

// quiet is the log of sessions: the Publisher itself reports failures.
var quiet = slog.New(slog.DiscardHandler)

// encode returns the part as JSON of at most so many bytes. It drops healthy things first, then events, then ignored things.
func (p Part) encode(most int) []byte {
	all := func() []byte {
		value, err := json.Marshal(p)
		if err != nil {
			panic(err) // nothing in it can fail
		}
		return value
	}
	value := all()
	if len(value) <= most {
		return value
	}
	p.Containers, p.Routes, p.LeftOut, p.Servers, p.Missing, p.Events = slices.Clone(p.Containers), slices.Clone(p.Routes), slices.Clone(p.LeftOut), slices.Clone(p.Servers), slices.Clone(p.Missing), slices.Clone(p.Events)
	for len(value) > most {
		// The longest list is cut in big steps: a part this big is rare.
		size := []int{len(p.Containers) * 400, len(p.Routes) * 150, len(p.LeftOut) * 300, len(p.Servers) * 250, len(p.Missing) * 30, len(p.Events) * 300, len(p.Services) * 40}
		longest := slices.Index(size, slices.Max(size))
		cut := func(n int) int { drop := max(1, n/4); p.Left += drop; return max(0, n-drop) }
		switch longest {
		case 0:
			p.Containers = p.Containers[:cut(len(p.Containers))]
		case 1:
			p.Routes = p.Routes[:cut(len(p.Routes))]
		case 2:
			p.LeftOut = p.LeftOut[:cut(len(p.LeftOut))]
		case 3:
			p.Servers = p.Servers[:cut(len(p.Servers))]
		case 4:
			p.Missing = p.Missing[:cut(len(p.Missing))]
		case 5:
			p.Events = p.Events[len(p.Events)-cut(len(p.Events)):]
			p.Left = max(0, p.Left)
		default:
			p.Left += len(p.Services)
			p.Services = nil
		}
		if slices.Max(size) == 0 {
			break
		}
		value = all()
	}
	return value
}

// RegistrarPart returns the part of a registrar from its report. Containers with reasons come first, because lists are cut at the
// end.
func RegistrarPart(report registrar.Report) (out []PartContainer) {
	for _, c := range report.Containers {
		if c.Container == "" {
			continue // it is gone
		}
		p := PartContainer{Name: c.Container, ID: c.ID, Service: c.ComposeService, Started: c.Started, Meant: c.Meant, Reasons: clip(c.Reasons)}
		for _, i := range c.Instances {
			p.Instances = append(p.Instances, PartInstance{
				Service: i.Service, ID: i.ID, State: string(i.State), Reason: i.Reason, NoRoute: i.NoRoute,
				Address: i.Address, Ready: i.ReadyAt, Registered: i.RegisteredAt,
			})
		}
		if p.weight() == 2 {
			p.Evidence = clip(evidence(&c))
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b PartContainer) int { return b.weight() - a.weight() })
	return out
}

// mostReasons and mostReason bound what is published of one container.
const mostReasons, mostReason = 20, 600

func clip(reasons []string) (out []string) {
	for _, r := range reasons[:min(len(reasons), mostReasons)] {
		if len(r) > mostReason {
			r = strings.ToValidUTF8(r[:mostReason], "") + "…"
		}
		out = append(out, r)
	}
	if n := len(reasons) - mostReasons; n > 0 {
		out = append(out, fmt.Sprintf("and %d more", n))
	}
	return out
}

// weight returns how important a container is in the report.
func (c PartContainer) weight() int {
	if c.Meant && len(c.Reasons) > 0 {
		return 2
	}
	for _, i := range c.Instances {
		if i.Reason != "" || i.State != string(registrar.Registered) {
			return 2
		}
	}
	if len(c.Instances) > 0 {
		return 1
	}
	return 0
}

// ReadParts returns the parts of all berths, except those for which skip returns true; skip may be nil. Anyone with the right may have
// written them: unreadable parts are ignored.
func ReadParts(ctx context.Context, consul *api.Client, q *api.QueryOptions, skip func(role, name string) bool) (parts []Part, index uint64, err error) {
	if q == nil {
		q = &api.QueryOptions{}
	}
	pairs, meta, err := consul.KV().List(Prefix, q.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("read the status of the berths: %w", err)
	}
	if meta.ResultsFilteredByACLs {
		return nil, meta.LastIndex, fmt.Errorf("the token cannot see the status of the berths: give it key_prefix %q { policy = \"list\" }", Prefix)
	}
	for _, pair := range pairs {
		role, escaped, _ := strings.Cut(strings.TrimPrefix(pair.Key, Prefix), "/")
		name, bad := url.PathUnescape(escaped)
		var p Part
		if pair.Session == "" || bad != nil || skip != nil && skip(role, name) || json.Unmarshal(pair.Value, &p) != nil {
			continue
		}
		p.Berth.Role, p.Berth.Name = role, name // no berth speaks for another
		if p.Proxy != nil {
			p.Proxy.Name = name
		}
		for i := range p.Events {
			p.Events[i].Role, p.Events[i].Berth = role, name
		}
		for i := range p.Servers {
			p.Servers[i].Proxy = name
		}
		parts = append(parts, p)
	}
	return parts, meta.LastIndex, nil
}
