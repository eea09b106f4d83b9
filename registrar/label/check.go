package label

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/consul/api"
)

// Check is a health check that is registered with an instance.
type Check struct {
	Definition api.AgentServiceCheck // complete but for CheckID and Status
	Status     string                // in the beginning; "" = passing
	TTL        time.Duration         // of a TTL check, which berth keeps alive while the container runs; 0 = another kind
	Health     bool                  // a TTL check that mirrors Docker's HEALTHCHECK
}

const (
	checkPrefix = "check_"

	defaultInterval = 10 * time.Second // Registrator's
	minInterval     = time.Second      // Consul's: an agent makes a shorter one that long
	minDeregister   = time.Minute      // likewise

	// healthTTL is how long the last word of Docker's HEALTHCHECK counts when nobody repeats it.
	healthTTL = 24 * time.Hour

	maxPath = 1024
)

var (
	token       = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$") // RFC 9110, 5.6.2
	checkNumber = regexp.MustCompile(`^[1-9]_`)
)

// checks returns the health checks of an instance: what its labels declare, Docker's HEALTHCHECK, and the registrar's own
// sign of life. A check that is declared badly is left out. The keys that declare checks are taken.
func checks(c Container, p Port, keys portKeys, in Instance, h Host) (out []Check, problems []string) {
	mirror := keys.take(checkPrefix + "docker")
	out, problems = declared(c, p, keys, in, h)
	if c.Health != "" && (mirror == "" || !isNo(mirror)) {
		check := ttlCheck("Docker HEALTHCHECK", healthTTL)
		check.Health = true
		out = append(out, check)
	}
	if h.TTL > 0 {
		out = append(out, ttlCheck("berth registrar", h.TTL))
	}
	return out, problems
}

func ttlCheck(name string, ttl time.Duration) Check {
	return Check{Definition: api.AgentServiceCheck{Name: name, TTL: ttl.String()}, TTL: ttl}
}

// declared returns the checks that labels declare: SERVICE_CHECK_HTTP and so on, and up to nine more with all
// options of their own, SERVICE_CHECK_1_HTTP to SERVICE_CHECK_9_HTTP.
func declared(c Container, p Port, keys portKeys, in Instance, h Host) (out []Check, problems []string) {
	groups := map[string]*checkKeys{}
	for _, key := range slices.Sorted(maps.Keys(keys.values)) {
		rest, ok := strings.CutPrefix(key, checkPrefix)
		if !ok {
			continue
		}
		prefix := checkPrefix
		if checkNumber.MatchString(rest) {
			prefix, rest = checkPrefix+rest[:2], rest[2:]
		}
		if groups[prefix] == nil {
			groups[prefix] = &checkKeys{portKeys: keys, prefix: prefix, values: map[string]string{}}
		}
		groups[prefix].values[rest] = keys.take(key)
	}
	// "check_" sorts before "check_1_".
	for _, prefix := range slices.Sorted(maps.Keys(groups)) {
		checks, why := groups[prefix].checks(c, p, in, h)
		out, problems = append(out, checks...), append(problems, why...)
	}
	return out, problems
}

// checkKeys holds the keys that declare checks together: one of each kind, with the same interval, timeout and so on.
type checkKeys struct {
	portKeys
	prefix string            // of the keys: "check_" or "check_1_"
	values map[string]string // by what follows the prefix
}

func (k *checkKeys) spelling(key string) string { return k.portKeys.spelling(k.prefix + key) }

// checks returns the checks that the keys declare, and the reasons for the ones that are left out.
func (k *checkKeys) checks(c Container, p Port, in Instance, h Host) (out []Check, problems []string) {
	hostPort := net.JoinHostPort(targetHost(in, h), strconv.Itoa(in.Port))
	kinds := []struct {
		key  string
		make func(value string) (Check, error)
		tcp  bool // it connects to the port over TCP
	}{
		{"http", func(path string) (Check, error) { return k.http("http", hostPort, path) }, true},
		{"https", func(path string) (Check, error) { return k.http("https", hostPort, path) }, true},
		{"tcp", func(string) (Check, error) { return k.tcp(hostPort) }, true},
		{"grpc", func(string) (Check, error) { return k.grpc(hostPort) }, true},
		{"script", func(script string) (Check, error) { return k.script(script, in, h) }, false},
		{"cmd", func(cmd string) (Check, error) { return k.cmd(cmd, c, p, h) }, false},
		{"ttl", k.ttl, false},
	}
	known := map[string]bool{}
	for _, kind := range kinds {
		known[kind.key] = true
		value := k.values[kind.key]
		if value == "" || ((kind.key == "tcp" || kind.key == "grpc") && isNo(value)) {
			continue
		}
		var (
			check Check
			err   error
		)
		if kind.tcp && p.Protocol != "tcp" {
			if !k.isOwn(k.prefix+kind.key) || c.exposes(p.Number, "tcp") {
				continue // meant for another port
			}
			err = fmt.Errorf("nothing answers it on a %s port", p.Protocol)
		} else if check, err = kind.make(value); err == nil {
			out = append(out, check)
			continue
		}
		problems = append(problems, fmt.Sprintf("%s is left out: %v", k.spelling(kind.key), err))
	}
	return out, append(problems, k.unknown(known)...)
}

// unknown returns a reason for each key that says nothing about a check.
func (k *checkKeys) unknown(known map[string]bool) (problems []string) {
	for _, key := range []string{"interval", "timeout", "http_method", "https_method", "grpc_use_tls", "tls_skip_verify", "initial_status", "deregister_after"} {
		known[key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(k.values)) {
		if !known[key] && !strings.HasPrefix(key, "header_") {
			problems = append(problems, k.spelling(key)+" is left out: there is no such key; a check is declared by HTTP, HTTPS, TCP, GRPC, SCRIPT, CMD or TTL")
		}
	}
	return problems
}

// targetHost returns the host at which the agent finds the instance.
func targetHost(in Instance, h Host) string {
	switch {
	case in.Address != "":
		return in.Address
	case h.NodeAddress != "":
		return h.NodeAddress
	}
	return loopback
}

func (k *checkKeys) http(scheme, hostPort, path string) (Check, error) {
	if err := validPath(path); err != nil {
		return Check{}, err
	}
	u, err := url.Parse(scheme + "://" + hostPort + path)
	if err != nil || u.Host != hostPort {
		return Check{}, fmt.Errorf("%s is no path of a URL", quote(path))
	}
	method := k.values[scheme+"_method"]
	if method != "" && !token.MatchString(method) {
		return Check{}, fmt.Errorf("%s=%s is no HTTP method: use one like GET or HEAD", k.spelling(scheme+"_method"), quote(method))
	}
	header, err := k.header()
	if err != nil {
		return Check{}, err
	}
	name := method
	if name == "" {
		name = http.MethodGet
	}
	return k.timed(api.AgentServiceCheck{
		Name:          fmt.Sprintf("%s %s %s", strings.ToUpper(scheme), name, path),
		HTTP:          scheme + "://" + hostPort + path,
		Method:        method,
		Header:        header,
		TLSSkipVerify: scheme == "https" && !isNo(k.values["tls_skip_verify"]),
	})
}

func validPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("%s does not begin with /", quote(path))
	case !isPlain(path) || strings.ContainsFunc(path, unicode.IsSpace):
		return fmt.Errorf("%s has blanks or characters that are no text: write them as %%20 and so on", quote(path))
	case len(path) > maxPath:
		return fmt.Errorf("%s is longer than %d bytes", quote(path), maxPath)
	}
	return nil
}

// header returns the HTTP headers of a check: SERVICE_CHECK_HEADER_X_API_KEY is X-Api-Key. A value may be a secret, so no
// reason shows one.
func (k *checkKeys) header() (http.Header, error) {
	var header http.Header
	for _, key := range slices.Sorted(maps.Keys(k.values)) {
		name, ok := strings.CutPrefix(key, "header_")
		if !ok {
			continue
		}
		name = strings.ReplaceAll(name, "_", "-")
		value := strings.TrimSpace(k.values[key])
		switch {
		case !token.MatchString(name):
			return nil, fmt.Errorf("%s is no header's name", k.spelling(key))
		case !isPlain(value):
			return nil, fmt.Errorf("the value of %s has characters that are no text", k.spelling(key))
		case header == nil:
			header = http.Header{}
		}
		header.Set(name, value)
	}
	return header, nil
}

func (k *checkKeys) tcp(hostPort string) (Check, error) {
	return k.timed(api.AgentServiceCheck{Name: "TCP connect", TCP: hostPort})
}

func (k *checkKeys) grpc(hostPort string) (Check, error) {
	tls := !isNo(k.values["grpc_use_tls"])
	return k.timed(api.AgentServiceCheck{
		Name: "gRPC health", GRPC: hostPort, GRPCUseTLS: tls, TLSSkipVerify: tls && !isNo(k.values["tls_skip_verify"]),
	})
}

func scriptAllowed(script string, h Host) error {
	switch {
	case !h.Scripts:
		return errors.New("scripts run as the Consul agent, which the operator has to allow: berth with --scripts, and the agent with enable_script_checks")
	case strings.ContainsRune(script, 0):
		return errors.New("it contains a NUL character")
	}
	return nil
}

// script returns a check that a shell makes. Only an address and a number are put into the script, nothing of the
// container's.
func (k *checkKeys) script(script string, in Instance, h Host) (Check, error) {
	if err := scriptAllowed(script, h); err != nil {
		return Check{}, err
	}
	script = strings.NewReplacer("$SERVICE_IP", targetHost(in, h), "$SERVICE_PORT", strconv.Itoa(in.Port)).Replace(script)
	return k.timed(api.AgentServiceCheck{Name: "script", Args: []string{"/bin/sh", "-c", script}})
}

// cmd returns a check that Registrator's program check-cmd makes, which the agent has to find.
func (k *checkKeys) cmd(cmd string, c Container, p Port, h Host) (Check, error) {
	if err := scriptAllowed(cmd, h); err != nil {
		return Check{}, err
	}
	return k.timed(api.AgentServiceCheck{
		Name: "check-cmd", Args: []string{"check-cmd", fmt.Sprintf("%.12s", c.ID), strconv.Itoa(int(p.Number)), cmd},
	})
}

func (k *checkKeys) ttl(value string) (Check, error) {
	ttl, err := time.ParseDuration(value)
	if err != nil || ttl < minInterval {
		return Check{}, fmt.Errorf("%s is no duration of %v or more: write it like 30s", quote(value), minInterval)
	}
	return k.finish(ttlCheck("TTL "+ttl.String(), ttl))
}

// timed completes a check that the agent makes at an interval.
func (k *checkKeys) timed(d api.AgentServiceCheck) (Check, error) {
	interval, err := k.duration("interval", minInterval)
	if err != nil {
		return Check{}, err
	}
	timeout, err := k.duration("timeout", 0)
	if err != nil {
		return Check{}, err
	}
	if interval == 0 {
		interval = defaultInterval
	}
	d.Interval = interval.String()
	if timeout != 0 {
		d.Timeout = timeout.String()
	}
	return k.finish(Check{Definition: d})
}

// finish completes a check of any kind.
func (k *checkKeys) finish(check Check) (Check, error) {
	after, err := k.duration("deregister_after", minDeregister)
	if err != nil {
		return Check{}, err
	}
	if after != 0 {
		check.Definition.DeregisterCriticalServiceAfter = after.String()
	}
	switch status := k.values["initial_status"]; status {
	case "", api.HealthPassing, api.HealthWarning, api.HealthCritical:
		check.Status = status
	default:
		return Check{}, fmt.Errorf("%s=%s is no status: use passing, warning or critical", k.spelling("initial_status"), quote(status))
	}
	return check, nil
}

// duration returns the value of a key, or 0 if it is not given. A shorter one than least counts as least, as in Consul.
func (k *checkKeys) duration(key string, least time.Duration) (time.Duration, error) {
	value := k.values[key]
	if value == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s=%s is no duration: write it like 10s", k.spelling(key), quote(value))
	}
	return max(d, least), nil
}
