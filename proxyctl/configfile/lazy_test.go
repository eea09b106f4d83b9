package configfile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func generation(n int) Generation { return NewGeneration("shape", fmt.Sprint(n)) }

// Texts are written in the background: the newest of many, at a limited pace.
func TestLazyWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu   sync.Mutex
			done []string
		)
		busy := 10 * time.Millisecond
		f := &LazyWriter{Proxy: "the proxy", Write: func(_ context.Context, text string) error {
			time.Sleep(busy)
			mu.Lock()
			defer mu.Unlock()
			done = append(done, text)
			return nil
		}}
		written := func() []string { // since the last call
			mu.Lock()
			defer mu.Unlock()
			all := done
			done = nil
			return all
		}
		f.Flush() // nothing to wait for
		put := func(n int) { f.Put(t.Context(), fmt.Sprint(n), generation(n)) }
		began := time.Now()
		for n := range 100 {
			put(n)
			time.Sleep(5 * time.Millisecond)
		}
		if time.Since(began) != 500*time.Millisecond {
			t.Errorf("handing over took %v", time.Since(began)-500*time.Millisecond)
		}
		f.Flush()
		if all := written(); len(all) < 4 || len(all) > 6 || all[0] != "0" || all[len(all)-1] != "99" {
			t.Errorf("written were %q", all)
		}
		// A single text does not wait, and neither does Flush.
		began = time.Now()
		put(100)
		f.Flush()
		if all, took := written(), time.Since(began); took != busy || len(all) != 1 {
			t.Errorf("written were %q after %v", all, took)
		}
		// A slow writer is busy for at most a fifth of the time.
		busy, began = time.Second, time.Now()
		put(1)
		time.Sleep(2 * time.Second)
		put(2)
		time.Sleep(2900 * time.Millisecond)
		if all := written(); len(all) != 1 {
			t.Errorf("%v after the beginning of the first, %q are written", time.Since(began), all)
		}
		time.Sleep(1200 * time.Millisecond)
		if all := written(); len(all) != 1 {
			t.Errorf("%v after the beginning of the first, %q are written besides", time.Since(began), all)
		}
		f.Flush()
	})
}

// A write that has started is finished, even if the context of Put is done.
func TestLazyWriterOutlives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failed error
		f := &LazyWriter{Write: func(ctx context.Context, _ string) error { failed = ctx.Err(); return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.Put(ctx, "text", generation(1))
		f.Flush()
		if failed != nil {
			t.Errorf("writing was given %v", failed)
		}
	})
}

// A problem belongs to the text it is asked for, until that text or another one is written.
func TestLazyWriterProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := errors.New("no, thanks")
		err := no
		f := &LazyWriter{Proxy: "the proxy", Write: func(context.Context, string) error { return err }}
		if f.Problem(generation(1)) != nil || f.Problem(Generation{}) != nil {
			t.Error("a problem before anything was written")
		}
		f.Put(t.Context(), "1", generation(1))
		f.Flush()
		if got := f.Problem(generation(1)); !errors.Is(got, no) || got.Error() != "the proxy has the newest servers, but a restart would bring back earlier ones: no, thanks" {
			t.Errorf("%v", got)
		}
		if got := f.Problem(generation(2)); got != nil {
			t.Errorf("of another text: %v", got)
		}
		err = nil
		f.Put(t.Context(), "1", generation(1))
		f.Flush()
		if got := f.Problem(generation(1)); got != nil {
			t.Errorf("written at last: %v", got)
		}
	})
}
