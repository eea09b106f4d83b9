package catalog

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
)

// Policy says when an answer is not trusted at once.
type Policy struct {
	Grace       time.Duration // how long entries are kept that a doubtful answer lacks
	VanishLimit int           // the largest share of a list that may vanish at once, in percent; 100 = all
	Strict      bool          // a first answer that shows nothing because of the token is an error
	ByIndex     bool          // only an index that went back is a reason for doubt, and an error before the answer is none
}

// HiddenError says that Consul's first answer is empty because the token may not see the data.
type HiddenError struct{ Dependency string }

func (e *HiddenError) Error() string {
	rights := "service:read and node:read"
	if strings.HasPrefix(e.Dependency, "kv.") {
		rights = "key:read"
	}
	return fmt.Sprintf("the token sees nothing of %s: give it %s", e.Dependency, rights)
}

// answer is Consul's answer to one query.
type answer struct {
	data     any
	none     bool   // there is no data, and the template waits for it: for a key, for example
	index    uint64 // Consul's index of the data; 0 = none
	filtered bool   // Consul has left out data that the token may not see
	left     bool   // a node has left with all that it had

	leftOut []string // what clean has left out, sorted
}

// A mode says what a guard hands on.
type mode int

const (
	unanswered mode = iota // nothing: there was no answer so far
	trusting               // the last answer
	keeping                // the last answer and, for some time, what it lacks
	hiding                 // the same for as long as Consul hides something from the token
)

// state is what a guard knows of one dependency. Consul's word alone is not enough: a server that lost its state answers
// with an empty list, and so does any server to a token that lost its rights. Reasons for doubt are an index that went
// back, a list that is suddenly filtered, a node that left with all that it had, and an error before the answer.
//
// Entries that such an answer lacks are kept beside the listed ones until they are back, or until the grace is over, which
// is longer than a registrar takes to register everything again. They need not be missing at once: an agent that was
// restarted turns TTL checks critical some time later.
//
// A limit for what may vanish at once only adds to that: what it keeps is apart, with a time of its own, so that a grace that
// it began is not the grace of another doubt.
type state struct {
	trusted any // for the templates: what is believed and, beside it, what has vanished

	mode     mode
	believed any       // all but the limit considered
	latest   any       // the last answer, while it is not what is believed; nil is an answer, too: there is no such key
	index    uint64    // of the last answer
	filtered bool      // the last list that lacked nothing was filtered
	wary     time.Time // until when what an answer lacks is kept, because of an error or a lost state
	until    time.Time // until when what latest lacks is kept; zero = no such time

	vanished any       // what was trusted when more than the limit vanished; nil = nothing
	back     time.Time // until when that may come back
}

// refuses says whether an answer counts as an error: it is the first, and shows nothing because of the token.
func (p Policy) refuses(s state, a answer) bool {
	return p.Strict && s.mode == unanswered && a.filtered && (a.none || isEmpty(a.data))
}

// next returns the state after an answer that is not refused; failed says that an error came before it.
func (p Policy) next(s state, a answer, failed bool, now time.Time) state {
	if a.none {
		s.index = a.index
		return s
	}
	before := s
	s = p.believe(s, a, failed, now)
	if p.VanishLimit < 100 && before.mode != unanswered && before.mode != keeping { // what was kept for the grace is not kept for another
		if _, lacks, of := merge(before.believed, s.believed); lacks*100 > p.VanishLimit*of && s.vanished == nil {
			s.vanished, s.back = before.trusted, now.Add(p.Grace)
		}
	}
	return s.combine(now)
}

// believe returns the state after an answer, all but the limit considered.
func (p Policy) believe(s state, a answer, failed bool, now time.Time) state {
	if s.mode == unanswered {
		s.mode, s.believed, s.index, s.filtered = trusting, a.data, a.index, a.filtered
		return s
	}
	_, lacks, _ := merge(s.last(), a.data)
	if lacks > 0 && a.index == s.index && a.index != 0 && !failed {
		// The same index means the same catalog, so the token sees less of it. Only if Consul was away may it be another
		// catalog.
		return s.expire(now)
	}
	if doubtful := failed || a.index < s.index; doubtful && !p.ByIndex || a.index < s.index && lacks > 0 {
		s.wary = now.Add(p.Grace)
	}
	all, lacks, _ := merge(s.believed, a.data)
	s.latest, s.index = a.data, a.index
	switch {
	case lacks == 0:
		s.mode, s.filtered = trusting, a.filtered
	case a.filtered && !s.filtered:
		s.mode = hiding
	case a.left: // again and again, if agents are restarted one after the other
		s.mode, s.until = keeping, now.Add(p.Grace)
	case !s.until.IsZero(): // it was doubted already
		s.mode = keeping
	case now.Before(s.wary):
		s.mode, s.until = keeping, s.wary
	default:
		s.mode = trusting
	}
	if s.mode == trusting {
		return s.trust()
	}
	s.believed = all
	return s.expire(now)
}

// last returns the data of the last answer.
func (s state) last() any {
	if s.mode == trusting {
		return s.believed
	}
	return s.latest
}

// combine sets what is trusted.
func (s state) combine(now time.Time) state {
	s.trusted = s.believed
	if s.vanished == nil {
		return s
	}
	all, lacks, _ := merge(s.vanished, s.believed)
	if lacks == 0 || !now.Before(s.back) {
		s.vanished, s.back = nil, time.Time{}
		return s
	}
	s.trusted, s.vanished = all, all
	return s
}

// differs says whether the templates need the new data.
func (s state) differs(before state) bool {
	return s.mode != unanswered && (before.mode == unanswered || !reflect.DeepEqual(s.trusted, before.trusted))
}

// expire returns the state without the entries that were kept for long enough.
func (s state) expire(now time.Time) state {
	if s.mode == keeping && !now.Before(s.until) {
		return s.trust()
	}
	return s
}

// trust returns the state that trusts the last answer.
func (s state) trust() state {
	s.mode, s.believed, s.latest, s.until = trusting, s.latest, nil, time.Time{}
	return s
}

// patience returns how long the next query may block: no longer than entries are kept.
func (s state) patience(wait time.Duration, now time.Time) time.Duration {
	if s.mode == keeping {
		wait = min(wait, max(s.until.Sub(now), time.Millisecond))
	}
	if s.vanished != nil {
		wait = min(wait, max(s.back.Sub(now), time.Millisecond))
	}
	return wait
}

// merge returns the new and what it lacks of the old, how much that is, and how much there is of the old. A value that is
// no list counts as one, which is missing if there is no new one.
func merge(old, new any) (all any, lacks, of int) {
	switch list := old.(type) {
	case []*dependency.HealthService:
		return mergeLists(list, new, func(s *dependency.HealthService) string { return s.Node + "\x00" + s.ID })
	case []*api.ServiceEntry:
		return mergeLists(list, new, func(e *api.ServiceEntry) string { return e.Node.Node + "\x00" + e.Service.ID })
	case []*dependency.CatalogSnippet:
		return mergeLists(list, new, func(s *dependency.CatalogSnippet) string { return s.Name })
	case []*dependency.Node:
		return mergeLists(list, new, func(n *dependency.Node) string { return n.Node })
	case []*Pause:
		return mergeLists(list, new, func(p *Pause) string { return p.Service })
	case []*dependency.KeyPair:
		return mergeLists(list, new, func(p *dependency.KeyPair) string { return p.Path })
	}
	switch {
	case isEmpty(old): // nothing can be missing
		return new, 0, 0
	case isEmpty(new):
		return old, 1, 1
	default:
		return new, 0, 1
	}
}

// mergeLists is merge for lists whose items have keys. It keeps the order in which the library sorts its lists.
func mergeLists[T any](old []T, new any, key func(T) string) (all any, lacks, of int) {
	items := slices.Clone(new.([]T))
	listed := make(map[string]bool, len(items))
	for _, item := range items {
		listed[key(item)] = true
	}
	for _, item := range old {
		if !listed[key(item)] {
			items = append(items, item)
			lacks++
		}
	}
	byKey := func(a, b T) int { return strings.Compare(key(a), key(b)) }
	if lacks > 0 && slices.IsSortedFunc(old, byKey) { // if not, they are sorted by distance
		slices.SortStableFunc(items, byKey)
	}
	return items, lacks, len(old)
}

func isEmpty(v any) bool {
	if v == nil {
		return true
	}
	if node, ok := v.(*dependency.CatalogNode); ok {
		return node == nil || node.Node == nil
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		return r.Len() == 0
	case reflect.Pointer:
		return r.IsNil()
	default:
		return false
	}
}
