//go:build e2e

package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/registrar/group"
	"berth/registrar/group/store"
)

const (
	crowd  = 50 // instances
	plain  = 5  // instances that render nothing
	rounds = 20 // changes
	// settle is how long the processes are left alone before they are measured.
	settle = 6 * time.Second
	// between two changes: a process that reports a change may do so twice in that time
	between = 2 * time.Second
)

// command is what the instances run: it does nothing, and ends by itself.
var command = []string{"sleep", "900"}

// applied measures the time from an apply to the files of all instances, and the memory of the processes.
func applied(b *testing.B, r *report) {
	l := startLab(b)
	w := &writer{store: store.New(l.Client), item: store.Item{Service: "bench"}}
	w.apply(b)
	var memories report
	r.add("\napply → rendered at %d instances of one Consul agent, %d changes, strategy at-once, on-change none. In ms, median / max", crowd, rounds)
	for _, kind := range []struct {
		name, unit string
		start      func(l *lab, dir string, n int) *process
	}{
		{"berth service --render", "berth", startService},
		{"consul-template -exec", "consul-template", startConsulTemplate},
	} {
		dir := testenv.Dir(b)
		f := watchFiles(b, dir)
		var all []*process
		for n := range crowd {
			all = append(all, kind.start(l, dir, n))
		}
		f.await(b, w.text())
		time.Sleep(settle) // so that each watch waits for its next answer
		memories.memories(b, kind.unit, kind.name, all)
		var fromBegin, fromReturn, last, lastFromBegin traffic.Times
		for range rounds {
			began, returned := w.apply(b)
			at := f.await(b, w.text())
			var latest time.Time
			for _, t := range at {
				fromBegin, fromReturn = append(fromBegin, t.Sub(began)), append(fromReturn, t.Sub(returned))
				if t.After(latest) {
					latest = t
				}
			}
			last, lastFromBegin = append(last, latest.Sub(returned)), append(lastFromBegin, latest.Sub(began))
			time.Sleep(between + rand.N(between/4))
		}
		r.times(b, kind.unit, kind.name+": apply returned → an instance has it", fromReturn)
		r.times(b, kind.unit+"-last", kind.name+": apply returned → the last one has it", last)
		r.times(b, kind.unit+"-begun", kind.name+": apply began → an instance has it", fromBegin)
		r.times(b, kind.unit+"-last-begun", kind.name+": apply began → the last one has it", lastFromBegin)
		time.Sleep(settle)
		memories.memories(b, kind.unit+"-used", fmt.Sprintf("%s, after %d changes", kind.name, rounds), all)
		stopAll(all)
	}
	var all []*process
	for n := range plain {
		all = append(all, startService(l, "", n))
	}
	time.Sleep(settle)
	memories.memories(b, "plain", "berth service", all)
	stopAll(all)
	r.add("\nmemory of an idle process. RSS in MB, median / max")
	r.lines = append(r.lines, memories.lines...)
}

// startService starts an instance that renders a file in a directory, if given.
func startService(l *lab, dir string, n int) *process {
	args := []string{"service", "--name", "bench", "--id", "bench-" + strconv.Itoa(n), "--port", strconv.Itoa(20000 + n), "--ready", "none",
		"--on-change", "none", "--strategy", group.AtOnce, "--drain-time", "0s"}
	if dir != "" {
		template := testenv.File(l, dir, "in", `greeting = "{{ cfg "greeting" }}"`)
		args = append(args, "--render", template+":"+filepath.Join(dir, strconv.Itoa(n)))
	}
	return l.start(nil, program(l, "BERTH"), append(append(args, "--"), command...)...)
}

// startConsulTemplate starts consul-template rendering the same file. Its command gets a signal that it ignores, because
// consul-template cannot do nothing.
func startConsulTemplate(l *lab, dir string, n int) *process {
	template := testenv.File(l, dir, "in", `{{ key "berth/config/bench" }}`)
	return l.start(nil, program(l, "CONSUL_TEMPLATE"), "-consul-addr", l.direct, "-template", template+":"+filepath.Join(dir, strconv.Itoa(n)),
		"-exec-reload-signal", "SIGWINCH", "-exec", strings.Join(command, " "))
}

// writer applies one version after the other.
type writer struct {
	store *store.Store
	item  store.Item
	n     int
}

func (w *writer) text() string { return fmt.Sprintf(`greeting = "round %04d"`, w.n) }

// apply makes a new text the current one, like berth config apply. It returns the times before and after.
func (w *writer) apply(b testing.TB) (began, returned time.Time) {
	b.Helper()
	w.n++
	began = time.Now()
	_, err := w.store.Apply(b.Context(), w.item, store.Change{Text: []byte(w.text()), By: "bench", Strategy: group.AtOnce, Format: "toml"})
	if err != nil {
		b.Fatal(err)
	}
	return began, time.Now()
}

// files watches with inotify when the files of a directory are replaced.
type files struct {
	dir    string
	events chan event
}

// event is the replacement of a file.
type event struct {
	name string
	at   time.Time
}

func watchFiles(b *testing.B, dir string) *files {
	b.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO)
	}
	if err != nil {
		b.Fatal(err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	f := &files{dir, make(chan event, 10*crowd)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 64<<10)
		for {
			n, err := in.Read(buffer)
			at := time.Now()
			if err != nil {
				return // closed
			}
			for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
				length := binary.NativeEndian.Uint32(rest[12:])
				name := rest[unix.SizeofInotifyEvent:][:length]
				f.events <- event{strings.TrimRight(string(name), "\x00"), at}
				rest = rest[unix.SizeofInotifyEvent+int(length):]
			}
		}
	}()
	b.Cleanup(func() { in.Close(); <-done })
	return f
}

// await waits until the files of all instances have a text, and returns when each of them had it.
func (f *files) await(b *testing.B, text string) map[string]time.Time {
	b.Helper()
	have := map[string]time.Time{}
	late := time.After(time.Minute)
	for len(have) < crowd {
		select {
		case e := <-f.events:
			if _, err := strconv.Atoi(e.name); err != nil || !have[e.name].IsZero() {
				continue // a template
			}
			if got, err := os.ReadFile(filepath.Join(f.dir, e.name)); err != nil {
				b.Fatal(err)
			} else if string(got) == text {
				have[e.name] = e.at
			}
		case <-late:
			b.Fatalf("%d of %d instances have %q after a minute", len(have), crowd, text)
		}
	}
	return have
}
