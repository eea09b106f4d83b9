package registrar

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"berth/registrar/docker"
	"berth/registrar/group"
	"berth/registrar/group/store"
	"berth/registrar/label"
	"berth/registrar/retry"
)

// signalSettles is how long after a signal the container is inspected: if the signal ends it, it is dead by then.
const signalSettles = 200 * time.Millisecond

// target is a container as seen by its Applier. It calls Docker in the Applier's goroutine, and leaves its registration to
// the loop.
type target struct {
	registrar *Registrar
	member    *member // its wish and state belong to the loop
	container label.Container
	store     *store.Store
	log       *slog.Logger

	known     map[string]string // checksums, by path, of files that the process has read
	restarted uint64            // last restart order carried out
}

// ask sends a wish to the loop, and returns when it is settled or ctx is done.
func (t *target) ask(ctx context.Context, w wish) error {
	w.member, w.answer = t.member, make(chan error, 1)
	t.registrar.updates.add(w)
	select {
	case err := <-w.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Drain takes the container out of service and waits for its drain time.
func (t *target) Drain(ctx context.Context, reason string) error {
	if err := t.ask(ctx, wish{is: drained, reason: "it takes up " + reason}); err != nil {
		return err
	}
	retry.Pause(ctx, t.registrar.opts.DrainTime)
	return ctx.Err()
}

// Resume puts the container back into service.
func (t *target) Resume(ctx context.Context) error { return t.ask(ctx, wish{is: inService}) }

// placed is a file to put into the container.
type placed struct {
	path string
	sum  string
	text func(context.Context) ([]byte, error)
	label.Reaction
}

// filesOf returns the files that a container should have. Removed files are not among them, because Docker cannot remove
// them.
func filesOf(g label.Group, service string, kv *store.Store, w group.Wanted) (out []placed, err error) {
	if g.Config != "" && w.Config.Sum != "" {
		out = append(out, placed{g.Config, w.Config.Sum, func(context.Context) ([]byte, error) { return w.Config.Text, nil }, g.OnChange})
	}
	if g.Files == "" {
		return out, nil
	}
	for _, name := range slices.Sorted(maps.Keys(w.Files)) {
		h := w.Files[name]
		if err := store.ValidFile(name); err != nil {
			return nil, err
		}
		text := func(ctx context.Context) ([]byte, error) {
			return kv.Text(ctx, store.Item{Service: service, File: name}, h)
		}
		out = append(out, placed{path.Join(g.Files, name), h.Sum, text, g.OnFile})
	}
	return out, nil
}

// Prepare compares what w asks for with the files in the container.
func (t *target) Prepare(ctx context.Context, w group.Wanted) (group.Change, error) {
	c := &change{target: t, restart: w.Restart, sums: map[string]string{}}
	files, err := filesOf(t.member.Group, t.member.service, t.store, w)
	if err != nil {
		return nil, err
	}
	files = slices.DeleteFunc(files, func(f placed) bool { return t.known[f.path] == f.sum })
	restarts := w.Restart > t.restarted
	if len(files) == 0 && !restarts {
		return c, nil
	}
	is, err := docker.Inspect(ctx, t.registrar.opts.Docker, t.container.ID, nil)
	switch {
	case err != nil:
		return nil, err
	case is.ID == "":
		return nil, group.ErrStopping
	}
	c.began = is.Started
	for _, f := range files {
		if at := slices.IndexFunc(is.Tmpfs, func(dir string) bool { return strings.HasPrefix(f.path, strings.TrimSuffix(dir, "/")+"/") }); at >= 0 {
			return nil, fmt.Errorf("%s is in the tmpfs %s, where Docker cannot put files: mount a volume there, or choose another path", f.path, is.Tmpfs[at])
		}
		old, err := docker.ReadFile(ctx, t.registrar.opts.Groups.Archive, t.container.ID, f.path)
		if err != nil {
			return nil, err
		}
		same := old != nil && store.Sum(old.Text) == f.sum
		if same && !(f.Restart && old.Modified.After(is.Started)) {
			t.known[f.path] = f.sum
			continue
		}
		c.sums[f.path] = f.sum
		if !same {
			text, err := f.text(ctx)
			if err != nil {
				return nil, err
			}
			c.writes = append(c.writes, write{path: f.path, old: old, text: text, restarts: f.Restart})
		}
		switch {
		case f.Restart:
			restarts = true
		case f.Signal != 0 && !slices.Contains(c.signals, f.Signal):
			c.signals = append(c.signals, f.Signal)
		}
	}
	if c.restarts = restarts; restarts {
		c.signals = nil
	}
	return c, nil
}

// change is the difference between a container and its goal.
type change struct {
	*target
	writes   []write
	sums     map[string]string // checksums of the files that the process has read afterwards
	restarts bool
	signals  []int
	restart  uint64    // restart order that it carries out
	began    time.Time // start of the present process

	written int  // number of writes tried
	reacted bool // the process was signalled or restarted
}

// write is a file to write.
type write struct {
	path     string
	old      *docker.File // nil = there was no file
	text     []byte
	restarts bool
}

// Empty reports whether nothing differs.
func (c *change) Empty() bool { return len(c.writes) == 0 && !c.Disrupts() }

// Disrupts reports whether the process is notified, because the effect of a signal is unknown.
func (c *change) Disrupts() bool { return c.restarts || len(c.signals) > 0 }

// Apply writes the files, and returns when the process has read them and is ready.
func (c *change) Apply(ctx context.Context) error {
	for _, w := range c.writes {
		f := like(w.old, docker.File{Text: w.text, Modified: time.Now()})
		if w.restarts {
			f.Modified = unread(c.began)
		}
		if err := c.put(ctx, w.path, f); err != nil { // the file is unchanged then
			return err
		}
		c.written++
	}
	if err := c.react(ctx); err != nil {
		return err
	}
	c.target.restarted = c.restart
	maps.Copy(c.known, c.sums)
	return nil
}

// Revert restores the written files, and notifies the process if it was told of the new ones. A file that did not exist
// before is left empty, because Docker cannot remove it.
func (c *change) Revert(ctx context.Context) error {
	for _, w := range c.writes[:c.written] {
		delete(c.known, w.path)
		f := docker.File{Modified: c.began.Truncate(time.Second)}
		if w.old != nil {
			f = *w.old
		}
		if err := c.put(ctx, w.path, f); err != nil {
			return err
		}
	}
	if !c.reacted {
		return nil
	}
	c.restarts = true // the signal may have ended it
	return c.react(ctx)
}

func (c *change) put(ctx context.Context, name string, f docker.File) error {
	f.Name = path.Base(name)
	return docker.WriteFiles(ctx, c.registrar.opts.Groups.Archive, c.container.ID, path.Dir(name), []docker.File{f})
}

// like returns a file with the owner and mode of the file that it replaces, which may be nil.
func like(old *docker.File, f docker.File) docker.File {
	if old != nil {
		f.Mode, f.UID, f.GID = old.Mode, old.UID, old.GID
	}
	return f
}

// unread returns a modification time that marks a file as not yet read by a process started at the given time, whatever the
// clocks of other hosts say. Docker reports it in whole seconds.
func unread(started time.Time) time.Time { return started.Truncate(time.Second).Add(time.Second) }

// react makes the process read its files, and returns when it is ready.
func (c *change) react(ctx context.Context) error {
	limit := c.registrar.changeTime(c.container)
	r := c.registrar
	switch {
	case c.restarts:
		if err := c.ask(ctx, wish{is: replaced, limit: limit}); err != nil {
			return err
		}
		c.reacted = true
		if err := r.opts.Groups.Restart(ctx, c.container.ID); err != nil {
			return fmt.Errorf("restart the container: %w", cmp.Or(ctx.Err(), err))
		}
		return c.ask(ctx, wish{is: isReady})
	case len(c.signals) > 0:
		if err := c.ask(ctx, wish{is: tried, limit: limit}); err != nil {
			return err
		}
		c.reacted = true
		docker.Settle(ctx, r.opts.Docker, c.container.ID)
		for _, signal := range c.signals {
			if err := docker.Kill(ctx, r.opts.Docker, c.container.ID, signal); err != nil {
				return fmt.Errorf("send %s: %w", label.SignalName(signal), err)
			}
		}
		if !retry.Pause(ctx, signalSettles) {
			return ctx.Err()
		}
		return c.ask(ctx, wish{is: readyAnew})
	}
	return nil
}

// placeTime is the time limit for putting files into a container before its start.
const placeTime = 5 * time.Second

// place puts files into a container that was just created, if there is time before its start. If not, its Applier finds them
// unread.
func (r *Registrar) place(ctx context.Context, id string, host label.Host) {
	ctx, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	log := r.opts.Log.With("container", fmt.Sprintf("%.12s", id))
	is, err := docker.InspectCreated(ctx, r.opts.Docker, id)
	if err != nil || !is.Unstarted {
		return // handled as an ordinary change
	}
	host.Internal = true
	instances, _ := label.Instances(is.Container, host)
	if len(instances) == 0 || instances[0].Group.Config+instances[0].Group.Files == "" {
		return
	}
	in := instances[0]
	log = log.With("service", in.Name)
	kv := store.New(r.opts.Groups.Consul)
	err = func() error {
		var w group.Wanted
		var old *docker.File
		both, asking := errgroup.WithContext(ctx) // every millisecond counts
		both.Go(func() (err error) {
			w, err = group.New(group.Options{Service: in.Name, Instance: in.ID, Consul: r.opts.Groups.Consul, Store: kv, Log: log}).First(asking)
			return err
		})
		both.Go(func() (err error) {
			if in.Group.Config != "" {
				old, err = docker.ReadFile(asking, r.opts.Groups.Archive, id, in.Group.Config)
			}
			return err
		})
		if err := both.Wait(); err != nil {
			return err
		}
		files, err := filesOf(in.Group, in.Name, kv, w)
		if err != nil {
			return err
		}
		return r.placeFiles(ctx, log, is, files, map[string]*docker.File{in.Group.Config: old})
	}()
	if err != nil {
		log.Warn(is.Name+" starts without the configuration and files of its group; they follow as a change", "err", err)
	}
}

func (r *Registrar) placeFiles(ctx context.Context, log *slog.Logger, is docker.Inspected, files []placed, known map[string]*docker.File) error {
	if len(files) == 0 {
		return nil
	}
	archive := r.opts.Groups.Archive
	var contents []docker.File
	for _, f := range files {
		text, err := f.text(ctx)
		if err != nil {
			return err
		}
		old, read := known[f.path]
		if !read {
			if old, err = docker.ReadFile(ctx, archive, is.ID, f.path); err != nil {
				return err
			}
		}
		contents = append(contents, like(old, docker.File{Name: path.Base(f.path), Text: text}))
	}
	put := func(modified time.Time) error {
		for i, f := range contents {
			f.Modified = modified
			if err := docker.WriteFiles(ctx, archive, is.ID, path.Dir(files[i].path), []docker.File{f}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := put(is.Container.Created.Truncate(time.Second)); err != nil {
		return err
	}
	now, err := docker.Inspect(ctx, r.opts.Docker, is.ID, nil)
	if err != nil || now.Unstarted {
		if err == nil {
			log.Info("put the configuration and files of the group into " + is.Name + " before its start")
		}
		return err
	}
	log.Info(is.Name + " started before it had the configuration and files of its group; they follow as a change")
	return put(unread(now.Started))
}
