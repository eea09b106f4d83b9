package rollout

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"berth/registrar/label"
)

// Options say how to roll a service out. They are those of deploy.update_config in a compose file.
type Options struct {
	Parallelism     int           `json:"parallelism"` // how many at a time; 0 = all at once
	Delay           time.Duration `json:"delay"`       // between two batches
	Order           string        `json:"order"`       // StartFirst or StopFirst
	Monitor         time.Duration `json:"monitor"`     // how long new containers are watched before old ones leave
	FailureAction   string        `json:"failureAction"`
	MaxFailureRatio float64       `json:"maxFailureRatio"` // of all containers to replace

	ReadyTimeout time.Duration `json:"readyTimeout"` // for a new container to serve
	DrainTimeout time.Duration `json:"drainTimeout"` // for the in-flight requests of an old container
}

// The values of Options.Order and Options.FailureAction.
const (
	StartFirst = "start-first"
	StopFirst  = "stop-first"

	Pause    = "pause"
	Continue = "continue"
	Rollback = "rollback"
)

// Defaults returns the Options of a service whose file sets none.
func Defaults() Options {
	return Options{Parallelism: 1, Order: StartFirst, Monitor: 5 * time.Second, FailureAction: Rollback, ReadyTimeout: 2 * time.Minute, DrainTimeout: 5 * time.Minute}
}

// Validate returns an error naming an invalid option.
func (o Options) Validate() error {
	switch {
	case o.Parallelism < 0:
		return fmt.Errorf("parallelism must be 0 (all at once) or more, not %d", o.Parallelism)
	case o.Order != StartFirst && o.Order != StopFirst:
		return fmt.Errorf("order must be %s or %s, not %q", StartFirst, StopFirst, o.Order)
	case !slices.Contains([]string{Pause, Continue, Rollback}, o.FailureAction):
		return fmt.Errorf("failure-action must be %s, %s or %s, not %q", Pause, Continue, Rollback, o.FailureAction)
	case !(o.MaxFailureRatio >= 0 && o.MaxFailureRatio <= 1):
		return fmt.Errorf("max-failure-ratio must be from 0 to 1, not %v", o.MaxFailureRatio)
	case o.Delay < 0 || o.Monitor < 0 || o.ReadyTimeout <= 0 || o.DrainTimeout < 0:
		return fmt.Errorf("delay, monitor and drain-timeout must not be negative, and ready-timeout must be more than 0")
	}
	return nil
}

// Service is a service in a compose file.
type Service struct {
	Name     string
	Image    string // "" if it is built and has no own name
	Replicas int    // 1 if the file does not say
	After    []string
	Options  Options
	// Alone says why a new container cannot serve next to the old one, and what to do about it, or is "".
	Alone string

	toLeader string // the key by which only its leader gets requests, or ""
}

// ParseFile parses the services from the output of "compose config".
func ParseFile(text []byte) (map[string]Service, error) {
	var file struct {
		Services map[string]map[string]any `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("read compose's output for the file: %s", yaml.FormatError(err, false, false))
	}
	services := map[string]Service{}
	for name, in := range file.Services {
		marked := marked(in)
		s := Service{Name: name, Replicas: 1, Alone: alone(name, in, marked), After: names(in["depends_on"]), toLeader: label.ToLeader(marked)}
		s.Image, _ = in["image"].(string)
		deploy, _ := in["deploy"].(map[string]any)
		for _, n := range []any{deploy["replicas"], in["scale"]} {
			if count, err := strconv.Atoi(fmt.Sprint(n)); err == nil {
				s.Replicas = count
			}
		}
		update, _ := deploy["update_config"].(map[string]any)
		var err error
		if s.Options, err = options(update); err != nil {
			return nil, fmt.Errorf("%s: deploy.update_config: %w", name, err)
		}
		services[name] = s
	}
	return services, nil
}

// options parses an update_config.
func options(in map[string]any) (Options, error) {
	o := Defaults()
	for key, value := range in {
		text := fmt.Sprint(value)
		var err error
		switch key {
		case "parallelism":
			o.Parallelism, err = strconv.Atoi(text)
		case "delay":
			o.Delay, err = time.ParseDuration(text)
		case "monitor":
			o.Monitor, err = time.ParseDuration(text)
		case "order":
			o.Order = text
		case "failure_action":
			o.FailureAction = text
		case "max_failure_ratio":
			o.MaxFailureRatio, err = strconv.ParseFloat(text, 64)
		}
		if err != nil {
			return o, fmt.Errorf("%s is %q", key, text)
		}
	}
	return o, o.Validate()
}

// marked returns a service's labels and environment.
func marked(in map[string]any) label.Container {
	c := label.Container{Labels: labels(in["labels"])}
	for key, value := range labels(in["environment"]) {
		c.Env = append(c.Env, key+"="+value)
	}
	return c
}

// alone returns Service.Alone.
func alone(name string, in map[string]any, marked label.Container) string {
	const order = "or replace it with --order stop-first: requests then wait for the new one for up to SERVICE_ROUTE_HOLD"
	if text, _ := in["container_name"].(string); text != "" {
		return fmt.Sprintf("%s has the container_name %s, and two containers cannot share it: remove it from the file, %s", name, text, order)
	}
	for _, port := range list(in["ports"]) {
		if host := hostPort(port); host != "" {
			return fmt.Sprintf("%s publishes the host port %s, and two containers cannot share it: remove the host port and let the proxy route to it, %s", name, host, order)
		}
	}
	networks, _ := in["networks"].(map[string]any)
	for _, network := range sortedKeys(networks) {
		settings, _ := networks[network].(map[string]any)
		for _, key := range []string{"ipv4_address", "ipv6_address"} {
			if address := settings[key]; address != nil {
				return fmt.Sprintf("%s has the fixed address %v on the network %s, and two containers cannot share it: remove %s from the file, %s", name, address, network, key, order)
			}
		}
	}
	if mode, _ := in["network_mode"].(string); mode == "host" || strings.HasPrefix(mode, "service:") || strings.HasPrefix(mode, "container:") {
		return fmt.Sprintf("%s has network_mode %s, and two containers cannot listen on one port there: give it its own network, %s", name, mode, order)
	}
	if why := single(name, marked); why != "" {
		return why
	}
	if key := label.ToLeader(marked); key != "" {
		return unled(name, key, 1)
	}
	return ""
}

// single is the part of alone for SERVICE_SINGLE.
func single(name string, c label.Container) string {
	if value := label.Single(c); value != "" {
		return fmt.Sprintf("%s has SERVICE_SINGLE=%s, so only one container may use its volumes at a time: replace it with --order stop-first; requests then wait for the new one for up to SERVICE_ROUTE_HOLD", name, value)
	}
	return ""
}

// unled says why a new container would get no requests if a key of one of n containers reserves them for the leader.
func unled(name, key string, n int) string {
	order := ""
	if n == 1 {
		order = ", or, as long as it is the only one, with --order stop-first"
	}
	return fmt.Sprintf("%s has %s=leader, so a new container is not served next to the leader: replace it with 'docker compose up -d'%s", name, key, order)
}

// Fits says why a service cannot be rolled out in the order of its Options, and what to do about it, or returns "". image is
// an ID, or "" if the image is not here. Labels from the image are read from the containers, because the file does not have
// them.
func (s Service) Fits(containers []Container, image string) string {
	stopFirst, n := s.Options.Order == StopFirst, max(len(containers), s.Replicas)
	switch {
	case stopFirst && image == "":
		return "its image is not here, and the old one would be stopped before it is: add --pull or --build"
	case stopFirst && n == 1:
		return ""
	}
	for _, c := range containers {
		if key := label.ToLeader(c.Container); key != "" {
			return unled(c.short(), key, n)
		}
	}
	switch {
	case s.toLeader != "":
		return unled(s.Name, s.toLeader, n)
	case stopFirst:
		return ""
	}
	for _, c := range containers {
		if why := single(c.short(), c.Container); why != "" {
			return why
		}
	}
	return s.Alone
}

// hostPort returns the host port of a service's port, or "" if Docker chooses it.
func hostPort(port any) string {
	host := ""
	switch p := port.(type) {
	case map[string]any:
		if p["published"] != nil {
			host = fmt.Sprint(p["published"])
		}
	default:
		text, _, _ := strings.Cut(fmt.Sprint(p), "/")
		if at := strings.LastIndex(text, ":"); at >= 0 {
			host = text[:at]
			host = host[strings.LastIndex(host, ":")+1:]
		}
	}
	if host == "0" || strings.Contains(host, "-") {
		return ""
	}
	return host
}

// labels reads labels or an environment, given as a map or as a list of NAME=VALUE.
func labels(in any) map[string]string {
	out := map[string]string{}
	if m, ok := in.(map[string]any); ok {
		for key, value := range m {
			out[key] = fmt.Sprint(value)
		}
	}
	for _, entry := range list(in) {
		key, value, _ := strings.Cut(fmt.Sprint(entry), "=")
		out[key] = value
	}
	return out
}

// names reads names, given as a list or as the keys of a map.
func names(in any) (out []string) {
	if m, ok := in.(map[string]any); ok {
		return sortedKeys(m)
	}
	for _, entry := range list(in) {
		out = append(out, fmt.Sprint(entry))
	}
	return out
}

func list(in any) []any {
	l, _ := in.([]any)
	return l
}

func sortedKeys(m map[string]any) (keys []string) {
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Sort sorts services for their rollout: each after those that it depends on, directly or not, and otherwise in the given
// order.
func Sort(given []string, file map[string]Service) (sorted []string) {
	seen := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, before := range file[name].After {
			visit(before)
		}
		if slices.Contains(given, name) {
			sorted = append(sorted, name)
		}
	}
	for _, name := range given {
		visit(name)
	}
	return sorted
}
