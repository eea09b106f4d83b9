package main

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// secretName matches the usual names of secrets: anywhere in a name, at the end of a word (except COMPASS and BYPASS), or as
	// a whole word.
	secretName = regexp.MustCompile(`(?i)TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY` +
		`|((^|[^MY])PASS|PWD|AUTH|KEYS?)(_|$)|(^|_)(PW|DSN|JWT|PAT)(_|$)`)
	// secretValue matches a password in a URL, before a database address or in a setting, an HTTP Authorization value, and a
	// private key.
	secretValue = regexp.MustCompile(`(?i)(://|^)[^/@:\s]*:[^/@\s]+@|\b(password|passwd|pwd|token)=\S|\b(bearer|basic) +\S|PRIVATE KEY-----`)
)

// proxyEnvironment returns the variables that a proxy run by berth gets, and the sorted names of the rest. The proxy faces the
// Internet, so it gets no secret of berth, Consul, Vault, Nomad or anything else. Variables named for the proxy, and variables
// that do not look like secrets, are passed on: configurations use them.
func proxyEnvironment(env []string) (passed, withheld []string) {
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "HAPROXY_"), strings.HasPrefix(name, "NGINX_"), name == "PWD", name == "OLDPWD":
		case strings.HasPrefix(name, envPrefix), secretName.MatchString(name), secretValue.MatchString(value):
			withheld = append(withheld, name)
			continue
		}
		passed = append(passed, kv)
	}
	slices.Sort(withheld)
	return passed, withheld
}
