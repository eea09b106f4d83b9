package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth/deploy/testenv"
)

// application reads the file when it is told to.
type application struct {
	path string

	mu   sync.Mutex
	err  error    // the action's result
	read []string // at every action
}

func (a *application) act(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.read = append(a.read, read(a.path))
	return a.err
}

// says sets the action's result.
func (a *application) says(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// told returns the texts that it was told of.
func (a *application) told() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.read)
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// start runs a File; end stops it.
func start(t *testing.T, opts Options) (f *File, out *testenv.Log, end func()) {
	t.Helper()
	f, out = create(opts)
	return f, out, run(t, f)
}

// create returns a File that is not running yet.
func create(opts Options) (f *File, out *testenv.Log) {
	out = new(testenv.Log)
	opts.Log = slog.New(slog.NewTextHandler(out, nil))
	opts.ActionName = "told"
	return New(opts), out
}

// run runs f; end stops it.
func run(t *testing.T, f *File) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// pass advances the bubble's clock, then waits until everything has settled.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// leftovers returns the files next to path.
func leftovers(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestWrittenAndToldOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "etc", "app", "app.conf")
		app := &application{path: path}
		reg := prometheus.NewRegistry()
		f, out := create(Options{Path: path, Action: app.act, Metrics: reg})
		if f.Ready() == nil {
			t.Error("ready before there was a text")
		}
		began := time.Now()
		time.Sleep(12 * time.Millisecond)
		// Run starts only now; otherwise it might write the first text before the second came.
		f.Set("never seen\n", began)
		f.Set("one\n", time.Now())
		if f.Ready() == nil {
			t.Error("ready though the newest text is not written")
		}
		end := run(t, f)
		synctest.Wait()
		for _, text := range []string{"one\n", "two\n", "two\n", ""} {
			f.Set(text, time.Now())
			synctest.Wait()
			if got := read(path); got != text || f.Ready() != nil {
				t.Errorf("the file is %q, want %q; Ready() = %v", got, text, f.Ready())
			}
		}
		end()
		if want := []string{"one\n", "two\n", ""}; !slices.Equal(app.told(), want) {
			t.Errorf("the application was told of %q, want %q", app.told(), want)
		}
		if n := strings.Count(out.String(), "\n"); n != 3 || !strings.Contains(out.String(), `msg="wrote `+path+`, live after 12 ms" file=`+path+" action=told took=12ms") {
			t.Errorf("the log has %d lines, want one for each change:\n%s", n, out)
		}
		if left := leftovers(t, path); len(left) != 0 {
			t.Errorf("%q is left behind", left)
		}
		if n := testutil.ToFloat64(f.metrics.writes); n != 3 {
			t.Errorf("%v writes, want 3", n)
		}

		// A restart of berth costs nothing.
		f, out, end = start(t, Options{Path: path, Action: app.act})
		f.Set("", time.Now())
		synctest.Wait()
		end()
		if len(app.told()) != 3 || out.String() != "" || f.Ready() != nil {
			t.Errorf("the same text after a restart: told of %q, Ready() = %v, log:\n%s", app.told(), f.Ready(), out)
		}
	})
}

// Ready does not report a change that is about to be written, but one that waits for long.
func TestReadyDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.conf")
		takes := time.Duration(0)
		f, _, end := start(t, Options{Path: path, Action: func(context.Context) error {
			time.Sleep(takes)
			return nil
		}})
		defer end()
		f.Set("one", time.Now())
		synctest.Wait()
		takes = 10 * time.Second
		f.Set("two", time.Now())
		if err := f.Ready(); err != nil {
			t.Errorf("not ready right after a change: %v", err)
		}
		synctest.Wait() // the action for two has started
		f.Set("three", time.Now())
		pass(time.Second)
		if err := f.Ready(); err != nil {
			t.Errorf("not ready 1s after a change: %v", err)
		}
		pass(5 * time.Second)
		if err := f.Ready(); err == nil || !strings.HasSuffix(err.Error(), "the newest text is not written yet") {
			t.Errorf("6s after a change that is not written yet: %v", err)
		}
		pass(10 * time.Second)
		if err := f.Ready(); err != nil || read(path) != "three" {
			t.Errorf("the file is %q, Ready() = %v", read(path), err)
		}
	})
}

func TestNoAction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.conf")
		f, out, end := start(t, Options{Path: path})
		f.Set("one", time.Now())
		synctest.Wait()
		end()
		if read(path) != "one" || f.Ready() != nil || strings.Count(out.String(), "\n") != 1 || len(leftovers(t, path)) != 0 {
			t.Errorf("%q, Ready() = %v, next to it %q, log:\n%s", read(path), f.Ready(), leftovers(t, path), out)
		}
	})
}

func TestActionIsTriedUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.conf")
		app := &application{path: path, err: errors.New("exit status 1: no such unit")}
		f, out, end := start(t, Options{Path: path, Action: app.act})
		defer end()
		f.Set("one", time.Now())
		pass(time.Minute)
		if n := len(app.told()); n < 5 || n > 12 {
			t.Errorf("%d attempts in a minute", n)
		}
		if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), "the file has the newest text, but its action failed: exit status 1: no such unit") {
			t.Errorf("%d lines in the log, want one that says why:\n%s", n, out)
		}
		if err := f.Ready(); err != nil {
			t.Errorf("Ready() = %v, though the newest text is in the file", err)
		}
		if n := testutil.ToFloat64(f.metrics.failures.WithLabelValues("action")); n != float64(len(app.told())) {
			t.Errorf("%v failures are counted, there were %d", n, len(app.told()))
		}
		// The same text is no reason to retry sooner, but another one is.
		before := len(app.told())
		f.Set("one", time.Now())
		synctest.Wait()
		if got := app.told()[before:]; len(got) != 0 {
			t.Errorf("told of %q at once, though nothing is new", got)
		}
		f.Set("two", time.Now())
		synctest.Wait()
		if got := app.told()[before:]; !slices.Equal(got, []string{"two"}) {
			t.Errorf("told of %q, want the new text at once", got)
		}
		app.says(nil)
		pass(2 * time.Second)
		if got := app.told()[before+1:]; !slices.Equal(got, []string{"two"}) || !regexp.MustCompile(`ran the action of `+regexp.QuoteMeta(path)+`, live after 60[456]\d\d ms`).MatchString(out.String()) || testutil.ToFloat64(f.metrics.successful) != 1 {
			t.Errorf("told of %q, want the new text once more; log:\n%s", got, out)
		}
		pass(time.Hour)
		if n := len(app.told()); n != before+2 || len(leftovers(t, path)) != 0 {
			t.Errorf("told %d times more after it worked; next to the file: %q", n-before-2, leftovers(t, path))
		}
	})
}

// An action that had not succeeded when berth ended, in any way, runs after the next start.
func TestActionIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.conf")
		app := &application{path: path, err: errors.New("not now")}
		f, _, end := start(t, Options{Path: path, Action: app.act})
		f.Set("one", time.Now())
		synctest.Wait()
		end()
		app.says(nil)
		for _, texts := range []struct{ before, after []string }{
			{[]string{"one"}, []string{"one", "one"}},
			{[]string{"one", "one"}, []string{"one", "one"}},
		} {
			f, _, end = start(t, Options{Path: path, Action: app.act})
			synctest.Wait()
			if got := app.told(); !slices.Equal(got, texts.before) {
				t.Errorf("told of %q before there was a text, want %q", got, texts.before)
			}
			f.Set("one", time.Now())
			synctest.Wait()
			if got := app.told(); !slices.Equal(got, texts.after) {
				t.Errorf("told of %q, want %q", got, texts.after)
			}
			end()
		}
	})
}

// A running action has time to finish at the end, but no more than that.
func TestActionAtTheEnd(t *testing.T) {
	for _, tt := range []struct{ takes, most time.Duration }{{2 * time.Second, 2 * time.Second}, {time.Hour, lastWait}} {
		synctest.Test(t, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.conf")
			f, out, end := start(t, Options{Path: path, Action: func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(tt.takes):
					return nil
				}
			}})
			f.Set("one", time.Now())
			synctest.Wait()
			began := time.Now()
			end()
			if took := time.Since(began); took != tt.most {
				t.Errorf("Run goes on for %v, want %v", took, tt.most)
			}
			if noted := f.isNoted(); noted != (tt.takes > lastWait) || strings.Contains(out.String(), "ERROR") {
				t.Errorf("an action of %v: due at the next start: %v; log:\n%s", tt.takes, noted, out)
			}
		})
	}
}

func TestCannotWrite(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		set        func(path string) error
		solve      func(path string) error
	}{
		{"a directory", "write PATH: it is a directory: name the file in it", func(path string) error { return os.Mkdir(path, 0o755) }, os.Remove},
		{"a pipe", "write PATH: it is not a regular file", func(path string) error { return syscall.Mkfifo(path, 0o600) }, os.Remove},
		{"a file for a directory", "stat PATH: not a directory", func(path string) error { return os.WriteFile(filepath.Dir(path), nil, 0o644) },
			func(path string) error { return os.Remove(filepath.Dir(path)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "app", "app.conf")
				if tt.name != "a file for a directory" {
					if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := tt.set(path); err != nil {
					t.Fatal(err)
				}
				app := &application{path: path}
				f, out, end := start(t, Options{Path: path, Action: app.act})
				defer end()
				f.Set("one", time.Now())
				pass(time.Minute)
				says := strings.ReplaceAll(tt.says, "PATH", path)
				if err := f.Ready(); err == nil || err.Error() != says {
					t.Errorf("Ready() = %v, want %q", err, says)
				}
				if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), says) {
					t.Errorf("%d lines in the log, want one:\n%s", n, out)
				}
				if n := testutil.ToFloat64(f.metrics.failures.WithLabelValues("write")); n < 2 || len(app.told()) != 0 {
					t.Errorf("%v failures are counted, %d actions", n, len(app.told()))
				}
				if err := tt.solve(path); err != nil {
					t.Fatal(err)
				}
				pass(2 * time.Minute)
				if read(path) != "one" || f.Ready() != nil || !slices.Equal(app.told(), []string{"one"}) {
					t.Errorf("later: %q, Ready() = %v, told of %q", read(path), f.Ready(), app.told())
				}
			})
		})
	}
}

// The same problem is logged with the same line, which says what to do about it.
func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "open", Path: "/etc/.app.conf123", Err: syscall.EACCES}, fmt.Sprintf("permission denied: its directory must be writable for user %d", os.Getuid())},
		{&fs.PathError{Op: "write", Path: "/etc/.app.conf123", Err: syscall.ENOSPC}, "no space left on device"},
		{&fs.PathError{Op: "open", Path: "/etc/.app.conf123", Err: syscall.EROFS}, "read-only file system"},
		{&os.LinkError{Op: "rename", Old: "/etc/.app.conf123", New: "/etc/app.conf", Err: syscall.EBUSY}, "device or resource busy: mount its directory, not the single file"},
	} {
		if got := plain(tt.err).Error(); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestModeAndOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "app.conf")
		app := &application{path: path}
		set := func(opts Options, text string) {
			t.Helper()
			opts.Path, opts.Action = path, app.act
			f, _, end := start(t, opts)
			f.Set(text, time.Now())
			synctest.Wait()
			if err := f.Ready(); err != nil {
				t.Error(err)
			}
			end()
		}
		mode := func(want fs.FileMode) {
			t.Helper()
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("the file is %v, %v; want mode %v", info.Mode(), err, want)
			}
		}
		set(Options{}, "one")
		mode(0o644)
		if err := os.Chmod(path, 0o660); err != nil {
			t.Fatal(err)
		}
		set(Options{}, "two")
		mode(0o660)
		set(Options{Mode: 0o604}, "three")
		mode(0o604)
		told := len(app.told())
		set(Options{Mode: 0o600}, "three")
		mode(0o600)
		if len(app.told()) != told {
			t.Error("told of another mode")
		}
		mine := &Owner{UID: os.Getuid(), GID: -1}
		set(Options{Owner: mine}, "four")
		set(Options{Owner: mine}, "four")
		if os.Getuid() != 0 {
			return // only root can change the owner
		}
		owner := func(uid, gid uint32) {
			t.Helper()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
				t.Errorf("the file is of %d:%d, want %d:%d", st.Uid, st.Gid, uid, gid)
			}
		}
		set(Options{Owner: &Owner{UID: 1234, GID: 4321}}, "five")
		owner(1234, 4321)
		set(Options{}, "six")
		owner(1234, 4321)
		set(Options{Owner: &Owner{UID: -1, GID: 99}}, "seven")
		owner(1234, 99)
		told = len(app.told())
		set(Options{Owner: &Owner{UID: 5678, GID: -1}}, "seven")
		owner(5678, 99)
		if len(app.told()) != told {
			t.Error("told of another owner")
		}
	})
}
