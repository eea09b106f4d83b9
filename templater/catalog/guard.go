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

// Policy defines when an answer is not trusted at once.
type Policy struct {
	Grace       time.Duration // how long entries missing from a doubtful answer are kept
	VanishLimit int           // largest share of a list that may vanish at once, in percent; 100 = all
	Strict      bool          // a first answer that is empty because of the token is an error
	ByIndex     bool          // only an index that went back raises doubt; an error before the answer does not
}

// HiddenError means that Consul's first answer is empty because the token may not see the data.
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
	none     bool   // no data exists, and the template waits for it, as for a key
	index    uint64 // Consul's index of the data; 0 = none
	filtered bool   // Consul removed data that the token may not see
	left     bool   // a node left with everything on it

	leftOut []string // the reasons of clean, sorted
}

// mode is what a guard passes on.
type mode int

const (
	unanswered mode = iota // nothing: no answer yet
	trusting               // the last answer
	keeping                // the last answer and, for some time, entries missing from it
	hiding                 // the same, as long as Consul hides something from the token
)

// state is a guard's knowledge of one dependency. Consul's answer alone is not enough: a server that lost its state returns an
// empty list, and so does any server for a token that lost its rights. An answer is doubtful if
//   - its index went back,
//   - it is suddenly filtered,
//   - a node left with everything on it, or
//   - an error came before it.
//
// Entries missing from such an answer are kept next to the listed ones until they are back or the grace is over. The grace is
// longer than a registrar takes to register everything again. The entries may go missing later: a restarted agent turns TTL
// checks critical only after some time.
//
// The limit on what may vanish at once works in addition. Its entries are kept separately, with their own deadline, so a grace
// that it started does not extend to another doubt.
type state struct {
	trusted any // for the templates: believed plus vanished

	mode     mode
	believed any       // without regard to the limit
	latest   any       // the last answer while it differs from believed; nil is an answer as well: the key does not exist
	index    uint64    // of the last answer
	filtered bool      // the last list that lacked nothing was filtered
	wary     time.Time // after an error or a lost state: keep entries missing from an answer until then
	until    time.Time // keep entries missing from latest until then; zero = no such time

	vanished any       // the trusted data when more than the limit vanished; nil = none
	back     time.Time // its entries may come back until then
}

// refuses reports whether an answer counts as an error: it is the first one, and it is empty because of the token.
func (p Policy) refuses(s state, a answer) bool {
	return p.Strict && s.mode == unanswered && a.filtered && (a.none || isEmpty(a.data))
}

// next returns the state after an answer that is not refused; failed means that an error came before it.
func (p Policy) next(s state, a answer, failed bool, now time.Time) state {
	if a.none {
		s.index = a.index
		return s
	}
	before := s
	s = p.believe(s, a, failed, now)
	if p.VanishLimit < 100 && before.mode != unanswered && before.mode != keeping { // entries kept for one grace are not kept for another
		if _, lacks, of := merge(before.believed, s.believed); lacks*100 > p.VanishLimit*of && s.vanished == nil {
			s.vanished, s.back = before.trusted, now.Add(p.Grace)
		}
	}
	return s.combine(now)
}

// believe returns the state after an answer, without regard to the limit.
func (p Policy) believe(s state, a answer, failed bool, now time.Time) state {
	if s.mode == unanswered {
		s.mode, s.believed, s.index, s.filtered = trusting, a.data, a.index, a.filtered
		return s
	}
	_, lacks, _ := merge(s.last(), a.data)
	if lacks > 0 && a.index == s.index && a.index != 0 && !failed {
		// The same index means the same catalog, so the token sees less of it. It can be another catalog only if Consul was
		// away.
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
	case a.left: // may repeat, if agents are restarted one after the other
		s.mode, s.until = keeping, now.Add(p.Grace)
	case !s.until.IsZero(): // already in doubt
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

// combine sets the trusted data.
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

// differs reports whether the templates need the new data.
func (s state) differs(before state) bool {
	return s.mode != unanswered && (before.mode == unanswered || !reflect.DeepEqual(s.trusted, before.trusted))
}

// expire returns the state without entries whose time is over.
func (s state) expire(now time.Time) state {
	if s.mode == keeping && !now.Before(s.until) {
		return s.trust()
	}
	return s
}

// trust returns a state that trusts the last answer.
func (s state) trust() state {
	s.mode, s.believed, s.latest, s.until = trusting, s.latest, nil, time.Time{}
	return s
}

// patience returns how long the next query may block: at most as long as entries are kept.
func (s state) patience(wait time.Duration, now time.Time) time.Duration {
	if s.mode == keeping {
		wait = min(wait, max(s.until.Sub(now), time.Millisecond))
	}
	if s.vanished != nil {
		wait = min(wait, max(s.back.Sub(now), time.Millisecond))
	}
	return wait
}

// merge returns the new data plus the old entries missing from it, the number of these, and the number of old entries. A value
// that is no list counts as one entry, which is missing if the new value is empty.
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

// mergeLists is merge for lists of items with keys. It keeps the library's sort order.
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
	if lacks > 0 && slices.IsSortedFunc(old, byKey) { // otherwise they are sorted by distance
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
