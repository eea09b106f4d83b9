package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/proxyctl/file"
	"berth/proxyctl/supervise"
	"berth/templater"
)

// fileEntry is a plain file in the configuration: a template, its destination, and the action after a change.
type fileEntry struct {
	name           string // in errors
	Template, File string
	Mode           string
	User, Group    string // names or numbers

	Command, Container, PIDFile string // one of them at most
	Signal                      string
	Timeout                     time.Duration // 0 = 30 s
}

const (
	defaultFileTimeout = 30 * time.Second // as consul-template's
	defaultFileSignal  = "HUP"
)

// fileEntries returns the plain files to render, from the key files of the configuration file and from the option file.
func fileEntries(raw any, options []string) ([]fileEntry, error) {
	list, ok := raw.([]any)
	if !ok && raw != nil {
		return nil, errors.New("files must be a list of entries, each with template and file")
	}
	var entries []fileEntry
	for i, raw := range list {
		e := fileEntry{name: fmt.Sprintf("files: entry %d", i+1)}
		entry, ok := raw.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s must have the keys template and file, not %v", e.name, raw)
		}
		if err := e.decode(entry); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		entries = append(entries, e)
	}
	for _, option := range options {
		e := fileEntry{name: fmt.Sprintf("file %q", option)}
		part := strings.SplitN(option, ":", 3)
		if len(part) < 2 {
			return nil, fmt.Errorf("%s must be template:destination or template:destination:command", e.name)
		}
		e.Template, e.File = part[0], part[1]
		if len(part) == 3 {
			e.Command = part[2]
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// decode reads an entry of the configuration file. It accepts only strings: a general decoder would read the mode 0640 as the
// number 416.
func (e *fileEntry) decode(entry map[string]any) error {
	var timeout string
	keys := []string{"template", "file", "mode", "user", "group", "command", "container", "pid-file", "signal", "timeout"}
	fields := []*string{&e.Template, &e.File, &e.Mode, &e.User, &e.Group, &e.Command, &e.Container, &e.PIDFile, &e.Signal, &timeout}
	for _, key := range slices.Sorted(maps.Keys(entry)) {
		at := slices.Index(keys, key)
		_, isText := entry[key].(string)
		_, isNumber := entry[key].(int)
		switch {
		case at < 0:
			return fmt.Errorf("unknown key %q: the keys are %s", key, strings.Join(keys, ", "))
		case isText, isNumber && (key == "user" || key == "group"):
			*fields[at] = fmt.Sprint(entry[key])
		case key == "mode":
			return errors.New(`mode needs quotes, like mode: "0640"`)
		default:
			return fmt.Errorf("%s must be a text, not %v", key, entry[key])
		}
	}
	if _, given := entry["timeout"]; given {
		var err error
		if e.Timeout, err = time.ParseDuration(timeout); err != nil || e.Timeout <= 0 {
			return fmt.Errorf("timeout must be a duration like 30s or 1m, not %q", timeout)
		}
	}
	return nil
}

// checkFiles returns the first error in the plain files, alone or in combination.
func (c *Config) checkFiles() error {
	proxy := c.proxy().common()
	for i, e := range c.Files {
		if err := e.validate(); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if proxy.File != "" && supervise.SamePath(e.File, proxy.File) {
			return fmt.Errorf("%s: %s is %s-config: set its template with the option template", e.name, e.File, proxy.name)
		}
		for j, other := range c.Files {
			if i > j && supervise.SamePath(e.File, other.File) {
				return fmt.Errorf("%s: %s is also the file of %s: use different files", e.name, e.File, strings.TrimPrefix(other.name, "files: "))
			}
			if supervise.SamePath(e.File, other.Template) {
				return fmt.Errorf("%s: %s is a template: write to another file", e.name, e.File)
			}
		}
	}
	return nil
}

// validate returns the first error in an entry.
func (e fileEntry) validate() error {
	actions := slices.DeleteFunc([]string{e.Command, e.Container, e.PIDFile}, func(s string) bool { return s == "" })
	switch {
	case e.Template == "":
		return errors.New("template is missing: set a consul-template file")
	case e.File == "":
		return errors.New("file is missing: set the file to write")
	case e.Mode != "" && e.mode() == 0:
		return fmt.Errorf(`mode must be octal digits like "0640", not %q`, e.Mode)
	case len(actions) > 1:
		return errors.New("command, container and pid-file exclude each other: choose one")
	case e.Signal != "" && e.Container == "" && e.PIDFile == "":
		return errors.New("signal needs a container or a pid-file to send it to")
	case e.Signal != "" && signalNumber(e.Signal) == 0:
		return fmt.Errorf("signal must be a signal like HUP, not %q", e.Signal)
	case e.Timeout != 0 && len(actions) == 0:
		return errors.New("timeout needs a command or a signal")
	}
	return nil
}

// mode returns the file's mode, 0 if none or a bad one is given.
func (e fileEntry) mode() fs.FileMode {
	mode, err := strconv.ParseUint(e.Mode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0
	}
	return fs.FileMode(mode)
}

// owner returns the wanted owner of the file, nil to leave it unchanged.
func (e fileEntry) owner() (*file.Owner, error) {
	if e.User == "" && e.Group == "" {
		return nil, nil
	}
	uid, err := accountID("user", e.User, func() (string, error) {
		u, err := user.Lookup(e.User)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
	if err != nil {
		return nil, err
	}
	gid, err := accountID("group", e.Group, func() (string, error) {
		g, err := user.LookupGroup(e.Group)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return &file.Owner{UID: uid, GID: gid}, err
}

// accountID returns the number of a user or group given by name or number; -1 for no name.
func accountID(kind, name string, lookUp func() (id string, err error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	id, err := lookUp()
	if err != nil {
		return 0, fmt.Errorf("unknown %s %s, use its number: %w", kind, name, err)
	}
	return strconv.Atoi(id)
}

// action returns what to do when the file has changed, nil for nothing, and its name for the log.
func (e fileEntry) action() (act func(context.Context) error, name string, err error) {
	timeout := cmp.Or(e.Timeout, defaultFileTimeout)
	signal := cmp.Or(strings.ToUpper(e.Signal), defaultFileSignal)
	switch {
	case e.Command != "":
		act, err = reloadByCommand(e.Command, timeout)
		return act, e.Command, err
	case e.Container != "":
		act, err = reloadBySignal(e.Container, signal, timeout)
		return act, signal + " to container " + e.Container, err
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
		return fmt.Errorf("its first line is not a process number: %.20q", line)
	case pid == os.Getpid():
		return fmt.Errorf("process %d is berth itself: it must see the application's processes (pid: container:… in Docker)", pid)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

// plainFiles returns the files of the configuration.
func (p *process) plainFiles() ([]output, error) {
	var outputs []output
	for _, e := range p.config.Files {
		o, err := p.plainFile(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		outputs = append(outputs, o)
	}
	return outputs, nil
}

func (p *process) plainFile(e fileEntry) (output, error) {
	if _, err := os.ReadFile(e.Template); err != nil {
		return output{}, fmt.Errorf("cannot read the template: %w", err)
	}
	path, err := filepath.Abs(e.File)
	if err != nil {
		return output{}, err
	}
	owner, err := e.owner()
	if err != nil {
		return output{}, err
	}
	act, name, err := e.action()
	if err != nil {
		return output{}, err
	}
	f := file.New(file.Options{Path: path, Mode: e.mode(), Owner: owner, Action: act, ActionName: name, Log: p.log, Metrics: p.metrics})
	return output{
		runner:   f,
		template: templater.Template{Name: path, Source: e.Template, File: e.Template, Destination: path},
		set:      func(p templater.Published) { f.Set(p.Text, p.Since) },
	}, nil
}

// looksAfterProxy reports whether berth manages a proxy, or only plain files. supervised says that berth also runs the proxy.
func (p *process) looksAfterProxy(supervised bool) (bool, error) {
	proxy := p.proxy.common()
	switch {
	case proxy.File != "":
		return true, nil
	case len(p.config.Files) == 0:
		return false, fmt.Errorf("%s-config is none and there are no files: nothing to render", proxy.name)
	case p.config.Template != "":
		return false, fmt.Errorf("%s-config is none, so the option template has no effect: use file or files for this template", proxy.name)
	case supervised:
		return false, fmt.Errorf("%s-config is none: the %s behind -- needs it", proxy.name, proxy.title)
	}
	return false, nil
}
