//go:build e2e

package templater_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
)

// An agent is restarted and keeps its state. Checks without a report are then critical, for example a TTL check that was
// not refreshed.
func TestE2EAgentRestarted(t *testing.T) {
	c := startConsul(t, kept()...)
	c.put("web", "a", "b")
	if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "c", Name: "web", Address: c.ip, Port: 8500,
		Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	}); err != nil {
		t.Fatal(err)
	}
	w := run(t, &api.Config{Address: c.Address}, web, templater.Options{Grace: grace})
	w.await(soon, "a b c")
	w.ready(soon)

	c.Do(t, "restart", "--time", "5")
	restarted := time.Now()
	c.Answers(t)
	w.ready(soon)
	c.lists("web", 2) // c is critical
	c.put("web", "d")
	w.await(soon, "a b c d")
	if err := c.Agent().UpdateTTL("service:c", "", api.HealthPassing); err != nil {
		t.Fatal(err)
	}
	c.lists("web", 4)
	if past := time.Since(restarted); past >= grace {
		t.Fatalf("this machine is too slow: %s have passed, the grace is %s", past, grace)
	}
	c.remove("d")
	w.await(grace+soon, "a b c") // finally Consul is trusted
	w.want("a b c", "a b c d", "a b c")
}

// lists waits until Consul lists the given number of passing instances of a service.
func (c *consul) lists(service string, want int) {
	c.t.Helper()
	testenv.Eventually(c.t, soon, fmt.Sprintf("Consul lists %d instances of %s", want, service), func() error {
		list, _, err := c.Health().Service(service, "", true, nil)
		if err == nil && len(list) != want {
			err = fmt.Errorf("%d", len(list))
		}
		return err
	})
}

// cluster has three servers.
type cluster struct {
	t       *testing.T
	servers []*consul
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	name := testenv.Name(t)
	var ips, join []string
	for range 3 {
		ip := freeIP(t)
		ips, join = append(ips, ip), append(join, "-retry-join="+ip)
	}
	cl := &cluster{t: t}
	for i, ip := range ips {
		args := slices.Concat([]string{"-server", "-bootstrap-expect=3", "-data-dir=/consul/data"}, join)
		cl.servers = append(cl.servers, newConsul(t, fmt.Sprintf("%s-s%d", name, i), ip, testenv.ConsulOptions{Args: args}))
	}
	for _, s := range cl.servers {
		s.Answers(t)
	}
	return cl
}

// split returns the leader and the other servers.
func (cl *cluster) split() (leader *consul, others []*consul) {
	cl.t.Helper()
	testenv.Eventually(cl.t, soon, "there is a leader", func() error {
		at, err := cl.servers[0].Status().Leader()
		if err != nil {
			return err
		}
		leader, others = nil, nil
		for _, s := range cl.servers {
			if at == s.ip+":8300" {
				leader = s
			} else {
				others = append(others, s)
			}
		}
		if leader == nil {
			return fmt.Errorf("the leader is %q", at)
		}
		return nil
	})
	return leader, others
}

// put registers through a server that may have no leader for a while.
func (cl *cluster) put(through *consul, service, id string) {
	cl.t.Helper()
	testenv.Eventually(cl.t, time.Minute, "the cluster takes "+id, func() error {
		return through.try(api.TxnOps{set(service, id)})
	})
}

// A cluster loses its leader, then its quorum, and gets both back.
func TestE2ELeaderAndQuorumLost(t *testing.T) {
	cl := startCluster(t)
	leader, others := cl.split()
	mine, other := others[0], others[1]
	cl.put(mine, "web", "a")
	cl.put(mine, "web", "b")
	w := run(t, &api.Config{Address: mine.Address}, web, templater.Options{Grace: grace, WaitTime: 5 * time.Second})
	w.await(soon, "a b")
	w.ready(soon)

	leader.Do(t, "kill")
	cl.put(mine, "web", "c")
	w.await(time.Minute, "a b c")
	w.ready(time.Minute)

	other.Do(t, "kill")
	w.notReady(time.Minute)
	testenv.Eventually(t, soon, "the catalog cannot be read without a quorum", func() error {
		if _, _, err := mine.Health().Service("web", "", true, nil); err == nil {
			return errors.New("it can")
		}
		return nil
	})
	leader.Do(t, "start")
	other.Do(t, "start")
	w.ready(time.Minute)
	cl.put(mine, "web", "d")
	w.await(soon, "a b c d")
	w.want("a b", "a b c", "a b c d")
}

// leaderSoon is how long a change may take to be seen without the old leader: Consul's servers have to learn of the new
// leader, and berth has to ask them.
const leaderSoon = 10 * time.Second

// A frozen leader neither answers nor closes connections.
func TestE2ELeaderFrozen(t *testing.T) {
	cl := startCluster(t)
	leader, others := cl.split()
	mine := others[0]
	cl.put(mine, "web", "a")
	cl.put(mine, "web", "b")
	// By default a query blocks for a minute: the test does not wait for that.
	w := run(t, &api.Config{Address: mine.Address}, web, templater.Options{Grace: grace})
	w.await(soon, "a b")
	w.ready(soon)

	leader.Do(t, "pause")
	cl.put(others[1], "web", "c")
	w.await(leaderSoon, "a b c")
	leader.Do(t, "unpause")
	cl.put(mine, "web", "d")
	w.await(time.Minute, "a b c d")
	w.ready(time.Minute)
	w.want("a b", "a b c", "a b c d")
}

// The templater's own agent freezes and comes back.
func TestE2EAgentFrozen(t *testing.T) {
	c := startConsul(t, kept()...)
	c.put("web", "a", "b")
	w := run(t, &api.Config{Address: c.Address}, web, templater.Options{Grace: grace, WaitTime: time.Second})
	w.await(soon, "a b")
	w.ready(soon)
	c.Do(t, "pause")
	w.notReady(time.Minute)
	c.Do(t, "unpause")
	w.ready(time.Minute)
	c.put("web", "c")
	w.await(soon, "a b c")
	w.want("a b", "a b c")
}

// Consul is unreachable for long. The test does not wait ten minutes: it shows that the pauses between attempts stop
// growing, so the next ten minutes are like the last seconds. BERTH_E2E_OUTAGE=10m makes the outage last that long (go test
// then needs a longer -timeout).
func TestE2EConsulAway(t *testing.T) {
	const (
		long, tooLong = 2 * time.Second, 12 * time.Second // pauses
		enough        = 5                                 // long pauses; in a series that doubles, the last were tooLong
	)
	c := startConsul(t, kept()...)
	c.put("api", "x")
	c.put("web", "a", "b")
	f := c.newFront()
	w := run(t, &api.Config{Address: f.URL}, every, templater.Options{Grace: grace})
	w.await(soon, "a b x")
	w.ready(soon)

	began := time.Now()
	f.refuse(true)
	c.Do(t, "stop", "--time", "5")
	w.notReady(soon)
	refused := func(a told) bool {
		return a.path == "/v1/health/service/web" && a.status == http.StatusInternalServerError
	}
	testenv.Eventually(t, 2*time.Minute, fmt.Sprintf("there were %d pauses of %s and more", enough, long), func() error {
		n := 0
		attempts := f.since(began, refused)
		for i, a := range attempts {
			if i > 0 && a.at.Sub(attempts[i-1].at) > long {
				n++
			}
		}
		if n < enough {
			return fmt.Errorf("%d of %d", n, len(attempts))
		}
		return nil
	})
	attempts := f.since(began, refused)
	for i, a := range attempts[1:] {
		if pause := a.at.Sub(attempts[i].at); pause > tooLong {
			t.Errorf("%s between two attempts", pause)
		}
	}
	if outage, err := time.ParseDuration(os.Getenv("BERTH_E2E_OUTAGE")); err == nil {
		testenv.Eventually(t, outage+time.Minute, "the outage is over", func() error {
			if past := time.Since(began); past < outage {
				return fmt.Errorf("it lasts for %s so far", past)
			}
			return nil
		})
	}
	t.Logf("%d attempts for one service in %s", len(f.since(began, refused)), time.Since(began).Round(time.Second))

	// First nothing listens, then Consul does.
	f.refuse(false)
	c.Do(t, "start")
	c.Answers(t)
	w.ready(soon)
	c.put("web", "c")
	w.await(soon, "a b c x")
	w.want("a b x", "a b c x")
}
