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

// PausedPrefix is the prefix of the keys of services paused by hand: berth/paused/NAME, with a Pause in JSON.
const PausedPrefix = "berth/paused/"

// MinPause and MaxPause limit a Pause's Max.
const MinPause, MaxPause = time.Second, 5 * time.Minute

// pausedRule is the policy rule for a token that reads the pauses.
const pausedRule = `key_prefix "` + PausedPrefix + `" { policy = "list" }`

// Pause makes requests for a service wait, whether it has instances or not, until it is resumed.
type Pause struct {
	Service string        // in the catalog
	Max     time.Duration // how long one request waits before it gets an error
	Reason  string
	Since   time.Time
	By      string
}

// pauseJSON is the value of a Pause's key.
type pauseJSON struct {
	Max    string    `json:"max"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
}

// Pair returns the key and value of a pause.
func (p Pause) Pair() *api.KVPair {
	value, _ := json.Marshal(pauseJSON{p.Max.String(), p.Reason, p.Since, p.By}) // such a value cannot fail
	return &api.KVPair{Key: PausedPrefix + p.Service, Value: value}
}

// ParsePause returns the pause of a key under PausedPrefix. The key may come from an untrusted writer.
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
		return Pause{}, errors.New("it does not name a service")
	}
	var value pauseJSON
	if err := json.Unmarshal(pair.Value, &value); err != nil {
		return Pause{}, fmt.Errorf("%.200s", err.Error()) // the error may contain the whole value
	}
	most, err := time.ParseDuration(value.Max)
	if err != nil || most < MinPause || most > MaxPause {
		return Pause{}, fmt.Errorf("its max %.100q is not a duration from %s to %gm", value.Max, MinPause, MaxPause.Minutes())
	}
	return Pause{service, most, value.Reason, value.Since, value.By}, nil
}

// Paused is the dependency on the services paused by hand: a []*Pause, sorted by service. It is optional: rendering does not wait
// for it if it is unavailable.
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
	case meta.LastIndex == 0: // another server's 404
		return nil, nil, fmt.Errorf("%s: %w", PausedPrefix, errNoIndex)
	}
	return pausedAnswer{pairs, meta.ResultsFilteredByACLs}, &dependency.ResponseMetadata{LastIndex: meta.LastIndex, LastContact: meta.LastContact}, nil
}

// clean returns the pauses and the reasons for ignored keys, including keys that the token may not see.
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

// IsRefusal reports whether Consul refused a query because of the token.
func IsRefusal(err error) bool {
	status := (api.StatusError{})
	return errors.As(err, &status) && status.Code == http.StatusForbidden
}

// CanShare returns true: the answer is the same for all templates.
func (*Paused) CanShare() bool { return true }

// String returns the call as in a template.
func (*Paused) String() string { return "paused" }

// Stop does nothing: the query's context ends the query.
func (*Paused) Stop() {}

// Type returns the location of the data.
func (*Paused) Type() dependency.Type { return dependency.TypeConsul }
