package proxyctl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever happens to berth, the proxy and the file, no restart loads a refused text, and a good text is live in the end, without
// endless reloads.
func TestEngineConverges(t *testing.T) {
	servers := func(rt *rapid.T, names ...string) string {
		list := slices.DeleteFunc(names, func(string) bool { return rapid.Bool().Draw(rt, "absent") })
		return strings.Join(list, " ")
	}
	text := func(rt *rapid.T, lines ...string) string {
		if line := rapid.SampledFrom(lines).Draw(rt, "line"); line != "" {
			return "bind\n" + line + "\napp: " + servers(rt, "a", "b", "c", "!d", "=e") + "\nweb: " + servers(rt, "x", "y") + "\n"
		}
		return "bind\napp: " + servers(rt, "a", "b", "c", "!d", "=e") + "\nweb: " + servers(rt, "x", "y") + "\n"
	}
	rapid.Check(t, func(rt *rapid.T) {
		r := newHarness(t)
		r.reloading = rapid.Bool().Draw(rt, "each change is a reload")
		if rapid.Bool().Draw(rt, "program") {
			r.binary = "proxy"
		}
		down := errors.New("down")
		r.hasText(text(rt, "", "more"))
		starts := func() bool { return !strings.Contains(r.onDisk(r.file), "bogus") }
		start := func() { // as the proxy's supervisor does
			if starts() {
				r.down = nil
				r.run(r.onDisk(r.file))
			}
		}
		apply := func(text string, mayReload bool) (Result, error) {
			res, err := r.engine.Apply(t.Context(), Config{Text: text}, mayReload)
			rt.Logf("%q, %v: %+v, %v", text, mayReload, res, err)
			return res, err
		}
		last := ""
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			event := rapid.SampledFrom([]string{"text", "text", "text", "again", "kill berth", "kill berth in a reload", "stop", "start", "half", "lost", "loaded", "by hand", "done"}).Draw(rt, "event")
			switch event {
			case "text":
				last = text(rt, "", "more", "bogus", "bogus here")
				_, _ = apply(last, rapid.Bool().Draw(rt, "may reload"))
				r.half, r.elsewise = false, nil
			case "again":
				if last != "" {
					_, _ = apply(last, true)
				}
			case "kill berth", "kill berth in a reload":
				before, good := r.onDisk(r.file), r.onDisk(r.file+".good")
				r.engine.Close()
				if event == "kill berth" {
					r.write(r.file, before) // it did not happen
					if good != "" {
						r.write(r.file+".good", good)
					}
				} else if r.down == nil && r.onDisk(r.file+".good") == "" {
					r.write(r.file+".good", r.onDisk(r.file))
					r.write(r.file, markFake(text(rt, "more", "bogus")))
				}
				r.start()
			case "stop":
				r.down = fmt.Errorf("%w: %w", ErrUnreachable, down)
			case "start":
				start()
			case "half":
				r.half = true
			case "lost":
				r.elsewise = fmt.Errorf("%w: lost", ErrUnreachable)
			case "loaded":
				r.loaded = fmt.Errorf("%w: of no use", ErrRefused)
			case "by hand":
				r.live["app"] = []string{"h"}
			case "done":
				r.engine.Close()
			}
		}
		r.loaded, r.half, r.elsewise = nil, false, nil
		good := text(rt, "", "more")
		_, err := apply(good, true)
		if errors.Is(err, ErrRefused) { // refused recently, so it must be applied twice
			_, err = apply(good, true)
		}
		r.engine.Close()
		if err != nil && r.down == nil {
			rt.Fatalf("error %v", err)
		}
		if !starts() {
			rt.Fatalf("the proxy does not start with\n%s", r.onDisk(r.file))
		}
		if r.down != nil {
			start()
			if _, err := apply(good, true); err != nil {
				rt.Fatalf("after a start: %v", err)
			}
		}
		if _, err := apply(good, true); err != nil { // repairs manual changes
			rt.Fatalf("again: %v", err)
		}
		loads := r.loads
		if res, err := apply(good, true); err != nil || res.Action != None || r.loads != loads {
			rt.Fatalf("once more: %+v, %v, %d reloads", res, err, r.loads-loads)
		}
		r.engine.Close()
		if got := r.onDisk(r.file); got != markFake(good) {
			rt.Fatalf("the file is\n%s", got)
		}
		for name, want := range parseFake(good).backends {
			if got := slices.Sorted(slices.Values(r.live[name])); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				rt.Fatalf("%s has %v, want %v", name, got, want)
			}
		}
		if _, err := os.Stat(r.file + ".good"); err == nil {
			rt.Fatal("a copy is left behind")
		}
	})
}
