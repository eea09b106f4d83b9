package rollout

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/session"
	"berth/registrar/retry"
)

// ServingPrefix begins the keys of the balancers' reports to rollouts. They exist while a rollout runs.
const ServingPrefix = "berth/serving/"

// Serving is a balancer's report on the instances of services being rolled out.
type Serving struct {
	Balancer string `json:"balancer"`
	Error    string `json:"error,omitempty"` // why it cannot report
	Blind    bool   `json:"blind,omitempty"` // it does not know the in-flight requests of its servers
	// Servers is the state of its proxy's server at each address in a rollout. Missing addresses have no report yet.
	Servers map[string]Server `json:"servers"`
}

// Server is a server of a proxy.
type Server struct {
	There  bool `json:"there"`  // the proxy has it
	Usable bool `json:"usable"` // it gets new requests
	// InFlight is the number of its requests and tunnels, if it gets no new requests; less than 0 if unknown.
	InFlight int `json:"inFlight"`
}

// has reports whether a balancer has one of the servers.
func (s Serving) has() bool {
	for _, is := range s.Servers {
		if is.There {
			return true
		}
	}
	return false
}

// Balancers returns the balancers' reports.
func Balancers(ctx context.Context, consul *api.Client) ([]Serving, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	pairs, _, err := consul.KV().List(ServingPrefix, new(api.QueryOptions).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read what the balancers serve: %w", err)
	}
	var out []Serving
	for _, pair := range pairs {
		var s Serving
		if json.Unmarshal(pair.Value, &s) == nil && pair.Session != "" {
			s.Balancer, s.Error = strings.Map(printable, s.Balancer), strings.Map(printable, s.Error)
			out = append(out, s)
		}
	}
	return out, nil
}

const (
	lookTime  = 100 * time.Millisecond // minimum between two looks at the proxy
	lookPart  = 4                      // the pause between two looks is at least this multiple of a look's duration
	mostTold  = 2000                   // addresses
	watchTime = 5 * time.Minute        // of one query
	denied    = time.Minute            // between two attempts with a token that lacks the right
)

// Publisher reports to rollouts what one proxy serves. Without a rollout it only has one open query.
type Publisher struct {
	Consul   *api.Client
	Balancer string // a unique name
	// Servers returns the servers that the proxy has, by address.
	Servers func(context.Context) (map[string]Server, error)
	Running func(rollouts int) // called with the number of running rollouts whenever it may have changed; nil = no calls
	Log     *slog.Logger
}

// Run reports to rollouts until ctx is done. Nothing else depends on it: it retries whatever fails.
func (p *Publisher) Run(ctx context.Context) {
	addresses := make(chan []string)
	go func() {
		defer close(addresses)
		p.watch(ctx, func(list []string) {
			select {
			case addresses <- list:
			case <-ctx.Done():
			}
		})
	}()
	for list := range addresses {
		for len(list) > 0 {
			list = p.tell(ctx, list, addresses)
		}
	}
}

// watch calls changed with the addresses in all running rollouts, whenever they change.
func (p *Publisher) watch(ctx context.Context, changed func([]string)) {
	delays := retry.Delays()
	var lasting retry.Lasting
	var index uint64
	var last []string
	for ctx.Err() == nil {
		sent := time.Now()
		limited, cancel := context.WithTimeout(ctx, watchTime+watchTime/16+callTime)
		pairs, meta, err := p.Consul.KV().List(Prefix, (&api.QueryOptions{WaitIndex: index, WaitTime: watchTime}).WithContext(limited))
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wait, level := delays.NextBackOff(), slog.LevelDebug // the templater already logs that Consul is away
			if isDenied(err) {
				wait, level = denied, slog.LevelInfo
			}
			if tell, _ := lasting.Tell(err.Error(), time.Now()); tell {
				p.Log.Log(ctx, level, "cannot watch for rollouts, so they do not learn what "+p.Balancer+" serves", "err", err)
			}
			retry.Pause(ctx, wait)
			continue
		}
		delays.Reset()
		lasting.Over(time.Now())
		if meta.LastIndex < index {
			index = 0 // the servers have started over
		} else {
			index = meta.LastIndex
		}
		if p.Running != nil {
			p.Running(running(pairs))
		}
		if now := addressesIn(pairs); !slices.Equal(now, last) {
			last = now
			changed(now)
		} else if time.Since(sent) < lookTime {
			retry.Pause(ctx, lookTime+rand.N(lookTime)) // while no key exists, changes of other keys also end the query
		}
	}
}

// running counts the rollouts with a running berth.
func running(pairs api.KVPairs) (n int) {
	for _, pair := range pairs {
		if pair.Session != "" {
			n++
		}
	}
	return n
}

// addressesIn returns the addresses in the states of running rollouts, sorted.
func addressesIn(pairs api.KVPairs) (out []string) {
	for _, pair := range pairs {
		var s State
		if pair.Session == "" || json.Unmarshal(pair.Value, &s) != nil {
			continue
		}
		out = append(out, s.Addresses...)
		if len(s.Addresses) == 0 {
			out = append(out, "") // it will name some: this announces the balancer
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), mostTold)]
}

// tell reports on addresses, and then on those from changes, until none is left or ctx is done. The key is then removed.
func (p *Publisher) tell(ctx context.Context, list []string, changes <-chan []string) []string {
	keeping, stop := context.WithCancel(ctx)
	keeper := session.New(session.Options{Consul: p.Consul, Name: "berth serving " + p.Balancer, Behavior: api.SessionBehaviorDelete, Log: p.Log})
	done := make(chan struct{})
	go func() { defer close(done); keeper.Run(keeping) }()
	defer func() { stop(); <-done }()
	key := ServingPrefix + url.PathEscape(p.Balancer)
	var told []byte
	var by *session.Session
	for {
		began := time.Now()
		value := p.value(ctx, list)
		pause := max(lookTime, lookPart*time.Since(began))
		limited, cancel := context.WithTimeout(ctx, callTime)
		s, err := keeper.Session(limited)
		if err == nil && (s != by || !bytes.Equal(value, told)) {
			if err = keeper.Put(limited, s, key, value); err == nil {
				by, told = s, value
			}
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			p.Log.Debug("cannot tell rollouts what "+p.Balancer+" serves", "err", err)
		}
		select {
		case <-time.After(pause):
		case next, open := <-changes:
			if list = next; !open || len(list) == 0 {
				return nil
			}
		}
	}
}

// value returns the report on addresses.
func (p *Publisher) value(ctx context.Context, list []string) []byte {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	s := Serving{Balancer: p.Balancer, Servers: map[string]Server{}}
	servers, err := p.Servers(ctx)
	if err != nil {
		s.Error = err.Error()
	}
	for _, is := range servers {
		s.Blind = s.Blind || is.InFlight < 0
	}
	if err != nil {
		list = nil
	}
	for _, address := range list {
		is := servers[address]
		if is.Usable {
			is.InFlight = 0 // it changes constantly, and nothing waits for it
		}
		s.Servers[address] = is
	}
	value, err := json.Marshal(s)
	if err != nil {
		panic(err) // cannot fail
	}
	return value
}
