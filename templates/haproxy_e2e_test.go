//go:build e2e

package templates

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/proxyctl"
	"berth/templates/claim"
	"berth/templates/route"
)

// haproxyVersions caches the versions of HAProxy by image.
var haproxyVersions sync.Map

// haproxyVersion returns the version of the HAProxy in an image.
func haproxyVersion(t testing.TB, image string) string {
	t.Helper()
	if known, there := haproxyVersions.Load(image); there {
		return known.(string)
	}
	out, err := inImage(t, image, nil, "haproxy -v", "--network", "none").CombinedOutput()
	said := regexp.MustCompile(`version ([0-9]+(?:\.[0-9]+)+)`).FindSubmatch(out)
	if err != nil || said == nil {
		t.Fatalf("haproxy -v: %v, %s", err, out)
	}
	version := string(said[1])
	haproxyVersions.Store(image, version)
	return version
}

// theHAProxy is HAProxy for the tests of all proxies.
func theHAProxy() *kind {
	const (
		path = "/etc/haproxy/haproxy.cfg"
		told = " url=%[url] cookie=%[req.hdr(cookie)] proto=%[req.fhdr(x-forwarded-proto)] host=%[req.fhdr(x-forwarded-host)]" +
			" port=%[req.fhdr(x-forwarded-port)] prefix=%[req.fhdr(x-forwarded-prefix)] for=%[req.hdr(x-forwarded-for,1)]" +
			" forged=%[req.fhdr(x_forwarded_proto)]%[req.fhdr(forwarded)]"
	)
	return &kind{
		name: "HAPROXY", template: HAProxy, config: path, alive: "/metrics",
		check: "haproxy -c -f " + path,
		run:   "exec haproxy -db -f " + path,
		server: func(port int, action string) string {
			return fmt.Sprintf("\nfrontend echo-%d from http.defaults\n    bind 127.0.0.1:%d\n    http-request %s\n", port, port, action)
		},
		echo: func(service string) string {
			return `return status 200 content-type text/plain lf-string "` + service + " on=%fp" + told + `"`
		},
		answer: "return status 200 content-type text/plain string good",
		reject: "reject",
		beside: func(files map[string]string, servers string) { files[path] += servers },
		adapt: func(t testing.TB, image, text string) string {
			return forVersion(text, haproxyVersion(t, image))
		},
		http2: func(string) bool { return true },
		asked: "none.com/?script?alert??x???/script????3Cb?3E",
	}
}

var checksPath = regexp.MustCompile(`/etc/haproxy/haproxy\.cfg\.checks-[0-9a-f]+\.map`)

func TestE2EHAProxyAccepts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.cfg")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	k := theHAProxy()
	k.everyImage(t, func(t *testing.T, image string) {
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				files := map[string]string{k.config: read(file)}
				for _, path := range besideHAProxy.FindAllString(files[k.config], -1) {
					switch {
					case strings.HasSuffix(path, ".routes.map"):
						files[path] = read(strings.TrimSuffix(file, ".cfg") + ".map")
					case strings.HasSuffix(path, ".lua"):
						files[path] = pause
					case checksPath.MatchString(path):
						files[path] = "server /health\n"
					default:
						files[path] = ""
					}
				}
				k.accepted(t, image, files)
			})
		}
		version := haproxyVersion(t, image)
		o := Options{Hold: claim.MaxHold, HoldMax: MostHeld, HAProxyAtLeast: func(other string) bool { return proxyctl.AtLeast(version, other) }}
		t.Run("longest", func(t *testing.T) { k.accepted(t, image, k.all(t, renderWith(t, longest(), o, inOrder), o)) })
		o.HAProxyLua = func() bool { return false }
		t.Run("without Lua", func(t *testing.T) { k.accepted(t, image, k.all(t, renderWith(t, everyLabel(), o, inOrder), o)) })
	})
}

// besideHAProxy are the paths of files named in a configuration.
var besideHAProxy = regexp.MustCompile(`/etc/haproxy/haproxy\.cfg\.[A-Za-z0-9.-]+`)

// longest has lines of maximum length.
func longest() catalog {
	c := catalog{}
	name := strings.Repeat("n", 200)
	var hosts []string
	for n := range 80 {
		hosts = append(hosts, fmt.Sprintf("h%02d", n)+strings.Repeat(".abcdefghij", 22))
	}
	for n := range 2 {
		c.with(name, strings.Repeat("i", 199)+fmt.Sprint(n), "fd00:1234:5678:9abc:def0:1234:5678:9abc", 65000+n, route.KeyHost, strings.Join(hosts, ","),
			route.KeyPath, fmt.Sprint("/", n, strings.Repeat("/abcdefghi", 50)), route.KeyStrip, "true", route.KeySticky, "true", route.KeyRedirect, "https",
			route.KeyBalance, "hdr("+strings.Repeat("h", 64)+")", route.KeyCheck, "/"+strings.Repeat("c", 511), route.KeyMaxConn, "1000000",
			route.KeySlowStart, "1h", route.KeyPort, strconv.Itoa(65000+n)).Weights.Passing = 256
	}
	return c
}

func TestE2EHAProxyRefuses(t *testing.T) {
	config, err := os.ReadFile("testdata/refused/no-such-keyword.cfg")
	if err != nil {
		t.Fatal(err)
	}
	k := theHAProxy()
	k.everyImage(t, func(t *testing.T, image string) {
		files := map[string]string{k.config: string(config)}
		out, err := inImage(t, image, files, k.check, "--network", "none").CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("unknown keyword 'no-such-keyword'")) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestE2EHAProxyChecksThePath(t *testing.T) {
	e := newEchoes(theHAProxy())
	const check = "/health?a=%20b&c=1"
	answers := func(condition string) string {
		return "return status 200 if { url " + check + " } " + condition + "\n    http-request return status 500"
	}
	e.add("any", answers(""), route.KeyPath, "/any", route.KeyCheck, check)
	e.add("host", answers("{ hdr(host) -m str a.com }"), route.KeyHost, "a.com,b.com", route.KeyCheck, check)
	e.add("ill", "return status 500", route.KeyHost, "ill.com", route.KeyCheck, "/")
	e.add("tcp", answers(""), route.KeyPort, "5432", route.KeyCheck, check)
	for _, service := range []string{"moved", "added"} { // in a rollout each has its own path
		e.add(service, answers(""), route.KeyHost, service+".com", route.KeyCheck, check)
	}
	e.add("moved", "return status 200 if { url /old }\n    http-request return status 404", route.KeyHost, "moved.com", route.KeyCheck, "/old")
	e.add("moved", "return status 200", route.KeyHost, "moved.com")
	e.add("added", "return status 404", route.KeyHost, "added.com")
	e.everyImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		status := func(server string) string {
			a := request("GET", p.address(8404), "any", "/stats;csv")
			for line := range strings.Lines(a.body) {
				f := strings.Split(line, ",")
				if len(f) > 36 && f[0]+"/"+f[1] == server {
					return f[17] + " " + f[36]
				}
			}
			return a.body
		}
		for server, want := range map[string]string{
			"any/any-9000": "UP L7OK", "host/host-9001": "UP L7OK", "ill/ill-9002": "DOWN L7STS", "tcp.tcp/tcp-9003": "UP L7OK",
			"moved/moved-9004": "UP L7OK", "moved/moved-9006": "UP L7OK", "moved/moved-9007": "no check ",
			"added/added-9005": "UP L7OK", "added/added-9008": "no check ",
		} {
			got := ""
			for end := time.Now().Add(20 * time.Second); got != want && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				got = status(server)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", server, got, want)
			}
		}
	})
}

// HAProxy takes out a dead host within two seconds, even if Consul only reports that its agent is cut off.
func TestE2EHAProxyTakesOutADeadHost(t *testing.T) {
	e := newEchoes(theHAProxy())
	node := func(i *dependency.HealthService) {
		i.Checks = append(i.Checks, &api.HealthCheck{CheckID: "serfHealth", Status: api.HealthCritical})
	}
	node(e.echo("web", route.KeyPath, "/"))
	node(e.with("web", "dead", nobody(t), 80, route.KeyPath, "/"))
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		status := func() map[string]string {
			all := map[string]string{}
			for line := range strings.Lines(request("GET", p.address(8404), "any", "/stats;csv").body) {
				if f := strings.Split(line, ","); len(f) > 36 && f[0] == "web" {
					all[f[1]] = strings.Fields(f[17] + " -")[0]
				}
			}
			return all
		}
		start := time.Now() // slightly after HAProxy's start
		for status()["dead"] != "DOWN" {
			if time.Since(start) > 10*time.Second {
				t.Fatal(status())
			}
			time.Sleep(20 * time.Millisecond)
		}
		took := time.Since(start)
		t.Logf("out %v after HAProxy answers", took)
		if took > 2*time.Second+500*time.Millisecond {
			t.Errorf("it was taken out after %v", took)
		}
		if s := status(); s["web-9000"] != "UP" {
			t.Errorf("%v", s)
		}
	})
}

func TestE2EHAProxyStatistics(t *testing.T) {
	e := newEchoes(theHAProxy())
	e.echo("web", route.KeyPath, "/")
	e.eachImage(t, func(t *testing.T, image string) {
		p := e.start(t, image, Options{})
		for path, says := range map[string]string{
			"/metrics": `haproxy_server_status{proxy="web",server="web-9000",state="UP"} 1`,
			"/stats":   "web-9000",
		} {
			if a := request("GET", p.address(8404), "any", path); a.status != 200 || !strings.Contains(a.body, says) {
				t.Errorf("%s: %d, does not say %s", path, a.status, says)
			}
		}
		if a := request("GET", p.address(8080), "any", "/metrics"); !a.says("web") {
			t.Errorf("/metrics for the service: %d %q", a.status, a.body)
		}
	})
}

func TestE2EHAProxyRoutes(t *testing.T)             { testRoutes(t, theHAProxy()) }
func TestE2EHAProxyStripsPrefixes(t *testing.T)     { testStripsPrefixes(t, theHAProxy()) }
func TestE2EHAProxyForwards(t *testing.T)           { testForwards(t, theHAProxy()) }
func TestE2EHAProxyTLS(t *testing.T)                { testTLS(t, theHAProxy()) }
func TestE2EHAProxyRenewedCertificate(t *testing.T) { testRenewedCertificate(t, theHAProxy()) }
func TestE2EHAProxyTCP(t *testing.T)                { testTCP(t, theHAProxy()) }
func TestE2EHAProxyStickyCookie(t *testing.T)       { testStickyCookie(t, theHAProxy()) }
func TestE2EHAProxyHashes(t *testing.T)             { testHashes(t, theHAProxy()) }
func TestE2EHAProxySendsOnlyIdempotentRequestsTwice(t *testing.T) {
	testSendsOnlyIdempotentRequestsTwice(t, theHAProxy())
}
func TestE2EHAProxyFallback(t *testing.T) { testFallback(t, theHAProxy()) }
func TestE2EHAProxyCase(t *testing.T)     { testCase(t, theHAProxy()) }
func TestE2EHAProxyWeights(t *testing.T)  { testWeights(t, theHAProxy()) }
func TestE2EHAProxyGroups(t *testing.T)   { testGroups(t, theHAProxy()) }
func TestE2EHAProxyStreams(t *testing.T)  { testStreams(t, theHAProxy()) }
