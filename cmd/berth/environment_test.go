package main

import (
	"slices"
	"strings"
	"testing"
)

// The proxy gets no secret, but what its configuration may name and what is named for it.
func TestProxyEnvironment(t *testing.T) {
	for _, tt := range []struct {
		variable string
		passed   bool
	}{
		{"PATH=/bin", true},
		{"HOME=/", true},
		{"PWD=/", true},
		{"OLDPWD=/", true},
		{"LANG=C", true},
		{"HOSTNAME=lb", true},
		{"BACKEND_PORT=8080", true},
		{"KEYCLOAK_HOST=auth.example.com", true},
		{"AUTHOR=me", true},
		{"COMPASS=north", true},
		{"BACKEND_URL=http://app:8080/a@b:c@d", true},
		{"BACKEND_USER_URL=ssh://git@host:22", true},
		{"CACHE_BYPASS=1", true},
		{"KEYBOARD=de", true},
		{"BASIC=basic", true},
		{"ADMIN=me@example.com", true},
		{"LISTEN=[::1]:8080", true},
		{"CONSUL_HTTP_ADDR=consul:8500", true},
		{"HAPROXY_STATS_PASSWORD=for the proxy", true},
		{"NGINX_TOKEN=for the proxy", true},

		{"CONSUL_HTTP_TOKEN=secret", false},
		{"CONSUL_HTTP_AUTH=me:secret", false},
		{"CONSUL_HTTP_ADDR=http://me:secret@consul:8500", false},
		{"VAULT_TOKEN=secret", false},
		{"VAULT_AGENT_TOKEN=secret", false},
		{"NOMAD_TOKEN=secret", false},
		{"MY_SECRET_ID=secret", false},
		{"STATS_PASSWORD=secret", false},
		{"MYSQL_PWD=secret", false},
		{"BIND_PW=secret", false},
		{"REDISCLI_AUTH=secret", false},
		{"AWS_ACCESS_KEY_ID=secret", false},
		{"SIGNINGKEY=secret", false},
		{"DBPASS=secret", false},
		{"PASS=secret", false},
		{"DBPWD=secret", false},
		{"BASICAUTH=me:secret", false},
		{"API_KEY=secret", false},
		{"apikey=secret", false},
		{"GOOGLE_APPLICATION_CREDENTIALS=secret", false},
		{"SENTRY_DSN=secret", false},
		{"GITHUB_PAT=secret", false},
		{"DATABASE_URL=postgres://me:secret@db/shop", false},
		{"HTTPS_PROXY=http://:secret@proxy:3128", false},
		{"DATABASE=me:secret@tcp(db:3306)/shop", false},
		{"CONNECTION=host=db user=me password=secret", false},
		{"CALLBACK=https://example.com/?token=secret", false},
		{"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer secret", false},
		{"TLS_PEM=-----BEGIN EC PRIVATE KEY-----", false},
		{"BERTH_CONSUL_TOKEN_FILE=/run/secrets/token", false},
		{"BERTH_LISTEN=:9652", false},
	} {
		passed, withheld := proxyEnvironment([]string{tt.variable})
		name, _, _ := strings.Cut(tt.variable, "=")
		if got := slices.Equal(passed, []string{tt.variable}); got != tt.passed {
			t.Errorf("%s: passed is %v, want %v", tt.variable, got, tt.passed)
		}
		if got := slices.Equal(withheld, []string{name}); got == tt.passed {
			t.Errorf("%s: withheld are %q", tt.variable, withheld)
		}
	}
	if passed, withheld := proxyEnvironment([]string{"B_TOKEN=x", "PATH=/bin", "A_TOKEN=y", "LANG=C"}); strings.Join(passed, " ") != "PATH=/bin LANG=C" || strings.Join(withheld, " ") != "A_TOKEN B_TOKEN" {
		t.Errorf("passed %q, withheld %q", passed, withheld)
	}
}
