//go:build e2e

package chatnginx

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// stack is a running compose project of compose.yml.
type stack struct {
	*testenv.Compose
	web    string // address of nginx
	consul string // address of Consul's HTTP API
}

// startStack starts the stack on free ports with one chat, and waits until that answers through nginx. It is removed at the
// end of the test.
func startStack(t *testing.T) *stack {
	t.Helper()
	for _, image := range []string{"BERTH", "CHAT", "NGINX", "REDIS", "CONSUL"} {
		testenv.Image(t, "IMAGE_"+image)
	}
	s := &stack{web: testenv.FreeAddress(t, "127.0.0.1"), consul: testenv.FreeAddress(t, "127.0.0.1")}
	s.Compose = testenv.NewCompose(t, testenv.ComposeOptions{
		Env:  []string{"HTTP_PORT=" + testenv.Port(s.web), "CONSUL_PORT=" + testenv.Port(s.consul)},
		Show: []string{"templater", "registrar", "chat"},
	})
	s.Do("up", "-d")
	s.expectHosts(1)
	return s
}

// in is the same stack for a subtest, which receives the failures.
func (s *stack) in(t *testing.T) *stack {
	part := *s
	part.Compose = s.In(t)
	return &part
}

// reloads returns how often berth has reloaded nginx so far.
func (s *stack) reloads() int {
	s.Helper()
	return strings.Count(s.Logs("templater"), `"proxy reloaded`)
}

var hostedBy = regexp.MustCompile(`Hosted by ([0-9a-zA-Z.-]+)`)

// hostOf returns the host named on a page.
func hostOf(resp *http.Response) (host, page string, err error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", "", err
	}
	found := hostedBy.FindSubmatch(body)
	if resp.StatusCode != http.StatusOK || found == nil {
		return "", string(body), fmt.Errorf("%s: %.200s", resp.Status, body)
	}
	return string(found[1]), string(body), nil
}

// user is a simplified browser of a user. It opens a connection for each request, to reach all instances.
type user struct {
	s *stack
	*http.Client
}

func (s *stack) newUser() *user {
	s.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.Fatal(err)
	}
	return &user{s, &http.Client{Jar: jar, Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// post sends a form and returns the resulting page.
func (u *user) post(path string, key, value string) (host, page string, err error) {
	resp, err := u.PostForm("http://"+u.s.web+path, url.Values{key: {value}})
	if err != nil {
		return "", "", err
	}
	return hostOf(resp)
}

// everywhere sends enough requests to reach every instance, and returns each instance's page by host.
func (u *user) everywhere(path string) (map[string]string, error) {
	pages := map[string]string{}
	for range 20 {
		resp, err := u.Get("http://" + u.s.web + path)
		if err != nil {
			return nil, err
		}
		host, page, err := hostOf(resp)
		if err != nil {
			return nil, err
		}
		pages[host] = page
	}
	return pages, nil
}

// chats returns the sorted host names of the chat's containers.
func (s *stack) chats() (hosts []string) {
	s.Helper()
	for _, id := range s.Containers("chat") {
		hosts = append(hosts, testenv.Hostname(id))
	}
	slices.Sort(hosts)
	return hosts
}

// expectHosts waits until the given number of hosts answer and they are the chat's containers.
func (s *stack) expectHosts(n int) {
	s.Helper()
	want := s.chats()
	if len(want) != n {
		s.Fatalf("there are %d containers of the chat, want %d", len(want), n)
	}
	u := s.newUser()
	s.Eventually(time.Minute, fmt.Sprintf("%d hosts answer", n), func() error {
		pages, err := u.everywhere("/")
		if err != nil {
			return err
		}
		if got := slices.Sorted(maps.Keys(pages)); !slices.Equal(got, want) {
			return fmt.Errorf("%v answer, the containers are %v", got, want)
		}
		return nil
	})
}

// expectPassing waits until Consul has exactly the given number of chat instances, all passing.
func (s *stack) expectPassing(n int) {
	s.Helper()
	count := func(query string) (int, error) {
		var entries []struct {
			Checks []struct{ Name, Status string }
		}
		if err := testenv.GetJSON("http://"+s.consul+"/v1/health/service/chat"+query, &entries); err != nil {
			return 0, err
		}
		for _, e := range entries {
			if len(e.Checks) < 2 {
				return 0, fmt.Errorf("an instance has no check of its own: %v", e.Checks)
			}
		}
		return len(entries), nil
	}
	s.Eventually(30*time.Second, fmt.Sprintf("Consul has %d instances that pass", n), func() error {
		passing, err := count("?passing")
		if err != nil {
			return err
		}
		all, err := count("")
		if err == nil && (passing != n || all != n) {
			err = fmt.Errorf("of %d instances %d pass", all, passing)
		}
		return err
	})
}
