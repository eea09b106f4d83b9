package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func bounded(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var sizes = map[string][]byte{"small": []byte("text"), "large": bytes.Repeat([]byte("x"), smallText+1)}

func must(t *testing.T, s *Store, i Item, c Change) Header {
	t.Helper()
	h, err := s.Apply(bounded(t, soon), i, c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func numbersOf(headers []Header) []uint64 {
	var out []uint64
	for _, h := range headers {
		out = append(out, h.Version)
	}
	return out
}

// expect checks the current version and the history, and that no other entry is left.
func expect(t *testing.T, f *fakeConsul, s *Store, i Item, text []byte, history ...uint64) {
	t.Helper()
	now, err := s.Current(bounded(t, soon), i)
	if err != nil || !bytes.Equal(now.Text, text) || now.Version != history[0] || now.ByHand {
		t.Errorf("current is version %d, %d bytes, by hand %t, %v", now.Version, len(now.Text), now.ByHand, err)
	}
	headers, err := s.History(bounded(t, soon), i)
	if err != nil || !slices.Equal(numbersOf(headers), history) {
		t.Errorf("history: %v, %v; want %v", numbersOf(headers), err, history)
	}
	f.set(func() {
		n := 0
		for key := range f.kv {
			if strings.HasPrefix(key, i.historyPrefix()) {
				n++
			}
		}
		if n != len(history) {
			t.Errorf("%d entries are there, want %d", n, len(history))
		}
	})
}

// An answer that is lost, before or after Consul has carried out the request, is looked up, and the text is applied once.
func TestApplyLostAnswer(t *testing.T) {
	i := Item{Service: "app"}
	for size, text := range sizes {
		for _, asked := range []uint64{0, 2} {
			for _, key := range []string{i.Key(), i.HistoryKey(2)} {
				for _, there := range []bool{true, false} { // an earlier version exists
					for _, when := range []string{"before", "after"} {
						t.Run(fmt.Sprint(size, asked, key, there, when), func(t *testing.T) {
							f, s := newFake(t)
							want := []uint64{max(1, asked)}
							if there {
								must(t, s, i, Change{Text: []byte("one")})
								want = []uint64{2, 1}
							}
							if when == "before" {
								f.before = once(key, func() {})
							} else {
								f.after = once(key, func() {})
							}
							h := must(t, s, i, Change{Text: text, Version: asked, By: "ann@host"})
							if h.Version != want[0] {
								t.Errorf("version %d", h.Version)
							}
							expect(t, f, s, i, text, want...)
						})
					}
				}
			}
		}
	}
}

// An answer is lost, and another writer writes before the next attempt: the first one learns whether its text ever was
// current.
func TestApplyLostAnswerThenOther(t *testing.T) {
	i := Item{Service: "app"}
	for size, text := range sizes {
		for _, when := range []string{"before", "after"} {
			t.Run(size+" "+when, func(t *testing.T) {
				f, s := newFake(t)
				must(t, s, i, Change{Text: []byte("one")})
				other := func() { must(t, s, i, Change{Text: []byte("other"), Version: 3}) }
				if when == "before" {
					f.before = once(i.Key(), other)
				} else {
					f.after = once(i.Key(), other)
				}
				h, err := s.Apply(bounded(t, soon), i, Change{Text: text, Version: 2})
				_, refused := errors.AsType[*NotNewerError](err)
				if when == "before" && !refused {
					t.Errorf("%+v, %v", h, err)
				}
				if when == "after" && (err != nil || h.Version != 2) {
					t.Errorf("%+v, %v", h, err)
				}
				want := []uint64{3, 1}
				if when == "after" {
					want = []uint64{3, 2, 1}
				}
				expect(t, f, s, i, []byte("other"), want...)
			})
		}
	}
}

// A writer of a large text ends between its two writes: its text is never visible, and the next writer passes and removes
// it.
func TestApplyCrash(t *testing.T) {
	f, s := newFake(t)
	i := Item{Service: "app"}
	must(t, s, i, Change{Text: []byte("one")})
	ctx, crash := context.WithCancel(t.Context())
	f.before = once(i.Key(), crash)
	if _, err := s.Apply(ctx, i, Change{Text: sizes["large"], By: "ann@host"}); err == nil || !strings.Contains(err.Error(), "version 2 may have been written") {
		t.Fatal(err)
	}
	if f.kv[i.HistoryKey(2)] == nil {
		t.Fatal("it did not begin")
	}
	now, err := s.Current(bounded(t, soon), i)
	if err != nil || now.Version != 1 || string(now.Text) != "one" {
		t.Errorf("%+v, %v", now, err)
	}
	if h, err := s.History(bounded(t, soon), i); err != nil || !slices.Equal(numbersOf(h), []uint64{1}) {
		t.Errorf("history: %v, %v", h, err)
	}
	must(t, s, i, Change{Text: []byte("three")})
	expect(t, f, s, i, []byte("three"), 3, 1)
}

// Repeating a call, like a job that runs again, finishes what the first one began.
func TestApplyCrashAndAgain(t *testing.T) {
	f, s := newFake(t)
	i := Item{Service: "app"}
	for _, version := range []uint64{1, 2} { // before one exists, and after
		ctx, crash := context.WithCancel(t.Context())
		f.before = once(i.Key(), crash)
		c := Change{Text: append(sizes["large"], byte(version)), Version: version, By: "ann@host"}
		if _, err := s.Apply(ctx, i, c); err == nil {
			t.Fatal("it did not crash")
		}
		if h := must(t, s, i, c); h.Version != version {
			t.Errorf("%+v", h)
		}
	}
	expect(t, f, s, i, append(sizes["large"], 2), 2, 1)
}

// A file that a writer did not find is put and removed by others before its second write: no number is used twice.
func TestApplyAbsentTwice(t *testing.T) {
	f, s := newFake(t)
	i := Item{Service: "app", File: "f"}
	f.before = func(key string) bool {
		if key == i.Key() {
			f.before = func(string) bool { return false }
			must(t, s, i, Change{Text: []byte("two"), Version: 2})
			if err := s.Remove(bounded(t, soon), i, "bob@host"); err != nil {
				t.Error(err)
			}
		}
		return false
	}
	must(t, s, i, Change{Text: sizes["large"], Version: 1})
	for version := uint64(1); version < 4; version++ {
		if _, err := s.Apply(bounded(t, soon), i, Change{Text: []byte("x"), Version: version}); err == nil || !strings.Contains(err.Error(), "is not newer than 3, removed") {
			t.Errorf("version %d: %v", version, err)
		}
	}
	if h := must(t, s, i, Change{Text: []byte("x")}); h.Version != 4 {
		t.Errorf("the next is %d", h.Version)
	}
}

func TestApplyWhileAway(t *testing.T) {
	f, s := newFake(t)
	i := Item{Service: "app"}
	f.set(func() { f.away = true })
	_, err := s.Apply(bounded(t, 300*time.Millisecond), i, Change{Text: []byte("one")})
	if err == nil || !strings.Contains(err.Error(), "read berth/config/app: Consul at 127.0.0.1:") || strings.Contains(err.Error(), "may have been written") {
		t.Error(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { f.set(func() { f.away = false }) })
	must(t, s, i, Change{Text: []byte("one")})
	expect(t, f, s, i, []byte("one"), 1)

	f.set(func() { f.refuse, f.writes = 503, 0 })
	_, err = s.Apply(bounded(t, time.Second), i, Change{Text: []byte("two")})
	if err == nil || !strings.Contains(err.Error(), "write berth/config/app: Consul cannot do it now") || f.writes < 2 {
		t.Errorf("%v after %d writes", err, f.writes)
	}
	// A deadline during a wait for an answer says less than the answer before.
	ctx, over := context.WithCancel(t.Context())
	f.set(func() {
		f.writes = 0
		f.hang = func(write int) bool {
			if write == 2 {
				over()
			}
			return write == 2
		}
	})
	_, err = s.Apply(ctx, i, Change{Text: []byte("two")})
	if err == nil || !strings.Contains(err.Error(), "write berth/config/app: Consul cannot do it now: Permission denied (version 2 may have been written") || f.writes != 2 {
		t.Errorf("%v after %d writes", err, f.writes)
	}
	f.set(func() { f.refuse, f.hang, f.writes = 403, nil, 0 })
	for size, text := range sizes {
		f.set(func() { f.writes = 0 })
		_, err = s.Apply(bounded(t, soon), i, Change{Text: text})
		if err == nil || !strings.Contains(err.Error(), "Consul refuses it: Permission denied") || f.writes != 1 {
			t.Errorf("%s: %v after %d writes", size, err, f.writes)
		}
	}
	f.set(func() { f.refuse = 0 })
	expect(t, f, s, i, []byte("one"), 1)
}

func TestApplyBad(t *testing.T) {
	f, s := newFake(t)
	for want, change := range map[string]struct {
		Item
		Change
	}{
		"the text has 523265 bytes, and Consul takes at most 523264": {Item{Service: "app"}, Change{Text: make([]byte, Limit+1)}},
		"is not a service name": {Item{Service: "a/b"}, Change{}},
		"has a slash":           {Item{Service: "app", File: "../x"}, Change{}},
		"take 2":                {Item{Service: "app"}, Change{By: strings.Repeat("b", 2000)}},
	} {
		if _, err := s.Apply(bounded(t, soon), change.Item, change.Change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if f.writes != 0 {
		t.Errorf("%d writes", f.writes)
	}
	f.put("berth/config/last", nil, 1<<64-1)
	if _, err := s.Apply(bounded(t, soon), Item{Service: "last"}, Change{}); err == nil || !strings.Contains(err.Error(), "there is no version after 18446744073709551615") {
		t.Error(err)
	}
}

func TestRemoveLostAnswer(t *testing.T) {
	i := Item{Service: "app", File: "f"}
	for _, when := range []string{"before", "after"} {
		f, s := newFake(t)
		must(t, s, i, Change{Text: []byte("one")})
		hook := once(i.Key(), func() {})
		if when == "before" {
			f.before = hook
		} else {
			f.after = hook
		}
		if err := s.Remove(bounded(t, soon), i, "ann@host"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if h, err := s.History(bounded(t, soon), i); err != nil || !slices.Equal(numbersOf(h), []uint64{2, 1}) || f.kv[i.Key()] != nil {
			t.Errorf("%s: %v, %v", when, h, err)
		}
	}
}

func TestDoomed(t *testing.T) {
	down := func(from, to uint64) (out []uint64) {
		for n := from; n >= to; n-- {
			out = append(out, n)
		}
		return out
	}
	for name, tt := range map[string]struct {
		numbers    []uint64
		base, next uint64
		numbered   bool
		want       []uint64
	}{
		"few":                 {down(19, 1), 19, 20, true, nil},
		"the oldest":          {down(25, 1), 25, 26, true, down(6, 1)},
		"begun":               {[]uint64{9, 8, 7, 6, 5}, 6, 8, true, []uint64{7}},
		"of a key that is no": {[]uint64{9, 8, 7}, 9, 10, false, nil},
		"not all at once":     {down(200, 1), 200, 201, true, down(181, 122)},
	} {
		if got := doomed(tt.numbers, tt.base, tt.next, tt.numbered); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
