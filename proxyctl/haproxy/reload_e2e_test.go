//go:build e2e

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// Old workers are counted while they have a connection.
func TestE2EOldWorkers(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, echo, port := startHAProxy(t, r.image), testenv.Echo(t, "127.0.0.1", ""), testenv.FreePort(t)
		text := func(n int) string {
			return h.text(fmt.Sprint("v", n), fmt.Sprintf("listen tcp\n  mode tcp\n  timeout client 1m\n  timeout server 1m\n  bind 127.0.0.1:%s\n  server t %s\n", port, echo))
		}
		h.apply(text(0))
		var open []*tunnel
		for n := 1; n <= 3; n++ {
			tn := h.dial(port)
			if err := tn.echo(); err != nil {
				t.Fatal(err)
			}
			open = append(open, tn)
			if res := h.apply(text(n)); res.Action != proxyctl.Reload || res.OldWorkers != n {
				t.Errorf("reload %d: %+v, want %d old workers", n, res, n)
			}
			if res := h.apply(text(n)); res.Action != proxyctl.None || res.OldWorkers != n {
				t.Errorf("a look after reload %d: %+v, want %d old workers", n, res, n)
			}
			for _, tn := range open {
				if err := tn.echo(); err != nil {
					t.Errorf("after reload %d: %v", n, err)
				}
			}
		}
		for left := len(open) - 1; left >= 0; left-- {
			open[left].conn.Close()
			h.eventually(fmt.Sprint(left, " old workers"), func() bool { return h.apply(text(3)).OldWorkers == left })
		}
	})
}

// usr2 reloads HAProxy with a signal sent by Docker.
func usr2(h **realHAProxy) func(context.Context) error {
	return func(ctx context.Context) error {
		return exec.CommandContext(ctx, "docker", "kill", "--signal", "USR2", (*h).id).Run()
	}
}

// lives distinguishes a text that HAProxy serves from the one before.
func lives(t *testing.T, h *realHAProxy, text func(word string, servers ...string) string, verified bool) {
	l := h.startLoader(imageOf(h))
	expect := func(what, next string, want proxyctl.Action, word string) {
		t.Helper()
		res, err := h.Apply(t.Context(), onlyText(next), true)
		if err != nil || res.Action != want {
			t.Errorf("%s: %+v, %v; want %s", what, res, err, want)
		}
		if !verified {
			h.eventually(what+" is live", func() bool { return h.answer() == word })
		} else if got := h.answer(); got != word {
			t.Errorf("%s: HAProxy answers %q right after Apply, want %q", what, got, word)
		}
		h.tend()
		if !verified {
			h.eventually(what+": the servers are live", func() bool { h.up("master.sock"); return cmp.Equal(h.see(), l.load(h, next)) })
		}
		h.same(what, l.load(h, next))
	}
	expect("first", text("one", "a 127.0.0.1:9001"), proxyctl.Reload, "one")
	expect("the same", text("one", "a 127.0.0.1:9001"), proxyctl.None, "one")
	expect("another server", text("one", "a 127.0.0.1:9001", "b 127.0.0.1:9002"), proxyctl.Reload, "one")
	expect("another weight", text("one", "a 127.0.0.1:9001 weight 3", "b 127.0.0.1:9002"), proxyctl.Reload, "one")
	expect("another word", text("two", "a 127.0.0.1:9001"), proxyctl.Reload, "two")
}

func imageOf(h *realHAProxy) string {
	return testenv.MustDocker(h.t, "inspect", "--format", "{{.Config.Image}}", h.id)
}

func appServers(h *realHAProxy) func(word string, servers ...string) string {
	return func(word string, servers ...string) string {
		return h.text(word, "backend app\n  server "+strings.Join(servers, "\n  server ")+"\n")
	}
}

func TestE2EReloadOnly(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image, func(o *Options) { o.ReloadOnly = true })
		text := appServers(h)
		lives(t, h, text, true)
		last := text("two", "a 127.0.0.1:9001")
		if res := h.apply(last + "# a comment\n"); res.Action != proxyctl.None {
			t.Errorf("a comment: %+v", res)
		}
		want := h.see()
		h.says("set server app/a weight 9")
		if res := h.apply(last + "# a comment\n"); res.Action != proxyctl.Reload || !strings.Contains(res.Reason, "set weight of app/a") {
			t.Errorf("a weight set by hand: %+v", res)
		}
		h.same("a weight set by hand", want)
		if res, err := h.Apply(t.Context(), onlyText(text("two", "c 127.0.0.1:9001")), false); !errors.Is(err, proxyctl.ErrNotYet) {
			t.Errorf("%+v, %v; want %v", res, err, proxyctl.ErrNotYet)
		}
		h.same("not yet", want)
	})
}

func TestE2EReloadBySignal(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		var h *realHAProxy
		h = startHAProxy(t, r.image, func(o *Options) { o.Reload = usr2(&h) })
		text := appServers(h)
		l := h.startLoader(r.image)
		first := text("one", "a 127.0.0.1:9001")
		if res := h.apply(first); res.Action != proxyctl.Reload || h.answer() != "one" {
			t.Errorf("%+v", res)
		}
		second := text("one", "a 127.0.0.1:9001", "b 127.0.0.1:9002")
		if res := h.apply(second); res.Action != proxyctl.Runtime {
			t.Errorf("%+v", res)
		}
		h.refused("by signal", strings.Replace(second, "frontend web\n", "frontend web\n  bogus\n", 1), second, l.load(h, second))
		if res := h.apply(text("two", "a 127.0.0.1:9001")); res.Action != proxyctl.Reload || h.answer() != "two" {
			t.Errorf("%+v", res)
		}
		h.same("another word", l.load(h, text("two", "a 127.0.0.1:9001")))
		// A signal that does not arrive.
		file := onDisk(t, h.driver.opts.File)
		h.driver.opts.Reload = func(context.Context) error { return errors.New("no such container") }
		if _, err := h.Apply(t.Context(), onlyText(text("three", "a 127.0.0.1:9001")), true); err == nil || !strings.Contains(err.Error(), "no such container") {
			t.Errorf("error %v", err)
		}
		if got := onDisk(t, h.driver.opts.File); got != file {
			t.Errorf("the file did not go back:\n%s", got)
		}
	})
}

func TestE2EReloadUnseen(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		var h *realHAProxy
		h = startHAProxy(t, r.image, func(o *Options) { o.Reload, o.Socket = usr2(&h), "" })
		lives(t, h, appServers(h), false)
		file := onDisk(t, h.driver.opts.File)
		h.driver.opts.Reload = func(context.Context) error { return errors.New("no such container") }
		if _, err := h.Apply(t.Context(), onlyText(h.text("three", "")), true); err == nil || !strings.Contains(err.Error(), "no such container") {
			t.Errorf("error %v", err)
		}
		if got := onDisk(t, h.driver.opts.File); got != file {
			t.Errorf("the file did not go back:\n%s", got)
		}
	})
}

// The reload command restarts the container. The new processes have the same PIDs as the old ones.
func TestE2EReloadByRestart(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		var h *realHAProxy
		h = startHAProxy(t, r.image, func(o *Options) {
			o.Timeout = 3 * time.Second
			o.Reload = func(ctx context.Context) error {
				return exec.CommandContext(ctx, "docker", "restart", "--time", "0", h.id).Run()
			}
		})
		for n := range 2 {
			word := fmt.Sprint("v", n)
			if res, err := h.Apply(t.Context(), onlyText(h.text(word, "")), true); err != nil || res.Action != proxyctl.Reload {
				t.Errorf("%s: %+v, %v", word, res, err)
			}
			if got := h.answer(); got != word {
				t.Errorf("HAProxy answers %q, want %q", got, word)
			}
			h.steady(word, h.text(word, ""))
		}
	})
}

// HAProxy is restarted during a series of texts: the last one wins.
func TestE2ERestartUnderChange(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		text := func(n int) string {
			return h.text("ok", fmt.Sprintf("backend app\n  server a 127.0.0.1:%d\n", 9000+n))
		}
		h.apply(text(0))
		h.Close()
		n, slowest := 0, time.Duration(0)
		next := func() bool {
			n++
			began := time.Now()
			_, err := h.Apply(t.Context(), onlyText(text(n)), true)
			h.driver.Tend(t.Context())
			slowest = max(slowest, time.Since(began))
			return err == nil
		}
		for range 4 {
			restarted := make(chan error)
			go func() { restarted <- exec.Command("docker", "restart", "--time", "0", h.id).Run() }()
			for down := true; down; next() {
				select {
				case err := <-restarted:
					if err != nil {
						t.Fatal(err)
					}
					down = false
				default:
				}
			}
			h.eventually("a text is applied again", next)
		}
		t.Logf("%d texts, the slowest took %s", n, slowest)
		h.tend()
		h.Close()
		want := seen{"app/a": fmt.Sprintf("127.0.0.1:%d weight 1", 9000+n)}
		h.same("at last", want)
		h.restart()
		h.same("restarted", want)
	})
}

// While HAProxy starts, its master may answer before there is a worker. 3.2 then leaves connections open, and nothing must wait
// for those.
func TestE2EStarting(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image, func(o *Options) { o.Timeout = 3 * time.Second })
		for range 4 {
			testenv.MustDocker(t, "restart", "--time", "0", h.id)
			h.eventually("the worker answers", func() bool {
				for range 1000 {
					began := time.Now()
					reply, err := h.driver.master.worker(t.Context(), "show info")
					if d := time.Since(began); d > 2*time.Second {
						t.Errorf("a command took %s: %v", d, err)
					}
					if err == nil && strings.Contains(reply, "Pid: ") {
						return true
					}
				}
				return false
			})
		}
	})
}

// With a haproxy program, berth detects a bad text before HAProxy sees it.
func TestE2EBinary(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image, func(o *Options) { o.Binary = o.File + ".check" })
		write(t, h.driver.opts.Binary, fmt.Sprintf("#!/bin/sh\nexec docker exec %s haproxy \"$@\"\n", h.id))
		if err := os.Chmod(h.driver.opts.Binary, 0o755); err != nil {
			t.Fatal(err)
		}
		l := h.startLoader(r.image)
		text := appServers(h)
		h.apply(text("one", "a 127.0.0.1:9001"))
		newest := text("one", "a 127.0.0.1:9001", "b 127.0.0.1:9002")
		if res := h.apply(newest); res.Action != proxyctl.Runtime {
			t.Errorf("%+v", res)
		}
		worker := pidOf(h.says("show info"))
		bad := strings.Replace(newest, "frontend web\n", "frontend web\n  bogus\n", 1)
		if _, err := h.Apply(t.Context(), onlyText(bad), true); err == nil || !strings.Contains(err.Error(), "unknown keyword 'bogus'") {
			t.Errorf("error %v", err)
		}
		h.refused("by its program", bad, newest, l.load(h, newest))
		if got := pidOf(h.says("show info")); got != worker {
			t.Errorf("HAProxy was asked to reload: worker %s became %s", worker, got)
		}
		if res := h.apply(text("two", "b 127.0.0.1:9002")); res.Action != proxyctl.Reload || h.answer() != "two" {
			t.Errorf("%+v", res)
		}
		if left, _ := filepath.Glob(h.dir + "/.haproxy.cfg*"); len(left) > 0 {
			t.Errorf("%s is left behind", left)
		}
	})
}
