package main

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// secretName matches the names that secrets go by: anywhere in a name, at the end of a word (but for COMPASS and
	// BYPASS), or as a whole word.
	secretName = regexp.MustCompile(`(?i)TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY` +
		`|((^|[^MY])PASS|PWD|AUTH|KEYS?)(_|$)|(^|_)(PW|DSN|JWT|PAT)(_|$)`)
	// secretValue matches a password in a URL or before the address of a database, a setting for one, what an HTTP header
	// authenticates with, and a private key.
	secretValue = regexp.MustCompile(`(?i)(://|^)[^/@:\s]*:[^/@\s]+@|\b(password|passwd|pwd|token)=\S|\b(bearer|basic) +\S|PRIVATE KEY-----`)
)

// proxyEnvironment returns the variables of an environment that a proxy run by berth gets, and the sorted names of the
// others. The proxy faces the Internet, so it gets no secret of berth, Consul, Vault, Nomad or anything else. A variable
// that is named for the proxy is passed on, as is one that does not look like a secret: configurations use variables.
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
