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

// From an nginx with a configuration of its own to berth's, from text to text, and through refusals, under requests of which
// none fails.
func TestE2ENginxReload(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		app := startApp(t)
		load := traffic.Start(t, r.web)
		res := r.apply(r.text("one"), proxyctl.Reload)
		if !strings.Contains(res.Reason, "does not have berth's configuration yet") || onDisk(t, r.file()+".before-berth") != r.foreign() {
			t.Errorf("adopted for %q; kept is\n%s", res.Reason, onDisk(t, r.file()+".before-berth"))
		}
		r.serves("adopted", "one")
		first := r.workers()
		r.apply(r.text("one"), proxyctl.None)
		if now := r.workers(); len(first) != 2 || !slices.Equal(now, first) {
			t.Errorf("the workers %d became %d for nothing", first, now)
		}
		res = r.apply(r.text("two"), proxyctl.Reload)
		if !strings.HasPrefix(res.Reason, "http: server") {
			t.Errorf("reloaded for %q", res.Reason)
		}
		r.serves("the second", "two")
		for _, pid := range r.settled() {
			if slices.Contains(first, pid) {
				t.Errorf("worker %d of before the reload serves", pid)
			}
		}
		if res := r.apply(r.text("two", to(app)), proxyctl.Reload); len(res.Changes) != 1 || res.Changes[0].String() != "app: 0 → 1 server" {
			t.Errorf("%+v", res)
		}
		r.serves("a server", app)
		good := r.text("three")
		r.apply(good, proxyctl.Reload)
		r.settled()
		testRefusals(t, r, r.text("bad"))
		r.serves("after refusals", "three")
		if res := r.apply(good, proxyctl.None); res.OldWorkers != 0 {
			t.Errorf("after refusals: %+v, though all workers are those that serve", res)
		}
		workers := r.workers()
		r.berth()
		r.apply(good, proxyctl.None)
		if now := r.workers(); !slices.Equal(now, workers) {
			t.Errorf("a start of berth: the workers %d became %d", workers, now)
		}
		r.apply(r.text("four"), proxyctl.Reload)
		r.serves("after all", "four")
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// testRefusals spoils a text in all ways that there are.
func testRefusals(t *testing.T, r *rig, text string) {
	in := func(block, line string) string { return strings.Replace(text, block+" {\n", block+" {\n"+line, 1) }
	r.refused("an unknown directive", in("http", "bogus on;\n"), `unknown directive "bogus" in `)
	r.refused("an upstream that does not resolve", in("http", "upstream u { server nosuch.invalid:80; }\n"), `host not found in upstream "nosuch.invalid:80"`)
	r.refused("a missing include", in("http", "include "+r.dir+"/missing.conf;\n"), "missing.conf\" failed (2: No such file or directory)")
	r.refused("a missing certificate", in("http", "server { listen "+r.web+" ssl; server_name x; ssl_certificate /nonexistent; ssl_certificate_key /nonexistent; }\n"), "/nonexistent")
	r.refused("a directive in the wrong place", in("http", "worker_processes 3;\n"), `"worker_processes" directive is not allowed here`)
	r.refused("a directive that is known and wrong", in("http", "tcp_nopush maybe;\n"), `invalid value "maybe"`)
	r.refused("no text", "", "no server block")
	r.refused("no server", "events {}\nhttp {}\n", "no server block")
	r.refused("no end", strings.TrimSpace(text)[:len(text)-5], "has no }")
}

// An address of which another program has taken hold: nginx tries for two seconds and a half.
func TestE2ENginxAddressInUse(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		r.apply(r.text("one"), proxyctl.Reload)
		r.settled()
		l, err := net.Listen("tcp", appIP+":0")
		if err != nil {
			t.Fatal(err)
		}
		load := traffic.Start(t, r.web)
		text := r.text("two", parts{http: "server { listen " + l.Addr().String() + "; return 200; }\n"})
		began := time.Now()
		r.refused("an address in use", text, "bind() to "+l.Addr().String()+" failed (98: Address already in use)")
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("refused after %v: nginx had not given up", took)
		}
		r.serves("refused", "one")
		// It is free again while nginx tries.
		freed := make(chan struct{})
		go func() {
			defer close(freed)
			for strings.Count(r.messages(), "try again to bind()") < 6 {
				time.Sleep(5 * time.Millisecond)
			}
			l.Close()
		}()
		r.apply(text, proxyctl.Reload)
		<-freed
		r.serves("free", "two")
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// With its program here, nginx is not told to load what that refuses.
func TestE2ENginxBinary(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		r.berth(r.program())
		if _, err := r.Apply(t.Context(), onlyText(strings.Replace(r.text("bad"), "http {", "http { bogus on;", 1)), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), `by nginx -t (exit status 1): unknown directive "bogus" in `) {
			t.Errorf("before it has anything of berth's: %v", err)
		}
		if r.answer() != "foreign" || onDisk(t, r.file()) != r.foreign() {
			t.Errorf("what was refused came through: nginx answers %q", r.answer())
		}
		text := r.text("one")
		r.apply(text, proxyctl.Reload)
		r.settled()
		hups := r.hups()
		testRefusals(t, r, r.text("bad"))
		r.apply(text, proxyctl.None)
		if now := r.hups(); now != hups {
			t.Errorf("nginx was told to reload %d times", now-hups)
		}
		r.serves("after refusals", "one")
	})
}

// From a text that every nginx knows to one with all that this nginx knows, by one reload more than the first, and none for
// a start of berth.
func TestE2ENginxVersions(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		known := ""
		text := func(word string) string {
			var all parts
			if AtLeast(known, "1.27.4") {
				all.http = "    keepalive_min_timeout 10s;\n"
			}
			if AtLeast(known, "1.25.1") {
				all.server = "http2 on;\n        "
			}
			return r.text(word, all)
		}
		loads := 0
		berth := func(set ...func(*Options)) {
			known, loads = "", 0
			r.berth(append(set, func(o *Options) {
				o.Version = func(version string) bool {
					before := text("")
					known = version
					return text("") != before
				}
				o.Reload = func(ctx context.Context) error { loads++; return r.hup(ctx) }
			})...)
		}
		bring := func(what, word string, most int) {
			t.Helper()
			for rendered := ""; rendered != text(word); {
				rendered = text(word)
				if _, err := r.Apply(t.Context(), onlyText(rendered), true); err != nil && rendered == text(word) {
					t.Fatalf("%s: %v", what, err)
				}
			}
			if loads > most {
				t.Errorf("%s: %d reloads", what, loads)
			}
			r.serves(what, word)
			if got := Unmarked(onDisk(t, r.file()), r.socket()); got != text(word) {
				t.Errorf("%s: the file is\n%s", what, got)
			}
		}
		berth()
		bring("adopted", "one", 2)
		if said, err := VersionOf(t.Context(), r.wrapper()); err != nil || said != known {
			t.Errorf("it is %q by what it says, %q by its program, %v", known, said, err)
		}
		if said := VersionHere(t.Context(), "", r.socket(), time.Second); said != known {
			t.Errorf("it is %q by what it says, %q when it is asked", known, said)
		}
		workers := r.settled()
		berth()
		bring("a start of berth", "one", 0)
		if now := r.workers(); !slices.Equal(now, workers) {
			t.Errorf("a start of berth: the workers %d became %d", workers, now)
		}
		bring("another", "two", 1)
		write(t, r.file(), r.foreign())
		if err := r.hup(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.eventually("it has nothing of berth's", func() bool { return r.answer() == "foreign" })
		berth(r.program())
		bring("adopted with its program", "three", 1)
	})
}

// A worker of before a reload stays with its connections, and is counted, until worker_shutdown_timeout.
func TestE2ENginxOldWorkers(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		app := startApp(t)
		text := func(n int) string {
			return r.text("", to(app), parts{top: fmt.Sprintf("worker_shutdown_timeout 2s; # %d\n", n)})
		}
		r.apply(text(0), proxyctl.Reload)
		r.settled()
		resp, err := http.Get("http://" + r.web + "/slow")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		before := r.workers()
		res := r.apply(text(1), proxyctl.Reload)
		if res.OldWorkers < 1 || res.OldWorkers > 2 {
			t.Errorf("%+v, want old workers", res)
		}
		if now := r.settled(); slices.Contains(now, before[0]) || slices.Contains(now, before[1]) || !lines.Scan() {
			t.Errorf("the workers %d became %d, %v", before, now, lines.Err())
		}
		r.eventually("only the worker with the download stays", func() bool { return r.apply(text(1), proxyctl.None).OldWorkers == 1 })
		for lines.Scan() {
		}
		r.eventually("it has ended", func() bool { return r.apply(text(1), proxyctl.None).OldWorkers == 0 })
	})
}

// nginx is killed, and starts again with what it had.
func TestE2ENginxGoneAndBack(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		text := r.text("one")
		r.apply(text, proxyctl.Reload)
		r.serves("at first", "one")
		r.docker("kill", r.name)
		if _, err := os.Stat(r.socket()); err != nil {
			t.Fatalf("nginx left no control socket behind: %v", err)
		}
		down := func(text string) {
			t.Helper()
			began := time.Now()
			if _, err := r.Apply(t.Context(), onlyText(text), true); !errors.Is(err, proxyctl.ErrUnreachable) || time.Since(began) > 5*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		}
		down(text)
		r.eventually("the control socket is removed", func() bool {
			r.driver.Tend(t.Context())
			_, err := os.Stat(r.socket())
			return err != nil
		})
		down(r.text("two"))
		if !strings.HasPrefix(Unmarked(onDisk(t, r.file()), r.socket()), text) {
			t.Error("what nobody judged is what nginx will start with")
		}
		r.docker("start", r.name)
		r.eventually("it serves", func() bool { return r.answer() == "one" })
		r.eventually("it takes the new text", func() bool {
			_, err := r.Apply(t.Context(), onlyText(r.text("two")), true)
			return err == nil
		})
		r.serves("back", "two")
		hups := r.hups()
		r.docker("restart", r.name)
		r.eventually("berth sees it again", func() bool {
			res, err := r.Apply(t.Context(), onlyText(r.text("two")), true)
			if err == nil && res.Action != proxyctl.None {
				t.Errorf("after a restart: %+v", res)
			}
			return err == nil
		})
		if now := r.hups(); now != hups {
			t.Errorf("it was told to reload %d times", now-hups)
		}
		r.serves("restarted", "two")
	})
}

// What somebody else does to nginx's file, and has it load, is found by the next look, repaired, and said.
func TestE2ENginxDrift(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		text := r.text("one")
		r.apply(text, proxyctl.Reload)
		good := onDisk(t, r.file())
		r.apply(r.text("old"), proxyctl.Reload)
		old := onDisk(t, r.file())
		r.apply(text, proxyctl.Reload)
		r.settled()
		load := func(word string) {
			t.Helper()
			if err := r.hup(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.eventually("nginx has loaded what somebody wrote", func() bool { return r.answer() == word })
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
			{name: "edited", do: func() { write(t, r.file(), edited) }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "edited and loaded", do: func() { write(t, r.file(), edited); load("edited") }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "removed", do: func() { os.Remove(r.file()) }, want: proxyctl.Reload, reason: "was removed"},
			{name: "berth's earlier one", do: func() { write(t, r.file(), old) }, want: proxyctl.None},
			{name: "berth's earlier one loaded", do: func() { write(t, r.file(), old); load("old") }, want: proxyctl.Reload},
			{name: "somebody's", do: func() { write(t, r.file(), r.foreign()) }, want: proxyctl.Reload, reason: "not as berth wrote it"},
			{name: "somebody's, loaded", do: func() { write(t, r.file(), r.foreign()); load("foreign") }, want: proxyctl.Reload, reason: "does not have berth's configuration"},
			{name: "spoilt", do: func() { write(t, r.file(), "nonsense") }, want: proxyctl.Reload, reason: "not as berth wrote it"},
		} {
			d.do()
			res, err := r.Apply(t.Context(), onlyText(text), true)
			if err != nil || res.Action != d.want || !strings.Contains(res.Reason, d.reason) {
				t.Errorf("%s: %s for %q, %v; want %s for %q", d.name, res.Action, res.Reason, err, d.want, d.reason)
			}
			r.serves(d.name, "one")
			r.Close()
			if onDisk(t, r.file()) != good {
				t.Errorf("%s: the file is\n%s", d.name, onDisk(t, r.file()))
			}
			r.apply(text, proxyctl.None)
		}
		c := r.controlled(time.Millisecond)
		c.Set(onlyText(text), time.Now())
		r.eventually("it is ready", func() bool { return c.Ready() == nil })
		write(t, r.file(), edited)
		r.eventually("it is said", func() bool {
			return strings.Contains(r.log.String(), "the proxy did not run the newest configuration any more: repaired")
		})
		r.eventually("it is repaired", func() bool { return onDisk(t, r.file()) == good })
	})
}

// controlled runs a Controller until the end of the test.
func (r *rig) controlled(interval time.Duration) *proxyctl.Controller {
	c := proxyctl.New(proxyctl.Options{Proxy: r.Proxy, Interval: interval, Check: 50 * time.Millisecond, Log: r.driver.opts.Log})
	ctx, stop := context.WithCancel(r.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	r.Cleanup(func() { stop(); <-done })
	return c
}

// An nginx that is frozen is reported soon, and runs the newest text when it goes on.
func TestE2ENginxFrozen(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image, func(o *Options) { o.Timeout = time.Second })
		r.apply(r.text("one"), proxyctl.Reload)
		r.settled()
		good := onDisk(t, r.file())
		r.docker("pause", r.name)
		for _, word := range []string{"one", "two", "two"} {
			began := time.Now()
			_, err := r.Apply(t.Context(), onlyText(r.text(word)), true)
			if took := time.Since(began); !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "does not answer on") || took > 4*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
		}
		if onDisk(t, r.file()) != good {
			t.Error("the file has changed")
		}
		r.docker("unpause", r.name)
		r.eventually("it goes on", func() bool {
			_, err := r.Apply(t.Context(), onlyText(r.text("two")), true)
			return err == nil
		})
		r.serves("it goes on", "two")
		// It is frozen just as it is told to reload.
		r.driver.opts.Reload = func(ctx context.Context) error { r.docker("pause", r.name); return nil }
		good = onDisk(t, r.file())
		if _, err := r.Apply(t.Context(), onlyText(r.text("three")), true); !errors.Is(err, proxyctl.ErrUnreachable) || onDisk(t, r.file()) != good {
			t.Errorf("frozen as it is told to reload: %v", err)
		}
		r.docker("unpause", r.name)
		r.driver.opts.Reload = r.hup
		r.eventually("it goes on", func() bool {
			_, err := r.Apply(t.Context(), onlyText(r.text("three")), true)
			return err == nil
		})
		r.serves("it goes on", "three")
	})
}

// Of a burst of texts the newest wins, by few reloads.
func TestE2ENginxBurst(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		r.apply(r.text("first"), proxyctl.Reload)
		r.settled()
		hups := r.hups()
		c := r.controlled(200 * time.Millisecond)
		began := time.Now()
		for n := range 30 {
			c.Set(onlyText(r.text(fmt.Sprint("v", n))), time.Now())
			time.Sleep(5 * time.Millisecond) // the pace of the burst
		}
		r.eventually("the newest is live", func() bool { return c.Ready() == nil })
		took := time.Since(began)
		r.eventually("the newest is served", func() bool { return r.answer() == "v29" })
		if now, most := r.hups()-hups, 2+int(took/(200*time.Millisecond)); now < 1 || now > most {
			t.Errorf("%d reloads in %v, want %d at most", now, took, most)
		}
	})
}

// Reload after reload under load: no request fails over new connections, nor with a client that sends again what a kept
// connection has lost.
func TestE2ENginxReloadsLoseNothing(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		apps := []string{startApp(t), startApp(t)}
		r.apply(r.text("", to(apps...)), proxyctl.Reload)
		r.settled()
		load := traffic.Start(t, r.web)
		for n := range 30 {
			r.apply(r.text("", to(apps[n%2])), proxyctl.Reload)
		}
		all := load.End()
		t.Logf("%s: %s", image, all)
		if all.Failed() > 0 || len(all) < 500 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}

// An nginx that went into the background listened before that, in a process that is gone: its master is found all the same,
// and told by berth itself.
func TestE2ENginxInTheBackground(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Image(t, "IMAGE_NGINX"))
	quit := []string{"exec", r.name, "nginx", "-c", r.file(), "-s", "stop"}
	r.runWith([]string{"--pid", "host"}, "sh", "-c", "nginx -c "+r.file()+"; exec sleep 600")
	t.Cleanup(func() { _, _ = testenv.Docker(quit...) })
	r.berth(func(o *Options) {
		o.Reload = func(context.Context) error {
			_, err := testenv.Docker("exec", r.name, "nginx", "-c", r.file(), "-s", "reload")
			return err
		}
	})
	r.apply(r.text("one"), proxyctl.Reload)
	r.settled()
	r.docker(quit...)
	r.eventually("nginx has ended", func() bool { return r.answer() != "one" })
	r.docker("exec", r.name, "nginx", "-c", r.file())
	r.eventually("nginx serves", func() bool { return r.answer() == "one" })
	r.berth(func(o *Options) { o.Reload = nil })
	r.apply(r.text("one"), proxyctl.None)
	r.apply(r.text("two"), proxyctl.Reload)
	r.serves("told by berth itself", "two")
	r.refused("a bad one", strings.Replace(r.text("bad"), "http {", "http { bogus on;", 1), `unknown directive "bogus"`)
}

// The master process that is seen is told, also the first time.
func TestE2ENginxSignal(t *testing.T) {
	t.Parallel()
	r := startRig(t, testenv.Image(t, "IMAGE_NGINX"), func(o *Options) { o.Reload = nil })
	r.apply(r.text("one"), proxyctl.Reload)
	r.serves("adopted", "one")
	r.apply(r.text("two"), proxyctl.Reload)
	r.serves("told", "two")
}

// nginx that reads another file than berth writes is noticed.
func TestE2ENginxAnotherFile(t *testing.T) {
	t.Parallel()
	r := startRig(t, testenv.Image(t, "IMAGE_NGINX"))
	r.apply(r.text("one"), proxyctl.Reload)
	other := filepath.Join(r.dir, "other.conf")
	write(t, other, r.foreign())
	r.berth(func(o *Options) { o.File, o.Timeout = other, 2*time.Second })
	if _, err := r.Apply(t.Context(), onlyText(r.text("two")), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "unless it reads another file (start it with -c "+other) {
		t.Errorf("error %v", err)
	}
	if onDisk(t, other) != r.foreign() || r.answer() != "one" {
		t.Errorf("the file is\n%s", onDisk(t, other))
	}
}

// A text of which nginx refuses one part stops no other: servers of what the texts have in common come and go, by a reload.
func TestE2ENginxRefusedPart(t *testing.T) {
	eachImage(t, func(t *testing.T, image string) {
		r := startRig(t, image)
		apps := []string{startApp(t), startApp(t)}
		r.apply(r.text("", to(apps[0])), proxyctl.Reload)
		r.settled()
		load := traffic.Start(t, r.web)
		for name, part := range map[string]parts{
			"an unknown directive":        {http: "bogus on;\n"},
			"a host that is not resolved": {http: "upstream u { server nosuch.invalid:80; }\n"},
		} {
			for _, app := range []string{apps[1], apps[0]} {
				res, err := r.Apply(t.Context(), onlyText(r.text("", to(app), part)), true)
				if !errors.Is(err, proxyctl.ErrRefused) || res.Action != proxyctl.Reload || len(res.Changes) != 1 {
					t.Errorf("%s: %+v, %v", name, res, err)
				}
				r.serves(name, app)
			}
		}
		if all := load.End(); all.Failed() > 0 {
			t.Errorf("%s%s", all, all.Failures())
		}
	})
}
