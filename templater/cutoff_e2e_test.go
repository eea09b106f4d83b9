//go:build e2e

package templater_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
)

// allInstances lists the instances of all services but Consul itself, in every state of health.
const allInstances = `{{ range services }}{{ if ne .Name "consul" }}{{ range instances .Name }}server {{ .Service.ID }} {{ .Node.Node }}
{{ end }}{{ end }}{{ end }}`

// register registers a service on an agent, and it disappears with the agent.
func (c *consul) register(service string, ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Port: 80, Address: "10.0.0.1"}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// keeps checks that every text after the first one with all the servers had all of them.
func (w *watch) keeps(ids ...string) {
	w.t.Helper()
	all := w.history()
	first := slices.IndexFunc(all, func(line string) bool { return contains(line, ids...) })
	for _, line := range all[max(first, 0):] {
		if !contains(line, ids...) {
			w.t.Errorf("%q lacks one of %q", line, ids)
		}
	}
}

// A client agent leaves when it is stopped, and all its services vanish from the catalog, although their containers run on.
// A restart loses none of them, and an agent that does not come back is finally believed to be gone.
func TestE2EClientAgentRestarted(t *testing.T) {
	server := startConsul(t, kept()...)
	client := newConsul(t, testenv.Name(t)+"-client", freeIP(t), testenv.ConsulOptions{Args: []string{"-data-dir=/consul/data", "-retry-join=" + server.ip}})
	client.Answers(t)
	server.register("web", "there")
	client.register("web", "a", "b")
	client.register("api", "x")
	opts := templater.Options{Grace: grace}
	w := run(t, &api.Config{Address: server.Address}, allInstances, opts)
	w.await(soon, "a b there x")

	client.Do(t, "stop")
	// An agent that syncs while leaving comes back as a node, which Consul's leader removes within a minute.
	testenv.Eventually(t, 2*time.Minute, "its node leaves the catalog", func() error {
		if node, _, err := server.Catalog().Node("client", nil); err != nil || node != nil {
			return fmt.Errorf("%v, %v", node, err)
		}
		return nil
	})
	client.Do(t, "start")
	client.Answers(t)
	client.register("web", "c")
	testenv.Eventually(t, soon, "what it had is in the catalog again", func() error {
		if list, _, err := server.Catalog().Service("api", "", nil); err != nil || len(list) != 1 {
			return fmt.Errorf("%v, %v", list, err)
		}
		return nil
	})
	client.register("api", "y") // makes the templater see the list with x
	w.await(soon, "a b c there x y")
	w.keeps("a", "b", "there", "x")
	if !strings.Contains(w.log.String(), " left Consul with all its services") {
		t.Errorf("not logged:\n%s", w.log)
	}

	// A removal while the node exists takes effect at once.
	for _, step := range []struct{ id, left string }{{"x", "a b c there y"}, {"y", "a b c there"}} {
		if err := client.Agent().ServiceDeregister(step.id); err != nil {
			t.Fatal(err)
		}
		w.await(grace/2, step.left)
	}

	client.Do(t, "kill")
	began := time.Now()
	if _, err := server.Catalog().Deregister(&api.CatalogDeregistration{Node: "client"}, nil); err != nil {
		t.Fatal(err)
	}
	w.await(grace+soon, "there")
	if took := time.Since(began); took < grace {
		t.Errorf("believed after %s", took)
	}
}

// A server is cut off for so long that the others remove it and everything registered on it. A limit on what may vanish
// does not make that worse.
func TestE2EServerCutOff(t *testing.T) {
	cl := startCluster(t)
	_, others := cl.split()
	mine, second := others[0], others[1]
	mine.register("web", "a", "b", "c")
	second.register("web", "d")
	conf := &api.Config{Address: mine.Address}
	free := run(t, conf, allInstances, templater.Options{Grace: time.Minute})
	limited := run(t, conf, allInstances, templater.Options{Grace: time.Minute, VanishLimit: 10})
	free.await(soon, "a b c d")
	limited.await(soon, "a b c d")

	mine.Do(t, "pause")
	testenv.Eventually(t, time.Minute, "the others remove it", func() error {
		node, _, err := second.Catalog().Node(mine.ip, nil)
		if list, _, e := second.Health().Service("web", "", false, nil); e != nil || len(list) != 1 {
			return fmt.Errorf("%v %v %v %d", node, err, e, len(list))
		}
		return nil
	})
	mine.Do(t, "unpause")
	second.register("web", "e")
	for _, w := range []*watch{free, limited} {
		w.await(time.Minute, "a b c d e")
		w.keeps("a", "b", "c", "d")
	}
}
