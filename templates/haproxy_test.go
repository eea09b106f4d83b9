package templates

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul-template/template"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

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

// render executes the shipped template as the templater does. Shuffle is called with
// the lists that Consul might send in any order.
func render(t interface{ Fatal(...any) }, c catalog, shuffle func(n int, swap func(i, j int))) (text string, leftOut []string) {
	brain := template.NewBrain()
	all, err := dependency.NewCatalogServicesQuery("")
	if err != nil {
		t.Fatal(err)
	}
	names := []*dependency.CatalogSnippet{}
	for name, instances := range c {
		names = append(names, &dependency.CatalogSnippet{Name: name})
		query, err := dependency.NewHealthServiceQuery(name + "|any")
		if err != nil {
			continue // the template must not ask for it
		}
		instances = slices.Clone(instances)
		shuffle(len(instances), func(i, j int) { instances[i], instances[j] = instances[j], instances[i] })
		brain.Remember(query, instances)
	}
	slices.SortFunc(names, func(a, b *dependency.CatalogSnippet) int { return strings.Compare(a.Name, b.Name) })
	shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	brain.Remember(all, names)

	tmpl, err := template.NewTemplate(&template.NewTemplateInput{
		Contents:   HAProxy(),
		ExtFuncMap: Funcs(func(reason string) { leftOut = append(leftOut, reason) }),
	})
	if err != nil {
		t.Fatal(err)
	}
	result, err := tmpl.Execute(&template.ExecuteInput{Brain: brain})
	if err != nil {
		t.Fatal(err)
	}
	if n := result.Missing.Len(); n > 0 {
		t.Fatal("asks for what is not there: ", result.Missing)
	}
	slices.Sort(leftOut)
	return string(result.Output), leftOut
}

func inOrder(int, func(i, j int)) {}

func TestGolden(t *testing.T) {
	for name, c := range map[string]catalog{
		"empty":   {},
		"one":     oneService(),
		"many":    manyServices(),
		"hostile": hostileCatalog(),
		"ipv6":    ipv6(),
	} {
		t.Run(name, func(t *testing.T) {
			text, leftOut := render(t, c, inOrder)
			golden(t, filepath.Join("testdata", name+".cfg"), text)
			reasons := filepath.Join("testdata", name+".left-out")
			if len(leftOut) > 0 {
				golden(t, reasons, strings.Join(leftOut, "\n")+"\n")
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
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", path, diff)
	}
}

func oneService() catalog {
	c := catalog{}
	c.with("web", "host:web-1:80", "172.18.0.5", 80, metaPath, "/")
	c.with("web", "host:web-2:80", "172.18.0.6", 80)
	return c
}

func manyServices() catalog {
	c := catalog{"consul": nil}
	c.with("consul", "consul", "10.0.0.1", 8300)
	c.with("postgres", "postgres-1", "10.0.1.9", 5432)

	// The whole of a host, under two names, by instances that do not agree on them.
	c.with("shop", "shop-1", "10.0.1.1", 8080, metaHost, "shop.example.com, WWW.shop.example.com").Weights.Passing = 3
	c.with("shop", "shop-2", "10.0.1.2", 8080, metaHost, "shop.example.com").Weights.Passing = 1
	c.with("shop", "shop-3", "10.0.1.3", 8080)

	// Parts of that host.
	c.with("cart", "cart-1", "10.0.2.1", 3000, metaHost, "shop.example.com", metaPath, "/cart")
	c.with("cart-admin", "cart-admin-1", "10.0.2.2", 3000, metaHost, "shop.example.com", metaPath, "/cart/admin/")

	// A path of any host, and a part of it on one.
	c.with("api", "api-1", "10.0.3.1", 9000, metaPath, "/api")
	c.with("api", "api-2", "10.0.3.2", 9000, metaPath, "/api").Node = "node-2"
	c.with("shop-api", "shop-api-1", "10.0.3.3", 9000, metaHost, "shop.example.com", metaPath, "/api")

	// What no other takes.
	c.with("landing", "landing-1", "10.0.4.1", 80, metaPath, "/")

	// Down: the backend and its route stay.
	c.with("billing", "billing-1", "10.0.5.1", 80, metaHost, "billing.example.com").Status = dependency.HealthCritical
	c.with("billing", "billing-2", "10.0.5.2", 80, metaHost, "billing.example.com").Status = dependency.HealthMaint

	// Named like the template's own proxies, and like words of the language.
	c.with("http", "http-1", "10.0.6.1", 80, metaHost, "http.example.com")
	c.with("stats", "stats-1", "10.0.6.2", 80, metaHost, "stats.example.com")
	c.with("if", "if", "10.0.6.3", 80, metaHost, "if.example.com")
	c.with("-", "-", "10.0.6.4", 80, metaHost, "dash.example.com")

	// The same id on two nodes.
	c.with("twin", "twin", "10.0.7.1", 80, metaHost, "twin.example.com")
	c.with("twin", "twin", "10.0.7.2", 80, metaHost, "twin.example.com").Node = "node-2"

	// DNS on udp beside a console on tcp.
	c.with("dns", "dns-tcp", "10.0.8.1", 80, metaHost, "dns.example.com")
	c.with("dns", "dns-udp", "10.0.8.1", 53, metaHost, "dns.example.com").Tags = []string{"udp"}

	// A route that is taken.
	c.with("squatter", "squatter-1", "10.0.9.1", 80, metaHost, "shop.example.com,squatter.example.com")
	return c
}

func ipv6() catalog {
	c := catalog{}
	c.with("web", "web-1", "fd00:0:0::1", 80, metaPath, "/")
	c.with("web", "web-2", "::ffff:10.0.0.1", 80)
	c.with("web", "web-3", "2001:DB8::5", 65535)
	c.with("web", "web-4", "::1", 1)
	c.with("web", "web-5", "fe80::1%eth0", 80)
	c.with("web", "web-6", "[fd00::1]", 80)
	c.with("web", "web-7", "::", 80)
	c.with("web", "web-8", "ff02::1", 80)
	return c
}

// tricks are values that mean something to a configuration, a template or a terminal.
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
		c.with(evil, "by-name", "10.1.0.1", 80, metaPath, "/")
		ok := fmt.Sprintf("victim%02d", n)
		host := ok + ".example.com"
		c.with(ok, "good", "10.1.0.1", 80, metaHost, host)
		c.with(ok, evil, "10.1.0.2", 80)
		c.with(ok, "by-address", evil, 80)
		c.with(ok, "by-host", "10.1.0.3", 80, metaHost, evil, metaPath, "/by-host/"+ok)
		c.with(ok, "by-hosts", "10.1.0.4", 80, metaHost, evil+",second-"+host)
		c.with(ok, "by-path", "10.1.0.5", 80, metaHost, host, metaPath, evil)
		c.with(ok, "by-subpath", "10.1.0.6", 80, metaHost, host, metaPath, "/"+evil)
		tagged := c.with(ok, "by-the-rest", "10.1.0.7", 80, evil, evil)
		tagged.Tags, tagged.Node, tagged.Name = []string{evil}, evil, evil
	}
	for n, port := range []int{-1, 0, 65536, 1 << 40} {
		c.with("victim-port", fmt.Sprint("port-", n), "10.2.0.1", port, metaHost, "port.example.com")
	}
	for n, weight := range []int{-1, 0, 1, 2, 256, 257, 1 << 40} {
		c.with("victim-weight", fmt.Sprint("weight-", n), "10.2.0.2", 80, metaHost, "weight.example.com").Weights.Passing = weight
	}
	for n, address := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "localhost", "10.0.0.1:80", "010.0.0.1", "10.0.0", "unix@/run/x"} {
		c.with("victim-address", fmt.Sprint("address-", n), address, 80, metaHost, "address.example.com")
	}
	return c
}

// grammar is all that a value from the catalog may become part of.
func grammar() *regexp.Regexp {
	const name = `[A-Za-z0-9_-]{1,200}`
	return regexp.MustCompile(strings.Join([]string{
		`^    use_backend ` + name + ` if( \{ var\(txn\.host\) -m str [a-z0-9._-]{1,253} \})? \{ var\(txn\.path\) -m beg (/[A-Za-z0-9._~%+:@=-]+)*/ \}$`,
		`^backend ` + name + `$`,
		`^    server [A-Za-z0-9_.:-]{1,200} ([0-9.]+|\[[0-9a-f:]+\]):[1-9][0-9]{0,4}( weight [0-9]{1,3})?$`,
	}, "|"))
}

func checkText(t interface{ Errorf(string, ...any) }, text, empty string) {
	if strings.HasSuffix(text, "\n\n") || !strings.HasSuffix(text, "\n") || strings.HasPrefix(text, "\n") {
		t.Errorf("the text must begin with a line and end with one newline:\n%s", text)
	}
	own := strings.Split(empty, "\n")
	allowed := grammar()
	for line := range strings.SplitSeq(text, "\n") {
		if strings.TrimRight(line, " \t") != line {
			t.Errorf("blanks at the end of %q", line)
		}
		if !slices.Contains(own, line) && !allowed.MatchString(line) {
			t.Errorf("neither the template's own nor a rule, a backend or a server: %q", line)
		}
	}
}

func TestHostileValuesStayOut(t *testing.T) {
	empty, _ := render(t, catalog{}, inOrder)
	text, leftOut := render(t, hostileCatalog(), inOrder)
	checkText(t, text, empty)
	for _, reason := range leftOut {
		if strings.ContainsAny(reason, "\n\r\x1b\x00\u202e") || len(reason) > 500 {
			t.Errorf("a reason is one short, printable line: %q", reason)
		}
	}
}

func TestOrderOfTheCatalogDoesNotMatter(t *testing.T) {
	for name, c := range map[string]catalog{"many": manyServices(), "hostile": hostileCatalog(), "ipv6": ipv6()} {
		text, leftOut := render(t, c, inOrder)
		rapid.Check(t, func(t *rapid.T) {
			shuffle := func(n int, swap func(i, j int)) {
				for i := n - 1; i > 0; i-- {
					swap(i, rapid.IntRange(0, i).Draw(t, "swap"))
				}
			}
			again, leftOutAgain := render(t, c, shuffle)
			if diff := cmp.Diff(text, again) + cmp.Diff(leftOut, leftOutAgain); diff != "" {
				t.Fatalf("%s: %s", name, diff)
			}
		})
	}
}

func TestAnyCatalogStaysInTheGrammar(t *testing.T) {
	empty, _ := render(t, catalog{}, inOrder)
	rapid.Check(t, func(t *rapid.T) {
		anything := rapid.OneOf(rapid.String(), rapid.SampledFrom(tricks()),
			rapid.StringMatching(`/?[a-zA-Z0-9._/ ,-]{0,20}`), rapid.SampledFrom([]string{"web", "10.0.0.1", "fd00::1", "/api"}))
		c := catalog{}
		for range rapid.IntRange(0, 10).Draw(t, "instances") {
			i := c.with(anything.Draw(t, "service"), anything.Draw(t, "id"), anything.Draw(t, "address"),
				rapid.Int().Draw(t, "port"), metaHost, anything.Draw(t, "host"), metaPath, anything.Draw(t, "path"))
			i.Node, i.Weights.Passing = anything.Draw(t, "node"), rapid.Int().Draw(t, "weight")
			if rapid.Bool().Draw(t, "usable") {
				i.Address, i.Port = "10.0.0.1", 80
			}
		}
		text, _ := render(t, c, inOrder)
		checkText(t, text, empty)
	})
}
