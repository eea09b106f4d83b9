package catalog

import (
	"cmp"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/consul/api"
)

// tokenFile is an http.RoundTripper that adds the token in a file, which may change. While the file cannot be read, or is
// empty, the last token is good.
type tokenFile struct {
	base http.RoundTripper
	path string
	last atomic.Value // the last token
}

// FollowToken wraps a transport so that each request carries the token that config.TokenFile holds at that moment; it
// begins with config.Token. The client of consul/api reads the file once. NewClient calls FollowToken for itself.
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
