//go:build e2e

package hello

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/deploy/consul/policies"
	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// rate is the request rate during changes, half over kept and half over new connections.
const rate = 200

// The steps of the README, one after the other on the same stack. Consul grants no more rights than berth's policies.
func TestE2EHello(t *testing.T) {
	s := startStack(t)

	t.Run("it greets and counts", func(t *testing.T) {
		s := s.in(t)
		for n, want := range []string{
			"Hello nolan! I have seen you 1 time! You are accessing node 1.",
			"Hello nolan! I have seen you 2 times! You are accessing node 1.",
		} {
			if got, err := testenv.Get("http://" + s.web + []string{"/nolan", "/?name=nolan"}[n]); err != nil || got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
	})

	t.Run("from one to three", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(*traffic.Load) {
			s.Do("up", "-d", "--no-deps", "--no-recreate", "--scale", "app=3", "app")
			s.expectGreeting("Hello", 3)
		})
		s.expectNodes(1, 2, 3)
	})

	t.Run("another greeting", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(*traffic.Load) {
			out := s.must("echo 'greeting = \"Sup\"' | berth config apply hello - --wait 2m")
			if !strings.Contains(out, "hello: every instance runs version 1 (3)") {
				t.Errorf("it says\n%s", out)
			}
		})
		s.expectGreeting("Sup", 3)
		s.expectNodes(1, 2, 3) // unchanged: a host keeps its number
		if out := s.must("berth config status hello"); !strings.Contains(out, "hello: version 1, applied ") || strings.Count(out, "  applied") != 3 {
			t.Errorf("the status is\n%s", out)
		}
	})

	t.Run("a stale version", func(t *testing.T) {
		s := s.in(t)
		s.fails("echo 'greeting = \"Yo\"' | berth config apply hello - --version 1", "version 1 is not newer than 1")
		s.expectGreeting("Sup", 3)
	})

	t.Run("a greeting with which it does not start", func(t *testing.T) {
		s := s.in(t)
		s.underLoad(func(*traffic.Load) {
			s.fails("echo 'greeting = \"\"' | berth config apply hello - --wait 2m", "version 2 failed: ", "the change was halted at ")
		})
		s.expectGreeting("Sup", 3)
		if states := s.states(); !maps.Equal(states, map[string]int{"failed": 1, "waiting": 2}) {
			t.Errorf("the instances are %v, want one that failed and two that wait", states)
		}
		s.fails("berth config status hello", "halted ")
		s.underLoad(func(*traffic.Load) { s.must("berth config rollback hello --wait 2m") })
		s.expectGreeting("Sup", 3)
		if states := s.states(); !maps.Equal(states, map[string]int{"applied": 3}) {
			t.Errorf("the instances are %v, want three that have applied it", states)
		}
	})

	t.Run("Redis goes to another address", func(t *testing.T) {
		s := s.in(t)
		before, address := s.seen("nolan"), s.redis()
		s.Do("rm", "--stop", "--force", "redis")
		// Another container gets the address that is now free.
		testenv.Run(t, "--network", s.consul.Network, "--label", "SERVICE_IGNORE=1", "--entrypoint", "sleep", testenv.Image(t, "IMAGE_REDIS"), "600")
		s.Do("up", "-d", "--no-deps", "redis")
		if now := s.redis(); now == address {
			t.Fatalf("Redis has its old address %s", now)
		}
		s.expectNodes(1, 2, 3)
		if now := s.seen("nolan"); now <= before {
			t.Errorf("nolan was seen %d times, and %d times before: that is forgotten", now, before)
		}
		s.expectGreeting("Sup", 3)
	})
}

// stack is the example as its own compose project, with another Consul.
type stack struct {
	*testenv.Compose
	consul   *testenv.Secured
	web      string // address of HAProxy
	operator string // file with the operator token for hello
}

// more makes all services use a secured Consul, each with a token from a file.
const more = `
services:
  registrar: { environment: %[1]s, volumes: ["%[4]s:%[4]s:ro"] }
  templater: { environment: %[2]s, volumes: ["%[4]s:%[4]s:ro"] }
  app: { environment: %[3]s, volumes: ["%[4]s:%[4]s:ro"] }
networks:
  default: { external: true, name: %[5]s }
`

// startStack starts the example with one instance, and returns when it answers through HAProxy.
func startStack(t *testing.T) *stack {
	t.Helper()
	for _, image := range []string{"BERTH", "HAPROXY", "REDIS", "CONSUL"} {
		testenv.Image(t, "IMAGE_"+image)
	}
	consul := testenv.StartSecured(t)
	token := func(role string, rules ...string) string {
		return testenv.File(t, consul.Dir, role+".token", testenv.NewToken(t, consul.Client, rules...).SecretID)
	}
	environment := func(role string, rules ...string) []byte {
		list, err := json.Marshal(append(consul.ContainerEnv(""), "CONSUL_HTTP_TOKEN_FILE="+token(role, rules...)))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	file := testenv.File(t, testenv.Dir(t), "more.yml", fmt.Sprintf(more,
		environment("registrar", policies.Registrar), environment("templater", policies.Templater),
		environment("app", policies.Service("hello"), `service "redis" { policy = "read" }`), consul.Dir, consul.Network))
	s := &stack{consul: consul, web: testenv.FreeAddress(t, "127.0.0.1"), operator: token("operator", policies.Operator("hello"))}
	s.Compose = testenv.NewCompose(t, testenv.ComposeOptions{
		Command: []string{"./compose.sh"},
		Files:   []string{"compose.yml", file},
		Env:     []string{"HTTP_PORT=" + testenv.Port(s.web)},
		Down:    []string{"--rmi", "local"},
		Show:    []string{"app", "registrar", "templater"},
	})
	s.Do("up", "-d", "--build", "--no-deps", "registrar", "templater", "haproxy", "redis", "app")
	s.expectGreeting("Hello", 1)
	s.Eventually(time.Minute, "Redis is bound", func() error { _, err := s.greet("somebody"); return err })
	return s
}

// in is the same stack for a subtest, which receives the failures.
func (s *stack) in(t *testing.T) *stack {
	part := *s
	part.Compose = s.In(t)
	return &part
}

// underLoad sends requests while f runs and fails if one fails. It also repeatedly greets another name, whose count has to
// grow by one each time.
func (s *stack) underLoad(f func(l *traffic.Load)) {
	s.Helper()
	l := traffic.ToApp(s, s.web, rate, traffic.Kept, traffic.Fresh)
	stop := make(chan struct{})
	var counting sync.WaitGroup
	counting.Go(func() { s.count(stop) })
	f(l)
	close(stop)
	counting.Wait()
	r := l.Finish()
	s.Log(r)
	r.ExpectNoneFailed(s, s.Name())
}

// count requests greetings for a name until stop is closed.
func (s *stack) count(stop <-chan struct{}) {
	for last := 0; ; {
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		g, err := s.greet("ada")
		if err != nil {
			s.Errorf("ada is not greeted: %v", err)
		} else if last > 0 && g.seen != last+1 {
			s.Errorf("ada was seen %d times, and %d times before", g.seen, last)
		}
		last = g.seen
	}
}

// greeting is the answer to a name.
type greeting struct{ seen, node int }

var greeted = regexp.MustCompile(`^\w+ \w+! I have seen you (\d+) times?! You are accessing node (\d+)\.$`)

func (s *stack) greet(name string) (greeting, error) {
	body, err := testenv.Get("http://" + s.web + "/" + name)
	if err != nil {
		return greeting{}, err
	}
	found := greeted.FindStringSubmatch(body)
	if found == nil {
		return greeting{}, fmt.Errorf("the answer is %q", body)
	}
	seen, _ := strconv.Atoi(found[1])
	node, _ := strconv.Atoi(found[2])
	return greeting{seen, node}, nil
}

// seen is how often a name was seen, including this time.
func (s *stack) seen(name string) int {
	s.Helper()
	g, err := s.greet(name)
	if err != nil {
		s.Fatal(err)
	}
	return g.seen
}

// expectNodes waits until exactly these nodes greet without failures.
func (s *stack) expectNodes(want ...int) {
	s.Helper()
	s.Eventually(2*time.Minute, fmt.Sprintf("the nodes %v greet", want), func() error {
		nodes := map[int]bool{}
		for range 20 {
			g, err := s.greet("grace")
			if err != nil {
				return err
			}
			nodes[g.node] = true
		}
		if got := slices.Sorted(maps.Keys(nodes)); !slices.Equal(got, want) {
			return fmt.Errorf("the nodes %v greet", got)
		}
		return nil
	})
}

// expectGreeting waits until the given number of hosts answer, all with a greeting.
func (s *stack) expectGreeting(want string, hosts int) {
	s.Helper()
	s.Eventually(2*time.Minute, fmt.Sprintf("%d hosts say %s", hosts, want), func() error {
		said := map[string]bool{}
		for range 20 {
			body, err := testenv.Get("http://" + s.web + "/")
			if err != nil {
				return err
			}
			said[body] = true
			if !strings.HasPrefix(body, "Hosted by ") || !strings.Contains(body, "\n"+want+"! ") {
				return fmt.Errorf("a host says %q", body)
			}
		}
		if len(said) != hosts {
			return fmt.Errorf("%d hosts answer", len(said))
		}
		return nil
	})
}

// sh runs an operator's command in a container of the application.
func (s *stack) sh(command string) (string, error) {
	return s.Try("exec", "-T", "app", "sh", "-c", "export CONSUL_HTTP_TOKEN_FILE="+s.operator+"; "+command)
}

func (s *stack) must(command string) string {
	s.Helper()
	out, err := s.sh(command)
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("%s\n%s", command, out)
	return out
}

// fails runs a command that has to fail with all of these texts.
func (s *stack) fails(command string, says ...string) {
	s.Helper()
	out, err := s.sh(command)
	s.Logf("%s\n%s", command, out)
	if err == nil {
		s.Errorf("%s succeeds", command)
	}
	for _, text := range says {
		if !strings.Contains(out, text) {
			s.Errorf("%s does not say %q, but\n%s", command, text, out)
		}
	}
}

// states is the number of instances in each state.
func (s *stack) states() map[string]int {
	s.Helper()
	out, _ := s.sh("berth config status hello --format json 2>/dev/null")
	var status struct {
		Instances []struct{ Report struct{ State string } }
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&status); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	states := map[string]int{}
	for _, i := range status.Instances {
		states[i.Report.State]++
	}
	return states
}

// redis returns the address of Redis's container.
func (s *stack) redis() string {
	s.Helper()
	return s.Docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", s.Containers("redis")[0])
}
