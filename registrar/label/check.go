package label

import (
	"cmp"
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

	"berth/templates/claim"
)

// Check is a health check that is registered with an instance.
type Check struct {
	Definition api.AgentServiceCheck // complete except for CheckID and Status
	Status     string                // initial; "" = passing
	TTL        time.Duration         // for a TTL check, which berth passes while the container runs; 0 = another kind
	Health     bool                  // a TTL check that mirrors Docker's HEALTHCHECK
	Starting   bool                  // it also passes while Docker says starting, because something else decides what ready is
}

const (
	checkPrefix = "check_"

	defaultInterval = 10 * time.Second // Registrator's
	minInterval     = time.Second      // Consul's: an agent makes a shorter one that long
	minDeregister   = time.Minute      // likewise

	// healthTTL is how long the last status of Docker's HEALTHCHECK counts if nothing repeats it.
	healthTTL = 24 * time.Hour

	maxPath = 1024
)

var (
	token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$") // RFC 9110, 5.6.2

	// checkKey splits a key into the prefix shared by the options of its check, and the rest.
	checkKey = regexp.MustCompile(`(?s)^(check_(?:[1-9]_)?)(.*)$`)

	checkKinds   = []string{"http", "https", "tcp", "grpc", "script", "cmd", "ttl"} // in the order of registration
	checkOptions = []string{"interval", "timeout", "http_method", "https_method", "grpc_use_tls", "tls_skip_verify", "initial_status", "deregister_after"}
)

// checks returns the health checks of an instance: those declared by its labels, Docker's HEALTHCHECK, and the registrar's
// own sign of life. A declared check that cannot be made is replaced by a critical one, because the instance must not pass
// without it. The keys that declare checks are taken. ready is SERVICE_READY.
func checks(c Container, p Port, keys *portKeys, in Instance, ready string, h Host) (out []Check, problems []string) {
	mirror := unquoted(keys.take(checkPrefix + "docker"))
	out, problems = declared(c, p, keys, in, h)
	if isUnclear(mirror) {
		problems = append(problems, fmt.Sprintf("%s=%s %s", keys.spelling(checkPrefix+"docker"), quote(mirror), neitherYesNorNo))
	}
	if c.Health != "" && !claim.IsNo(mirror) {
		check := ttlCheck("Docker HEALTHCHECK", healthTTL)
		check.Health, check.Starting = true, ready != "" && !strings.EqualFold(ready, string(ReadyHealthcheck))
		out = append(out, check)
	}
	if h.TTL > 0 {
		out = append(out, ttlCheck("berth registrar", h.TTL))
	}
	return out, problems
}

// impossible stands for a declared check that cannot be made. It never passes.
func impossible(key, why string) Check {
	return Check{
		Definition: api.AgentServiceCheck{Name: key + " is not as declared", TTL: healthTTL.String(), Notes: why},
		Status:     api.HealthCritical,
	}
}

func ttlCheck(name string, ttl time.Duration) Check {
	return Check{Definition: api.AgentServiceCheck{Name: name, TTL: ttl.String()}, TTL: ttl}
}

// declared returns the checks declared by labels: SERVICE_CHECK_HTTP and so on, and up to nine more with their own options,
// SERVICE_CHECK_1_HTTP to SERVICE_CHECK_9_HTTP.
func declared(c Container, p Port, keys *portKeys, in Instance, h Host) (out []Check, problems []string) {
	fail := func(key, why string) {
		out = append(out, impossible(key, why))
		problems = append(problems, fmt.Sprintf("%s: %s; critical until this is fixed", key, why))
	}
	for _, key := range keys.noCheck {
		fail(key, "the policy does not allow it for this container")
	}
	groups := map[string]map[string]string{} // by prefix
	for _, key := range slices.Sorted(maps.Keys(keys.values)) {
		if m := checkKey.FindStringSubmatch(key); m != nil {
			if groups[m[1]] == nil {
				groups[m[1]] = map[string]string{}
			}
			groups[m[1]][m[2]] = keys.take(key)
		}
	}
	// "check_" sorts before "check_1_".
	for _, prefix := range slices.Sorted(maps.Keys(groups)) {
		k := checkKeys{portKeys: keys, prefix: prefix, values: groups[prefix]}
		asked := false
		for _, kind := range checkKinds {
			value, runs := k.values[kind], kind == "script" || kind == "cmd"
			if value == "" || (!runs && claim.IsNo(unquoted(value))) {
				continue
			}
			if !runs {
				value = unquoted(value)
			}
			asked = true
			connects := kind == "http" || kind == "https" || kind == "tcp" || kind == "grpc"
			if connects && p.Protocol != "tcp" && (!k.isOwn(prefix+kind) || c.exposes(p.Number, "tcp")) {
				continue // meant for another port
			}
			k.err = nil
			if connects && p.Protocol != "tcp" {
				k.fail("nothing answers it on a %s port", p.Protocol)
			}
			if check := k.check(kind, value, c, p, in, h); k.err == nil {
				out = append(out, check)
			} else {
				fail(k.spelling(kind), k.err.Error())
			}
		}
		for _, key := range slices.Sorted(maps.Keys(k.values)) {
			if isCheckKey(prefix+key) || strings.HasPrefix(key, "header_") {
				continue
			}
			kind := nearestKind(key)
			why := "unknown key: declare a check with HTTP, HTTPS, TCP, GRPC, SCRIPT, CMD or TTL"
			if kind != "" {
				why = "unknown key: did you mean " + k.spelling(kind) + "?"
			}
			if k.values[key] == "" || (asked && kind == "") { // perhaps an option of a valid check
				problems = append(problems, k.spelling(key)+" is ignored: "+why)
			} else {
				fail(k.spelling(key), why)
			}
		}
	}
	return out, problems
}

// isCheckKey reports whether a key belongs to a check, except for headers.
func isCheckKey(key string) bool {
	m := checkKey.FindStringSubmatch(key)
	return m != nil && (slices.Contains(checkKinds, m[2]) || slices.Contains(checkOptions, m[2]) || key == checkPrefix+"docker")
}

// nearestKind returns the kind of check that an unknown key probably means, or "".
func nearestKind(key string) string {
	for _, kind := range checkKinds {
		if len(key) < 30 && claim.Distance(key, kind) == 1 {
			return kind
		}
	}
	return ""
}

// checkKeys holds keys that together declare checks: one of each kind, sharing interval, timeout and so on.
type checkKeys struct {
	*portKeys
	prefix string            // of the keys: "check_" or "check_1_"
	values map[string]string // by what follows the prefix
	err    error             // first error in the check being read
}

func (k *checkKeys) spelling(key string) string { return k.portKeys.spelling(k.prefix + key) }

func (k *checkKeys) fail(format string, args ...any) {
	if k.err == nil {
		k.err = fmt.Errorf(format, args...)
	}
}

// check returns the check of a kind, which is useless if k.err is set.
func (k *checkKeys) check(kind, value string, c Container, p Port, in Instance, h Host) Check {
	host, port := cmp.Or(in.Address, h.NodeAddress, loopback), strconv.Itoa(in.Port) // as the agent reaches the instance
	hostPort := net.JoinHostPort(host, port)
	skipVerify := k.yes("tls_skip_verify")
	var check Check
	d := &check.Definition
	switch kind {
	case "http", "https":
		*d = k.http(kind, hostPort, value)
		d.TLSSkipVerify = kind == "https" && skipVerify
	case "tcp", "grpc":
		if !claim.IsYes(value) {
			k.fail("%s %s", quote(value), neitherYesNorNo)
		}
		if d.Name, d.TCP = "TCP connect", hostPort; kind == "tcp" {
			break
		}
		d.Name, d.TCP, d.GRPC, d.GRPCUseTLS = "gRPC health", "", hostPort, k.yes("grpc_use_tls")
		d.TLSSkipVerify = d.GRPCUseTLS && skipVerify
	case "script": // only an address and a number are inserted, nothing from the container
		script := strings.NewReplacer("$SERVICE_IP", host, "$SERVICE_PORT", port).Replace(value)
		d.Name, d.Args = "script", []string{"/bin/sh", "-c", script}
	case "cmd": // Registrator's program check-cmd, which the agent must find
		d.Name, d.Args = "check-cmd", []string{"check-cmd", fmt.Sprintf("%.12s", c.ID), strconv.Itoa(int(p.Number)), value}
	case "ttl":
		ttl, err := parseDuration(value)
		if err != nil || ttl < minInterval {
			k.fail("%s is not a duration of %v or more: write it like 30s", quote(value), minInterval)
		}
		check = ttlCheck("TTL "+ttl.String(), ttl)
	}
	switch {
	case d.Args == nil:
	case !h.Scripts:
		k.fail("scripts run as the Consul agent, so the operator must allow them: with --scripts for berth, and enable_script_checks for the agent")
	case strings.ContainsRune(value, 0):
		k.fail("it contains a NUL character")
	}
	if kind != "ttl" {
		d.Interval = cmp.Or(k.duration("interval", minInterval), defaultInterval.String())
		d.Timeout = k.duration("timeout", 0)
	}
	d.DeregisterCriticalServiceAfter = k.duration("deregister_after", minDeregister)
	check.Status = strings.ToLower(k.option("initial_status"))
	if !slices.Contains([]string{"", api.HealthPassing, api.HealthWarning, api.HealthCritical}, check.Status) {
		k.fail("%s=%s is not a status: use passing, warning or critical", k.spelling("initial_status"), quote(check.Status))
	}
	return check
}

func (k *checkKeys) http(scheme, hostPort, path string) api.AgentServiceCheck {
	path = plainPath(path)
	d := api.AgentServiceCheck{HTTP: scheme + "://" + hostPort + path, Method: strings.ToUpper(k.option(scheme + "_method"))}
	d.Name = fmt.Sprintf("%s %s %s", strings.ToUpper(scheme), cmp.Or(d.Method, http.MethodGet), path)
	if err := validPath(path); err != nil {
		k.fail("%w", err)
	}
	if u, err := url.Parse(d.HTTP); err != nil || u.Host != hostPort {
		k.fail("%s is not a URL path", quote(path))
	}
	if d.Method != "" && !token.MatchString(d.Method) {
		k.fail("%s=%s is not an HTTP method: use one like GET or HEAD", k.spelling(scheme+"_method"), quote(d.Method))
	}
	d.Header = k.header()
	return d
}

// option returns the value of an option.
func (k *checkKeys) option(key string) string { return unquoted(k.values[key]) }

// yes reports whether an option is set to yes.
func (k *checkKeys) yes(key string) bool {
	value := k.option(key)
	if isUnclear(value) {
		k.fail("%s=%s %s", k.spelling(key), quote(value), neitherYesNorNo)
	}
	return claim.IsYes(value)
}

var (
	bareNumber = regexp.MustCompile(`^[0-9]+$`)

	// barePath is a path without its leading slash, and without a host.
	barePath = regexp.MustCompile(`^[\pL\pN_~%.-]+([/?].*)?$`)
)

// parseDuration parses a duration; a bare number means seconds.
func parseDuration(s string) (time.Duration, error) {
	s = strings.ToLower(strings.Join(strings.Fields(s), ""))
	if bareNumber.MatchString(s) {
		s += "s"
	}
	return time.ParseDuration(s)
}

// plainPath adds the leading slash to a path that lacks it. Possible URLs, and values that are not paths, stay unchanged.
func plainPath(s string) string {
	if barePath.MatchString(s) && !strings.Contains(s, "://") && !claim.IsYes(s) {
		return "/" + s
	}
	return s
}

func validPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("%s is not a path like /health", quote(path))
	case !isPlain(path) || strings.ContainsFunc(path, unicode.IsSpace):
		return fmt.Errorf("%s has spaces or control characters, or is not UTF-8: write them as %%20 and so on", quote(path))
	case len(path) > maxPath:
		return fmt.Errorf("%s is longer than %d bytes", quote(path), maxPath)
	}
	return nil
}

// header returns the HTTP headers of a check: SERVICE_CHECK_HEADER_X_API_KEY becomes X-Api-Key. Values may be secrets, so
// reasons do not show them.
func (k *checkKeys) header() http.Header {
	var header http.Header
	for _, key := range slices.Sorted(maps.Keys(k.values)) {
		name, ok := strings.CutPrefix(key, "header_")
		if !ok {
			continue
		}
		if header == nil {
			header = http.Header{}
		}
		name = strings.ReplaceAll(name, "_", "-")
		value := strings.TrimSpace(k.values[key])
		switch {
		case !token.MatchString(name):
			k.fail("%s is not a header name", k.spelling(key))
		case !isPlain(value):
			k.fail("the value of %s has control characters or is not UTF-8", k.spelling(key))
		}
		header.Set(name, value)
	}
	return header
}

// duration returns the value of a key, or "" if it is unset. Values below least count as least, as in Consul.
func (k *checkKeys) duration(key string, least time.Duration) string {
	value := k.option(key)
	if value == "" {
		return ""
	}
	d, err := parseDuration(value)
	if err != nil || d <= 0 {
		k.fail("%s=%s is not a duration: write it like 10s", k.spelling(key), quote(value))
	}
	return max(d, least).String()
}
