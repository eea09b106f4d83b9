package render

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/template"
)

// datum is one state of a dependency's data.
type datum struct{ data any }

// readings returns the data that x read of each dependency.
func (s *Set) readings(x *execution) map[string]*datum {
	all := map[string]*datum{}
	for key := range x.used {
		all[key] = s.data[key]
		if old := x.held[key]; old != nil {
			all[key] = old
		}
	}
	return all
}

// hold executes a fragment again that fails with the newest data. It uses the data of the last good execution where the newest
// does not work, and the newest data otherwise. So a mistake in one key holds back only the changes of this key. It returns nil if
// this gains nothing.
func (v *version) hold(failed *execution) *execution {
	f := failed.of
	if f.good == nil {
		return nil
	}
	var fixed, changed []string // keys whose value is still the one that failed; other keys that have changed since
	for key, old := range f.good.read {
		now := v.set.data[key]
		switch {
		case old == nil || now == nil || now == old:
		case f.good.refused[key] == now:
			fixed = append(fixed, key)
		default:
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	if len(fixed) > 0 {
		if x := v.executeWith(failed, fixed); x != nil {
			return x
		}
	}
	if len(changed) == 0 {
		return nil
	}
	works := v.executeWith(failed, slices.Concat(fixed, changed))
	if works == nil { // the data is not the cause
		return nil
	}
	// Use more and more of the newest data until the execution fails, hold the key it failed on, and continue after that key.
	held := fixed
	for n := 0; n < len(changed); {
		low, high := n, len(changed)
		if n == 0 {
			high-- // all of it new has failed already
		}
		for low < high {
			middle := (low + high + 1) / 2
			if x := v.executeWith(failed, slices.Concat(held, changed[middle:])); x != nil {
				works, low = x, middle
			} else {
				high = middle - 1
			}
		}
		if low < len(changed) {
			held = append(held, changed[low])
		}
		n = low + 1
	}
	return works
}

// executeWith executes a fragment with the data that the last good execution read for the keys. It returns nil if that fails or
// data is missing.
func (v *version) executeWith(failed *execution, keys []string) *execution {
	f := failed.of
	x := newExecution(f, failed.outer)
	x.held, x.refused, x.brain = map[string]*datum{}, map[string]*datum{}, template.NewBrain()
	for _, key := range keys {
		x.held[key], x.refused[key] = f.good.read[key], v.set.data[key]
	}
	for key, d := range v.set.data {
		x.brain.ForceSet(key, d.data)
	}
	for key, d := range x.held {
		x.brain.ForceSet(key, d.data)
	}
	v.running = x
	defer func() { v.running, x.outer, x.brain = failed, nil, nil }()
	result, err := v.run(f.compiled)
	if err == nil {
		x.text = string(result.Output)
		x.uses(result)
		x.read = v.set.readings(x)
		err = x.failedPartial()
	}
	if err != nil || len(x.missing) > 0 {
		return nil
	}
	return x
}

// lateFor returns why an execution lacks data; nil if the data may arrive soon or nothing is missing.
func (s *Set) lateFor(x *execution) error {
	for _, key := range slices.Sorted(slices.Values(x.missing)) {
		if err := s.late[key]; err != nil {
			return fmt.Errorf("no data of %s: %w", key, err)
		}
	}
	return nil
}

// consequence describes what happens with a failing fragment.
func (f *fragment) consequence() string {
	switch {
	case f.good == nil && f.name != "":
		return "skipping the partial"
	case f.good == nil:
		return "publishing nothing until it works"
	case len(f.good.held) > 0:
		return "keeping the last good value of " + strings.Join(slices.Sorted(maps.Keys(f.good.held)), ", ")
	default:
		return "keeping the last good text"
	}
}
