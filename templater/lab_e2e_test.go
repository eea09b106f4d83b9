//go:build e2e

package templater_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"berth/deploy/testenv"
	"berth/templater"
)

const (
	// soon is enough for immediate changes on a busy machine.
	soon = 20 * time.Second

	// grace is the Options.Grace of most tests: much longer than their other steps.
	grace = 10 * time.Second

	// web lists the servers of one service, as every template does.
	web = `{{ range service "web" }}server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}`

	// every lists the servers of all services except Consul itself.
	every = `{{ range services }}{{ if ne .Name "consul" }}{{ range service .Name }}server {{ .ID }} {{ .Address }}:{{ .Port }}
{{ end }}{{ end }}{{ end }}`
)

// consul is a real Consul in a container, with its own IP address in this host's network.
type consul struct {
	*testenv.Consul
	t  testing.TB
	ip string
}

// startConsul starts an agent with its usual ports on its own loopback address, and waits until it answers.
func startConsul(t testing.TB, args ...string) *consul {
	t.Helper()
	c := newConsul(t, testenv.Name(t)+"-consul", freeIP(t), testenv.ConsulOptions{Args: args})
	c.Answers(t)
	return c
}

// newConsul starts an agent without waiting for it.
func newConsul(t testing.TB, name, ip string, o testenv.ConsulOptions) *consul {
	t.Helper()
	o.Name, o.Address = name, ip+":8500"
	o.Docker = append([]string{"--network", "host"}, o.Docker...)
	o.Args = append([]string{"-bind=" + ip, "-client=" + ip, "-node=" + name[strings.LastIndexByte(name, '-')+1:]}, o.Args...)
	return &consul{testenv.StartConsul(t, o), t, ip}
}

// kept are the arguments of an agent that is its own server and keeps its state when it is restarted.
func kept(more ...string) []string {
	return append([]string{"-server", "-bootstrap-expect=1", "-data-dir=/consul/data"}, more...)
}

// freeIP is one of the sixteen million addresses of the loopback network. No outgoing connection takes a port there.
func freeIP(t testing.TB) string {
	t.Helper()
	for range 100 {
		b := make([]byte, 3)
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
		ip := fmt.Sprintf("127.%d.%d.%d", 1+b[0]%254, b[1], 1+b[2]%254)
		l, err := net.Listen("tcp", ip+":8500")
		if err != nil {
			continue
		}
		l.Close()
		return ip
	}
	t.Fatal("no loopback address is free")
	return ""
}

// put registers instances on a node without an agent: Consul itself never changes them.
func (c *consul) put(service string, ids ...string) {
	c.t.Helper()
	var ops api.TxnOps
	for _, id := range ids {
		ops = append(ops, set(service, id))
	}
	c.txn(ops)
}

// remove deregisters instances, all at once.
func (c *consul) remove(ids ...string) {
	c.t.Helper()
	var ops api.TxnOps
	for _, id := range ids {
		service := api.AgentService{ID: id, Service: "any"} // a name is required but ignored
		ops = append(ops, &api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceDelete, Node: appsNode, Service: service}})
	}
	c.txn(ops)
}

const appsNode = "apps"

func set(service, id string) *api.TxnOp {
	port := 1024
	for _, b := range []byte(id) {
		port = (port*31 + int(b)) % 64000
	}
	return &api.TxnOp{Service: &api.ServiceTxnOp{
		Verb: api.ServiceSet, Node: appsNode,
		Service: api.AgentService{ID: id, Service: service, Address: "10.0.0.1", Port: 1 + port},
	}}
}

// maxOps is how many operations Consul takes in one transaction.
const maxOps = 128

// txn writes to the catalog; each transaction is one change.
func (c *consul) txn(ops api.TxnOps) {
	c.t.Helper()
	if err := c.try(ops); err != nil {
		c.t.Fatal(err)
	}
}

func (c *consul) try(ops api.TxnOps) error {
	node := &api.TxnOp{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: appsNode, Address: "10.0.0.1"}}}
	for chunk := range slices.Chunk(ops, maxOps-1) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		ok, response, _, err := c.Txn().Txn(append(api.TxnOps{node}, chunk...), (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("transaction: %s", response.Errors[0].What)
		}
	}
	return nil
}

// index returns the index of a service's list.
func (c *consul) index(service string) uint64 {
	c.t.Helper()
	_, meta, err := c.Health().Service(service, "", true, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return meta.LastIndex
}

// watch is a running templater and everything it has published.
type watch struct {
	*templater.Templater
	t       testing.TB
	log     *testenv.Log
	metrics *prometheus.Registry
	stop    func()

	mu        sync.Mutex
	published []published
}

type published struct {
	at   time.Time
	text string
}

// run starts a templater with one template. Empty fields of opts get the tests' defaults. It is stopped at the end of the
// test.
func run(t testing.TB, conf *api.Config, template string, opts templater.Options) *watch {
	t.Helper()
	w := &watch{t: t, log: &testenv.Log{}, metrics: prometheus.NewRegistry()}
	opts.Consul = conf
	opts.Templates = []templater.Template{{Name: "out", Source: "out.ctmpl", Text: template}}
	opts.Publish = func(p templater.Published) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.published = append(w.published, published{time.Now(), p.Text})
	}
	opts.Log = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opts.Metrics = w.metrics
	var err error
	if w.Templater, err = templater.New(opts); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not return 20 s after the end of its context")
		}
	})
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("published:\n%s\nlog of the templater:\n%s", strings.Join(w.history(), "\n"), w.log)
		}
	})
	return w
}

// servers returns the names of the servers in a text, as one line.
func servers(text string) string {
	var names []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "server" {
			names = append(names, f[1])
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// all is what was published so far.
func (w *watch) all() []published {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.published)
}

// last returns the current text.
func (w *watch) last() string {
	all := w.all()
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1].text
}

// history returns the servers of every published text, in order.
func (w *watch) history() (lines []string) {
	for _, p := range w.all() {
		lines = append(lines, servers(p.text))
	}
	return lines
}

// await waits until these are the servers.
func (w *watch) await(within time.Duration, want string) {
	w.t.Helper()
	w.eventually(within, fmt.Sprintf("the servers are %q", want), func() error {
		if all := w.history(); len(all) == 0 || all[len(all)-1] != want {
			return fmt.Errorf("published so far: %q", all)
		}
		return nil
	})
}

// want compares everything ever published with the expected texts.
func (w *watch) want(history ...string) {
	w.t.Helper()
	if got := w.history(); !slices.Equal(got, history) {
		w.t.Errorf("the servers were, one after the other, %q, want %q", got, history)
	}
}

// notReady waits until the templater has noticed that Consul does not answer properly.
func (w *watch) notReady(within time.Duration) {
	w.t.Helper()
	w.eventually(within, "the templater notices", func() error {
		if w.Ready() == nil {
			return errors.New("it is ready")
		}
		return nil
	})
}

// ready waits until Consul answers every query again.
func (w *watch) ready(within time.Duration) {
	w.t.Helper()
	w.eventually(within, "the templater is ready", w.Ready)
}

func (w *watch) eventually(within time.Duration, what string, f func() error) {
	w.t.Helper()
	testenv.Eventually(w.t, within, what, f)
}

// front is a proxy between a templater and a real Consul that records Consul's answers.
type front struct {
	*httptest.Server

	mu       sync.Mutex
	answers  []told
	refusing bool // answers with errors itself
}

// told is one answer.
type told struct {
	at       time.Time
	path     string
	index    uint64
	filtered bool // by ACLs
	status   int
}

func (c *consul) newFront() *front {
	c.t.Helper()
	target := &url.URL{Scheme: "http", Host: c.Address}
	f := &front{}
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	c.t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ModifyResponse: func(r *http.Response) error {
			index, _ := strconv.ParseUint(r.Header.Get("X-Consul-Index"), 10, 64)
			filtered := r.Header.Get("X-Consul-Results-Filtered-By-ACLs") == "true"
			f.note(told{time.Now(), r.Request.URL.Path, index, filtered, r.StatusCode})
			return nil
		},
		ErrorLog: discard,
	}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		refusing := f.refusing
		f.mu.Unlock()
		if !refusing {
			proxy.ServeHTTP(w, r)
			return
		}
		f.note(told{at: time.Now(), path: r.URL.Path, status: http.StatusInternalServerError})
		http.Error(w, "No cluster leader", http.StatusInternalServerError)
	}))
	c.t.Cleanup(func() {
		f.refuse(true) // or it would wait for queries that block for a minute
		f.Close()
	})
	return f
}

func (f *front) note(a told) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = append(f.answers, a)
}

// refuse turns answers with errors on or off.
func (f *front) refuse(refusing bool) {
	f.mu.Lock()
	f.refusing = refusing
	f.mu.Unlock()
	if refusing {
		f.CloseClientConnections() // waiting requests would go on waiting
	}
}

// since returns the answers after a moment.
func (f *front) since(when time.Time, like func(told) bool) (out []told) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.answers {
		if a.at.After(when) && like(a) {
			out = append(out, a)
		}
	}
	return out
}

// await waits until Consul has given such an answer after a moment, and then another: by then the templater has processed
// the first one.
func (f *front) await(t testing.TB, when time.Time, what string, like func(told) bool) {
	t.Helper()
	testenv.Eventually(t, soon, what, func() error {
		if n := len(f.since(when, like)); n < 2 {
			return fmt.Errorf("%d times so far", n)
		}
		return nil
	})
}

var discard = log.New(io.Discard, "", 0)
