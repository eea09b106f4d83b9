package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/proxyctl/file"
	"berth/registrar/group"
	"berth/registrar/group/format"
	"berth/registrar/group/store"
	service "berth/registrar/process"
)

// rawFormat is the Format of an unchecked text.
const rawFormat = "raw"

// memberChange is the difference between the current and the wanted files and environment of a command.
type memberChange struct {
	m           *member
	files       *file.Replacement
	reactions   []reaction // to carry out after the files were written; a restart is the only one then
	environment []string   // that the next start gets
	before      []string
	restart     uint64 // the order that it carries out
	begun       bool   // the command may have taken something up
}

// Prepare works out what w changes.
func (m *member) Prepare(ctx context.Context, w group.Wanted) (group.Change, error) {
	return m.change(ctx, w)
}

func (m *member) change(ctx context.Context, w group.Wanted) (*memberChange, error) {
	if err := m.merge(w.Config); err != nil {
		return nil, err
	}
	c := &memberChange{m: m, restart: w.Restart, before: *m.environment.Load(), environment: []string{}}
	contents := map[string][]byte{}
	if m.templater != nil {
		texts, err := m.templater.Render(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range m.targets {
			contents[r.destination] = []byte(texts[r.destination].Text)
		}
		c.environment = append(c.environment, m.bound.Load().environment...)
	}
	put, err := m.putFiles(ctx, w.Files)
	if err != nil {
		return nil, err
	}
	maps.Copy(contents, put)
	if c.files, err = file.NewReplacement(contents, m.log); err != nil {
		return nil, err
	}
	differ := c.files.Paths()
	restarts := w.Restart > m.restarted
	for _, r := range []struct {
		reaction
		due bool
	}{
		{m.onChange, slices.ContainsFunc(differ, m.isTarget)},
		{m.onFile, slices.ContainsFunc(differ, func(path string) bool { return !m.isTarget(path) && path != m.manifest() })},
	} {
		switch {
		case !r.due || r.kind == reactionNone || slices.Contains(c.reactions, r.reaction):
		case r.kind == reactionRestart:
			restarts = true
		default:
			c.reactions = append(c.reactions, r.reaction)
		}
	}
	if m.onChange.kind == reactionRestart && !slices.Equal(c.before, c.environment) {
		restarts = true
	}
	if restarts {
		c.reactions = []reaction{{kind: reactionRestart}}
	}
	return c, nil
}

// merge sets what the template function cfg sees.
func (m *member) merge(v store.Version) error {
	base, defaults, err := m.config.base()
	if err != nil {
		return err
	}
	table := base
	if len(v.Text) > 0 && v.Format != rawFormat {
		applied, _, err := format.Parse(v.Text, format.Kind(v.Format))
		if err != nil {
			return fmt.Errorf("version %d of the configuration: %w", v.Version, err)
		}
		table = format.Merge(base, applied)
		if id := fmt.Sprint(v.Version, " ", v.Sum); defaults != nil && !m.told[id] {
			m.told[id] = true
			if unknown := format.Unknown(defaults, applied); len(unknown) > 0 {
				m.log.Warn("the applied configuration of "+m.name+" has keys that the defaults lack: check the spelling",
					"service", m.name, "instance", m.id, "version", v.Version, "keys", strings.Join(unknown, ", "))
			}
		}
	}
	m.table.Store(&table)
	return nil
}

// putFiles returns the wanted contents of the files in the directory, by path: nil for removed files, and the manifest. It reads a
// text from Consul only if the file differs.
func (m *member) putFiles(ctx context.Context, wanted map[string]store.Header) (map[string][]byte, error) {
	if m.files == "" {
		return nil, nil
	}
	contents := map[string][]byte{}
	list := m.manifest()
	before, err := readManifest(list)
	if err != nil {
		return nil, err
	}
	for _, name := range before {
		if path := filepath.Join(m.files, name); wanted[name].Sum == "" && !m.isTarget(path) {
			contents[path] = nil
		}
	}
	for name, h := range wanted {
		path := filepath.Join(m.files, name)
		err := store.ValidFile(name)
		switch {
		case path == list:
			err = errors.New("berth keeps its list of files there")
		case m.isTarget(path):
			err = errors.New("a template is rendered there")
		}
		if err != nil {
			return nil, fmt.Errorf("cannot put file %q into %s: %w: use another name", name, m.files, err)
		}
		if text, err := os.ReadFile(path); err == nil && store.Sum(text) == h.Sum {
			contents[path] = text
			continue
		}
		if contents[path], err = m.store.Text(ctx, store.Item{Service: m.name, File: name}, h); err != nil {
			return nil, err
		}
	}
	names := slices.Sorted(maps.Keys(wanted))
	if len(names) == 0 {
		contents[list] = nil
		return contents, nil
	}
	text, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	contents[list] = append(text, '\n')
	return contents, nil
}

// manifest returns the path of the list of files that berth has written.
func (m *member) manifest() string { return filepath.Join(m.files, manifest) }

// isTarget reports whether a template is rendered to a path.
func (m *member) isTarget(path string) bool {
	return slices.ContainsFunc(m.targets, func(r target) bool { return r.destination == path })
}

// readManifest returns the names of the files that berth has written into a directory.
func readManifest(path string) (names []string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(text), &names)
	}
	if err != nil {
		return nil, fmt.Errorf("berth's list of files: %w: remove %s to keep the existing files", err, path)
	}
	return slices.DeleteFunc(names, func(name string) bool { return store.ValidFile(name) != nil }), nil
}

// Empty reports that nothing differs.
func (c *memberChange) Empty() bool {
	return c.files.Empty() && len(c.reactions) == 0 && slices.Equal(c.before, c.environment)
}

// Disrupts reports whether the command has to react. The effect of a signal or of the operator's own command is unknown.
func (c *memberChange) Disrupts() bool { return len(c.reactions) > 0 }

// Apply writes the files and returns when the command has taken them up and is ready.
func (c *memberChange) Apply(ctx context.Context) error {
	if err := c.files.Apply(); err != nil {
		return err
	}
	c.m.environment.Store(&c.environment)
	c.begun = true
	if err := c.react(ctx); err != nil {
		return err
	}
	c.m.restarted = c.restart
	return nil
}

// Revert restores the previous files, and lets the command take them up if it may have taken up the new ones.
func (c *memberChange) Revert(ctx context.Context) error {
	c.m.environment.Store(&c.before)
	err := c.files.Revert()
	if c.begun {
		err = errors.Join(err, c.react(ctx))
	}
	return err
}

func (c *memberChange) react(ctx context.Context) error {
	for _, r := range c.reactions {
		if err := c.m.react(ctx, r); err != nil {
			return stopping(err)
		}
	}
	return nil
}

// react returns when the command has reacted. A command that does not run after a failure is started: nothing else would make it
// take up the change.
func (m *member) react(ctx context.Context, r reaction) (err error) {
	switch s := m.service; {
	case r.kind == reactionRestart || s.State().PID == 0:
		return s.Restart(ctx)
	case r.kind == reactionSignal:
		err = s.Signal(signalNumber(r.argument))
	default:
		err = m.exec(ctx, r.argument)
	}
	if err != nil {
		return err
	}
	return m.service.Ready(ctx)
}

// exec runs a command of on-change.
func (m *member) exec(ctx context.Context, command string) error {
	run, err := reloadByCommand(command, execTime)
	if err != nil {
		return err
	}
	return run(ctx)
}

// Drain takes the instance out of service.
func (m *member) Drain(ctx context.Context, reason string) error {
	return stopping(m.service.Drain(ctx, reason))
}

// Resume puts the instance back into service.
func (m *member) Resume(ctx context.Context) error { return stopping(m.service.Resume(ctx)) }

// stopping tells the Applier that a stopping instance says nothing about a change.
func stopping(err error) error {
	if errors.Is(err, service.ErrStopping) {
		return group.ErrStopping
	}
	return err
}
