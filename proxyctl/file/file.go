// Package file keeps a plain file, such as an application's own configuration, at the newest rendered text, and makes the
// application notice changes.
package file

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth/proxyctl"
)

// Options describe the file.
type Options struct {
	Path  string      // a missing directory is created
	Mode  fs.FileMode // 0 = that of the old file, or 0644
	Owner *Owner      // nil = that of the old file

	// Action makes the file's readers notice a change; nil if there is nothing to do. When Run ends, a running action gets three
	// more seconds.
	Action     func(context.Context) error
	ActionName string // its name in the log

	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Owner is a numeric user and group; -1 leaves either unchanged.
type Owner struct{ UID, GID int }

// File is one file.
type File struct {
	opts    Options
	wake    chan struct{}
	metrics metrics

	// These belong to Run's goroutine.
	due    bool // the file was changed, and the action has not succeeded since
	warned bool // whether a lost owner was logged

	mu     sync.Mutex
	given  bool      // there is a text
	text   string    // the newest
	since  time.Time // time of the oldest waiting change; zero if there is none
	set    time.Time // when the text that waits for its first try was set; zero if there is none
	status error     // of the last try; nil if its text is in the file
}

// New returns a File. Run does the work.
func New(opts Options) *File {
	return &File{
		opts:    opts,
		wake:    make(chan struct{}, 1),
		metrics: newMetrics(opts),
		status:  fmt.Errorf("%s: no text was rendered yet", opts.Path),
	}
}

// Set sets the text for the file. It never blocks. It replaces a text that is not written yet, and does nothing if the text is
// unchanged. since is when the change behind text was noticed.
func (f *File) Set(text string, since time.Time) {
	f.mu.Lock()
	if f.given && f.text == text {
		f.mu.Unlock()
		return
	}
	if !f.given {
		f.status = f.late()
	}
	f.given, f.text = true, text
	if f.since.IsZero() || since.Before(f.since) {
		f.since = since
	}
	if f.set.IsZero() {
		f.set = time.Now()
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// tolerance is how long a text may wait before Ready complains. Usually it takes less.
const tolerance = 2 * time.Second

// Ready returns nil if the newest text is in the file or about to be, otherwise the reason why not. A failed action does not
// count: its application may itself wait for berth to be ready.
func (f *File) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status == nil && !f.set.IsZero() && time.Since(f.set) > tolerance {
		return f.late()
	}
	return f.status
}

func (f *File) late() error { return fmt.Errorf("%s: the newest text is not written yet", f.opts.Path) }

// Run writes the texts given to Set until ctx is done, then returns nil. A file that already has the text is left alone, without
// an action. A failure is retried until it works or another text comes. An action that was due when berth ended runs after the
// first text of the next Run.
func (f *File) Run(ctx context.Context) error {
	var (
		reported string // the failure that was logged last
		retry    <-chan time.Time
		delays   = proxyctl.Delays(500*time.Millisecond, time.Minute)
	)
	f.due = f.isNoted()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			delays.Reset()
		case <-retry:
		}
		if ctx.Err() != nil {
			return nil
		}
		retry = nil
		done, took, err := f.apply(ctx)
		if err == nil {
			f.metrics.successful.Set(1)
			switch {
			case done != "":
				f.opts.Log.Info(fmt.Sprintf("%s, live after %d ms", done, took.Milliseconds()), "file", f.opts.Path, "action", f.opts.ActionName, "took", took.Round(time.Millisecond))
			case reported != "":
				f.opts.Log.Info(f.opts.Path+" has the newest text again", "file", f.opts.Path, "action", f.opts.ActionName)
			}
			reported = ""
			continue
		}
		f.metrics.successful.Set(0)
		if ctx.Err() != nil {
			return nil
		}
		wait := delays.NextBackOff()
		retry = time.After(wait)
		if err.Error() != reported {
			reported = err.Error()
			f.opts.Log.Error("cannot bring "+f.opts.Path+" up to date, trying again", "file", f.opts.Path, "err", err, "retry_in", wait.Round(time.Millisecond))
		}
	}
}

// apply brings the file to the newest text and runs the action if there was a change. It returns what was done, for the log, and
// how long that took since the change; "" if there was nothing to do.
func (f *File) apply(ctx context.Context) (done string, took time.Duration, err error) {
	f.mu.Lock()
	text, since := f.text, f.since
	f.since = time.Time{}
	f.mu.Unlock()
	defer func() {
		if err != nil {
			f.mu.Lock()
			f.since = since // the change goes live with the next try
			f.mu.Unlock()
		}
	}()
	acted := f.due
	written, err := f.write(text)
	f.record(text, err)
	if err != nil {
		f.metrics.failures.WithLabelValues("write").Inc()
		return "", 0, err
	}
	if written {
		f.metrics.writes.Inc()
	}
	if f.due {
		if err := f.act(ctx); err != nil {
			f.metrics.failures.WithLabelValues("action").Inc()
			return "", 0, fmt.Errorf("the file has the newest text, but its action failed: %w", err)
		}
		f.due = false
		f.unnote()
	}
	switch {
	case written:
		return "wrote " + f.opts.Path, time.Since(since), nil
	case acted:
		return "ran the action of " + f.opts.Path, time.Since(since), nil
	}
	return "", 0, nil
}

// record stores the result of writing text.
func (f *File) record(text string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = err
	if f.text == text {
		f.set = time.Time{}
	} else {
		f.set = time.Now()
	}
}

// lastWait is how long a running action may continue when Run should end.
const lastWait = 3 * time.Second

func (f *File) act(ctx context.Context) error {
	acting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWait, cancel) })()
	return f.opts.Action(acting)
}
