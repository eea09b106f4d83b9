package main

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// secretName matches the names that secrets go by: a part of the name, or a whole word of it.
	secretName = regexp.MustCompile(`(?i)TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY` +
		`|(^|_)(PASS|PW|PWD|AUTH|KEY|KEYS|DSN|JWT|PAT)(_|$)`)
	// secretValue matches a URL with a password in it.
	secretValue = regexp.MustCompile(`://[^/@\s]*:[^/@\s]+@`)
)

// proxyEnvironment returns what a proxy that berth runs gets of an environment, and the names of the other variables, sorted.
// The proxy faces the Internet, so it gets no secret of berth's, of Consul, Vault, Nomad, or of anything else. What is
// named for the proxy is for it, and so is what does not look like a secret: configurations use variables.
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
