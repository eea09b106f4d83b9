//go:build e2e

package nginx

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// From an nginx with its own configuration to berth's, from text to text, and through refusals, under requests of which none
// fails.
func TestE2ENginxReload(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		app := startApp(t)
		load := traffic.Start(t, h.web)
		res := h.apply(h.text("one"), proxyctl.Reload)
		if !strings.Contains(res.Reason, "does not have berth's configuration yet") || onDisk(t, h.file()+".before-berth") != h.foreign() {
			t.Errorf("adopted for %q; kept is\n%s", res.Reason, onDisk(t, h.file()+".before-berth"))
		}
		h.serves("adopted", "one")
		first := h.workers()
		h.apply(h.text("one"), proxyctl.None)
		if now := h.workers(); len(first) != 2 || !slices.Equal(now, first) {
			t.Errorf("the workers %d became %d for nothing", first, now)
		}
		res = h.apply(h.text("two"), proxyctl.Reload)
		if !strings.HasPrefix(res.Reason, "http: server") {
			t.Errorf("reloaded for %q", res.Reason)
		}
		h.serves("the second", "two")
		for _, pid := range h.settled() {
			if slices.Contains(first, pid) {
				t.Errorf("worker %d of before the reload serves", pid)
			}
		}
		if res := h.apply(h.text("two", to(app)), proxyctl.Reload); len(res.Changes) != 1 || res.Changes[0].String() != "app: 0 → 1 server" {
			t.Errorf("%+v", res)
		}
		h.serves("a server", app)
		good := h.text("three")
		h.apply(good, proxyctl.Reload)
		h.settled()
		testRefusals(t, h, h.text("bad"))
		h.serves("after refusals", "three")
		if res := h.apply(good, proxyctl.None); res.OldWorkers != 0 {
			t.Errorf("after refusals: %+v, though all workers are those that serve", res)
		}
		workers := h.workers()
		h.berth()
		h.apply(good, proxyctl.None)
		if now := h.workers(); !slices.Equal(now, workers) {
			t.Errorf("a start of berth: the workers %d became %d", workers, now)
		}
		h.apply(h.text("four"), proxyctl.Reload)
		h.serves("after all", "four")
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// testRefusals spoils a text in all possible ways.
func testRefusals(t *testing.T, h *harness, text string) {
	in := func(block, line string) string { return strings.Replace(text, block+" {\n", block+" {\n"+line, 1) }
	h.refused("an unknown directive", in("http", "bogus on;\n"), `unknown directive "bogus" in `)
	h.refused("an upstream that does not resolve", in("http", "upstream u { server nosuch.invalid:80; }\n"), `host not found in upstream "nosuch.invalid:80"`)
	h.refused("a missing include", in("http", "include "+h.dir+"/missing.conf;\n"), "missing.conf\" failed (2: No such file or directory)")
	h.refused("a missing certificate", in("http", "server { listen "+h.web+" ssl; server_name x; ssl_certificate /nonexistent; ssl_certificate_key /nonexistent; }\n"), "/nonexistent")
	h.refused("a directive in the wrong place", in("http", "worker_processes 3;\n"), `"worker_processes" directive is not allowed here`)
	h.refused("a directive that is known and wrong", in("http", "tcp_nopush maybe;\n"), `invalid value "maybe"`)
	h.refused("no text", "", "no server block")
	h.refused("no server", "events {}\nhttp {}\n", "no server block")
	h.refused("no end", strings.TrimSpace(text)[:len(text)-5], "has no }")
}

// Another program listens on an address: nginx tries for two and a half seconds.
func TestE2ENginxAddressInUse(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		h.apply(h.text("one"), proxyctl.Reload)
		h.settled()
		l, err := net.Listen("tcp", appIP+":0")
		if err != nil {
			t.Fatal(err)
		}
		load := traffic.Start(t, h.web)
		text := h.text("two", parts{http: "server { listen " + l.Addr().String() + "; return 200; }\n"})
		began := time.Now()
		h.refused("an address in use", text, "bind() to "+l.Addr().String()+" failed (98: Address already in use)")
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("refused after %v: nginx had not given up", took)
		}
		h.serves("refused", "one")
		// The address becomes free while nginx tries.
		freed := make(chan struct{})
		go func() {
			defer close(freed)
			for strings.Count(h.messages(), "try again to bind()") < 6 {
				time.Sleep(5 * time.Millisecond)
			}
			l.Close()
		}()
		h.apply(text, proxyctl.Reload)
		<-freed
		h.serves("free", "two")
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// With its program here, nginx is not told to load what the program refuses.
func TestE2ENginxBinary(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		h.berth(h.program())
		if _, err := h.Apply(t.Context(), onlyText(strings.Replace(h.text("bad"), "http {", "http { bogus on;", 1)), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), `by nginx -t (exit status 1): unknown directive "bogus" in `) {
			t.Errorf("before it has anything of berth's: %v", err)
		}
		if h.answer() != "foreign" || onDisk(t, h.file()) != h.foreign() {
			t.Errorf("what was refused came through: nginx answers %q", h.answer())
		}
		text := h.text("one")
		h.apply(text, proxyctl.Reload)
		h.settled()
		hups := h.hups()
		testRefusals(t, h, h.text("bad"))
		h.apply(text, proxyctl.None)
		if now := h.hups(); now != hups {
			t.Errorf("nginx was told to reload %d times", now-hups)
		}
		h.serves("after refusals", "one")
	})
}

// From a text that every nginx knows to one with everything that this nginx knows, with one more reload than the first, and none
// for a start of berth.
func TestE2ENginxVersions(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		known := ""
		text := func(word string) string {
			var all parts
			if proxyctl.AtLeast(known, "1.27.4") {
				all.http = "    keepalive_min_timeout 10s;\n"
			}
			if proxyctl.AtLeast(known, "1.25.1") {
				all.server = "http2 on;\n        "
			}
			return h.text(word, all)
		}
		loads := 0
		berth := func(set ...func(*Options)) {
			known, loads = "", 0
			h.berth(append(set, func(o *Options) {
				o.Version = func(version string) bool {
					before := text("")
					known = version
					return text("") != before
				}
				o.Reload = func(ctx context.Context) error { loads++; return h.hup(ctx) }
			})...)
		}
		bring := func(what, word string, most int) {
			t.Helper()
			for rendered := ""; rendered != text(word); {
				rendered = text(word)
				if _, err := h.Apply(t.Context(), onlyText(rendered), true); err != nil && rendered == text(word) {
					t.Fatalf("%s: %v", what, err)
				}
			}
			if loads > most {
				t.Errorf("%s: %d reloads", what, loads)
			}
			h.serves(what, word)
			if got := Unmarked(onDisk(t, h.file())); got != text(word) {
				t.Errorf("%s: the file is\n%s", what, got)
			}
		}
		berth()
		bring("adopted", "one", 2)
		if said, err := proxyctl.VersionOf(t.Context(), h.wrapper()); err != nil || said != known {
			t.Errorf("it is %q by what it says, %q by its program, %v", known, said, err)
		}
		if said := VersionHere(t.Context(), "", h.socket(), time.Second); said != known {
			t.Errorf("it is %q by what it says, %q when it is asked", known, said)
		}
		workers := h.settled()
		berth()
		bring("a start of berth", "one", 0)
		if now := h.workers(); !slices.Equal(now, workers) {
			t.Errorf("a start of berth: the workers %d became %d", workers, now)
		}
		bring("another", "two", 1)
		write(t, h.file(), h.foreign())
		if err := h.hup(t.Context()); err != nil {
			t.Fatal(err)
		}
		testenv.Until(h, patience, "it has nothing of berth's", func() bool { return h.answer() == "foreign" })
		berth(h.program())
		bring("adopted with its program", "three", 1)
	})
}

// A worker from before a reload stays with its connections, and is counted, until worker_shutdown_timeout.
func TestE2ENginxOldWorkers(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		app := startApp(t)
		text := func(n int) string {
			return h.text("", to(app), parts{top: fmt.Sprintf("worker_shutdown_timeout 2s; # %d\n", n)})
		}
		h.apply(text(0), proxyctl.Reload)
		h.settled()
		resp, err := http.Get("http://" + h.web + "/slow")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		before := h.workers()
		res := h.apply(text(1), proxyctl.Reload)
		if res.OldWorkers < 1 || res.OldWorkers > 2 {
			t.Errorf("%+v, want old workers", res)
		}
		if now := h.settled(); slices.Contains(now, before[0]) || slices.Contains(now, before[1]) || !lines.Scan() {
			t.Errorf("the workers %d became %d, %v", before, now, lines.Err())
		}
		testenv.Until(h, patience, "only the worker with the download stays", func() bool { return h.apply(text(1), proxyctl.None).OldWorkers == 1 })
		for lines.Scan() {
		}
		testenv.Until(h, patience, "it has ended", func() bool { return h.apply(text(1), proxyctl.None).OldWorkers == 0 })
	})
}

// nginx is killed, and restarts with what it had.
func TestE2ENginxGoneAndBack(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		text := h.text("one")
		h.apply(text, proxyctl.Reload)
		h.serves("at first", "one")
		testenv.MustDocker(h, "kill", h.name)
		if _, err := os.Stat(h.socket()); err != nil {
			t.Fatalf("nginx left no control socket behind: %v", err)
		}
		down := func(text string) {
			t.Helper()
			began := time.Now()
			if _, err := h.Apply(t.Context(), onlyText(text), true); !errors.Is(err, proxyctl.ErrUnreachable) || time.Since(began) > 5*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		}
		down(text)
		testenv.Until(h, patience, "the control socket is removed", func() bool {
			h.driver.Tend(t.Context())
			_, err := os.Stat(h.socket())
			return err != nil
		})
		down(h.text("two"))
		if !strings.HasPrefix(Unmarked(onDisk(t, h.file())), text) {
			t.Error("what nobody judged is what nginx will start with")
		}
		testenv.MustDocker(h, "start", h.name)
		testenv.Until(h, patience, "it serves", func() bool { return h.answer() == "one" })
		testenv.Until(h, patience, "it takes the new text", func() bool {
			_, err := h.Apply(t.Context(), onlyText(h.text("two")), true)
			return err == nil
		})
		h.serves("back", "two")
		hups := h.hups()
		testenv.MustDocker(h, "restart", h.name)
		testenv.Until(h, patience, "berth sees it again", func() bool {
			res, err := h.Apply(t.Context(), onlyText(h.text("two")), true)
			if err == nil && res.Action != proxyctl.None {
				t.Errorf("after a restart: %+v", res)
			}
			return err == nil
		})
		if now := h.hups(); now != hups {
			t.Errorf("it was told to reload %d times", now-hups)
		}
		h.serves("restarted", "two")
	})
}

// If someone else changes nginx's file and has it loaded, the next look finds, repairs and reports it.
func TestE2ENginxDrift(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		text := h.text("one")
		h.apply(text, proxyctl.Reload)
		good := onDisk(t, h.file())
		h.apply(h.text("old"), proxyctl.Reload)
		old := onDisk(t, h.file())
		h.apply(text, proxyctl.Reload)
		h.settled()
		load := func(word string) {
			t.Helper()
			if err := h.hup(t.Context()); err != nil {
				t.Fatal(err)
			}
			testenv.Until(h, patience, "nginx has loaded what somebody wrote", func() bool { return h.answer() == word })
			time.Sleep(overlap) // and its old workers are gone
		}
		edited := strings.Replace(good, "\"one", "\"edited", 1)
		for _, d := range []struct {
			name   string
			do     func()
			want   proxyctl.Action
			reason string
		}{
			{name: "nothing", do: func() {}, want: proxyctl.None},
			{name: "reloaded", do: func() { load("one") }, want: proxyctl.None},
			{name: "edited", do: func() { write(t, h.file(), edited) }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "edited and loaded", do: func() { write(t, h.file(), edited); load("edited") }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "removed", do: func() { os.Remove(h.file()) }, want: proxyctl.Reload, reason: "was removed"},
			{name: "berth's earlier one", do: func() { write(t, h.file(), old) }, want: proxyctl.None},
			{name: "berth's earlier one loaded", do: func() { write(t, h.file(), old); load("old") }, want: proxyctl.Reload},
			{name: "somebody's", do: func() { write(t, h.file(), h.foreign()) }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "somebody's, loaded", do: func() { write(t, h.file(), h.foreign()); load("foreign") }, want: proxyctl.Reload, reason: "does not have berth's configuration"},
			{name: "spoilt", do: func() { write(t, h.file(), "nonsense") }, want: proxyctl.Reload, reason: "not as berth wrote it"},
		} {
			d.do()
			res, err := h.Apply(t.Context(), onlyText(text), true)
			if err != nil || res.Action != d.want || !strings.Contains(res.Reason, d.reason) {
				t.Errorf("%s: %s for %q, %v; want %s for %q", d.name, res.Action, res.Reason, err, d.want, d.reason)
			}
			h.serves(d.name, "one")
			h.Close()
			if onDisk(t, h.file()) != good {
				t.Errorf("%s: the file is\n%s", d.name, onDisk(t, h.file()))
			}
			h.apply(text, proxyctl.None)
		}
		c := h.controlled(time.Millisecond)
		c.Set(onlyText(h.text("watched")), time.Now())
		testenv.Until(h, patience, "it is live", func() bool { return h.answer() == "watched" })
		good = onDisk(t, h.file())
		write(t, h.file(), strings.Replace(good, "\"watched", "\"edited", 1))
		testenv.Until(h, patience, "it is said", func() bool {
			return strings.Contains(h.log.String(), "the proxy no longer ran the newest configuration: repaired")
		})
		testenv.Until(h, patience, "it is repaired", func() bool { return onDisk(t, h.file()) == good })
	})
}

// controlled runs a Controller until the test ends.
func (h *harness) controlled(interval time.Duration) *proxyctl.Controller {
	c := proxyctl.New(proxyctl.Options{Proxy: h.Proxy, Interval: interval, Check: 50 * time.Millisecond, Log: h.driver.opts.Log})
	ctx, stop := context.WithCancel(h.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	h.Cleanup(func() { stop(); <-done })
	return c
}

// A frozen nginx is reported soon, and runs the newest text when it continues.
func TestE2ENginxFrozen(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		h.apply(h.text("one"), proxyctl.Reload)
		h.settled()
		h.driver.opts.Timeout, h.driver.control.timeout = time.Second, time.Second
		good := onDisk(t, h.file())
		testenv.MustDocker(h, "pause", h.name)
		for _, word := range []string{"one", "two", "two"} {
			began := time.Now()
			_, err := h.Apply(t.Context(), onlyText(h.text(word)), true)
			if took := time.Since(began); !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "does not answer on") || took > 4*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
		}
		if onDisk(t, h.file()) != good {
			t.Error("the file has changed")
		}
		testenv.MustDocker(h, "unpause", h.name)
		testenv.Until(h, patience, "it goes on", func() bool {
			_, err := h.Apply(t.Context(), onlyText(h.text("two")), true)
			return err == nil
		})
		h.serves("it goes on", "two")
		// It is frozen just when it is told to reload.
		h.driver.opts.Reload = func(ctx context.Context) error { testenv.MustDocker(h, "pause", h.name); return nil }
		good = onDisk(t, h.file())
		if _, err := h.Apply(t.Context(), onlyText(h.text("three")), true); !errors.Is(err, proxyctl.ErrUnreachable) || onDisk(t, h.file()) != good {
			t.Errorf("frozen as it is told to reload: %v", err)
		}
		testenv.MustDocker(h, "unpause", h.name)
		h.driver.opts.Reload = h.hup
		testenv.Until(h, patience, "it goes on", func() bool {
			_, err := h.Apply(t.Context(), onlyText(h.text("three")), true)
			return err == nil
		})
		h.serves("it goes on", "three")
	})
}

// The newest text of a burst wins, with few reloads.
func TestE2ENginxBurst(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		h.apply(h.text("first"), proxyctl.Reload)
		h.settled()
		hups := h.hups()
		c := h.controlled(200 * time.Millisecond)
		began := time.Now()
		for n := range 30 {
			c.Set(onlyText(h.text(fmt.Sprint("v", n))), time.Now())
			time.Sleep(5 * time.Millisecond) // the pace of the burst
		}
		testenv.Until(h, patience, "the newest is served", func() bool { return h.answer() == "v29" })
		testenv.Eventually(h, patience, "the newest is live", c.Ready)
		took := time.Since(began)
		if now, most := h.hups()-hups, 2+int(took/(200*time.Millisecond)); now < 1 || now > most {
			t.Errorf("%d reloads in %v, want %d at most", now, took, most)
		}
	})
}

// Reload after reload under load: no request fails over new connections, nor with a client that retries what a kept connection
// has lost.
func TestE2ENginxReloadsLoseNothing(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		apps := []string{startApp(t), startApp(t)}
		h.apply(h.text("", to(apps...)), proxyctl.Reload)
		h.settled()
		load := traffic.Start(t, h.web)
		for n := range 30 {
			h.apply(h.text("", to(apps[n%2])), proxyctl.Reload)
		}
		all := load.End()
		t.Logf("%s: %s", image, all)
		if all.Failed() > 0 || len(all) < 500 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// An nginx that went into the background started to listen before that, in a process that is gone. Its master is still found, and
// berth tells it directly.
func TestE2ENginxInTheBackground(t *testing.T) {
	t.Parallel()
	h := newHarness(t, testenv.Image(t, "IMAGE_NGINX"))
	quit := []string{"exec", h.name, "nginx", "-c", h.file(), "-s", "stop"}
	h.runWith([]string{"--pid", "host"}, "sh", "-c", "nginx -c "+h.file()+"; exec sleep 600")
	t.Cleanup(func() { _, _ = testenv.Docker(quit...) })
	h.berth(func(o *Options) {
		o.Reload = func(context.Context) error {
			_, err := testenv.Docker("exec", h.name, "nginx", "-c", h.file(), "-s", "reload")
			return err
		}
	})
	h.apply(h.text("one"), proxyctl.Reload)
	h.settled()
	testenv.MustDocker(h, quit...)
	testenv.Until(h, patience, "nginx has ended", func() bool { return h.answer() != "one" })
	testenv.MustDocker(h, "exec", h.name, "sh", "-c", "$(command -v nginx) -c "+h.file()) // by its path, because it replaces itself later
	testenv.Until(h, patience, "nginx serves", func() bool { return h.answer() == "one" })
	h.berth(func(o *Options) { o.Reload = nil })
	h.apply(h.text("one"), proxyctl.None)
	h.apply(h.text("two"), proxyctl.Reload)
	h.serves("told by berth itself", "two")
	h.refused("a bad one", strings.Replace(h.text("bad"), "http {", "http { bogus on;", 1), `unknown directive "bogus"`)
	h.upgrade()
}

// upgrade replaces nginx in place, and checks that texts come to the new one, and that the old one is left alone.
func (h *harness) upgrade() {
	h.Helper()
	signal := func(name string, pid int) {
		testenv.MustDocker(h, "exec", h.name, "sh", "-c", fmt.Sprintf("kill -%s %d", name, pid))
	}
	before, old := h.driver.status.master, h.workers()
	signal("USR2", before)
	testenv.Until(h, patience, "the new nginx answers", func() bool {
		s, err := h.driver.control.status(h.Context())
		return err == nil && s.master != before
	})
	for _, word := range []string{"upgraded", "more"} {
		for _, want := range []proxyctl.Action{proxyctl.Reload, proxyctl.None, proxyctl.None, proxyctl.None} {
			testenv.Until(h, patience, "the new one is seen", func() bool {
				res, err := h.Apply(h.Context(), onlyText(h.text(word)), true)
				if err != nil && !errors.Is(err, proxyctl.ErrUnreachable) || err == nil && res.Action != want {
					h.Fatalf("Apply: %+v, %v; want %s", res, err, want)
				}
				return err == nil
			})
		}
	}
	serving, _ := workers(before)
	slices.Sort(serving)
	if !slices.Equal(serving, old) {
		h.Errorf("the old nginx had workers %d, and has %d", old, serving)
	}
	signal("QUIT", before)
	testenv.Until(h, patience, "the old one is gone", func() bool { return !isMaster(before) })
	h.serves("the new one is alone", "more")
	h.apply(h.text("more"), proxyctl.None)
	h.apply(h.text("last"), proxyctl.Reload)
	h.serves("the new one is alone", "last")
}

// A visible master process is told to reload, also the first time.
func TestE2ENginxSignal(t *testing.T) {
	t.Parallel()
	h := startHarness(t, testenv.Image(t, "IMAGE_NGINX"), func(o *Options) { o.Reload = nil })
	h.apply(h.text("one"), proxyctl.Reload)
	h.serves("adopted", "one")
	h.apply(h.text("two"), proxyctl.Reload)
	h.serves("told", "two")
}

// An nginx that reads another file than berth writes is noticed.
func TestE2ENginxAnotherFile(t *testing.T) {
	t.Parallel()
	h := startHarness(t, testenv.Image(t, "IMAGE_NGINX"))
	h.apply(h.text("one"), proxyctl.Reload)
	other := filepath.Join(h.dir, "other.conf")
	write(t, other, h.foreign())
	h.berth(func(o *Options) { o.File, o.Timeout = other, 2*time.Second })
	if _, err := h.Apply(t.Context(), onlyText(h.text("two")), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "if it reads another file, start it with -c "+other) {
		t.Errorf("error %v", err)
	}
	if onDisk(t, other) != h.foreign() || h.answer() != "one" {
		t.Errorf("the file is\n%s", onDisk(t, other))
	}
}

// A text of which nginx refuses one part stops nothing else: servers of what the texts share come and go, by a reload.
func TestE2ENginxRefusedPart(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		h := startHarness(t, image)
		apps := []string{startApp(t), startApp(t)}
		h.apply(h.text("", to(apps[0])), proxyctl.Reload)
		h.settled()
		load := traffic.Start(t, h.web)
		for name, part := range map[string]parts{
			"an unknown directive":        {http: "bogus on;\n"},
			"a host that is not resolved": {http: "upstream u { server nosuch.invalid:80; }\n"},
		} {
			for _, app := range []string{apps[1], apps[0]} {
				res, err := h.Apply(t.Context(), onlyText(h.text("", to(app), part)), true)
				if !errors.Is(err, proxyctl.ErrRefused) || res.Action != proxyctl.Reload || len(res.Changes) != 1 {
					t.Errorf("%s: %+v, %v", name, res, err)
				}
				h.serves(name, app)
			}
		}
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}
