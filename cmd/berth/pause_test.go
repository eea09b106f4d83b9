package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// pauseServer is a Consul with the services shop, which is paused, and web.
func pauseServer(t *testing.T) string {
	t.Helper()
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		const shop = `[{"Key": "berth/paused/shop", "Value": "eyJtYXgiOiIzMHMifQ=="}]` // {"max":"30s"}
		body, there := map[string]string{
			"GET /v1/catalog/services":        `{"consul": [], "shop": [], "web": []}`,
			"GET /v1/kv/berth/paused/":        shop,
			"GET /v1/kv/berth/paused/shop":    shop,
			"PUT /v1/kv/berth/paused/shop":    "true",
			"PUT /v1/kv/berth/paused/web":     "true",
			"DELETE /v1/kv/berth/paused/shop": "true",
		}[r.Method+" "+r.URL.Path]
		if !there {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(consul.Close)
	return consul.URL
}

// Whatever is asked for by mistake, one line says what is wrong, and the exit code is that of a mistake.
func TestPauseMistakes(t *testing.T) {
	consul := pauseServer(t)
	for _, tt := range []struct {
		args, says string
		code       int
	}{
		{"pause web", "web: paused; requests wait up to 30s", 0},
		{"pause shop --max 5m", "shop: paused; requests wait up to 5m0s", 0}, // again
		{"pause", "name at least one SERVICE", 2},
		{"pause shp", "shp: Consul has no such service (did you mean shop?); pause a service while", 1},
		{"pause shop --max 0", "--max must be from 1s to 5m, not 0s", 2},
		{"pause shop --max=-1s", "--max must be from 1s to 5m, not -1s", 2},
		{"pause shop --max 2h", "--max must be from 1s to 5m, not 2h0m0s", 2},
		{"pause shop --max x", `--max must be a duration like 200ms, 30s or 1m, not "x"`, 2},
		{"pause shop --timeout=-1s", "--timeout must be longer than 0s, not -1s", 2},
		{"pause ../shop", `"../shop" is not a service name`, 2},
		{"pause shop,web", `"shop,web" is not a service name`, 2},
		{"pause --list shop", `unexpected argument "shop"`, 2},
		{"pause shop --format json", "--format needs --list", 2},
		{"pause --list --max 5m", "--max cannot be combined with --list", 2},
		{"pause --list --reason x", "--reason cannot be combined with --list", 2},
		{"pause --list --format json", `{"service":"shop","max":"30s"`, 0},
		{"resume", "name at least one SERVICE", 2},
		{"resume shop", "shop: resumed", 0},
		{"resume web", "web: not paused", 0},
		{"resume shp", "shp: not paused, and Consul has no such service (did you mean shop?); berth pause --list shows", 1},
		{"resume shop/x", `"shop/x" is not a service name`, 2},
	} {
		out, err := berthCommand(t, append(strings.Fields(tt.args), "--consul-address", consul)...)
		var said strings.Builder
		code := exitCode(t.Context(), &said, err)
		said.WriteString(out)
		if got := strings.TrimSuffix(said.String(), "\n"); code != tt.code || !strings.Contains(got, tt.says) || strings.Contains(got, "\n") {
			t.Errorf("berth %s: %d %q, want %d %q", tt.args, code, got, tt.code, tt.says)
		}
	}
}

// The page of another server is not taken for a Consul in which nothing is paused.
func TestPauseAtAnotherServer(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("<html>\n<h1>no such page</h1>\n" + strings.Repeat("x", 1000) + "\n</html>\n"))
	}))
	t.Cleanup(other.Close)
	t.Setenv("DOCKER_HOST", "unix:///nosuch.sock")
	for _, args := range []string{"pause shop", "resume shop", "pause --list", "file list shop", "config status shop", "drain shop", "undrain shop"} {
		words := append(strings.Fields(args), "--consul-address", other.URL)
		if !strings.Contains(args, "drain") { // which tries once
			words = append(words, "--timeout", "100ms")
		}
		out, err := berthCommand(t, words...)
		if err == nil || out != "" || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 || !strings.Contains(err.Error(), "something other than Consul answers there") {
			t.Errorf("berth %s: %q, %v", args, out, err)
		}
	}
}

// A Consul that does not answer is waited for once, whatever the number of services.
func TestPauseWithoutConsul(t *testing.T) {
	var asked sync.Map
	consul := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path, true)
		hang(r)
	}))
	t.Cleanup(consul.Close)
	for _, command := range []string{"pause", "resume"} {
		asked.Clear()
		_, err := berthCommand(t, command, "a", "b", "c", "--consul-address", consul.URL, "--timeout", "200ms")
		if err == nil || !strings.HasPrefix(err.Error(), "a: gave up after 200ms: ") || !strings.HasSuffix(err.Error(), "\nb, c: not tried") {
			t.Errorf("berth %s: %v", command, err)
		}
		for _, not := range []string{"b", "c"} {
			if _, was := asked.Load("/v1/kv/berth/paused/" + not); was {
				t.Errorf("berth %s has asked for %s", command, not)
			}
		}
	}
}
