package templater

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// doubts say when an answer is not believed at once.
type doubts struct {
	grace time.Duration // how long what a doubtful answer lacks is kept
	share int           // the largest part of a list that may vanish at once, in percent; 100 = all
}

// answer is what one query was told.
type answer struct {
	data     any
	none     bool   // there is nothing, and nothing is no data: the template waits for a key, for example
	index    uint64 // of the state that it tells of; 0 if there is no such thing
	filtered bool   // Consul has left out what the token may not see
}

// belief is what a watch takes for true. Consul's own word is not enough for that: a server that lost its state answers
// with an empty list, and so does any server to a token that lost its rights. Their evidence is an index that went
// back, a list that is filtered all at once, or an error before it.
//
// What is no longer listed for a reason of that kind is kept beside what is: until it is back, or until the grace is
// over, which is longer than a registrar takes to register everything again. It need not be missing at once: an agent that
// was restarted turns TTL checks critical some time later. So a belief is in one of three states: it is
// the last answer (differs is false), it is that and what it lacks until then (until), or for as long as that is hidden.
type belief struct {
	answers  int       // so far
	data     any       // what is believed
	index    uint64    // of the last answer
	filtered bool      // the last list that was believed as it was, was filtered
	hidden   bool      // what the last answer lacks is hidden, as far as we know
	wary     time.Time // until when what an answer lacks is kept, because of an error or a lost state
	until    time.Time // until when what the last answer lacks is kept; zero = it lacks nothing
	differs  bool      // the last answer is not what is believed
	last     any       // that answer; nil is one, too: there is no such key
}

// take judges an answer, and says whether what is believed has changed. failed is whether there was an error before it.
func (b *belief) take(a answer, failed bool, d doubts, now time.Time) (changed bool) {
	if a.none {
		b.index = a.index
		return false
	}
	if b.answers++; b.answers == 1 {
		b.data, b.index, b.filtered = a.data, a.index, a.filtered
		return true
	}
	lacks, of := missing(b.data, a.data)
	// A state that is the same has the same content: a list that is less is one that the token sees less of. It may be
	// another state only if Consul was away.
	if a.index != b.index || a.index == 0 || failed || lacks == 0 {
		b.judge(a, lacks, of, failed || a.index < b.index, d, now)
	}
	b.index = a.index

	believed := b.data
	switch {
	case !b.differs:
	case b.hidden || now.Before(b.until):
		believed = joined(b.data, b.last)
	default:
		believed, b.last, b.differs, b.until = b.last, nil, false, time.Time{}
	}
	changed = !reflect.DeepEqual(believed, b.data)
	if changed {
		b.data = believed
	}
	return changed
}

// judge decides how long is kept what a new answer lacks of what is believed: lacks of so many.
func (b *belief) judge(a answer, lacks, of int, doubtful bool, d doubts, now time.Time) {
	b.last, b.differs = a.data, true
	b.hidden = a.filtered && !b.filtered
	if doubtful || lacks*100 > d.share*of {
		b.wary = now.Add(d.grace)
	}
	switch {
	case lacks == 0:
		b.until, b.hidden, b.filtered = time.Time{}, false, a.filtered
	case b.hidden || !b.until.IsZero(): // it was doubted already
	case now.Before(b.wary):
		b.until = b.wary
	}
}

// patience is how long the next query may block: what is kept is let go in time.
func (b *belief) patience(wait time.Duration, now time.Time) time.Duration {
	if b.until.IsZero() || b.hidden {
		return wait
	}
	return min(wait, max(b.until.Sub(now), time.Millisecond))
}

// missing is how many of the old are not in the new, and how many old there are. What is no list counts as one, which is
// missing if there is no new one.
func missing(old, new any) (lacks, of int) {
	switch o := old.(type) {
	case []*dependency.HealthService:
		return lacking(o, new, healthKey)
	case []*dependency.CatalogSnippet:
		return lacking(o, new, snippetKey)
	case []*dependency.Node:
		return lacking(o, new, nodeKey)
	case []*dependency.KeyPair:
		return lacking(o, new, pairKey)
	}
	if isEmpty(old) { // nothing can be missing
		return 0, 0
	}
	if isEmpty(new) {
		return 1, 1
	}
	return 0, 1
}

// joined is the new and what it lacks of the old.
func joined(old, new any) any {
	switch o := old.(type) {
	case []*dependency.HealthService:
		return join(o, new, healthKey)
	case []*dependency.CatalogSnippet:
		return join(o, new, snippetKey)
	case []*dependency.Node:
		return join(o, new, nodeKey)
	case []*dependency.KeyPair:
		return join(o, new, pairKey)
	}
	if lacks, _ := missing(old, new); lacks > 0 {
		return old
	}
	return new
}

func healthKey(s *dependency.HealthService) string   { return s.Node + "\x00" + s.ID }
func snippetKey(s *dependency.CatalogSnippet) string { return s.Name }
func nodeKey(n *dependency.Node) string              { return n.Node }
func pairKey(p *dependency.KeyPair) string           { return p.Path }

func lacking[T any](old []T, new any, key func(T) string) (lacks, of int) {
	has := keys(new.([]T), key)
	for _, o := range old {
		if !has[key(o)] {
			lacks++
		}
	}
	return lacks, len(old)
}

// join keeps the order in which the library sorts its lists.
func join[T any](old []T, new any, key func(T) string) []T {
	all := slices.Clone(new.([]T))
	has := keys(all, key)
	for _, o := range old {
		if !has[key(o)] {
			all = append(all, o)
		}
	}
	byKey := func(a, b T) int { return strings.Compare(key(a), key(b)) }
	if slices.IsSortedFunc(old, byKey) { // if not, it is sorted by distance
		slices.SortStableFunc(all, byKey)
	}
	return all
}

func keys[T any](list []T, key func(T) string) map[string]bool {
	has := make(map[string]bool, len(list))
	for _, s := range list {
		has[key(s)] = true
	}
	return has
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
