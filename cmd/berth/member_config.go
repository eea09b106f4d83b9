package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"berth/proxyctl/supervise"
	"berth/registrar/group"
	"berth/registrar/group/format"
	"berth/registrar/group/store"
	templategroup "berth/templates/group"
)

// serviceConfigVariable holds configuration for the application of berth service. It overrides the defaults; the user's file
// overrides it.
const serviceConfigVariable = envPrefix + "SERVICE_CONFIG"

// memberConfig says how berth service takes part in its group.
type memberConfig struct {
	Group       string
	Render      []string
	Defaults    string
	UserConfig  string
	OnChange    string
	Strategy    string
	Restart     string
	Files       string
	OnFile      string
	Bind        []string
	BindingMode string
	Topology    string
	Priority    int
}

const (
	bindingStrict    = "strict"
	bindingRelaxed   = "relaxed"
	topologyNone     = "standalone"
	topologyLeader   = "leader"
	reactionRestart  = "restart"
	reactionNone     = "none"
	reactionSignal   = "signal:"
	reactionExec     = "exec:"
	reactionsInWords = "restart, signal:NAME, exec:COMMAND or none"
)

func (m *memberConfig) flags(f *pflag.FlagSet) {
	f.StringVar(&m.Group, "group", "", "group of the service; prod makes app the service app-prod in Consul (default: none)")
	f.StringArrayVar(&m.Render, "render", nil, "file to render for the command, as template:destination; can be repeated")
	f.StringVar(&m.Defaults, "defaults", "", "TOML, YAML or JSON file with the service's default configuration")
	f.StringVar(&m.UserConfig, "user-config", "", "TOML, YAML or JSON file that overrides the defaults and $"+serviceConfigVariable+"; applied configuration overrides it")
	f.StringVar(&m.OnChange, "on-change", reactionRestart, "what to do when a rendered file changes: "+reactionsInWords)
	f.StringVar(&m.Strategy, "strategy", group.Rolling, "how the group takes up a change: rolling (one instance at a time), at-once, or none (at the next start)")
	f.StringVar(&m.Restart, "restart", "no", "whether to start the command again when it ends by itself: no, on-failure or always")
	f.StringVar(&m.Files, "files", "", "directory for the service's files, see berth file put (default: none)")
	f.StringVar(&m.OnFile, "on-file", "", "what to do when one of these files changes: "+reactionsInWords+" (default: as --on-change)")
	f.StringArrayVar(&m.Bind, "bind", nil, "service that the command needs, as name:service; sets NAME_HOST and NAME_PORT; can be repeated")
	f.StringVar(&m.BindingMode, "binding-mode", bindingRelaxed, "when to start: strict waits for a healthy instance of each bound service, relaxed does not")
	f.StringVar(&m.Topology, "topology", topologyNone, "leader (one instance of the group leads, the rest follow) or standalone")
	f.IntVar(&m.Priority, "priority", 0, "priority in a leader election; the highest goes first")
}

// reaction says what to do with the command after a change.
type reaction struct{ kind, argument string }

// parseReaction reads restart, signal:HUP, exec:COMMAND or none.
func parseReaction(option, text string) (reaction, error) {
	switch signal, isSignal := strings.CutPrefix(text, reactionSignal); {
	case text == reactionRestart, text == reactionNone:
		return reaction{kind: text}, nil
	case isSignal && signalNumber(signal) != 0:
		return reaction{reactionSignal, signal}, nil
	case isSignal:
		return reaction{}, fmt.Errorf("%s: the signal must be one like HUP, not %q", option, signal)
	}
	if command, ok := strings.CutPrefix(text, reactionExec); ok && strings.TrimSpace(command) != "" {
		if _, err := reloadByCommand(command, execTime); err != nil {
			return reaction{}, fmt.Errorf("%s: %w", option, err)
		}
		return reaction{reactionExec, command}, nil
	}
	return reaction{}, fmt.Errorf("%s must be %s, not %q", option, reactionsInWords, text)
}

// target is a template and the file for its text.
type target struct{ template, destination string }

// membership is a parsed memberConfig.
type membership struct {
	targets          []target
	files            string // absolute, "" = none
	onChange, onFile reaction
	binds            []templategroup.Binding
}

// understand parses the options. Its errors begin with the option's name.
func (m memberConfig) understand() (membership, error) {
	var out membership
	var err error
	for _, text := range m.Render {
		template, destination, ok := strings.Cut(text, ":")
		if !ok || template == "" || destination == "" {
			return out, fmt.Errorf("render must be template:destination, not %q", text)
		}
		if strings.Contains(destination, ":") { // as in the option file
			return out, fmt.Errorf("render must be template:destination, not %q: set the reaction to a change with --on-change", text)
		}
		if destination, err = filepath.Abs(destination); err != nil {
			return out, fmt.Errorf("render: %w", err)
		}
		for _, r := range out.targets {
			if supervise.SamePath(r.destination, destination) {
				return out, fmt.Errorf("render: %s is the destination of two templates", destination)
			}
		}
		if _, err := os.ReadFile(template); err != nil {
			return out, fmt.Errorf("render: cannot read the template: %w", err)
		}
		if supervise.SamePath(template, destination) {
			return out, fmt.Errorf("render: %s is both the template and its destination: write to another file", template)
		}
		out.targets = append(out.targets, target{template, destination})
	}
	if m.Files != "" {
		if out.files, err = filepath.Abs(m.Files); err != nil {
			return out, fmt.Errorf("files: %w", err)
		}
	}
	if out.onChange, err = parseReaction("on-change", m.OnChange); err != nil {
		return out, err
	}
	out.onFile = out.onChange
	if m.OnFile != "" {
		if out.onFile, err = parseReaction("on-file", m.OnFile); err != nil {
			return out, err
		}
	}
	if out.binds, err = m.bindings(); err != nil {
		return out, err
	}
	switch {
	case !slices.Contains([]string{group.Rolling, group.AtOnce, group.None}, m.Strategy):
		return out, fmt.Errorf("strategy must be %s, %s or %s, not %q", group.Rolling, group.AtOnce, group.None, m.Strategy)
	case m.BindingMode != bindingStrict && m.BindingMode != bindingRelaxed:
		return out, fmt.Errorf("binding-mode must be %s or %s, not %q", bindingStrict, bindingRelaxed, m.BindingMode)
	case m.Topology != topologyLeader && m.Topology != topologyNone:
		return out, fmt.Errorf("topology must be %s or %s, not %q", topologyLeader, topologyNone, m.Topology)
	case m.OnFile != "" && m.Files == "":
		return out, errors.New("on-file needs --files")
	case m.Priority != 0 && m.Topology != topologyLeader:
		return out, errors.New("priority needs --topology leader")
	}
	_, _, err = m.base()
	return out, err
}

// bindings parses the binds. A service may be written with a group: redis:redis.prod.
func (m memberConfig) bindings() ([]templategroup.Binding, error) {
	var texts []string
	for _, text := range m.Bind {
		name, service, ok := strings.Cut(text, ":")
		if in, elsewhere, _ := strings.Cut(service, "@"); ok && in != "" {
			parsed, err := store.ParseService(in)
			if err != nil {
				return nil, fmt.Errorf("bind %q: %w", text, err)
			}
			text = name + ":" + parsed
			if elsewhere != "" {
				text += "@" + elsewhere
			}
		}
		texts = append(texts, text)
	}
	return templategroup.ParseBinds(texts)
}

// base returns the defaults merged with the variable and the user's file: everything that the applied text overrides. The files are
// read each time, so a restart takes up edits.
func (m memberConfig) base() (base, defaults map[string]any, err error) {
	base = map[string]any{}
	if m.Defaults != "" {
		if defaults, err = readTable("defaults", m.Defaults); err != nil {
			return nil, nil, err
		}
		base = defaults
	}
	if text := os.Getenv(serviceConfigVariable); text != "" {
		table, _, err := format.Parse([]byte(text), format.Any)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", serviceConfigVariable, err)
		}
		base = format.Merge(base, table)
	}
	if m.UserConfig != "" {
		table, err := readTable("user-config", m.UserConfig)
		if err != nil {
			return nil, nil, err
		}
		base = format.Merge(base, table)
	}
	return base, defaults, nil
}

func readTable(option, path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	table, _, err := format.Parse(text, format.KindOf(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", option, path, err)
	}
	return table, nil
}

// service returns the name of the group in Consul: app-prod for app and prod.
func (m memberConfig) service(name string) (string, error) {
	if m.Group == "" || store.ValidService(name) != nil { // the registration reports what is wrong with the name
		return name, nil
	}
	if strings.Contains(m.Group, ".") {
		return "", fmt.Errorf("group must be letters, digits, - and _, not %q", m.Group)
	}
	service, err := store.ParseService(name + "." + m.Group)
	if err != nil {
		return "", fmt.Errorf("group: %w", err)
	}
	return service, nil
}
