package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// kvServer is a Consul with an empty KV, of which a test says whether it has a leader and what it answers first.
func kvServer(t *testing.T, leader func() bool, answer func(w http.ResponseWriter) (done bool)) string {
	t.Helper()
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/status/leader" && leader():
			_, _ = w.Write([]byte(`"10.0.0.1:8300"`))
		case r.URL.Path == "/v1/status/leader":
			_, _ = w.Write([]byte(`""`))
		case answer(w):
		default:
			w.Header().Set("X-Consul-Index", "7")
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(consul.Close)
	return consul.URL
}

// While Consul has no leader a command tries again; what Consul refuses, it does not try for long.
func TestTriesWhileAway(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	fail := func(code int) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { http.Error(w, "it fails", code); return true }
	}
	get := func(url string, options ...string) (took time.Duration, err error) {
		begun := time.Now()
		_, err = berthCommand(t, append([]string{"config", "get", "app", "--consul-address", url}, options...)...)
		return time.Since(begun), err
	}
	t.Run("an election", func(t *testing.T) {
		var asked atomic.Int32
		elected := func() bool { return asked.Load() > 3 }
		url := kvServer(t, elected, func(w http.ResponseWriter) bool {
			asked.Add(1)
			if elected() {
				return false
			}
			return fail(http.StatusInternalServerError)(w)
		})
		if _, err := get(url); err == nil || err.Error() != "app has no configuration" {
			t.Errorf("after the election: %v", err)
		}
	})
	t.Run("no leader", func(t *testing.T) {
		took, err := get(kvServer(t, no, fail(http.StatusInternalServerError)), "--timeout", "500ms")
		if err == nil || !strings.HasPrefix(err.Error(), "gave up after 500ms: ") || !strings.Contains(err.Error(), "it fails") {
			t.Errorf("%v", err)
		}
		if took < 400*time.Millisecond {
			t.Errorf("given up after %s", took)
		}
	})
	for name, code := range map[string]int{"refused": http.StatusForbidden, "an error that stays": http.StatusInternalServerError} {
		t.Run(name, func(t *testing.T) {
			took, err := get(kvServer(t, yes, fail(code)), "--timeout", "1m")
			if err == nil || !strings.Contains(err.Error(), "it fails") || took > 10*time.Second {
				t.Errorf("after %s: %v", took, err)
			}
		})
	}
	t.Run("it hangs", func(t *testing.T) {
		release := make(chan struct{})
		url := kvServer(t, yes, func(http.ResponseWriter) bool { <-release; return true })
		defer close(release)
		if took, err := get(url, "--timeout", "300ms"); err == nil || took > 5*time.Second || !strings.Contains(err.Error(), strings.TrimPrefix(url, "http://")) {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// What comes from Consul does not reach a terminal as more than text.
func TestHarmless(t *testing.T) {
	consul := kvServer(t, func() bool { return true }, func(w http.ResponseWriter) bool {
		http.Error(w, "\x1b]0;title\a\u202e", http.StatusForbidden)
		return true
	})
	_, err := berthCommand(t, "config", "get", "app", "--consul-address", consul)
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\a\u202e") || !strings.Contains(err.Error(), `\x1b]0;title\a\u202e`) {
		t.Errorf("%q", err)
	}
}
