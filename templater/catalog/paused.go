package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// PausedPrefix begins the keys of services that are paused by hand: berth/paused/NAME, with a Pause in JSON.
const PausedPrefix = "berth/paused/"

// MinPause and MaxPause bound a Pause's Max.
const MinPause, MaxPause = time.Second, 5 * time.Minute

// pausedRule is what a token needs that reads the pauses.
const pausedRule = `key_prefix "` + PausedPrefix + `" { policy = "list" }`

// Pause says that requests for a service wait, whether it has instances or not, until it is resumed.
type Pause struct {
	Service string        // in the catalog
	Max     time.Duration // how long one request waits before it gets an error
	Reason  string
	Since   time.Time
	By      string
}

// pauseJSON is a Pause as the value of its key.
type pauseJSON struct {
	Max    string    `json:"max"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
}

// Pair returns the key of a pause with its value.
func (p Pause) Pair() *api.KVPair {
	value, _ := json.Marshal(pauseJSON{p.Max.String(), p.Reason, p.Since, p.By}) // no such value fails
	return &api.KVPair{Key: PausedPrefix + p.Service, Value: value}
}

// ParsePause returns the pause that a key under PausedPrefix stands for. Anybody may have written it.
func ParsePause(pair *api.KVPair) (Pause, error) {
	p, err := parsePause(pair)
	if err != nil {
		err = fmt.Errorf("the key %.200q pauses nothing: %w; delete it, or write it with berth pause", pair.Key, err)
	}
	return p, err
}

func parsePause(pair *api.KVPair) (Pause, error) {
	service := strings.TrimPrefix(pair.Key, PausedPrefix)
	if service == "" || strings.Contains(service, "/") {
		return Pause{}, errors.New("it names no service")
	}
	var value pauseJSON
	if err := json.Unmarshal(pair.Value, &value); err != nil {
		return Pause{}, fmt.Errorf("%.200s", err.Error()) // it may have all of the value in it
	}
	most, err := time.ParseDuration(value.Max)
	if err != nil || most < MinPause || most > MaxPause {
		return Pause{}, fmt.Errorf("its max %.100q is not a duration from %s to %gm", value.Max, MinPause, MaxPause.Minutes())
	}
	return Pause{service, most, value.Reason, value.Since, value.By}, nil
}

// Paused is the dependency on the services that are paused by hand: a []*Pause, by service. It is optional: what is rendered
// does not wait for it where it cannot be had.
type Paused struct{}

// pausedAnswer is what Fetch returns, for clean.
type pausedAnswer struct {
	pairs    api.KVPairs
	filtered bool
}

// Fetch asks Consul.
func (*Paused) Fetch(clients *dependency.ClientSet, o *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	pairs, meta, err := clients.Consul().KV().List(PausedPrefix, o.ToConsulOpts())
	switch {
	case IsRefusal(err):
		return nil, nil, fmt.Errorf("%s: %w; give the token %s", PausedPrefix, err, pausedRule)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", PausedPrefix, err)
	case meta.LastIndex == 0: // somebody else's 404
		return nil, nil, fmt.Errorf("%s: %w", PausedPrefix, errNoIndex)
	}
	return pausedAnswer{pairs, meta.ResultsFilteredByACLs}, &dependency.ResponseMetadata{LastIndex: meta.LastIndex, LastContact: meta.LastContact}, nil
}

// clean returns the pauses, and what is no pause, or may be one that the token does not see.
func (a pausedAnswer) clean() (pauses []*Pause, leftOut []string) {
	pauses = []*Pause{}
	for _, pair := range a.pairs {
		p, err := ParsePause(pair)
		if err != nil {
			leftOut = append(leftOut, err.Error())
			continue
		}
		pauses = append(pauses, &p)
	}
	if a.filtered {
		leftOut = append(leftOut, "the token does not see all that is paused by hand; give it "+pausedRule)
	}
	slices.SortFunc(pauses, func(p, q *Pause) int { return strings.Compare(p.Service, q.Service) })
	return pauses, leftOut
}

// IsRefusal says whether Consul has refused a query because of the token.
func IsRefusal(err error) bool {
	status := (api.StatusError{})
	return errors.As(err, &status) && status.Code == http.StatusForbidden
}

// CanShare says that the answer is the same for everybody.
func (*Paused) CanShare() bool { return true }

// String returns the template's call.
func (*Paused) String() string { return "paused" }

// Stop does nothing: the context of the query ends it.
func (*Paused) Stop() {}

// Type returns where the data is.
func (*Paused) Type() dependency.Type { return dependency.TypeConsul }
