package templates

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"

	"berth/proxyctl"
	"berth/templates/route"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // consul-template's own
	m.Run()
}

// catalog is the instances by the names of their services.
type catalog map[string][]*dependency.HealthService

// with registers a passing instance and returns it, for the test to change.
func (c catalog) with(service, id, address string, port int, meta ...string) *dependency.HealthService {
	i := &dependency.HealthService{
		Node: "node-1", ID: id, Name: service, Address: address, Port: port,
		Status: dependency.HealthPassing, Weights: api.AgentWeights{Passing: 1, Warning: 1},
		ServiceMeta: map[string]string{},
	}
	for n := 0; n < len(meta); n += 2 {
		i.ServiceMeta[meta[n]] = meta[n+1]
	}
	c[service] = append(c[service], i)
	return i
}

// rendered is a configuration and the files it names, by name without the hash.
type rendered struct {
	text    string
	files   map[string]string
	paths   map[string]string
	leftOut []string // sorted
}

// certificateDirectory is what the engine's directory returns.
type certificateDirectory struct {
	Path  string
	Names []string
	Sum   string
}

// tb has the common methods of *testing.T, *testing.B and *rapid.T.
type tb interface {
	Errorf(string, ...any)
	Fatal(...any)
}

// render executes the built-in template like the templater.
func render(t tb, c catalog) rendered { return renderWith(t, c, Options{}, inOrder) }

// renderWith calls shuffle for lists that Consul may return in any order.
func renderWith(t tb, c catalog, o Options, shuffle func(n int, swap func(i, j int))) rendered {
	return renderTemplate(t, HAProxy(), c, o, shuffle)
}

// renderTemplate is like renderWith for any template.
func renderTemplate(t tb, text string, c catalog, o Options, shuffle func(n int, swap func(i, j int))) rendered {
	brain := c.brain(t, shuffle)
	r := rendered{files: map[string]string{}, paths: map[string]string{}}
	text = execute(t, engine(o, &r, text), brain)
	r.text = text
	slices.Sort(r.leftOut)
	r.leftOut = slices.Compact(r.leftOut) // as the templater does
	return r
}

// brain holds the catalog like the engine.
func (c catalog) brain(t tb, shuffle func(n int, swap func(i, j int))) *template.Brain {
	brain := template.NewBrain()
	all, err := dependency.NewCatalogServicesQuery("")
	if err != nil {
		t.Fatal(err)
	}
	names := []*dependency.CatalogSnippet{}
	listed = map[string][]*api.ServiceEntry{}
	for name, instances := range c {
		names = append(names, &dependency.CatalogSnippet{Name: name})
		instances = slices.Clone(instances)
		shuffle(len(instances), func(i, j int) { instances[i], instances[j] = instances[j], instances[i] })
		entries := []*api.ServiceEntry{}
		for _, i := range instances {
			entries = append(entries, entry(i))
		}
		listed[name] = entries
	}
	slices.SortFunc(names, func(a, b *dependency.CatalogSnippet) int { return strings.Compare(a.Name, b.Name) })
	shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	brain.Remember(all, names)
	return brain
}

// listed is the result of the function instances, from the newest brain.
var listed map[string][]*api.ServiceEntry

// entry is an instance as Consul describes it.
func entry(i *dependency.HealthService) *api.ServiceEntry {
	own := &api.HealthCheck{CheckID: "service:" + i.ID, ServiceID: "own", Status: i.Status}
	if i.Status == api.HealthMaint {
		own.CheckID, own.Status = api.ServiceMaintPrefix+i.ID, api.HealthCritical
	}
	return &api.ServiceEntry{
		Node:    &api.Node{Node: i.Node},
		Service: &api.AgentService{ID: i.ID, Service: i.Name, Address: i.Address, Port: i.Port, Tags: i.Tags, Meta: i.ServiceMeta, Weights: i.Weights},
		Checks:  append(api.HealthChecks{own}, i.Checks...),
	}
}

// engine is a built-in template with its functions, and replacements for the templater's.
func engine(o Options, r *rendered, text string) *template.Template {
	return compile(strings.ReplaceAll(text, `partial "`, `executeTemplate "`), shippedFuncs(o, r))
}

// shippedFuncs are Funcs, with replacements for the templater's functions.
func shippedFuncs(o Options, r *rendered) map[string]any {
	if o.TCPPorts == nil {
		o.TCPPorts = unprivileged
	}
	funcs := Funcs(o)(func(reason string) { r.leftOut = append(r.leftOut, reason) })
	funcs["instances"] = func(service string) []*api.ServiceEntry { return listed[service] }
	funcs["paused"] = func() map[string]time.Duration { return nil }
	funcs["asFile"] = func(name, text string) string {
		base, suffix, _ := strings.Cut(name, ".")
		sum := sha256.Sum256([]byte(text))
		path := fmt.Sprintf("/etc/haproxy/haproxy.cfg.%s-%x.%s", base, sum[:8], suffix)
		r.files[name], r.paths[name] = text, path
		return path
	}
	for _, function := range []string{"asMap", "asCrtList"} {
		funcs[function] = func(name, text string) string {
			path := "/etc/haproxy/haproxy.cfg." + name
			r.files[name], r.paths[name] = text, path
			return path
		}
	}
	funcs["directory"] = func(path string) (*certificateDirectory, error) {
		d := &certificateDirectory{Path: path}
		sum := sha256.New()
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			info, err := os.Stat(filepath.Join(path, e.Name()))
			if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			d.Names = append(d.Names, e.Name())
			fmt.Fprintln(sum, e.Name(), info.Size(), info.ModTime().UnixNano())
		}
		d.Sum = fmt.Sprintf("%x", sum.Sum(nil))
		return d, nil
	}
	return funcs
}

func compile(text string, funcs map[string]any) *template.Template {
	tmpl, err := template.NewTemplate(&template.NewTemplateInput{
		Contents:   text,
		ExtFuncMap: funcs,
	})
	if err != nil {
		panic(err)
	}
	return tmpl
}

// unprivileged are the ports that tests allow.
var unprivileged = route.Ports{{First: 1024, Last: 65535}}

func execute(t tb, tmpl *template.Template, brain *template.Brain) string {
	result, err := tmpl.Execute(&template.ExecuteInput{Brain: brain})
	if err != nil {
		t.Fatal(err)
	}
	if n := result.Missing.Len(); n > 0 {
		t.Fatal("asks for what is not there: ", result.Missing)
	}
	return string(result.Output)
}

// refuse is a report func for tests that must report nothing.
func refuse(t tb) func(string) {
	return func(reason string) { t.Errorf("left out: %s", reason) }
}

func inOrder(int, func(i, j int)) {}

func TestGolden(t *testing.T) {
	for name, c := range map[string]catalog{
		"empty":    {},
		"one":      oneService(),
		"many":     manyServices(),
		"labels":   everyLabel(),
		"hostile":  hostileCatalog(),
		"ipv6":     ipv6(),
		"fallback": fallbacks(),
	} {
		t.Run(name, func(t *testing.T) {
			r := renderWith(t, c, Options{Hold: 10 * time.Second, HoldMax: 2000}, inOrder)
			golden(t, filepath.Join("testdata", name+".cfg"), r.text)
			golden(t, filepath.Join("testdata", name+".map"), r.files["routes.map"])
			reasons := filepath.Join("testdata", name+".left-out")
			if len(r.leftOut) > 0 {
				golden(t, reasons, strings.Join(r.leftOut, "\n")+"\n")
			} else if _, err := os.Stat(reasons); err == nil {
				t.Errorf("nothing is left out, but there is %s", reasons)
			}
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, diff)
	}
}

func oneService() catalog {
	c := catalog{}
	c.with("web", "host:web-1:80", "172.18.0.5", 80, route.KeyPath, "/")
	c.with("web", "host:web-2:80", "172.18.0.6", 80)
	return c
}

func manyServices() catalog {
	c := catalog{"consul": nil}
	c.with("consul", "consul", "10.0.0.1", 8300)
	c.with("postgres", "postgres-1", "10.0.1.9", 5432)

	// A whole host, under two names, with instances that disagree.
	c.with("shop", "shop-1", "10.0.1.1", 8080, route.KeyHost, "shop.example.com, WWW.shop.example.com").Weights.Passing = 3
	c.with("shop", "shop-2", "10.0.1.2", 8080, route.KeyHost, "shop.example.com").Weights.Passing = 1
	c.with("shop", "shop-3", "10.0.1.3", 8080)

	// Parts of that host.
	c.with("cart", "cart-1", "10.0.2.1", 3000, route.KeyHost, "shop.example.com", route.KeyPath, "/cart")
	c.with("cart-admin", "cart-admin-1", "10.0.2.2", 3000, route.KeyHost, "shop.example.com", route.KeyPath, "/cart/admin/")

	// A path on any host, and a part of it on one host.
	c.with("api", "api-1", "10.0.3.1", 9000, route.KeyPath, "/api")
	c.with("api", "api-2", "10.0.3.2", 9000, route.KeyPath, "/api").Node = "node-2"
	c.with("shop-api", "shop-api-1", "10.0.3.3", 9000, route.KeyHost, "shop.example.com", route.KeyPath, "/api")

	// The catch-all.
	c.with("landing", "landing-1", "10.0.4.1", 80, route.KeyPath, "/")

	// Down: its backend and route stay.
	c.with("billing", "billing-1", "10.0.5.1", 80, route.KeyHost, "billing.example.com").Status = dependency.HealthCritical
	c.with("billing", "billing-2", "10.0.5.2", 80, route.KeyHost, "billing.example.com").Status = dependency.HealthMaint

	// Named like the template's own sections, and like keywords.
	c.with("http", "http-1", "10.0.6.1", 80, route.KeyHost, "http.example.com")
	c.with("stats", "stats-1", "10.0.6.2", 80, route.KeyHost, "stats.example.com")
	c.with("if", "if", "10.0.6.3", 80, route.KeyHost, "if.example.com")
	c.with("-", "-", "10.0.6.4", 80, route.KeyHost, "dash.example.com")

	// The same id on two nodes.
	c.with("twin", "twin", "10.0.7.1", 80, route.KeyHost, "twin.example.com")
	c.with("twin", "twin", "10.0.7.2", 80, route.KeyHost, "twin.example.com").Node = "node-2"

	// DNS on udp next to a console on tcp.
	c.with("dns", "dns-tcp", "10.0.8.1", 80, route.KeyHost, "dns.example.com")
	c.with("dns", "dns-udp", "10.0.8.1", 53, route.KeyHost, "dns.example.com").Tags = []string{"udp"}

	// Every host of a domain, and a path of it.
	c.with("tenants", "tenants-1", "10.0.10.1", 80, route.KeyHost, "*.shop.example.com")
	c.with("tenant-files", "tenant-files-1", "10.0.10.2", 80, route.KeyHost, "*.shop.example.com", route.KeyPath, "/files")

	// A route that is taken.
	c.with("squatter", "squatter-1", "10.0.9.1", 80, route.KeyHost, "shop.example.com,squatter.example.com")
	return c
}

func ipv6() catalog {
	c := catalog{}
	c.with("web", "web-1", "fd00:0:0::1", 80, route.KeyPath, "/")
	c.with("web", "web-2", "::ffff:10.0.0.1", 80)
	c.with("web", "web-3", "2001:DB8::5", 65535)
	c.with("web", "web-4", "::1", 1)
	c.with("web", "web-5", "fe80::1%eth0", 80)
	c.with("web", "web-6", "[fd00::1]", 80)
	c.with("web", "web-7", "::", 80)
	c.with("web", "web-8", "ff02::1", 80)
	return c
}

// fallbacks has services whose instances are down, and their fallbacks.
func fallbacks() catalog {
	c := catalog{}
	down := func(service, fallback string, meta ...string) {
		c.with(service, service+"-1", "10.0.0.1", 80, append(meta, route.KeyHost, service+".example.com", route.KeyFallback, fallback)...).Status = dependency.HealthCritical
	}
	c.with("sorry", "sorry-1", "10.0.9.1", 8080).Weights.Passing = 7 // without a route
	c.with("sorry", "sorry-2", "10.0.9.2", 8080)
	c.with("sorry", "sorry-3", "10.0.9.3", 8080).Status = dependency.HealthCritical
	c.with("sorry", "sorry-4", "10.0.9.4", 8080).Tags = []string{"udp"}
	c.with("sorry", "sorry-5", "nowhere", 8080)

	down("down", " sorry ")
	down("with-port", "sorry", route.KeyPort, "5432", route.KeyBalance, "source")
	down("sticky", "sorry", route.KeySticky, "true")
	down("never", "nowhere-to-be-found")
	down("of-the-down", "down") // whose own fallback is ignored
	down("itself", "itself")
	down("wrong", "no service")
	c.with("up", "up-1", "10.0.1.1", 80, route.KeyHost, "up.example.com", route.KeyFallback, "sorry")
	c.with("up", "up-2", "10.0.1.2", 80).Status = dependency.HealthCritical
	c.with("no-route", "no-route-1", "10.0.1.3", 80, route.KeyFallback, "sorry").Status = dependency.HealthCritical
	return c
}

// everyLabel has a service for each label, and some with several.
func everyLabel() catalog {
	c := catalog{}
	pair := func(service, host string, meta ...string) {
		for n := range 2 {
			c.with(service, fmt.Sprint(service, "-", n+1), fmt.Sprint("10.0.0.", len(c)), 8000+n, append(meta, route.KeyHost, host)...)
		}
	}
	for _, b := range []string{"roundrobin", "leastconn", "random", "first", "source", "uri", "hdr(X-User)"} {
		name := strings.Trim(strings.NewReplacer("(", "-", ")", "-").Replace(b), "-")
		pair("balance-"+name, name+".example.com", route.KeyBalance, b)
	}
	pair("sticky", "sticky.example.com", route.KeySticky, "true")
	pair("not-sticky", "not-sticky.example.com", route.KeySticky, "no", route.KeyStrip, "false")
	pair("check", "*.example.com,check.example.com", route.KeyCheck, "/health?ready=1&x=%20")
	pair("check-any", "*.check.example.com", route.KeyCheck, "/")
	pair("limits", "limits.example.com", route.KeyMaxConn, "100", route.KeySlowStart, "1m30s")
	pair("strip", "strip.example.com", route.KeyPath, "/api/v1", route.KeyStrip, "true")
	pair("strip-all", "strip-all.example.com", route.KeyStrip, "1")
	pair("strip-encoded", "strip-encoded.example.com", route.KeyPath, "/a%20b", route.KeyStrip, "yes")
	pair("redirect", "redirect.example.com", route.KeyRedirect, "HTTPS")
	pair("hold", "hold.example.com", route.KeyHold, "30s", route.KeyPort, "7006")
	pair("no-hold", "no-hold.example.com", route.KeyHold, "no")

	pair("leader", "leader.example.com", route.KeyTo, "leader", route.KeyPort, "7005")
	c["leader"][0].Tags, c["leader"][1].Tags = []string{"follower"}, []string{"db", "leader"}
	pair("no-leader", "no-leader.example.com", route.KeyTo, "Leader")
	c["no-leader"][0].Tags, c["no-leader"][1].Tags = []string{"follower"}, []string{"follower"}

	// Several nested prefixes.
	pair("nested", "a.example.com,b.example.com", route.KeyPath, "/api/v1", route.KeyStrip, "true")
	c.with("nested", "nested-3", "10.0.1.3", 80, route.KeyHost, "a.example.com", route.KeyPath, "/api")
	c.with("nested", "nested-4", "10.0.1.4", 80, route.KeyHost, "c.example.com")

	// More of them than HAProxy allows words on a line.
	var hosts []string
	for n := range 100 {
		hosts = append(hosts, fmt.Sprintf("h%02d.example.com", n))
	}
	for n, path := range []string{"/x", "/y"} {
		c.with("hosts", fmt.Sprint("hosts-", n), "10.0.2.1", 80, route.KeyHost, strings.Join(hosts, ","), route.KeyPath, path, route.KeyStrip, "true")
	}

	// A port alone, and a port with a route.
	c.with("postgres", "postgres-1", "10.0.3.1", 5432, route.KeyPort, "5432", route.KeyMaxConn, "50", route.KeyBalance, "source").Weights.Passing = 5
	c.with("postgres", "postgres-2", "10.0.3.2", 5432)
	c.with("both", "both-1", "10.0.3.3", 8000, route.KeyPort, "7000", route.KeyPath, "/both", route.KeyCheck, "/", route.KeyBalance, "uri", route.KeySticky, "true")
	c.with("two-ports", "two-ports-1", "10.0.3.4", 80, route.KeyPort, "65535")
	c.with("two-ports", "two-ports-2", "10.0.3.4", 80, route.KeyPort, " 1024 ")
	c.with("down", "down-1", "10.0.3.5", 80, route.KeyPort, "7001").Status = dependency.HealthCritical

	// Contradictions.
	c.with("late", "late-1", "10.0.4.1", 80, route.KeyPort, "5432")
	c.with("own-port", "own-port-1", "10.0.4.2", 80, route.KeyPort, "8080")
	c.with("low-port", "low-port-1", "10.0.4.3", 80, route.KeyPort, "22")
	c.with("no-route", "no-route-1", "10.0.4.4", 80, route.KeyBalance, "leastconn")
	c.with("no-http", "no-http-1", "10.0.4.5", 80, route.KeyPort, "7002", route.KeySticky, "true", route.KeyStrip, "true", route.KeyBalance, "uri", route.KeyCheck, "/")
	c.with("misspelt", "misspelt-1", "10.0.4.6", 80, route.KeyPath, "/misspelt", "route_ballance", "leastconn")
	for n, algorithm := range []string{"static-rr", "leastconn", "random", "leastconn", "random"} {
		c.with("disagree", fmt.Sprint("disagree-", n), "10.0.4.7", 80, route.KeyPath, "/disagree", route.KeyBalance, algorithm)
	}
	c.with("dns", "dns-1", "10.0.4.8", 53, route.KeyPort, "7003").Tags = []string{"udp"}
	c.with("sctp", "sctp-1", "10.0.4.9", 53, route.KeyPort, "7004").Tags = []string{"sctp"}
	return c
}

// tricks are values with a meaning in a configuration, a template or a terminal.
func tricks() []string {
	return []string{
		"a\nglobal\n    insecure-fork-wanted", "x\r\n    server evil 6.6.6.6:80", `"; global`, `'`, `"`, `a b`, `#`,
		`x # y`, `\`, "\x00", "\x1b[31mred", `${HOME}`, `$(id)`, `%[env(HOME)]`, `{ path / }`, `{{ env "HOME" }}`,
		"tab\there", "é", "\u202egnp", "\xff\xfe", "", " ", "/", "..", strings.Repeat("long", 200),
	}
}

func hostileCatalog() catalog {
	c := catalog{}
	for n, evil := range tricks() {
		c.with(evil, "by-name", "10.1.0.1", 80, route.KeyPath, "/")
		ok := fmt.Sprintf("victim%02d", n)
		host := ok + ".example.com"
		c.with(ok, "good", "10.1.0.1", 80, route.KeyHost, host)
		c.with(ok, evil, "10.1.0.2", 80)
		c.with(ok, "by-address", evil, 80)
		c.with(ok, "by-host", "10.1.0.3", 80, route.KeyHost, evil, route.KeyPath, "/by-host/"+ok)
		c.with(ok, "by-hosts", "10.1.0.4", 80, route.KeyHost, evil+",second-"+host)
		c.with(ok, "by-path", "10.1.0.5", 80, route.KeyHost, host, route.KeyPath, evil)
		c.with(ok, "by-subpath", "10.1.0.6", 80, route.KeyHost, host, route.KeyPath, "/"+evil)
		for _, key := range allKeys() {
			c.with(ok, "by-"+key, "10.1.0.8", 80, key, evil)
			c.with(ok, "by-almost-"+key, "10.1.0.8", 80, key, map[string]string{
				route.KeyHost: ok + ".example.net," + evil, route.KeyPath: "/x" + evil, route.KeyPort: "7777" + evil, route.KeyStrip: "true" + evil,
				route.KeyRedirect: "https" + evil, route.KeyBalance: "hdr(" + evil + ")", route.KeySticky: "true" + evil, route.KeyCheck: "/health" + evil,
				route.KeyMaxConn: "10" + evil, route.KeySlowStart: "10s" + evil, route.KeyFallback: "web" + evil,
				route.KeyTo: "all" + evil, route.KeyHold: "30s" + evil,
			}[key])
		}
		tagged := c.with(ok, "by-the-rest", "10.1.0.7", 80, evil, evil, "route_"+evil, evil)
		tagged.Tags, tagged.Node, tagged.Name = []string{evil}, evil, evil
	}
	for n, port := range []int{-1, 0, 65536, 1 << 40} {
		c.with("victim-port", fmt.Sprint("port-", n), "10.2.0.1", port, route.KeyHost, "port.example.com")
	}
	for n, weight := range []int{-1, 0, 1, 2, 256, 257, 1 << 40} {
		c.with("victim-weight", fmt.Sprint("weight-", n), "10.2.0.2", 80, route.KeyHost, "weight.example.com").Weights.Passing = weight
	}
	for n, address := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "localhost", "10.0.0.1:80", "010.0.0.1", "10.0.0", "unix@/run/x"} {
		c.with("victim-address", fmt.Sprint("address-", n), address, 80, route.KeyHost, "address.example.com")
	}
	return c
}

// grammar is every line that a catalog value may appear in.
func grammar() *regexp.Regexp {
	const (
		name = `([A-Za-z0-9_-]{1,200}|[A-Za-z0-9._-]{1,200}\.[0-9a-f]{8})`
		host = `[a-z0-9._-]{1,253}`
		port = `[1-9][0-9]{0,4}`

		balance = `(roundrobin|leastconn|random|first|source|uri|hdr-[A-Za-z0-9-]{1,64})`
	)
	return regexp.MustCompile(`^(` + strings.Join([]string{
		`frontend tcp\.` + port + `\.in from tcp\.in\.defaults`,
		`    bind :` + port,
		`    bind unix@/run/haproxy/again\.` + port + `\.sock mode 600 accept-proxy`,
		`    use_backend hold\.again\.` + port + ` if \{ var\(sess\.backend\) -m str again \}`,
		`    default_backend ` + name + `\.tcp`,
		`backend hold\.again\.` + port + ` from tcp\.defaults`,
		`    server again unix@/run/haproxy/again\.` + port + `\.sock send-proxy-v2 no-check`,
		`    tcp-request session set-var\(sess\.backend\) str\(` + name + `\.tcp\)`,
		`backend ` + name + ` from http\.` + balance,
		`backend ` + name + `\.tcp from tcp\.(defaults|` + balance + `)`,
		`    tcp-response inspect-delay 1h`,
		`    tcp-response content set-var\(txn\.sent\) var\(txn\.sent\),add\(1\)`,
		`    tcp-response content accept if \{ (var\(txn\.sent\) -m int lt 3|status gt 0) \}`,
		`    tcp-response content reject`,
		`defaults (http\.` + balance + ` from http|tcp\.` + balance + ` from tcp)\.defaults`,
		`    balance (roundrobin|leastconn|random|first|source|uri|hdr\([A-Za-z0-9-]{1,64}\))`,
		`    hash-type consistent`,
		`    cookie berth-` + name + ` insert indirect nocache httponly attr SameSite=Lax`,
		`    option httpchk GET /[A-Za-z0-9_.~%+:@=/?&,;-]{0,511}( HTTP/1\.1)?`,
		`    http-check send hdr Host ` + host,
		`    option httpchk`,
		`    http-check send meth GET uri-lf "%\[srv_name,map\(/etc/haproxy/haproxy\.cfg\.checks-[0-9a-f]{16}\.map\)\]"( ver HTTP/1\.1 hdr Host ` + host + `)?`,
		`    http-request set-path /%\[path,field\(3,/,0\)\] if \{ var\(txn\.strip\),field\(1,/\) -m int ge [0-9]+ \}`,
		`    server [A-Za-z0-9_.:-]{1,200} ([0-9.]+|\[[0-9a-f:]+\]):` + port + `( weight [0-9]{1,3})?( no-check)?( cookie [0-9a-f]{16})?( maxconn [1-9][0-9]{0,6})?( slowstart [1-9][0-9]{0,3}s)?( id [0-9]{1,9})?`,
	}, "|") + `)$`)
}

// mapLine is every map line that a value may appear in.
func mapLine() *regexp.Regexp {
	return regexp.MustCompile(`^(\*|(\*\.)?[a-z0-9_][a-z0-9._-]{0,252})(/[A-Za-z0-9._~%+:@=-]+)*/ ([A-Za-z0-9_-]{1,200}|[A-Za-z0-9._-]{1,200}\.[0-9a-f]{8})$`)
}

func checkText(t tb, r rendered, empty rendered) {
	if strings.HasSuffix(r.text, "\n\n") || !strings.HasSuffix(r.text, "\n") || strings.HasPrefix(r.text, "\n") {
		t.Errorf("the text must begin with a line and end with one newline:\n%s", r.text)
	}
	own := map[string]bool{}
	for line := range strings.SplitSeq(empty.text, "\n") {
		own[line] = true
	}
	allowed := grammar()
	for line := range strings.SplitSeq(r.text, "\n") {
		if strings.TrimRight(line, " \t") != line {
			t.Errorf("blanks at the end of %q", line)
		}
		if len(strings.Fields(line)) > 60 || len(line) > 14_000 {
			t.Errorf("longer than HAProxy takes: %q", line)
		}
		if !own[line] && !allowed.MatchString(line) {
			t.Errorf("neither the template's own nor one of a service: %q", line)
		}
	}
	for name, form := range map[string]string{
		"redirect.map": `^[A-Za-z0-9._-]{1,209} 1$`,
		"strip.map":    `^[A-Za-z0-9._-]{1,209} [1-9][0-9]{0,2}(/[A-Za-z0-9._~%+:@=-]+)+$`,
	} {
		for line := range strings.Lines(r.files[name]) {
			if !regexp.MustCompile(form).MatchString(strings.TrimSuffix(line, "\n")) {
				t.Errorf("not a line of %s: %q", name, line)
			}
		}
	}
	keys := map[string]bool{}
	routes := mapLine()
	for line := range strings.Lines(r.files["routes.map"]) {
		line = strings.TrimSuffix(line, "\n")
		key, _, _ := strings.Cut(line, " ")
		if !routes.MatchString(line) || keys[key] {
			t.Errorf("no route, or one that was there already: %q", line)
		}
		keys[key] = true
	}
	checks := regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,200} /[A-Za-z0-9_.~%+:@=/?&,;-]{0,511}\n$`)
	for line := range strings.Lines(r.files["checks.map"]) {
		if !checks.MatchString(line) {
			t.Errorf("no check of a server: %q", line)
		}
	}
	checkReasons(t, r.leftOut)
}

func checkReasons(t tb, leftOut []string) {
	for _, reason := range leftOut {
		if strings.ContainsAny(reason, "\n\r\x1b\x00\u202e") || len(reason) > 600 {
			t.Errorf("a reason is one short, printable line: %q", reason)
		}
	}
}

// Partials of unchanged services are not executed again, and the result is as if all had been.
func TestPartialsAreKept(t *testing.T) {
	for proxy, text := range shipped() {
		r := rendered{files: map[string]string{}, paths: map[string]string{}}
		definitions, _, _ := strings.Cut(text, "{{- $certificates :=")
		keys := map[string]string{} // what the partials returned, by service
		funcs := shippedFuncs(Options{}, &r)
		funcs["partial"] = func(_, service string) string { return keys[service] }
		whole := compile(text, funcs)
		c := manyServices()
		changed := slices.Collect(maps.Keys(c))
		label := func(service, key, value string) func() {
			return func() {
				for _, i := range c[service] {
					i.ServiceMeta[key] = value
				}
			}
		}
		for _, step := range []struct {
			change   string
			services []string
			do       func()
			sameKey  bool
		}{
			{change: "nothing", do: func() {}},
			{change: "a host, which is in no text of the service's own", services: []string{"cart"}, do: label("cart", route.KeyHost, "cart.example.com")},
			{change: "a route of another's", services: []string{"cart"}, do: label("cart", route.KeyHost, "billing.example.com")},
			{change: "a path", services: []string{"billing"}, do: label("billing", route.KeyPath, "/bills")},
			{change: "a port", services: []string{"postgres"}, do: label("postgres", route.KeyPort, "5432")},
			{change: "the port goes", services: []string{"postgres"}, do: label("postgres", route.KeyPort, "")},
			{change: "the port is back", services: []string{"postgres"}, do: label("postgres", route.KeyPort, "5432")},
			{change: "sticky", services: []string{"shop"}, do: label("shop", route.KeySticky, "true")},
			{change: "an address", services: []string{"twin"}, do: func() { c["twin"][0].Address = "10.9.9.9" }},
			{change: "a note", services: []string{"twin"}, do: label("twin", "note", "to nobody"), sameKey: true},
			{change: "a service goes", do: func() { delete(c, "landing") }},
			{change: "nothing more", do: func() {}},
			{change: "it is back", services: []string{"landing"}, do: func() { c["landing"] = manyServices()["landing"] }, sameKey: true},
		} {
			step.do()
			brain := c.brain(t, inOrder)
			for _, service := range append(changed, step.services...) {
				before := keys[service]
				keys[service] = execute(t, compile(definitions+fmt.Sprintf("{{ executeTemplate `service` %q }}", service), funcs), brain)
				if before != "" && (keys[service] == before) != step.sameKey {
					t.Errorf("%s, %s: the key was %s and is %s", proxy, step.change, before, keys[service])
				}
			}
			changed = nil
			got, want := execute(t, whole, brain), renderTemplate(t, text, c, Options{}, inOrder)
			if diff := cmp.Diff(want.text, got) + cmp.Diff(want.files, r.files); diff != "" {
				t.Errorf("%s, %s:\n%s", proxy, step.change, diff)
			}
		}
	}
}

// A port is opened only if the operator allows it; everything else of the service is served.
func TestNoPortIsOpenedByDefault(t *testing.T) {
	c := catalog{}
	c.with("web", "web-1", "10.0.0.1", 80, route.KeyPath, "/", route.KeyPort, "5432")
	for proxy, text := range shipped() {
		r := rendered{files: map[string]string{}, paths: map[string]string{}}
		funcs := shippedFuncs(Options{}, &r)
		funcs["routed"] = Funcs(Options{})(func(reason string) { r.leftOut = append(r.leftOut, reason) })["routed"] // without the tests' ports
		r.text = execute(t, compile(strings.ReplaceAll(text, `partial "`, `executeTemplate "`), funcs), c.brain(t, inOrder))
		want := []string{`service "web", instance "web-1": its route_port "5432" is not allowed, because no ports are; give the templater --tcp-ports 5432`}
		if diff := cmp.Diff(want, r.leftOut); diff != "" || strings.Contains(r.text, "5432") || !strings.Contains(r.text, "10.0.0.1:80") {
			t.Errorf("%s: left out %s\n%s", proxy, diff, r.text)
		}
	}
}

// A port that the proxy could not open loses its claim.
func TestRefusedPortIsLeftOut(t *testing.T) {
	c := catalog{}
	c.with("db", "db-1", "10.0.0.1", 80, route.KeyPort, "5432")
	c.with("web", "web-1", "10.0.0.2", 80, route.KeyPath, "/", route.KeyPort, "5433")
	refused := route.NewRefused()
	refused.Refuse(5432, "another program listens there (said by HAProxy)")
	for proxy, lines := range map[string][]string{
		"haproxy": {"\nfrontend tcp.5432.in ", "\nfrontend tcp.5433.in ", "\nbackend web from http.roundrobin\n"},
		"nginx":   {"        listen 5432 ", "        listen 5433 ", "    upstream web {\n"},
	} {
		r := renderTemplate(t, shipped()[proxy], c, Options{Refused: refused}, inOrder)
		if strings.Contains(r.text, lines[0]) || !strings.Contains(r.text, lines[1]) || !strings.Contains(r.text, lines[2]) {
			t.Errorf("%s: %s", proxy, r.text)
		}
		want := []string{`service "db": port 5432: another program listens there (said by HAProxy); free it or set another SERVICE_ROUTE_PORT`}
		if diff := cmp.Diff(want, r.leftOut); diff != "" {
			t.Errorf("%s: %s", proxy, diff)
		}
	}
}

// A user of an older template's copy is told what to do.
func TestCopyFromAnotherVersion(t *testing.T) {
	brain := oneService().brain(t, inOrder)
	for name, text := range map[string]string{
		"partial":       `{{ with exposed "web" (service "web" "any") }}{{ .Claims }}{{ end }}`,
		"nginx partial": `{{ with proxied "web" (service "web" "any") }}{{ .Claims }}{{ end }}`,
		"instances":     `{{ range routed "web" (service "web" "any") }}{{ .Name }}{{ end }}`,
		"whole":         `{{ $table := table "" }}{{ range servable services }}{{ claim $table . "http a.com/" }}{{ end }}`,
	} {
		_, err := engine(Options{}, &rendered{}, text).Execute(&template.ExecuteInput{Brain: brain})
		if err == nil || !strings.Contains(err.Error(), "copy berth's built-in template again") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileValuesStayOut(t *testing.T) {
	for _, c := range []catalog{hostileCatalog(), everyLabel(), manyServices(), ipv6(), fallbacks()} {
		checkText(t, render(t, c), render(t, catalog{}))
	}
}

func TestOrderOfTheCatalogDoesNotMatter(t *testing.T) {
	for name, c := range map[string]catalog{"many": manyServices(), "labels": everyLabel(), "hostile": hostileCatalog(), "ipv6": ipv6(), "fallback": fallbacks()} {
		for _, text := range []string{HAProxy(), Nginx()} {
			want := renderTemplate(t, text, c, Options{}, inOrder)
			rapid.Check(t, func(t *rapid.T) {
				shuffle := func(n int, swap func(i, j int)) {
					for i := n - 1; i > 0; i-- {
						swap(i, rapid.IntRange(0, i).Draw(t, "swap"))
					}
				}
				got := renderTemplate(t, text, c, Options{}, shuffle)
				if diff := cmp.Diff(want.text, got.text) + cmp.Diff(want.files, got.files) + cmp.Diff(want.leftOut, got.leftOut); diff != "" {
					t.Fatalf("%s: %s", name, diff)
				}
			})
		}
	}
}

func TestAnyCatalogStaysInTheGrammar(t *testing.T) {
	empty, emptyNginx := render(t, catalog{}), renderNginx(t, catalog{}, Options{})
	rapid.Check(t, func(t *rapid.T) {
		anything := rapid.OneOf(rapid.String(), rapid.SampledFrom(tricks()),
			rapid.StringMatching(`/?[a-zA-Z0-9._/ ,*-]{0,20}`), rapid.StringMatching(`[0-9]{1,6}s?`),
			rapid.SampledFrom([]string{"web", "10.0.0.1", "fd00::1", "/api", "*.example.com", "uri", "true", "https"}))
		c := catalog{}
		for range rapid.IntRange(0, 10).Draw(t, "instances") {
			meta := []string{anything.Draw(t, "key"), anything.Draw(t, "value")}
			for _, key := range allKeys() {
				if rapid.Bool().Draw(t, key) {
					meta = append(meta, key, anything.Draw(t, key))
				}
			}
			i := c.with(anything.Draw(t, "service"), anything.Draw(t, "id"), anything.Draw(t, "address"), rapid.Int().Draw(t, "port"), meta...)
			i.Node, i.Weights.Passing = anything.Draw(t, "node"), rapid.Int().Draw(t, "weight")
			if rapid.Bool().Draw(t, "usable") {
				i.Address, i.Port = "10.0.0.1", 80
			}
		}
		checkText(t, render(t, c), empty)
		checkNginx(t, renderNginx(t, c, Options{}), emptyNginx)
	})
}

func allKeys() []string {
	return []string{route.KeyHost, route.KeyPath, route.KeyPort, route.KeyStrip, route.KeyRedirect, route.KeyBalance, route.KeySticky, route.KeyCheck, route.KeyMaxConn, route.KeySlowStart, route.KeyFallback, route.KeyTo, route.KeyHold}
}

// rulesInBackends are rules that HAProxy 3.4 and later have in defaults sections, in another form.
const rulesInBackends = "    tcp-response inspect-delay 1h\n    tcp-response content set-var(txn.sent) var(txn.sent),add(1)\n" +
	"    tcp-response content accept if { var(txn.sent) -m int lt 3 }\n    tcp-response content accept if { status gt 0 }\n    tcp-response content reject\n"

var defaultsOfHTTP = regexp.MustCompile(`(?m)^defaults http\.[A-Za-z0-9-]+ from http\.defaults\n    balance .*\n(    hash-type .*\n)?`)

// forVersion adapts a version-independent text to a HAProxy version.
func forVersion(text, version string) string {
	if proxyctl.AtLeast(version, "3.2") {
		text = strings.Replace(text, "that wait.\n    lua-load ", "that wait.\n    tune.lua.bool-sample-conversion normal\n    lua-load ", 1)
		text = strings.Replace(text, " sni var(", " pool-conn-name var(", 1)
	}
	if proxyctl.AtLeast(version, "3.4") {
		text = strings.ReplaceAll(text, rulesInBackends, "")
		text = defaultsOfHTTP.ReplaceAllString(text, "$0    tcp-response content set-var(txn.sent) var(txn.sent),add(1)\n    tcp-response content reject if { var(txn.sent) -m int ge 3 }\n")
	}
	return text
}

// From HAProxy 3.4 on, an HTTP backend has only lines that no other backend has.
func TestBackendsAreBare(t *testing.T) {
	o := Options{HAProxyAtLeast: func(other string) bool { return proxyctl.AtLeast("3.4.7", other) }}
	r := renderWith(t, everyLabel(), o, inOrder)
	_, backends, _ := strings.Cut(r.text, "\nbackend balance-first from http.first\n")
	for line := range strings.Lines(backends) {
		form := `^(|backend \S+ from \S+|    (server|cookie|option httpchk|http-check) .*)\n$`
		if !regexp.MustCompile(form).MatchString(line) {
			t.Errorf("a line of its own: %q", line)
		}
	}
}

// The version decides how server connections are named and where attempts are counted.
func TestHAProxyAtLeast(t *testing.T) {
	const defaults = "\n# Settings shared by service backends."
	for version, name := range map[string]string{"2.6": "sni", "3.1": "sni", "3.2": "pool-conn-name", "3.4.7": "pool-conn-name"} {
		o := Options{HAProxyAtLeast: func(other string) bool { return proxyctl.AtLeast(version, other) }}
		for of, c := range map[string]catalog{"all labels": everyLabel(), "none": {}} {
			head, backends, _ := strings.Cut(renderWith(t, c, o, inOrder).text, defaults)
			_, want, _ := strings.Cut(forVersion(render(t, c).text, version), defaults)
			if diff := cmp.Diff(want, backends); diff != "" || want == "" {
				t.Errorf("%s, %s: (-want +got)\n%s", version, of, diff)
			}
			if !strings.Contains(head, " "+name+" var(txn.sent)\n") {
				t.Errorf("%s, %s: the text has no %s", version, of, name)
			}
		}
	}
}
