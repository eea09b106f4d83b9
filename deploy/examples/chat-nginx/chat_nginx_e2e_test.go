//go:build e2e

package chatnginx

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// The chat is scaled up and down, and every user sees all messages, whichever instance serves them.
func TestE2EChat(t *testing.T) {
	s := startStack(t)

	t.Run("login page", func(t *testing.T) {
		s := s.in(t)
		s.expectHosts(1)
		s.expectPassing(1)
		resp, err := http.Get("http://" + s.web + "/")
		if err != nil {
			t.Fatal(err)
		}
		host, page, err := hostOf(resp)
		if err != nil || host != s.chats()[0] || !strings.Contains(page, `action="/login"`) {
			t.Errorf("host %q, %v\n%s", host, err, page)
		}
	})

	t.Run("up --scale chat=5", func(t *testing.T) {
		s := s.in(t)
		s.scaleUnderLoad(5, "up", "-d", "--scale", "chat=5")
	})

	t.Run("messages", func(t *testing.T) {
		s := s.in(t)
		u := s.newUser()
		if _, page, err := u.post("/login", "name", "Ann"); err != nil || !strings.Contains(page, "You are Ann") {
			t.Fatal(err, page)
		}
		if _, _, err := u.post("/messages", "text", "hello to all"); err != nil {
			t.Fatal(err)
		}
		pages, err := u.everywhere("/chat")
		if err != nil || len(pages) != 5 {
			t.Fatalf("%d instances answered, %v", len(pages), err)
		}
		for host, page := range pages {
			if !strings.Contains(page, "<b>Ann</b> <span>hello to all</span>") {
				t.Errorf("%s does not show the message:\n%s", host, page)
			}
		}
	})

	t.Run("up --scale chat=1", func(t *testing.T) {
		s := s.in(t)
		s.scaleUnderLoad(1, "up", "-d", "--scale", "chat=1")
	})

	t.Run("scale command", func(t *testing.T) {
		s := s.in(t)
		if _, err := s.Try("scale", "--help"); err != nil {
			t.Skip("this compose has no scale command: ", err)
		}
		s.scaleUnderLoad(5, "scale", "chat=5")
		s.scaleUnderLoad(1, "scale", "chat=1")
	})

	t.Run("Redis is away and back", func(t *testing.T) {
		s := s.in(t)
		u := s.newUser()
		if _, _, err := u.post("/login", "name", "Ben"); err != nil {
			t.Fatal(err)
		}
		expect := func(status string) {
			t.Helper()
			testenv.Eventually(t, 30*time.Second, "the chat answers "+status, func() error {
				resp, err := u.Get("http://" + s.web + "/chat")
				if err != nil {
					return err
				}
				_, page, _ := hostOf(resp)
				switch {
				case !strings.HasPrefix(resp.Status, status):
					return errors.New(resp.Status)
				case !strings.Contains(page, "Hosted by "):
					return fmt.Errorf("no page of the chat: %s", page)
				case status == "200" && !strings.Contains(page, "hello to all"):
					return fmt.Errorf("the message is lost:\n%s", page)
				}
				return nil
			})
		}
		expect("200")
		s.Do("stop", "redis")
		expect("503")
		s.expectHosts(1) // the login page works without Redis
		s.Do("start", "redis")
		expect("200")
	})

	// nginx comes back with the newest configuration, and berth keeps updating it.
	t.Run("nginx is restarted", func(t *testing.T) {
		s := s.in(t)
		s.Do("restart", "nginx")
		s.expectHosts(1)
		s.Do("up", "-d", "--no-recreate", "--scale", "chat=2")
		s.expectHosts(2)
	})
}

// scaleUnderLoad scales the chat under load and waits until all components have noticed. The only requests that may fail
// hit a connection closed by a reload of nginx, from a client that does not retry.
func (s *stack) scaleUnderLoad(to int, command ...string) {
	s.Helper()
	l, before := startLoad(s.web), s.reloads()
	func() {
		defer l.finish(s, strings.Join(command, " "))
		s.Do(command...)
		s.expectHosts(to)
		s.expectPassing(to)
	}()
	reloads := s.reloads() - before
	s.Logf("%d reloads of nginx", reloads)
	if reloads == 0 {
		s.Error("nginx was not reloaded, or berth's log does not say so")
	}
	for _, kind := range []string{fresh, browsers} {
		if n := len(l.failures[kind]); n > 0 {
			s.Errorf("%d of %d requests failed, want 0: %s", n, l.sent[kind], kind)
		}
	}
	for _, err := range l.failures[kept] {
		if reused := new(reusedError); !errors.As(err, &reused) {
			s.Errorf("a request on a new connection failed: %v", err)
		}
	}
	// Old workers of the previous reload may still have been closing connections.
	if n := len(l.failures[kept]); n > loadEach*(reloads+1) {
		s.Errorf("%d requests failed on %d kept connections in %d reloads, want one for each at most", n, loadEach, reloads)
	}
	if s.Failed() {
		s.Logf("nginx's errors:\n%s", strings.Join(serverError.FindAllString(s.Logs("nginx"), -1), "\n"))
	}
}

// serverError matches a line of nginx's access log.
var serverError = regexp.MustCompile(`(?m)^.*" 50\d .*$`)

// The stack needs no address of the host.
func TestE2EChatHasNoAddress(t *testing.T) {
	text, err := os.ReadFile("compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`).FindAllString(string(text), -1) {
		if address != "127.0.0.1" && address != "0.0.0.0" {
			t.Errorf("compose.yml has the address %s", address)
		}
	}
}
