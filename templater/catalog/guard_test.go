package catalog

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

// instances is a service's list as in Consul.
func instances(ids string) []*dependency.HealthService {
	list := []*dependency.HealthService{}
	for _, id := range strings.Fields(ids) {
		list = append(list, &dependency.HealthService{Node: "n", ID: id})
	}
	return list
}

func ids(data any) string {
	var all []string
	for _, i := range data.([]*dependency.HealthService) {
		all = append(all, i.ID)
	}
	return strings.Join(all, " ")
}

func TestGuard(t *testing.T) {
	const grace = 30 * time.Second
	type step struct {
		after    time.Duration // time since the previous step
		index    uint64
		list     string
		failed   bool
		filtered bool
		left     bool
		refused  bool
		want     string
	}
	tests := []struct {
		name  string
		share int
		steps []step
	}{
		{"what is gone is gone", 100, []step{{index: 5, list: "a b c", want: "a b c"}, {index: 6, list: "b", want: "b"}, {index: 7, list: "", want: ""}}},
		{"the same index is no news", 100, []step{{index: 5, list: "a b", want: "a b"}, {index: 5, list: "", want: "a b"}, {index: 6, list: "a", want: "a"}}},
		{"the same index after an error", 100, []step{{index: 5, list: "a b", want: "a b"}, {index: 5, list: "a", failed: true, want: "a b"}, {after: grace, index: 5, list: "a", want: "a"}}},
		{"nothing at first because of the token", 100, []step{
			{index: 5, list: "", filtered: true, refused: true}, {index: 5, list: "", filtered: true, failed: true, refused: true},
			{index: 5, list: "a b", failed: true, want: "a b"}, {index: 6, list: "", want: ""}}},
		{"the same index, and more", 100, []step{{index: 5, list: "", want: ""}, {index: 5, list: "a b", want: "a b"}}},
		{"another state that happens to have the same index", 100, []step{
			{index: 5, list: "a b", want: "a b"}, {index: 5, list: "c", failed: true, want: "a b c"}, {after: grace, index: 5, list: "c", want: "c"}}},
		{"an error after which nothing is missing", 100, []step{
			{index: 5, list: "a b", want: "a b"}, {index: 9, list: "a b c", failed: true, want: "a b c"}, {after: grace / 2, index: 10, list: "c", want: "a b c"},
			{after: grace, index: 10, list: "c", want: "c"}, {index: 11, list: "", want: ""}}},
		{"an error after which something is missing", 100, []step{
			{index: 5, list: "a b", want: "a b"}, {index: 9, list: "a", failed: true, want: "a b"}, {after: grace / 2, index: 9, list: "a", want: "a b"},
			{after: grace, index: 9, list: "a", want: "a"}}},
		{"a lost state that comes back one by one", 100, []step{
			{index: 50, list: "a b c", want: "a b c"}, {index: 3, list: "", want: "a b c"}, {index: 4, list: "b", want: "a b c"},
			{index: 5, list: "b d", want: "a b c d"}, {index: 6, list: "a b d", want: "a b c d"}, {index: 7, list: "a b c d", want: "a b c d"},
			{after: grace, index: 8, list: "a", want: "a"}}},
		{"a lost state of which a part never comes back", 100, []step{
			{index: 50, list: "a b", want: "a b"}, {index: 3, list: "", want: "a b"}, {after: 20 * time.Second, index: 4, list: "b", want: "a b"},
			{after: 20 * time.Second, index: 4, list: "b", want: "b"}}},
		{"a second loss does not begin the grace anew", 100, []step{
			{index: 50, list: "a b", want: "a b"}, {index: 3, list: "", want: "a b"}, {after: 20 * time.Second, index: 2, list: "b", failed: true, want: "a b"},
			{after: 20 * time.Second, index: 2, list: "b", want: "b"}}},
		{"filtered all at once", 100, []step{
			{index: 5, list: "a b", want: "a b"}, {index: 5, list: "", filtered: true, want: "a b"}, {index: 6, list: "", filtered: true, want: "a b"},
			{after: 10 * grace, index: 7, list: "c", filtered: true, want: "a b c"}, {index: 8, list: "b c", want: "b c"}}},
		{"filtered from the beginning", 100, []step{
			{index: 5, list: "a b", filtered: true, want: "a b"}, {index: 6, list: "a", filtered: true, want: "a"}, {index: 7, list: "a", want: "a"},
			{index: 8, list: "", filtered: true, want: "a"}}},
		{"filtered, with nothing missing", 100, []step{
			{index: 5, list: "a", want: "a"}, {index: 6, list: "a b", filtered: true, want: "a b"}, {index: 7, list: "b", filtered: true, want: "b"}}},
		{"more than may vanish at once", 50, []step{
			{index: 5, list: "a b c d", want: "a b c d"}, {index: 6, list: "a b", want: "a b"}, {index: 7, list: "", want: "a b"},
			{after: grace + time.Second, index: 7, list: "", want: ""}}},
		{"more than may vanish at once, and then an error", 50, []step{
			{index: 5, list: "a b c", want: "a b c"}, {index: 6, list: "a", want: "a b c"}, {after: 20 * time.Second, index: 7, list: "", failed: true, want: "a b c"},
			{after: 20 * time.Second, index: 7, list: "", want: "a"}, {after: 20 * time.Second, index: 7, list: "", want: ""}}},
		{"more than may vanish at once, and back with the same index", 50, []step{
			{index: 5, list: "a b c", want: "a b c"}, {index: 6, list: "", want: "a b c"}, {index: 6, list: "d", want: "a b c d"}}},
		{"a node that left", 100, []step{
			{index: 5, list: "a b", want: "a b"}, {index: 6, list: "a", left: true, want: "a b"}, {index: 7, list: "a b", want: "a b"},
			{index: 8, list: "b", want: "b"}, {after: time.Second, index: 9, list: "", left: true, want: "b"}, {after: grace, index: 9, list: "", want: ""}}},
		{"nodes that leave one after the other", 100, []step{
			{index: 5, list: "a b c", want: "a b c"}, {index: 6, list: "b c", left: true, want: "a b c"}, {after: 20 * time.Second, index: 7, list: "c", left: true, want: "a b c"},
			{after: 20 * time.Second, index: 7, list: "c", want: "a b c"}, {after: 20 * time.Second, index: 8, list: "c", want: "c"}}},
		{"nothing at first", 100, []step{{index: 5, list: "", want: ""}, {index: 6, list: "a", want: "a"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b state
			now := time.Unix(0, 0)
			for n, s := range tt.steps {
				now = now.Add(s.after)
				before, a := b, answer{data: instances(s.list), index: s.index, filtered: s.filtered, left: s.left}
				policy := Policy{Grace: grace, VanishLimit: tt.share, Strict: true}
				if got := policy.refuses(b, a); got != s.refused {
					t.Fatalf("step %d: refused is %v", n, got)
				}
				if s.refused {
					continue
				}
				b = policy.next(b, a, s.failed, now)
				if got := ids(b.trusted); got != s.want {
					t.Fatalf("step %d: %q, want %q", n, got, s.want)
				}
				want := before.mode == unanswered || ids(before.trusted) != s.want
				if changed := b.differs(before); changed != want {
					t.Errorf("step %d: changed is %v", n, changed)
				}
			}
		})
	}
}

// Whatever Consul answers: listed entries are trusted, nothing is invented, and entries that vanish with a moving index and
// no error are gone.
func TestGuardProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b state
		now := time.Unix(0, 0)
		index := uint64(10)
		seen := map[string]bool{}
		calm := true // no evidence against Consul so far
		for range rapid.IntRange(1, 12).Draw(t, "answers") {
			var list []string
			for _, id := range []string{"a", "b", "c", "d"} {
				if rapid.Bool().Draw(t, id) {
					list = append(list, id)
				}
			}
			failed, filtered := rapid.Bool().Draw(t, "failed"), rapid.Bool().Draw(t, "filtered")
			index += uint64(rapid.IntRange(-2, 3).Draw(t, "step"))
			last, answered, before := b.index, b.mode != unanswered, b.trusted
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			b = Policy{Grace: 30 * time.Second, VanishLimit: 100}.next(b, answer{data: instances(strings.Join(list, " ")), index: index, filtered: filtered}, failed, now)
			for _, id := range list {
				seen[id] = true
			}
			calm = calm && !failed && !filtered && index > last
			got := strings.Fields(ids(b.trusted))
			if !slices.IsSorted(got) {
				t.Fatalf("%v is not sorted", got)
			}
			for _, id := range got {
				if !seen[id] {
					t.Fatalf("%s was never listed", id)
				}
			}
			if _, lacks, _ := merge(before, instances(strings.Join(list, " "))); answered && index == last && !failed && lacks > 0 {
				continue
			}
			for _, id := range list {
				if !slices.Contains(got, id) {
					t.Fatalf("%s is listed, but not believed", id)
				}
			}
			if calm && len(got) != len(list) {
				t.Fatalf("%v is believed, %v is listed", got, list)
			}
		}
	})
}

// A pause is kept only if Consul has lost it; a resume takes effect at once, also after an outage.
func TestGuardOfPauses(t *testing.T) {
	const grace = 30 * time.Second
	type step struct {
		after    time.Duration // time since the previous step
		index    uint64
		list     string
		failed   bool
		filtered bool
		want     string
	}
	for name, steps := range map[string][]step{
		"resumed":                       {{index: 5, list: "a b", want: "a b"}, {index: 6, list: "b", want: "b"}, {index: 7, want: ""}},
		"resumed while Consul was away": {{index: 5, list: "a b", want: "a b"}, {index: 6, list: "b", failed: true, want: "b"}, {index: 7, want: ""}},
		"resumed after an outage":       {{index: 5, list: "a", want: "a"}, {index: 5, list: "a", failed: true, want: "a"}, {after: time.Second, index: 6, want: ""}},
		"the index goes back, no more":  {{index: 9, list: "a", want: "a"}, {index: 5, list: "a", want: "a"}, {after: time.Second, index: 6, want: ""}},
		"a lost state":                  {{index: 9, list: "a", want: "a"}, {index: 3, failed: true, want: "a"}, {after: grace / 2, index: 4, want: "a"}, {after: grace, index: 4, want: ""}},
		"a lost state that comes back":  {{index: 9, list: "a", want: "a"}, {index: 3, want: "a"}, {index: 9, list: "a", want: "a"}},
		"the token has lost its right":  {{index: 5, list: "a", want: "a"}, {index: 6, filtered: true, want: "a"}, {after: time.Hour, index: 7, filtered: true, want: "a"}},
		"the token does not see others": {{index: 5, list: "a", filtered: true, want: "a"}, {index: 6, filtered: true, want: ""}},
		"another max":                   {{index: 5, list: "a", want: "a"}, {index: 6, list: "a b", want: "a b"}},
	} {
		var b state
		now := time.Unix(0, 0)
		for n, s := range steps {
			now = now.Add(s.after)
			list := []*Pause{}
			for _, service := range strings.Fields(s.list) {
				list = append(list, &Pause{Service: service})
			}
			b = Policy{Grace: grace, VanishLimit: 100, ByIndex: true}.next(b, answer{data: list, index: s.index, filtered: s.filtered}, s.failed, now)
			var got []string
			for _, p := range b.trusted.([]*Pause) {
				got = append(got, p.Service)
			}
			if strings.Join(got, " ") != s.want {
				t.Errorf("%s, step %d: %q, want %q", name, n, got, s.want)
			}
		}
	}
}

func TestGuardOfOtherData(t *testing.T) {
	pairs := func(paths ...string) []*dependency.KeyPair {
		list := []*dependency.KeyPair{}
		for _, p := range paths {
			list = append(list, &dependency.KeyPair{Path: p})
		}
		return list
	}
	entries := func(keys ...string) []*api.ServiceEntry {
		list := []*api.ServiceEntry{}
		for _, key := range keys {
			node, id, _ := strings.Cut(key, " ")
			list = append(list, &api.ServiceEntry{Node: &api.Node{Node: node}, Service: &api.AgentService{ID: id}})
		}
		return list
	}
	tests := []struct {
		old, new any
		lacks    int
		want     string
	}{
		{[]*dependency.CatalogSnippet{{Name: "a"}, {Name: "c"}}, []*dependency.CatalogSnippet{{Name: "b"}}, 2, "a b c"},
		{[]*dependency.Node{{Node: "a"}}, []*dependency.Node{{Node: "b"}}, 1, "a b"},
		{entries("n1 a", "n1 b", "n2 a"), entries("n1 b", "n1 c"), 2, "n1 a, n1 b, n1 c, n2 a"},
		{pairs("x/a", "x/b"), pairs("x/b", "x/c"), 1, "x/a x/b x/c"},
		{[]string{"dc1"}, []string{}, 1, "[dc1]"},
		{[]string{"dc1", "dc2"}, []string{"dc1"}, 0, "[dc1]"},
		{"value", nil, 1, "value"},
		{"value", "", 1, "value"},
		{"value", "other", 0, "other"},
		{&dependency.CatalogNode{Node: &dependency.Node{}}, &dependency.CatalogNode{}, 1, ""},
		{"value", any(nil), 1, "value"},
	}
	for _, tt := range tests {
		all, lacks, _ := merge(tt.old, tt.new)
		if lacks != tt.lacks {
			t.Errorf("%v lacks %d of %v, want %d", tt.new, lacks, tt.old, tt.lacks)
		}
		var got string
		switch list := all.(type) {
		case []*api.ServiceEntry:
			var all []string
			for _, e := range list {
				all = append(all, e.Node.Node+" "+e.Service.ID)
			}
			got = strings.Join(all, ", ")
		case []*dependency.CatalogSnippet:
			got = named(list, func(s *dependency.CatalogSnippet) string { return s.Name })
		case []*dependency.Node:
			got = named(list, func(n *dependency.Node) string { return n.Node })
		case []*dependency.KeyPair:
			got = named(list, func(p *dependency.KeyPair) string { return p.Path })
		case *dependency.CatalogNode:
			if list != tt.old {
				got = "another node"
			}
		default:
			got = fmt.Sprint(list)
		}
		if got != tt.want {
			t.Errorf("%v and %v: %q, want %q", tt.old, tt.new, got, tt.want)
		}
	}
}

func named[T any](list []T, key func(T) string) string {
	var all []string
	for _, e := range list {
		all = append(all, key(e))
	}
	return strings.Join(all, " ")
}

// A limit on vanishing only ever keeps more: whatever Consul answers, everything trusted without a limit is trusted with
// one. Once the catalog has been stable for the grace and nothing is hidden, both equal Consul's list.
func TestLimitNeverMakesItWorse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const grace = 30 * time.Second
		limited := Policy{Grace: grace, VanishLimit: rapid.IntRange(1, 99).Draw(t, "limit")}
		free := Policy{Grace: grace, VanishLimit: 100}
		var with, without state
		now, index := time.Unix(0, 0), uint64(10)
		take := func(a answer, failed bool, after time.Duration) {
			now = now.Add(after)
			with, without = limited.next(with, a, failed, now), free.next(without, a, failed, now)
		}
		var last string
		for range rapid.IntRange(1, 15).Draw(t, "answers") {
			var list []string
			for _, id := range []string{"a", "b", "c", "d"} {
				if rapid.Bool().Draw(t, id) {
					list = append(list, id)
				}
			}
			last = strings.Join(list, " ")
			index += uint64(rapid.IntRange(-2, 3).Draw(t, "step"))
			take(answer{data: instances(last), index: index, filtered: rapid.IntRange(0, 3).Draw(t, "filtered") == 0},
				rapid.IntRange(0, 3).Draw(t, "failed") == 0, time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds"))*time.Second)
			got := strings.Fields(ids(with.trusted))
			for _, id := range strings.Fields(ids(without.trusted)) {
				if !slices.Contains(got, id) {
					t.Fatalf("%v is trusted with the limit, and not %s", got, id)
				}
			}
		}
		for range 3 {
			take(answer{data: instances(last), index: index + 1}, false, grace+time.Second)
		}
		if a, b := ids(with.trusted), ids(without.trusted); a != last || b != last {
			t.Fatalf("in the end %q is trusted with the limit and %q without, want %q", a, b, last)
		}
	})
}
