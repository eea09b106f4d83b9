//go:build e2e

package templater_test

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/templater"
)

// connections returns the local addresses of open TCP connections to an agent. The kernel lists them in pieces, so the list
// can have both a connection that was just closed and one that was just opened. The agent counts a closed connection until
// it notices, which takes a while on a busy machine. If that makes too many, it refuses some, and the log says so.
func connections(t testing.TB, ip string, port int) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	b := net.ParseIP(ip).To4()
	slices.Reverse(b) // the kernel's byte order on every machine that Consul runs on
	remote := strings.ToUpper(hex.EncodeToString(b)) + fmt.Sprintf(":%04X", port)
	const established, synSent = "01", "02"
	open := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == remote && (f[3] == established || f[3] == synSent) {
			open[f[1]] = true
		}
	}
	return open
}

// mostConnections counts connections continuously until its func is called, which returns the highest number. It counts
// those in two consecutive lists: they were all open between the two.
func mostConnections(t testing.TB, ip string, port int) func() int {
	stop := make(chan struct{})
	var most int
	var counting sync.WaitGroup
	counting.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			before, n := connections(t, ip, port), 0
			for local := range connections(t, ip, port) {
				if before[local] {
					n++
				}
			}
			most = max(most, n)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); counting.Wait() })
	t.Cleanup(end)
	return func() int { end(); return most }
}

func name(prefix string, n int) string { return fmt.Sprintf("%s-%04d", prefix, n) }

// putMany registers many services with one instance each.
func (c *consul) putMany(services int, instance string) {
	c.t.Helper()
	var ops api.TxnOps
	for i := range services {
		ops = append(ops, set(name("s", i), name(instance, i)))
	}
	c.txn(ops)
}

// has waits until the text has, or does not have, these servers.
func (w *watch) has(within time.Duration, has bool, names ...string) {
	w.t.Helper()
	w.eventually(within, fmt.Sprintf("has %d servers from %s on: %t", len(names), names[0], has), func() error {
		now := map[string]bool{}
		for s := range strings.FieldsSeq(servers(w.last())) {
			now[s] = true
		}
		for _, n := range names {
			if now[n] != has {
				return fmt.Errorf("of %d servers %s is one: %t", len(now), n, now[n])
			}
		}
		return nil
	})
}

func names(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, name(prefix, i))
	}
	return out
}

// An agent accepts 200 connections from one address by default. Changes of more services than that are all seen, whether
// they were quiet for long or not.
func TestE2EMoreServicesThanConnections(t *testing.T) {
	const services = 400
	c := startConsul(t, "-dev")
	c.putMany(services, "a")
	most := mostConnections(t, c.ip, 8500)
	w := run(t, &api.Config{Address: c.Address}, every, templater.Options{Grace: grace})
	w.has(time.Minute, true, names("a", services)...)
	w.ready(soon)

	c.putMany(services, "b")
	w.has(time.Minute, true, names("b", services)...)

	// One at a time, across all of them.
	for i := 0; i < services; i += 7 {
		c.put(name("s", i), name("c", i))
		w.has(soon, true, name("c", i))
	}
	// The services quiet for the longest time have no connection, if any lacks one: changes are a check, a removed
	// instance, and the last removed instance.
	for i := 1; i < services; i += 39 {
		id := name("a", i)
		c.txn(api.TxnOps{health(name("s", i), id, api.HealthPassing)})
		c.txn(api.TxnOps{health(name("s", i), id, api.HealthCritical)})
		w.has(soon, false, id)
		c.txn(api.TxnOps{health(name("s", i), id, api.HealthPassing)})
		w.has(soon, true, id)
		c.remove(id)
		w.has(soon, false, id)
		w.has(soon, true, name("b", i))
		c.remove(name("b", i))
		w.has(soon, false, name("b", i))
	}
	if got := strings.Count(w.last(), "\n"); got != servicesLeft(services) {
		t.Errorf("%d servers in the end, want %d", got, servicesLeft(services))
	}
	n := most()
	t.Logf("at most %d connections to Consul at a time", n)
	if n > 200 || n < 50 {
		t.Errorf("%d connections at a time", n)
	}
	for _, bad := range []string{"429", "Too Many Requests", "too many concurrent connections", "level=WARN", "level=ERROR"} {
		if strings.Contains(w.log.String(), bad) {
			t.Errorf("the log has %q", bad)
		}
	}
}

// servicesLeft is how many instances remain after the test above.
func servicesLeft(services int) int {
	n := 2 * services
	for i := 0; i < services; i += 7 {
		n++
	}
	for i := 1; i < services; i += 39 {
		n -= 2
	}
	return n
}

// health sets a check of an instance.
func health(service, id, status string) *api.TxnOp {
	return &api.TxnOp{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{
		Node: appsNode, CheckID: "check-" + id, Name: "check", Status: status, ServiceID: id, ServiceName: service,
	}}}
}

// Over TLS connections are shared: a thousand queries need few. The agent requires a client certificate.
func TestE2ETLSWithClientCertificate(t *testing.T) {
	const services = 1000
	dir, ip := testenv.Dir(t), freeIP(t)
	ca := testenv.NewCA(t, dir)
	ca.Issue(t, "server", ip)
	ca.Issue(t, "client")
	c := newConsul(t, testenv.Name(t)+"-consul", ip, testenv.ConsulOptions{
		Docker: []string{"--volume", dir + ":/certificates:ro"},
		Args: []string{"-dev", "-hcl=ports { https = 8501 }", `-hcl=tls { https {
			verify_incoming = true, ca_file = "/certificates/ca.pem"
			cert_file = "/certificates/server.pem", key_file = "/certificates/server-key.pem"
		} }`},
	})
	c.Answers(t)
	c.putMany(services, "a")
	conf := &api.Config{Address: ip + ":8501", Scheme: "https", TLSConfig: api.TLSConfig{CAFile: filepath.Join(dir, "ca.pem")}}

	stranger := run(t, conf, every, templater.Options{})
	stranger.notReady(soon)
	stranger.eventually(soon, "one without a certificate is refused", func() error {
		if why := stranger.Ready(); why == nil || !strings.Contains(why.Error(), "certificate") {
			return fmt.Errorf("it says %v", why)
		}
		return nil
	})
	stranger.stop()
	if all := stranger.history(); len(all) > 0 {
		t.Errorf("it has published %q", all)
	}

	conf.TLSConfig.CertFile, conf.TLSConfig.KeyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")
	most := mostConnections(t, ip, 8501)
	w := run(t, conf, every, templater.Options{Grace: grace})
	w.has(time.Minute, true, names("a", services)...)
	w.ready(soon)
	for i := 0; i < services; i += 97 {
		c.put(name("s", i), name("b", i))
		w.has(soon, true, name("b", i))
		c.remove(name("a", i))
		w.has(soon, false, name("a", i))
	}
	w.eventually(soon, "connections are shared", func() error {
		if n := len(connections(t, ip, 8501)); n < 1 || n > 20 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	now, n := len(connections(t, ip, 8501)), most()
	t.Logf("%d connections to Consul, at most %d at a time", now, n)
	if n > 200 {
		t.Errorf("%d connections at a time", n)
	}
}
