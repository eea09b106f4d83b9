package catalog

import (
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"
)

// tokenFile is an http.RoundTripper that adds the token in a file, which may change. While that cannot be read, the last
// one is good.
type tokenFile struct {
	base http.RoundTripper
	path string

	mu    sync.Mutex
	token string
	state os.FileInfo
}

// FollowToken wraps a transport so that each request has the token that is in config.TokenFile then; it begins with
// config.Token. The client of consul/api reads the file once. NewClient calls it; it is for other clients, too.
func FollowToken(base http.RoundTripper, config *api.Config) http.RoundTripper {
	return &tokenFile{base: base, path: config.TokenFile, token: config.Token}
}

// RoundTrip sends the request with the token of now.
func (t *tokenFile) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("X-Consul-Token", t.current())
	return t.base.RoundTrip(req)
}

func (t *tokenFile) current() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	state, err := os.Stat(t.path)
	if err != nil || sameFile(state, t.state) {
		return t.token
	}
	content, err := os.ReadFile(t.path)
	if token := strings.TrimSpace(string(content)); err == nil && token != "" {
		t.token, t.state = token, state
	}
	return t.token
}

// sameFile says whether a file is as it was, by what a look at it tells; nothing is as it was before the first look.
func sameFile(now, before os.FileInfo) bool {
	return before != nil && os.SameFile(now, before) && now.Size() == before.Size() && now.ModTime().Equal(before.ModTime())
}
