package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/proxyctl/file"
	"berth/templater"
)

// fileEntry is one of the plain files in the configuration: a template, where its text goes, and what to do then.
type fileEntry struct {
	Template  string        `mapstructure:"template"`
	File      string        `mapstructure:"file"`
	Mode      string        `mapstructure:"mode"`
	User      string        `mapstructure:"user"`
	Group     string        `mapstructure:"group"`
	Command   string        `mapstructure:"command"`
	Container string        `mapstructure:"container"`
	PIDFile   string        `mapstructure:"pid-file"`
	Signal    string        `mapstructure:"signal"`
	Timeout   time.Duration `mapstructure:"timeout"`

	name string // what errors call it
}

// fileKeys are the keys of an entry.
var fileKeys = []string{"template", "file", "mode", "user", "group", "command", "container", "pid-file", "signal", "timeout"}

const (
	defaultFileTimeout = 30 * time.Second // as consul-template's
	defaultFileSignal  = "HUP"
)

// checkFiles says what is wrong with the entries of a configuration file better than decoding would, which takes the
// mode 0640 for the number 416.
func checkFiles(raw any) error {
	if raw == nil {
		return nil
	}
	entries, ok := raw.([]any)
	if !ok {
		return errors.New("files must be a list of entries, each with template and file")
	}
	for i, raw := range entries {
		name := fmt.Sprintf("files: entry %d", i+1)
		entry, ok := raw.(map[string]any)
		if !ok {
			return fmt.Errorf("%s must have the keys template and file, it is %v", name, raw)
		}
		for _, key := range slices.Sorted(maps.Keys(entry)) {
			_, isText := entry[key].(string)
			_, isNumber := entry[key].(int)
			switch {
			case !slices.Contains(fileKeys, key):
				return fmt.Errorf("%s: unknown key %q: the keys are %s", name, key, strings.Join(fileKeys, ", "))
			case isText, isNumber && (key == "user" || key == "group"):
			case key == "mode":
				return fmt.Errorf(`%s: mode needs quotes, like mode: "0640"`, name)
			default:
				return fmt.Errorf("%s: %s must be a text, not %v", name, key, entry[key])
			}
		}
		if s, ok := entry["timeout"].(string); ok {
			if d, err := time.ParseDuration(s); err != nil || d <= 0 {
				return fmt.Errorf("%s: timeout must be a duration like 30s or 1m, not %q", name, s)
			}
		}
	}
	return nil
}

// fileEntries are the plain files to render, of the configuration file and of the file option.
func (c Config) fileEntries() ([]fileEntry, error) {
	var entries []fileEntry
	for i, e := range c.Files {
		e.name = fmt.Sprintf("files: entry %d", i+1)
		entries = append(entries, e)
	}
	for _, s := range c.File {
		e := fileEntry{name: fmt.Sprintf("file %q", s)}
		part := strings.SplitN(s, ":", 3)
		if len(part) < 2 {
			return nil, fmt.Errorf("%s must be template:destination or template:destination:command", e.name)
		}
		e.Template, e.File = part[0], part[1]
		if len(part) == 3 {
			e.Command = part[2]
		}
		entries = append(entries, e)
	}
	for i, e := range entries {
		if err := e.validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		if x := c.proxy(); x.file != "" && samePath(e.File, x.file) {
			return nil, fmt.Errorf("%s: %s is %s-config: name its template with the option template", e.name, e.File, x.name)
		}
		for j, other := range entries {
			if i > j && samePath(e.File, other.File) {
				return nil, fmt.Errorf("%s: %s is the file of %s, too: give each its own", e.name, e.File, strings.TrimPrefix(other.name, "files: "))
			}
			if samePath(e.File, other.Template) {
				return nil, fmt.Errorf("%s: %s is a template: give the file another name", e.name, e.File)
			}
		}
	}
	return entries, nil
}

// validate says what is wrong with an entry by itself.
func (e fileEntry) validate() error {
	actions := slices.DeleteFunc([]string{e.Command, e.Container, e.PIDFile}, func(s string) bool { return s == "" })
	switch {
	case e.Template == "":
		return errors.New("template is missing: name a consul-template file")
	case e.File == "":
		return errors.New("file is missing: name the file to write")
	case e.Mode != "" && e.mode() == 0:
		return fmt.Errorf(`mode must be octal digits like "0640", not %q`, e.Mode)
	case len(actions) > 1:
		return errors.New("command, container and pid-file are three ways to act on a change: choose one")
	case e.Signal != "" && e.Container == "" && e.PIDFile == "":
		return errors.New("signal needs a container or a pid-file to send it to")
	case e.Signal != "" && signalNumber(e.Signal) == 0:
		return fmt.Errorf("signal must be a signal like HUP, not %q", e.Signal)
	case e.Timeout != 0 && len(actions) == 0:
		return errors.New("timeout is that of a command or a signal: there is none")
	}
	return nil
}

// mode is 0 if there is none, or none that is one.
func (e fileEntry) mode() fs.FileMode {
	mode, err := strconv.ParseUint(e.Mode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0
	}
	return fs.FileMode(mode)
}

// owner is who the file is to belong to, nil if that is left as it is.
func (e fileEntry) owner() (*file.Owner, error) {
	if e.User == "" && e.Group == "" {
		return nil, nil
	}
	o := file.Owner{UID: -1, GID: -1}
	var err error
	if e.User != "" {
		if o.UID, err = number(e.User, func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return nil, fmt.Errorf("user %s is not known here, give its number: %w", e.User, err)
		}
	}
	if e.Group != "" {
		if o.GID, err = number(e.Group, func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return nil, fmt.Errorf("group %s is not known here, give its number: %w", e.Group, err)
		}
	}
	return &o, nil
}

// number is that of a user or group given by number or name.
func number(s string, lookup func(name string) (string, error)) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return int(n), nil
	}
	id, err := lookup(s)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(id)
}

// action is what to do when the file has changed, and what the log calls it; nil for nothing.
func (e fileEntry) action() (act func(context.Context) error, does string, err error) {
	timeout, signal := e.Timeout, strings.ToUpper(e.Signal)
	if timeout == 0 {
		timeout = defaultFileTimeout
	}
	if signal == "" {
		signal = defaultFileSignal
	}
	switch {
	case e.Command != "":
		if _, err := exec.LookPath("sh"); err != nil {
			return nil, "", fmt.Errorf("command needs a shell, and there is none here: use container or pid-file: %w", err)
		}
		act, err = reloadByCommand(e.Command, timeout)
		return act, e.Command, err
	case e.Container != "":
		kill, err := reloadBySignal(e.Container, signal)
		return func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return kill(ctx)
		}, signal + " to container " + e.Container, err
	case e.PIDFile != "":
		return func(context.Context) error {
			if err := signalByPIDFile(e.PIDFile, signalNumber(signal)); err != nil {
				return fmt.Errorf("send %s to the process in %s: %w", signal, e.PIDFile, err)
			}
			return nil
		}, signal + " to the process in " + e.PIDFile, nil
	}
	return nil, "", nil
}

// signalByPIDFile sends a signal to the process whose number is the first line of a file.
func signalByPIDFile(path string, signal syscall.Signal) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	switch {
	case err != nil || pid <= 0:
		return fmt.Errorf("its first line is no process number: %.20q", line)
	case pid == os.Getpid():
		return fmt.Errorf("process %d is berth itself: it must see the application's processes (pid: container:… in Docker)", pid)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

// addFiles adds the plain files to the parts of the process. It returns their templates, by whose names the funcs take
// the texts.
func (p *process) addFiles() ([]templater.Template, map[string]func(text string, since time.Time), error) {
	entries, err := p.config.fileEntries()
	if err != nil {
		return nil, nil, err
	}
	var list []templater.Template
	set := map[string]func(string, time.Time){}
	for _, e := range entries {
		if _, err := os.ReadFile(e.Template); err != nil {
			return nil, nil, fmt.Errorf("%s: cannot read the template: %w", e.name, err)
		}
		path, err := filepath.Abs(e.File)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", e.name, err)
		}
		owner, err := e.owner()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", e.name, err)
		}
		act, does, err := e.action()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", e.name, err)
		}
		f := file.New(file.Options{Path: path, Mode: e.mode(), Owner: owner, Action: act, ActionName: does, Log: p.log, Metrics: p.metrics})
		p.parts = append(p.parts, f)
		list = append(list, templater.Template{Name: path, Source: e.Template, File: e.Template, Destination: path})
		set[path] = f.Set
	}
	return list, set, nil
}

// filesOnly says whether there is no proxy to look after, only plain files.
func (p *process) filesOnly() (bool, error) {
	switch {
	case p.proxy.file != "":
		return false, nil
	case len(p.config.File)+len(p.config.Files) == 0:
		return false, fmt.Errorf("%s-config is none, and there are no files: there is nothing to render", p.proxy.name)
	case p.config.Template != "":
		return false, fmt.Errorf("%s-config is none: the option template is for that, give this template with file or files", p.proxy.name)
	case p.child != nil:
		return false, fmt.Errorf("%s-config is none: the %s behind -- needs it", p.proxy.name, p.proxy.title)
	}
	return true, nil
}
