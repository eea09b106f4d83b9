//go:build e2e

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/registrar/group/store"
)

const rootToken = "11111111-1111-1111-1111-111111111111"

// startConsul starts an agent that is its own server and denies everything that no token allows.
func startConsul(t *testing.T) *testenv.Consul {
	address := testenv.FreeAddress(t, "127.0.0.1")
	c := testenv.StartConsul(t, testenv.ConsulOptions{
		Name: testenv.Name(t) + "-consul", Address: address, Token: rootToken,
		Docker: []string{"--publish", address + ":8500"},
		Args: []string{"-dev", "-client=0.0.0.0", "-node=e2e",
			`-hcl=acl { enabled = true default_policy = "deny" tokens { initial_management = "` + rootToken + `" agent = "` + rootToken + `" } }`},
	})
	c.Answers(t)
	return c
}

// withRules returns a client whose token has these rules.
func withRules(t *testing.T, c *testenv.Consul, name, rules string) *api.Client {
	t.Helper()
	_, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	var token *api.ACLToken
	if err == nil {
		token, _, err = c.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: name}}}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return testenv.ConsulClient(t, c.Address, func() string { return token.SecretID })
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// text returns a unique text.
func text(size int, seed string) []byte {
	head := "# " + seed + "\n"
	return append([]byte(head), bytes.Repeat([]byte("x"), max(0, size-len(head)))...)
}

func apply(t *testing.T, s *store.Store, i store.Item, c store.Change) store.Header {
	t.Helper()
	h, err := s.Apply(bounded(t), i, c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func versions(headers []store.Header) []uint64 {
	var out []uint64
	for _, h := range headers {
		out = append(out, h.Version)
	}
	return out
}

func TestE2EApply(t *testing.T) {
	consul := startConsul(t)
	s := store.New(consul.Client)
	ctx := bounded(t)

	t.Run("versions", func(t *testing.T) {
		app := store.Item{Service: "app"}
		if _, err := s.Current(ctx, app); !errors.Is(err, store.ErrNone) {
			t.Fatalf("before: %v", err)
		}
		first := apply(t, s, app, store.Change{Text: []byte("a = 1\n"), By: "ann@host", Format: "toml", Strategy: "at-once"})
		seventh := apply(t, s, app, store.Change{Text: []byte("a = 7\n"), By: "bob@host", Version: 7})
		if first.Version != 1 || first.Replaces != 0 || seventh.Version != 7 || seventh.Replaces != 1 {
			t.Errorf("%+v and %+v", first, seventh)
		}
		for _, version := range []uint64{3, 7} {
			_, err := s.Apply(ctx, app, store.Change{Text: []byte("a = 3\n"), Version: version})
			older, ok := errors.AsType[*store.NotNewerError](err)
			want := fmt.Sprintf("version %d is not newer than 7, applied %s by bob@host", version, seventh.At.Format(time.RFC3339))
			if !ok || older.Current != seventh || err.Error() != want {
				t.Errorf("version %d: %v", version, err)
			}
		}
		pair, _, err := consul.KV().Get("berth/config/app", nil)
		if err != nil || string(pair.Value) != "a = 7\n" || pair.Flags != 7 {
			t.Fatalf("the key is %+v, %v", pair, err)
		}
		now, err := s.Current(ctx, app)
		if err != nil || now.Header != seventh || string(now.Text) != "a = 7\n" || now.ByHand || now.Index != pair.ModifyIndex {
			t.Errorf("current: %+v, %v", now, err)
		}
		old, err := s.At(ctx, app, 1)
		if err != nil || string(old.Text) != "a = 1\n" || old.Header != first || old.Index != 0 {
			t.Errorf("version 1: %+v, %v", old, err)
		}
		if _, err := s.At(ctx, app, 3); !errors.Is(err, store.ErrNone) {
			t.Errorf("version 3: %v", err)
		}
		history, err := s.History(ctx, app)
		if err != nil || !slices.Equal(history, []store.Header{seventh, first}) {
			t.Errorf("history: %v, %v", history, err)
		}
	})

	t.Run("bounded", func(t *testing.T) {
		for _, size := range []int{10, 300 << 10} {
			i := store.Item{Service: "bounded-" + strconv.Itoa(size)}
			for n := range 25 {
				apply(t, s, i, store.Change{Text: text(size, strconv.Itoa(n))})
			}
			history, err := s.History(ctx, i)
			var want []uint64
			for n := 25; n > 5; n-- {
				want = append(want, uint64(n))
			}
			if err != nil || !slices.Equal(versions(history), want) {
				t.Errorf("%d bytes: %v, %v", size, versions(history), err)
			}
			keys, _, err := consul.KV().Keys("berth/history/"+i.Service+"/", "", nil)
			if err != nil || len(keys) != store.Kept {
				t.Errorf("%d bytes: %d keys, %v", size, len(keys), err)
			}
		}
	})

	t.Run("sizes", func(t *testing.T) {
		for n, size := range []int{0, 1, 150 << 10, 160 << 10, 160<<10 + 1, 190 << 10, 400 << 10, 500 << 10, store.Limit} {
			i := store.Item{Service: "sizes"}
			body := text(size, strconv.Itoa(n))[:size]
			start := time.Now()
			h := apply(t, s, i, store.Change{Text: body, By: strings.Repeat("b", 300)})
			t.Logf("%d bytes in %v", size, time.Since(start).Round(time.Millisecond/10))
			now, err := s.Current(ctx, i)
			if err != nil || !bytes.Equal(now.Text, body) || now.Header != h || now.ByHand || h.Version != uint64(n+1) {
				t.Errorf("%d bytes: %d come back, %+v, %v", size, len(now.Text), now.Header, err)
			}
			old, err := s.At(ctx, i, h.Version)
			if err != nil || !bytes.Equal(old.Text, body) {
				t.Errorf("%d bytes: %d in the history, %v", size, len(old.Text), err)
			}
		}
		_, err := s.Apply(ctx, store.Item{Service: "sizes"}, store.Change{Text: text(store.Limit+1, "")})
		if large, ok := errors.AsType[*store.TooLargeError](err); !ok || large.Size != store.Limit+1 {
			t.Errorf("one byte more: %v", err)
		}
		// The maximum number of removals in a transaction, with the longest names.
		i := store.Item{Service: strings.Repeat("s", 200), File: strings.Repeat("f", 255)}
		for n := range 80 {
			if _, err := consul.KV().Put(&api.KVPair{Key: i.HistoryKey(uint64(1e18) + uint64(n))}, nil); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, s, i, store.Change{Text: text(160<<10, ""), By: strings.Repeat("b", 800)})
	})

	t.Run("by hand", func(t *testing.T) {
		i := store.Item{Service: "hand"}
		put := func(flags uint64, text string) {
			t.Helper()
			if _, err := consul.KV().Put(&api.KVPair{Key: i.Key(), Value: []byte(text), Flags: flags}, nil); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(version uint64, byHand bool, text string, history ...uint64) {
			t.Helper()
			now, err := s.Current(ctx, i)
			if err != nil || now.Version != version || now.ByHand != byHand || string(now.Text) != text || now.Sum != store.Sum([]byte(text)) {
				t.Errorf("current: %+v, %v", now, err)
			}
			headers, err := s.History(ctx, i)
			if err != nil || !slices.Equal(versions(headers), history) {
				t.Errorf("history: %v, %v", versions(headers), err)
			}
		}
		put(0, "hand") // before berth wrote it
		expect(0, true, "hand")
		apply(t, s, i, store.Change{Text: []byte("one"), By: "ann@host"})
		expect(1, false, "one", 1)
		put(1, "one, but better") // through the UI, which keeps the flags
		expect(1, true, "one, but better", 1)
		apply(t, s, i, store.Change{Text: []byte("two")})
		expect(2, false, "two", 2, 1)
		put(0, "again") // through consul kv put
		expect(0, true, "again", 2, 1)
		if _, err := s.Apply(ctx, i, store.Change{Text: []byte("x"), Version: 2}); err == nil || !strings.Contains(err.Error(), "version 2 is not newer than 2") {
			t.Errorf("version 2 again: %v", err)
		}
		apply(t, s, i, store.Change{Text: []byte("three")})
		expect(3, false, "three", 3, 2, 1)
		put(99, "ninety-nine")
		expect(99, true, "ninety-nine", 3, 2, 1)
		if _, err := s.Apply(ctx, i, store.Change{Text: []byte("x"), Version: 50}); err == nil || err.Error() != "version 50 is not newer than 99" {
			t.Errorf("version 50: %v", err)
		}
		if v, err := s.At(ctx, i, 99); err != nil || string(v.Text) != "ninety-nine" {
			t.Errorf("version 99: %+v, %v", v, err)
		}
		apply(t, s, i, store.Change{Text: []byte("hundred")})
		expect(100, false, "hundred", 100, 3, 2, 1)
		if _, err := consul.KV().Delete(i.Key(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Current(ctx, i); !errors.Is(err, store.ErrNone) {
			t.Errorf("deleted: %v", err)
		}
		// The last text is restored under its number; another one is not.
		if _, err := s.Apply(ctx, i, store.Change{Text: []byte("other"), Version: 100}); err == nil {
			t.Error("another text has the number")
		}
		apply(t, s, i, store.Change{Text: []byte("hundred"), Version: 100})
		expect(100, false, "hundred", 100, 3, 2, 1)
		if _, err := consul.KV().Delete(i.Key(), nil); err != nil {
			t.Fatal(err)
		}
		apply(t, s, i, store.Change{Text: []byte("more")})
		expect(101, false, "more", 101, 100, 3, 2, 1)
	})

	t.Run("begun and left", func(t *testing.T) {
		i := store.Item{Service: "left"}
		apply(t, s, i, store.Change{Text: []byte("one")})
		claim := func(version uint64, line string) {
			t.Helper()
			if _, err := consul.KV().Put(&api.KVPair{Key: i.HistoryKey(version), Value: []byte(line + "\ntext")}, nil); err != nil {
				t.Fatal(err)
			}
		}
		claim(2, `{"version":2,"replaces":1,"by":"bob@host","at":"2026-11-26T10:00:00Z","sum":"x"}`)
		claim(9, `not ours`)
		if h, err := s.History(ctx, i); err != nil || !slices.Equal(versions(h), []uint64{1}) {
			t.Errorf("history: %v, %v", h, err)
		}
		if _, err := s.At(ctx, i, 2); !errors.Is(err, store.ErrNone) {
			t.Errorf("version 2: %v", err)
		}
		// A large text cannot take a number that another writer may be about to take; a small one can.
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.Apply(short, i, store.Change{Text: text(300<<10, ""), Version: 2})
		if err == nil || !strings.Contains(err.Error(), "version 2 is being applied 2026-11-26T10:00:00Z by bob@host; if that was given up, use another number") {
			t.Errorf("a large one: %v", err)
		}
		if h := apply(t, s, i, store.Change{Text: []byte("two"), Version: 2}); h.Version != 2 {
			t.Errorf("a small one: %+v", h)
		}
		claim(3, `{"version":3,"replaces":2,"by":"bob@host","at":"2026-11-26T10:00:00Z","sum":"x"}`)
		if h := apply(t, s, i, store.Change{Text: text(300<<10, "")}); h.Version != 10 || h.Replaces != 2 {
			t.Errorf("the next: %+v", h)
		}
		keys, _, err := consul.KV().Keys("berth/history/left/", "", nil)
		slices.Sort(keys)
		if want := []string{i.HistoryKey(1), i.HistoryKey(10), i.HistoryKey(2)}; err != nil || !slices.Equal(keys, want) {
			t.Errorf("the history has %v, %v", keys, err)
		}
	})

	t.Run("files", func(t *testing.T) {
		logo, css := store.Item{Service: "app", File: "logo of us.png"}, store.Item{Service: "app", File: "ü%2F?#.css"}
		before, err := s.History(ctx, store.Item{Service: "app"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(ctx, logo, "ann@host"); !errors.Is(err, store.ErrNone) {
			t.Errorf("removed before it was there: %v", err)
		}
		image := text(400<<10, "image")
		image[5] = 0
		apply(t, s, logo, store.Change{Text: image, Format: "raw"})
		second := apply(t, s, logo, store.Change{Text: []byte("smaller"), Format: "raw"})
		style := apply(t, s, css, store.Change{Text: nil, Format: "raw"})
		files, err := s.Files(ctx, "app")
		if err != nil || len(files) != 2 || files[logo.File] != second || files[css.File] != style {
			t.Errorf("%v, %v", files, err)
		}
		if err := s.Remove(ctx, logo, "ann@host"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Current(ctx, logo); !errors.Is(err, store.ErrNone) {
			t.Errorf("removed: %v", err)
		}
		if files, err := s.Files(ctx, "app"); err != nil || len(files) != 1 {
			t.Errorf("%v, %v", files, err)
		}
		if v, err := s.At(ctx, logo, 1); err != nil || !bytes.Equal(v.Text, image) {
			t.Errorf("version 1: %d bytes, %v", len(v.Text), err)
		}
		if _, err := s.Apply(ctx, logo, store.Change{Version: 3}); err == nil || !strings.Contains(err.Error(), "version 3 is not newer than 3, removed 20") {
			t.Errorf("version 3: %v", err)
		}
		if h := apply(t, s, logo, store.Change{Text: []byte("back")}); h.Version != 4 {
			t.Errorf("put again: %+v", h)
		}
		history, err := s.History(ctx, logo)
		if err != nil || !slices.Equal(versions(history), []uint64{4, 3, 2, 1}) || history[1].Format != store.Removed || history[1].By != "ann@host" {
			t.Errorf("%v, %v", history, err)
		}
		if _, err := s.At(ctx, logo, 3); !errors.Is(err, store.ErrNone) {
			t.Errorf("the removal as a version: %v", err)
		}
		after, err := s.History(ctx, store.Item{Service: "app"})
		if err != nil || !slices.Equal(before, after) {
			t.Errorf("the configuration's history: %v, %v", after, err)
		}
	})

	t.Run("restart", func(t *testing.T) {
		if o, err := s.Ordered(ctx, "app"); err != nil || o != (store.Order{}) {
			t.Errorf("before: %+v, %v", o, err)
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		var got []uint64
		for range 10 {
			all.Go(func() {
				n, err := s.Restart(ctx, "app", "ann@host", "rolling")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, n)
			})
		}
		all.Wait()
		slices.Sort(got)
		if !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) {
			t.Errorf("orders %v", got)
		}
		if o, err := s.Ordered(ctx, "app"); err != nil || o.Number != 10 || o.By != "ann@host" || o.Strategy != "rolling" || o.At.IsZero() {
			t.Errorf("after: %+v, %v", o, err)
		}
	})
}

// When many operators write at once, each version has one winner, and every text reported as applied is in the history under
// the reported number.
func TestE2EApplyAtOnce(t *testing.T) {
	s := store.New(startConsul(t).Client)
	const many = 20
	for _, size := range []int{100, 200 << 10} {
		t.Run(fmt.Sprint(size, " bytes, next"), func(t *testing.T) {
			i := store.Item{Service: "next-" + strconv.Itoa(size)}
			won := make([]store.Header, many)
			start := time.Now()
			var all sync.WaitGroup
			for n := range many {
				all.Go(func() {
					var err error
					if won[n], err = s.Apply(bounded(t), i, store.Change{Text: text(size, strconv.Itoa(n)), By: strconv.Itoa(n)}); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			t.Logf("%d in %v", many, time.Since(start))
			history, err := s.History(bounded(t), i)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(won, func(a, b store.Header) int { return int(b.Version) - int(a.Version) })
			if !slices.Equal(history, won) {
				t.Errorf("won %v, history %v", versions(won), versions(history))
			}
			t.Logf("versions %v", versions(won))
			for _, h := range won {
				n, _ := strconv.Atoi(h.By)
				if v, err := s.At(bounded(t), i, h.Version); err != nil || !bytes.Equal(v.Text, text(size, strconv.Itoa(n))) {
					t.Errorf("version %d is not the text of %s: %v", h.Version, h.By, err)
				}
			}
		})
		t.Run(fmt.Sprint(size, " bytes, the same versions"), func(t *testing.T) {
			i := store.Item{Service: "same-" + strconv.Itoa(size)}
			const highest = 5
			won := make([][]store.Header, highest+1)
			var all sync.WaitGroup
			var mu sync.Mutex
			for n := range many {
				all.Go(func() {
					for version := uint64(1); version <= highest; version++ {
						h, err := s.Apply(bounded(t), i, store.Change{Text: text(size, strconv.Itoa(n)), By: strconv.Itoa(n), Version: version})
						if older, ok := errors.AsType[*store.NotNewerError](err); ok && older.Current.Version >= version {
							continue
						} else if err != nil {
							t.Error(err)
							continue
						}
						mu.Lock()
						won[version] = append(won[version], h)
						mu.Unlock()
					}
				})
			}
			all.Wait()
			history, err := s.History(bounded(t), i)
			if err != nil {
				t.Fatal(err)
			}
			var winners []store.Header
			for version := highest; version > 0; version-- {
				if len(won[version]) > 1 {
					t.Errorf("version %d was won by %v", version, won[version])
				}
				winners = append(winners, won[version]...)
			}
			if !slices.Equal(winners, history) || len(winners) == 0 || winners[0].Version != highest {
				t.Errorf("won %v, history %v", winners, history)
			}
		})
	}
	t.Run("all sizes, next and named, and removals", func(t *testing.T) {
		i := store.Item{Service: "mixed", File: "f"}
		var all sync.WaitGroup
		var mu sync.Mutex
		won := map[uint64]int{}
		for n := range many {
			all.Go(func() {
				for range 3 {
					c := store.Change{Text: text([]int{10, 300 << 10}[rand.IntN(2)], strconv.Itoa(n)), By: strconv.Itoa(n), Version: uint64([]int{0, 0, 40 + rand.IntN(40)}[rand.IntN(3)])}
					if rand.IntN(5) == 0 {
						if err := s.Remove(bounded(t), i, "x"); err != nil && !errors.Is(err, store.ErrNone) {
							t.Error(err)
						}
						continue
					}
					h, err := s.Apply(bounded(t), i, c)
					if _, ok := errors.AsType[*store.NotNewerError](err); ok {
						continue
					} else if err != nil {
						t.Error(err)
						continue
					}
					mu.Lock()
					won[h.Version]++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		for version, n := range won {
			if n > 1 {
				t.Errorf("version %d has %d winners", version, n)
			}
		}
		history, err := s.History(bounded(t), i)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range history {
			if h.Format != store.Removed && won[h.Version] != 1 {
				t.Errorf("nobody was told of version %d", h.Version)
			}
		}
		t.Logf("%d won; the history is %v", len(won), versions(history))
	})
}

// What the token does not allow is refused at once; the error names the key, and nothing changes.
func TestE2EPermissions(t *testing.T) {
	consul := startConsul(t)
	ctx := bounded(t)
	root := store.New(consul.Client)
	apply(t, root, store.Item{Service: "app"}, store.Change{Text: []byte("one")})
	apply(t, root, store.Item{Service: "app2"}, store.Change{Text: []byte("one")})
	operator := store.New(withRules(t, consul, "operator", `key "berth/config/app" { policy = "write" } key_prefix "berth/history/app/" { policy = "write" }
		key_prefix "berth/applied/app/" { policy = "read" } key "berth/rolling/app" { policy = "read" } service "app" { policy = "read" } node_prefix "" { policy = "read" }`))
	reader := store.New(withRules(t, consul, "reader", `key_prefix "berth/" { policy = "read" }`))
	half := store.New(withRules(t, consul, "half", `key_prefix "berth/" { policy = "read" } key_prefix "berth/history/" { policy = "write" }`))

	if h := apply(t, operator, store.Item{Service: "app"}, store.Change{Text: []byte("two")}); h.Version != 2 {
		t.Errorf("%+v", h)
	}
	if s, err := operator.Status(ctx, "app"); err != nil || s.Wanted.Version != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	for name, tt := range map[string]struct {
		f    func() error
		want []string
	}{
		"another service":  {func() error { _, err := operator.Apply(ctx, store.Item{Service: "app2"}, store.Change{}); return err }, []string{"berth/config/app2", "Permission denied"}},
		"its status":       {func() error { _, err := operator.Status(ctx, "app2"); return err }, []string{"berth/", "app2", "Permission denied"}},
		"it watched":       {func() error { return operator.Watch(ctx, "app2", func(store.Status) bool { return true }) }, []string{"Permission denied"}},
		"read only, small": {func() error { _, err := reader.Apply(ctx, store.Item{Service: "app"}, store.Change{}); return err }, []string{"write berth/config/app", "Permission denied"}},
		"read only, large": {func() error {
			_, err := reader.Apply(ctx, store.Item{Service: "app"}, store.Change{Text: text(300<<10, "")})
			return err
		}, []string{"write berth/history/app/3", "Permission denied"}},
		"history only, large": {func() error {
			_, err := half.Apply(ctx, store.Item{Service: "app"}, store.Change{Text: text(300<<10, "")})
			return err
		}, []string{"write berth/config/app", "Permission denied"}},
		"restart": {func() error { _, err := reader.Restart(ctx, "app", "", ""); return err }, []string{"write berth/restart/app", "Permission denied"}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			err := tt.f()
			if err == nil {
				t.Fatal("it is allowed")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("refused after %v", took)
			}
			t.Log(err)
		})
	}
	keys, _, err := consul.KV().Keys("berth/history/app/", "", nil)
	if now, failed := root.Current(ctx, store.Item{Service: "app"}); failed != nil || err != nil || string(now.Text) != "two" || len(keys) != 2 {
		t.Errorf("afterwards: %+v, %v, %v, %v", now, failed, keys, err)
	}
}

// A status combines the catalog and the reports, and a watch sees each change, also of a report that vanishes with its
// session.
func TestE2EStatus(t *testing.T) {
	consul := startConsul(t)
	s := store.New(consul.Client)
	ctx := bounded(t)
	apply(t, s, store.Item{Service: "app"}, store.Change{Text: []byte("one")})
	wanted := apply(t, s, store.Item{Service: "app"}, store.Change{Text: []byte("two")})

	statuses := make(chan store.Status, 100)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() {
		ended <- s.Watch(watching, "app", func(s store.Status) bool { statuses <- s; return len(s.Members) == 9 })
	}()
	until := func(what string, ok func(store.Status) bool) store.Status {
		t.Helper()
		start := time.Now()
		var last store.Status
		for {
			select {
			case last = <-statuses:
				if ok(last) {
					t.Logf("%s: seen after %v", what, time.Since(start).Round(time.Millisecond))
					return last
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("not seen: %s; the last status was %+v", what, last)
			}
		}
	}
	missing := func(want ...string) func(store.Status) bool {
		return func(s store.Status) bool { return slices.Equal(s.Missing(), want) }
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	until("the first status", missing("app has no instance"))

	register := func(id, status string) {
		t.Helper()
		must(consul.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "app", Address: "10.0.0.1", Port: 80,
			Check: &api.AgentServiceCheck{TTL: "1h", Status: status}}))
	}
	register("app-1", "passing")
	until("an instance", missing("app-1: does not report: nothing applies a configuration there"))

	session, _, err := consul.Session().Create(&api.SessionEntry{Behavior: api.SessionBehaviorDelete, TTL: "10s", LockDelay: time.Millisecond}, nil)
	must(err)
	report := func(id, value string) {
		t.Helper()
		ok, _, err := consul.KV().Acquire(&api.KVPair{Key: store.AppliedKey("app", id), Value: []byte(value), Session: session}, nil)
		if must(err); !ok {
			t.Fatal("not acquired")
		}
	}
	report("app-1", fmt.Sprintf(`{"instance":"app-1","version":2,"sum":%q,"state":"applied","of":"a version of berth to come"}`, wanted.Sum))
	status := until("a report", missing())
	if m := status.Members[0]; len(status.Members) != 1 || m.Address != "10.0.0.1" || m.Port != 80 || m.Node != "e2e" || !m.Registered || !m.Ready || m.Report.Version != 2 {
		t.Errorf("%+v", status.Members)
	}
	report("app-1", fmt.Sprintf(`{"version":2,"sum":%q,"state":"applied"}`, store.Sum([]byte("hand"))))
	until("another text", missing("app-1: runs another text of version 2"))
	report("app-1", `[]`)
	until("what is no report", func(s store.Status) bool {
		return len(s.Missing()) == 1 && strings.HasPrefix(s.Missing()[0], "app-1: its report cannot be read: json: ") && s.Members[0].Report == nil
	})
	report("app-1", `{"version":1,"sum":"x","state":"waiting"}`)
	until("waiting", missing("app-1: runs version 1, waits for its turn"))
	must(consul.Agent().EnableServiceMaintenance("app-1", "a change"))
	until("maintenance", missing("app-1: runs version 1, waits for its turn, is not passing in Consul"))
	must(consul.Agent().DisableServiceMaintenance("app-1"))
	until("no maintenance", missing("app-1: runs version 1, waits for its turn"))

	report("host/app-1:80", `{"version":1,"sum":"x","state":"failed","failed_version":2,"reason":"exit status 1"}`)
	until("a report of an instance that the catalog lacks", missing("app-1: runs version 1, waits for its turn",
		"host/app-1:80: failed with version 2: exit status 1, runs version 1, is not in Consul's catalog"))

	lock, _, err := consul.Session().Create(&api.SessionEntry{TTL: "10s", LockDelay: time.Millisecond}, nil)
	must(err)
	_, _, err = consul.KV().Acquire(&api.KVPair{Key: store.RollingKey("app"), Value: []byte(`{"holder":"app-1"}`), Session: lock}, nil)
	must(err)
	until("who applies", func(s store.Status) bool { return s.Roll.Held && s.Roll.Holder == "app-1" })
	_, _, err = consul.KV().Release(&api.KVPair{Key: store.RollingKey("app"), Value: []byte(`{"halted":{"version":2,"instance":"app-3","reason":"x"}}`), Session: lock}, nil)
	must(err)
	until("a halt", func(s store.Status) bool {
		return !s.Roll.Held && s.Roll.Halted != nil && strings.Contains(s.Missing()[0], "waits: the change was stopped because version 2 failed on app-3")
	})

	apply(t, s, store.Item{Service: "app"}, store.Change{Text: []byte("three")})
	until("another version", func(s store.Status) bool { return s.Wanted.Version == 3 && string(s.Wanted.Text) == "three" })

	_, err = consul.Session().Destroy(session, nil)
	must(err)
	until("the reports are gone with their session", missing("app-1: does not report: nothing applies a configuration there"))

	// The watch survives Consul's absence, and sees what Consul forgot meanwhile: a -dev agent forgets everything.
	consul.Do(t, "restart", "--time", "1")
	until("what Consul lost", func(s store.Status) bool { return s.Wanted.Version == 0 && len(s.Members) == 0 })
	apply(t, s, store.Item{Service: "app"}, store.Change{Text: []byte("anew")})
	until("what was written after that", func(s store.Status) bool { return string(s.Wanted.Text) == "anew" })
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended by %v", err)
	}
}

// Apply waits for Consul, and applies the text once.
func TestE2EApplyWhileAway(t *testing.T) {
	consul := startConsul(t)
	s := store.New(consul.Client)
	i := store.Item{Service: "app"}
	apply(t, s, i, store.Change{Text: []byte("one")})
	consul.Do(t, "pause")
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := s.Apply(short, i, store.Change{Text: []byte("never")}); err == nil || !strings.Contains(err.Error(), "Consul at "+consul.Address+" does not answer") {
		t.Errorf("with a deadline: %v", err)
	}
	var all sync.WaitGroup
	for _, size := range []int{10, 300 << 10} {
		all.Go(func() {
			if _, err := s.Apply(bounded(t), i, store.Change{Text: text(size, "x")}); err != nil {
				t.Error(err)
			}
		})
	}
	time.AfterFunc(2*time.Second, func() { consul.Do(t, "unpause") })
	all.Wait()
	if h, err := s.History(bounded(t), i); err != nil || len(h) != 3 {
		t.Errorf("history: %v, %v", h, err)
	}
}
