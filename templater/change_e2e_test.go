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

// contains reports whether servers are all in one line of a history.
func contains(line string, names ...string) bool {
	has := strings.Fields(line)
	for _, name := range names {
		if !slices.Contains(has, name) {
			return false
		}
	}
	return true
}

// An intended removal takes effect at once, whether it is all of a service or most of it.
func TestE2ERemovedOnPurpose(t *testing.T) {
	c := startConsul(t, "-dev")
	c.put("api", "x")
	c.put("web", "a", "b", "c")
	w := run(t, &api.Config{Address: c.Address}, every, templater.Options{Grace: time.Hour})
	w.await(soon, "a b c x")
	w.ready(soon)

	c.remove("a", "b", "c")
	w.await(soon, "x")
	c.put("web", "a")
	w.await(soon, "a x")
	w.want("a b c x", "x", "a x")

	var ten []string
	for i := range 10 {
		ten = append(ten, fmt.Sprint("i", i))
	}
	c.put("big", ten...)
	w.await(soon, "a "+strings.Join(ten, " ")+" x")
	c.remove(ten[1:]...)
	w.await(soon, "a i0 x")
	w.want("a b c x", "x", "a x", "a "+strings.Join(ten, " ")+" x", "a i0 x")
}

// Services of another datacenter are followed through the local agent. If that datacenter is away, or empty after a
// restart, neither its servers nor the local ones are lost.
func TestE2ETwoDatacenters(t *testing.T) {
	name, here, there := testenv.Name(t), freeIP(t), freeIP(t)
	c1 := newConsul(t, name+"-here", here, testenv.ConsulOptions{Args: []string{"-dev", "-datacenter=dc1"}})
	c2 := newConsul(t, name+"-there", there, testenv.ConsulOptions{
		Args: []string{"-dev", "-datacenter=dc2", "-retry-join-wan=" + here},
	})
	c1.Answers(t)
	c2.Answers(t)
	c1.put("web", "a")
	c2.put("web", "x", "y")
	testenv.Eventually(t, soon, "the datacenters know each other", func() error {
		list, _, err := c1.Health().Service("web", "", true, &api.QueryOptions{Datacenter: "dc2"})
		if err == nil && len(list) != 2 {
			err = fmt.Errorf("%d instances there", len(list))
		}
		return err
	})
	both := web + `{{ range service "web@dc2" }}server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}`
	w := run(t, &api.Config{Address: c1.Address}, both, templater.Options{Grace: grace})
	w.await(soon, "a x y")
	w.ready(soon)
	c2.put("web", "z")
	w.await(soon, "a x y z")
	c2.remove("x")
	w.await(soon, "a y z")

	c2.Do(t, "kill")
	w.notReady(time.Minute)
	c1.put("web", "b")
	w.await(soon, "a b y z")
	c2.Do(t, "start")
	c2.Answers(t)
	w.ready(time.Minute) // the datacenters have found each other again
	c2.put("web", "z", "new")
	w.await(soon, "a b new y z")
	c1.remove("b")
	w.await(soon, "a new y z")
	w.await(grace+soon, "a new z")
	w.want("a x y", "a x y z", "a y z", "a b y z", "a b new y z", "a new y z", "a new z")
}
