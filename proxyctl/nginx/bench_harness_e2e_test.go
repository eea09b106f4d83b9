//go:build e2e

package nginx_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/proxyctl"
	"berth/proxyctl/haproxy"
	"berth/proxyctl/nginx"
	"berth/templates"
)

// Everything listens on its own address in 127.0.0.0/8, whose ports no outgoing connection takes.
const (
	benchWebIP    = "127.0.0.5"
	benchAppIP    = "127.0.0.6"
	benchOriginIP = "127.0.0.7"
)

// startContenders starts each proxy in a container in the host's network.
func startContenders(b testing.TB) []*contender {
	usual := testenv.Image(b, "IMAGE_NGINX")
	static := startNginx(b, "nginx, no changes", usual, false)
	static.fixed = true
	all := []*contender{startHAProxy(b, "HAProxy, run time"), static}
	for _, image := range strings.Split(cmp.Or(os.Getenv("BENCH_NGINX"), usual), ",") {
		all = append(all, startNginx(b, "nginx, HUP ("+image+")", image, false))
	}
	return append(all, startNginx(b, "nginx, Lua", testenv.Image(b, "IMAGE_NGINX_LUA"), true))
}

func startHAProxy(b testing.TB, name string) *contender {
	dir := testenv.Dir(b)
	file, socket := filepath.Join(dir, "haproxy.cfg"), filepath.Join(dir, "master.sock")
	c := newContender(b, name)
	stats := testenv.FreeAddress(b, benchWebIP)
	c.text = func(servers []string) proxyctl.Config {
		return rendering{
			template: templates.HAProxy(),
			file:     file,
			replace: []string{"bind :8080", "bind " + c.web, "bind :8404", "bind " + stats, "/run/haproxy/", dir + "/",
				"    log global\n", "", "    log stdout format raw local0\n", ""},
		}.render(b, servers)
	}
	writeBench(b, file, c.text(nil))
	startBench(b, "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), "--volume", dir+":"+dir,
		testenv.Image(b, "IMAGE_HAPROXY"), "haproxy", "-W", "-db", "-S", socket, "-f", file)
	c.open = func() proxyctl.Proxy {
		return haproxy.New(haproxy.Options{File: file, Socket: socket, Log: slog.New(slog.DiscardHandler)})
	}
	c.begin(b)
	return c
}

var saysNginx = regexp.MustCompile(`nginx/([0-9.]+)`)

func startNginx(b testing.TB, name, image string, lua bool) *contender {
	dir := testenv.Dir(b)
	file, socket := filepath.Join(dir, "nginx.conf"), filepath.Join(dir, "berth.sock")
	c := newContender(b, name)
	stats := testenv.FreeAddress(b, benchWebIP)
	version := saysNginx.FindStringSubmatch(testenv.MustDocker(b, "run", "--rm", "--network", "none", image, "sh", "-c", "nginx -v 2>&1"))
	if version == nil {
		b.Fatalf("%s does not tell its version", name)
	}
	c.text = func(servers []string) proxyctl.Config {
		return rendering{
			template: templates.Nginx(),
			options: templates.Options{NginxSocket: socket, NginxClosing: nginx.ClosingFile(file), Lua: lua, Hold: 10 * time.Second, HoldMax: 2000,
				NginxAtLeast: func(v string) bool { return proxyctl.AtLeast(version[1], v) }},
			file: file,
			replace: []string{"listen 8080 ", "listen " + c.web + " ", "listen 8404;", "listen " + stats + ";",
				"access_log /var/log/nginx/access.log berth;", "access_log off;"},
		}.render(b, servers)
	}
	writeBench(b, file, proxyctl.Config{Text: "events {\n}\n"})
	id := startBench(b, "--volume", dir+":"+dir, image, "nginx", "-c", file, "-g", "daemon off;")
	master, err := strconv.Atoi(testenv.MustDocker(b, "inspect", "--format", "{{.State.Pid}}", id))
	if err != nil || master == 0 {
		b.Fatalf("%s does not run: %v", name, err)
	}
	reload := func(context.Context) error {
		err := syscall.Kill(master, syscall.SIGHUP)
		if errors.Is(err, syscall.EPERM) {
			_, err = testenv.Docker("kill", "--signal", "HUP", id)
		}
		return err
	}
	c.master = master
	c.open = func() proxyctl.Proxy {
		return nginx.New(nginx.Options{File: file, Socket: socket, Reload: reload, ClosingTime: benchClosing, Log: slog.New(slog.DiscardHandler)})
	}
	c.begin(b)
	return c
}

func newContender(b testing.TB, name string) *contender {
	return &contender{name: name, web: testenv.FreeAddress(b, benchWebIP), apps: startBenchApps(b)}
}

// begin waits until the proxy has started, and brings it to its first servers.
func (c *contender) begin(b testing.TB) {
	p := c.open()
	defer p.Close()
	testenv.Eventually(b, 20*time.Second, c.name+" has its first servers", func() error {
		_, err := p.Apply(b.Context(), c.text(c.apps.inService()), true)
		return err
	})
	testenv.Eventually(b, 20*time.Second, c.name+" serves", func() error {
		_, err := testenv.Fetch(b.Context(), &http.Client{Timeout: time.Second}, "http://"+c.web+"/")
		return err
	})
}

// beginsMap matches the start of a map's contents in a text for HAProxy.
var beginsMap = regexp.MustCompile(`(?m)^#map (\S+)$`)

func writeBench(b testing.TB, file string, c proxyctl.Config) {
	for _, m := range beginsMap.FindAllStringSubmatch(c.Text, -1) {
		if err := os.WriteFile(m[1], nil, 0o644); err != nil { // HAProxy is given its content
			b.Fatal(err)
		}
	}
	for path, content := range c.Files {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte(c.Text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// startBench runs a container until the benchmark ends, and returns its ID.
func startBench(b testing.TB, args ...string) string {
	name := testenv.Name(b) + "-bench"
	id := testenv.MustDocker(b, append([]string{"run", "--detach", "--name", name, "--label", "SERVICE_IGNORE=1", "--network", "host",
		"--log-opt", "max-size=10m"}, args...)...)
	b.Cleanup(func() {
		if b.Failed() {
			b.Log(testenv.MustDocker(b, "logs", "--tail", "20", id))
		}
	})
	return id
}

// rendering is a built-in template as the templater executes it.
type rendering struct {
	template string
	options  templates.Options
	file     string   // where the text belongs
	replace  []string // old and new parts of the text
}

// render renders a catalog of one service with these servers.
func (r rendering) render(b testing.TB, servers []string) proxyctl.Config {
	c := proxyctl.Config{Files: map[string]string{}}
	funcs := templates.Funcs(r.options)(func(reason string) { b.Errorf("the template leaves out: %s", reason) })
	funcs["asFile"] = func(name, text string) string {
		base, suffix, _ := strings.Cut(name, ".")
		sum := sha256.Sum256([]byte(text))
		path := fmt.Sprintf("%s.%s-%x.%s", r.file, base, sum[:8], suffix)
		c.Files[path] = text
		return path
	}
	funcs["instances"] = func(string) []*api.ServiceEntry { return benchInstances(servers) }
	contents := map[string]string{}
	funcs["asMap"] = func(name, text string) string {
		path := r.file + "." + name
		contents[path] = text
		return path
	}
	funcs["paused"] = func() map[string]time.Duration { return nil }
	funcs["directory"] = func(string) (any, error) { return nil, nil }
	t, err := template.NewTemplate(&template.NewTemplateInput{
		Contents:   strings.ReplaceAll(r.template, `partial "`, `executeTemplate "`),
		ExtFuncMap: funcs,
	})
	if err != nil {
		b.Fatal(err)
	}
	result, err := t.Execute(&template.ExecuteInput{Brain: benchCatalog(b)})
	if err != nil {
		b.Fatal(err)
	}
	c.Text = string(result.Output)
	for i := 0; i < len(r.replace); i += 2 {
		if !strings.Contains(c.Text, r.replace[i]) {
			b.Fatalf("the shipped template no longer renders %q", r.replace[i])
		}
		c.Text = strings.ReplaceAll(c.Text, r.replace[i], r.replace[i+1])
	}
	c.Text = haproxy.WithMaps(c.Text, contents)
	return c
}

// benchCatalog has one service.
func benchCatalog(b testing.TB) *template.Brain {
	brain := template.NewBrain()
	all, err := dependency.NewCatalogServicesQuery("")
	if err != nil {
		b.Fatal(err)
	}
	brain.Remember(all, []*dependency.CatalogSnippet{{Name: "app"}})
	return brain
}

// benchInstances are the instances of the service, which is at the path /. The check of an instance marked "away" fails.
func benchInstances(servers []string) (instances []*api.ServiceEntry) {
	for _, s := range servers {
		address, away := strings.CutSuffix(s, " away")
		status := api.HealthPassing
		if away {
			status = api.HealthCritical
		}
		host, port, _ := net.SplitHostPort(address)
		number, _ := strconv.Atoi(port)
		instances = append(instances, &api.ServiceEntry{
			Node: &api.Node{Node: "node"},
			Service: &api.AgentService{ID: "app-" + address, Service: "app", Address: host, Port: number,
				Meta: map[string]string{"route_path": "/"}, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
			Checks: api.HealthChecks{{CheckID: "service:app-" + address, ServiceID: "app-" + address, Status: status}},
		})
	}
	return instances
}

// benchApps are applications in this process, some of which are in service.
type benchApps struct {
	addresses []string
	first     int // index of the first one in service

	mu      sync.Mutex
	awaited string         // the application whose first request is awaited
	arrival chan time.Time // of that request
}

func startBenchApps(b testing.TB) *benchApps {
	a := &benchApps{}
	for range 5 * benchServers {
		l, err := net.Listen("tcp", benchAppIP+":0")
		if err != nil {
			b.Fatal(err)
		}
		address := l.Addr().String()
		a.addresses = append(a.addresses, address)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			a.asked(address)
			io.WriteString(w, address)
		})}
		done := make(chan struct{})
		go func() { defer close(done); srv.Serve(l) }()
		b.Cleanup(func() { srv.Close(); <-done })
	}
	return a
}

func (a *benchApps) asked(address string) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if address == a.awaited {
		a.awaited = ""
		a.arrival <- now
	}
}

// inService returns the addresses of those in service.
func (a *benchApps) inService() (addresses []string) {
	for i := range benchServers {
		addresses = append(addresses, a.addresses[(a.first+i)%len(a.addresses)])
	}
	return addresses
}

// replace replaces the oldest one in service by another, and then reports when its first request arrives.
func (a *benchApps) replace() (inService []string, arrival <-chan time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.first++
	inService = a.inService()
	a.awaited, a.arrival = inService[benchServers-1], make(chan time.Time, 1)
	return inService, a.arrival
}

// startOrigin starts a server that answers on several addresses as fast as possible.
func startOrigin(b testing.TB) (addresses []string) {
	dir := testenv.Dir(b)
	var listen strings.Builder
	for range benchServers {
		address := testenv.FreeAddress(b, benchOriginIP)
		addresses = append(addresses, address)
		fmt.Fprintf(&listen, "        listen %s;\n", address)
	}
	file := filepath.Join(dir, "nginx.conf")
	text := "worker_processes auto;\nerror_log stderr;\nevents {\n    worker_connections 4096;\n}\nhttp {\n    access_log off;\n    keepalive_requests 1000000000;\n" +
		"    server {\n" + listen.String() + "        return 200 \"Hello\\n\";\n    }\n}\n"
	writeBench(b, file, proxyctl.Config{Text: text})
	startBench(b, "--volume", dir+":"+dir, testenv.Image(b, "IMAGE_NGINX"), "nginx", "-c", file, "-g", "daemon off;")
	testenv.Eventually(b, 20*time.Second, "the origin answers", func() error {
		_, err := testenv.Fetch(b.Context(), &http.Client{Timeout: time.Second}, "http://"+addresses[0]+"/")
		return err
	})
	return addresses
}
