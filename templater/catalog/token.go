package catalog

import (
	"cmp"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/consul/api"
)

// tokenFile is an http.RoundTripper that adds the token from a file, which may change. While the file is unreadable or empty, the
// last token stays in use.
type tokenFile struct {
	base http.RoundTripper
	path string
	last atomic.Value // the last token
}

// FollowToken wraps a transport so that each request carries the current token of config.TokenFile, initially config.Token. The
// client of consul/api reads the file only once. NewClient calls FollowToken itself.
func FollowToken(base http.RoundTripper, config *api.Config) http.RoundTripper {
	t := &tokenFile{base: base, path: config.TokenFile}
	t.last.Store(config.Token)
	return t
}

// RoundTrip sends the request with the current token.
func (t *tokenFile) RoundTrip(req *http.Request) (*http.Response, error) {
	content, _ := os.ReadFile(t.path)
	token := cmp.Or(strings.TrimSpace(string(content)), t.last.Load().(string))
	t.last.Store(token)
	req = req.Clone(req.Context())
	req.Header.Set("X-Consul-Token", token)
	return t.base.RoundTrip(req)
}
