//go:build e2e

package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// serveWord starts an application on this machine and returns its address.
func serveWord(t *testing.T, word string) string {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, word) }))
	t.Cleanup(app.Close)
	return strings.TrimPrefix(app.URL, "http://")
}

// A foreign HAProxy keeps its servers while the first configuration has none for them, also over restarts of berth.
func TestE2ETakeOver(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := &realHAProxy{t: t, dir: testenv.Dir(t), port: testenv.FreePort(t)}
		text := func(a, b string) string {
			return fmt.Sprintf("defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\nfrontend web\n  bind 127.0.0.1:%s\n"+
				"  use_backend b if { path /b }\n  default_backend a\nbackend a\n%sbackend b\n%s", h.port, a, b)
		}
		server := func(word string) string { return "  server s " + serveWord(t, word) + " check inter 100ms\n" }
		a, b := server("a"), server("b")
		theirs := text(a, b)
		write(t, filepath.Join(h.dir, "haproxy.cfg"), theirs)
		h.run(r.image, "haproxy.cfg", "master.sock")
		serves := func(what string) {
			t.Helper()
			for path, want := range map[string]string{"/": "a", "/b": "b"} {
				if got := testenv.Answer("http://127.0.0.1:" + h.port + path); got != want {
					t.Errorf("%s: %s is answered %q, want %q", what, path, got, want)
				}
			}
		}
		h.eventually("HAProxy serves", func() bool { return h.answer() == "a" })
		holdsBack := func(when string) {
			t.Helper()
			h.berth()
			res, err := h.Apply(t.Context(), onlyText(text(a, "")), true)
			var held *proxyctl.HoldError
			if !errors.As(err, &held) || len(held.Backends) != 1 || held.Backends[0] != "b" || !strings.Contains(err.Error(), "--take-over") || res.Action != proxyctl.None {
				t.Errorf("%s: %+v, %v", when, res, err)
			}
			if onDisk(t, h.driver.opts.File) != theirs {
				t.Errorf("%s: the file was replaced", when)
			}
			serves("held back " + when)
		}
		holdsBack("at first")
		holdsBack("by another berth")
		if res := h.apply(text(server("a"), b)); res.Action != proxyctl.Reload || res.Reason != "first configuration by berth" {
			t.Errorf("with servers for all: %+v", res)
		}
		serves("taken over")

		// Back to the old file by a reload, which leaves berth's mark in HAProxy's environment.
		write(t, h.driver.opts.File, theirs)
		before := h.says("show info")
		h.eventually("the master takes a reload", func() bool { _, err := ask(h.dir+"/master.sock", "reload"); return err == nil })
		h.eventually("a new worker serves", func() bool {
			now, err := ask(h.dir+"/master.sock", "@1 show info")
			return err == nil && strings.Contains(now, "Pid:") && pidOf(now) != pidOf(before)
		})
		holdsBack("after a reload by hand")
		if res := h.apply(text(server("a"), b)); res.Action != proxyctl.Reload {
			t.Errorf("with servers for all, after a reload by hand: %+v", res)
		}
		serves("taken over again")

		write(t, h.driver.opts.File, theirs)
		h.restart()
		h.berth(func(o *Options) { o.TakeOver = true })
		if res := h.apply(text(a, "")); res.Action != proxyctl.Reload {
			t.Errorf("asked for: %+v", res)
		}
		if got := testenv.Answer("http://127.0.0.1:" + h.port + "/b"); !strings.Contains(got, "503") {
			t.Errorf("asked for: /b is answered %q", got)
		}
	})
}

// HAProxy starts with the first file of berth's image, whatever else listens on its ports, and serves as soon as berth's own text
// can be loaded.
func TestE2EFirstPortTaken(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := &realHAProxy{t: t, dir: testenv.Dir(t), port: testenv.FreePort(t)}
		first, err := os.ReadFile("../../deploy/images/berth/haproxy.cfg")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(first, []byte("bind :")) || !bytes.Contains(first, []byte("/run/haproxy/")) {
			t.Fatalf("the first file listens on a port:\n%s", first)
		}
		taken, err := net.Listen("tcp", "127.0.0.1:"+h.port)
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		write(t, filepath.Join(h.dir, "haproxy.cfg"), strings.ReplaceAll(string(first), "/run/haproxy/", h.dir+"/"))
		h.run(r.image, "haproxy.cfg", "master.sock")
		h.berth()
		_, err = h.Apply(t.Context(), onlyText(h.text("good", "")), true)
		var port *proxyctl.PortError
		if !errors.As(err, &port) {
			t.Errorf("error %v, want one of a port", err)
		}
		taken.Close()
		if res := h.apply(h.text("good", "")); res.Action != proxyctl.Reload || res.Reason != "first configuration by berth" || h.answer() != "good" {
			t.Errorf("%+v, HAProxy answers %q", res, h.answer())
		}
	})
}

// On a full or read-only disk, servers come and go at run time, and the file follows later.
func TestE2EDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root mounts a small disk")
	}
	eachRelease(t, func(t *testing.T, r release) {
		h := &realHAProxy{t: t, dir: testenv.Dir(t), port: testenv.FreePort(t)}
		mount := func(flags uintptr) error { return syscall.Mount("berth-test", h.dir, "tmpfs", flags, "size=256k") }
		if err := mount(0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(h.dir, syscall.MNT_DETACH) })
		write(t, filepath.Join(h.dir, "haproxy.cfg"), h.text("first", ""))
		h.run(r.image, "haproxy.cfg", "master.sock")
		h.berth()
		a, b := serveWord(t, "a"), serveWord(t, "b")
		text := func(more string, servers ...string) string {
			s := more + "backend app\n"
			for i, address := range servers {
				s += fmt.Sprintf("  server s%d %s\n", i, address)
			}
			return h.text("good", s)
		}
		h.apply(text("", a))
		full := func() {
			f, err := os.Create(filepath.Join(h.dir, "ballast"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			name        string
			breaks, fix func()
			says        string
		}{
			{"full", full, func() { os.Remove(filepath.Join(h.dir, "ballast")) }, "no space left on device"},
			{
				"read-only", func() {
					if err := mount(syscall.MS_REMOUNT | syscall.MS_RDONLY); err != nil {
						t.Fatal(err)
					}
				}, func() { _ = mount(syscall.MS_REMOUNT) }, "read-only file system",
			},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.breaks()
				// Files that a text refers to must exist before it is loaded; what it shares with the running text need not wait.
				name := h.driver.opts.File + ".routes-0123456789abcdef.map"
				config := proxyctl.Config{Text: text("# "+name+"\nbackend new\n", a, b), Files: map[string]string{name: strings.Repeat("x", 5000)}}
				res, err := h.Apply(t.Context(), config, true)
				if err == nil || !strings.Contains(err.Error(), tt.says) || res.Action != proxyctl.Runtime {
					t.Errorf("a file that is referred to: %+v, %v", res, err)
				}
				if n := strings.Count(h.says("show servers state app"), " app "); n != 2 {
					t.Errorf("HAProxy has %d servers, want 2", n)
				}
				for try := 0; ; try++ { // the file follows in the background
					res, err = h.Apply(t.Context(), onlyText(text("", b)), true)
					h.Proxy.Close()
					if err != nil || try == 2 {
						break
					}
				}
				if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "a restart would bring back earlier ones") {
					t.Errorf("the file: %+v, %v", res, err)
				}
				if got := h.says("show servers state app"); strings.Count(got, " app ") != 1 || !strings.Contains(got, " "+b[strings.LastIndex(b, ":")+1:]+" ") {
					t.Errorf("HAProxy has\n%s", got)
				}
				tt.fix()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				for err != nil && ctx.Err() == nil {
					_, err = h.Apply(t.Context(), onlyText(text("", b)), true)
					h.Proxy.Close()
				}
				if err != nil || !strings.Contains(onDisk(t, h.driver.opts.File), b) {
					t.Errorf("%v, the file is\n%s", err, onDisk(t, h.driver.opts.File))
				}
				h.apply(text("", a))
				h.Proxy.Close() // the file is up to date before the disk breaks again
			})
		}
	})
}
