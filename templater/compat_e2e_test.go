//go:build e2e

package templater_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	texttemplate "text/template"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templater"
)

// Each is a file in testdata/compat, with a part of what it has to render: two renderers that are both given nothing
// agree, too.
var compatTemplates = map[string]string{
	"app":        "WEB_HOSTS=10.0.0.1:8001,10.0.0.2:8002",
	"bytes":      "invalid: \xff\xfe\xe9|3|",
	"catalog":    "node of dc2 west",
	"cluster":    "web to partner",
	"connect":    "-----BEGIN EC PRIVATE KEY-----",
	"data":       `{"x":2}`,
	"delimiters": `[[ key "app/name" ]]`,
	"empty":      "",
	"env":        "a value||",
	"file":       "name: file",
	"haproxy":    "server n1-web-1 10.0.0.1:8001 check inter 2s weight 7 # 1",
	"kv":         "dc2 name=west shop",
	"layout":     "the blank lines before are gone",
	"math":       "3 -7 7 10",
	"missing":    "<no value> <no value>",
	"nested":     "server web-1 10.0.0.1:8001; ",
	"newline":    "\n",
	"newlines":   "shop\n\n\n",
	"nginx":      "upstream web-a-b {",
	"no-newline": "no line end at the end, shop",
	"nomad":      "blue api-1",
	"pki":        "-----BEGIN EC PRIVATE KEY-----",
	"programs":   `one two {"port":8080}`,
	"prometheus": `"job": "web"`,
	"service":    "weights 7 2",
	"sockaddr":   "127.0.0.1",
	"sprig":      "HELLO WORLD abc",
	"text":       "the quick brown fox",
	"time":       "true true",
	"vault":      "hunter2 3",
}

// This test comes first, because the Runner sets variables of the library: without them, the library requests a secret
// without a lease again and again, and accepts no certificate as valid long enough.
func TestE2ECompatVaultWithoutARunner(t *testing.T) {
	c := &compat{t: t, consulAddress: startConsul(t, "-dev").Address, vault: newFakeVault(t), nomad: newFakeNomad(t)}
	c.byBerth(source(t, "vault"))
	if got := dependency.VaultDefaultLeaseDuration; got != config.DefaultVaultLeaseDuration {
		t.Errorf("a secret without a lease is asked for again after %s, want %s", got, config.DefaultVaultLeaseDuration)
	}
	if got := dependency.VaultLeaseRenewalThreshold; got != config.DefaultLeaseRenewalThreshold {
		t.Errorf("a lease is renewed after %v of it, want %v", got, config.DefaultLeaseRenewalThreshold)
	}
	if text := c.byBerth(source(t, "pki"))["pki"]; !strings.Contains(text, compatTemplates["pki"]) {
		t.Errorf("rendered %q, without %q", text, compatTemplates["pki"])
	}
	if n := c.vault.asked()["PUT /v1/pki/issue/web"]; n != 2 {
		t.Errorf("Vault has issued %d certificates, want one for each of the templates", n)
	}
}

func TestE2ECompat(t *testing.T) {
	files, err := filepath.Glob("testdata/compat/*.ctmpl")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".ctmpl"); compatTemplates[name] == "" && name != "empty" {
			t.Errorf("nothing is said of what %s renders", file)
		}
	}
	c := newCompat(t)
	for _, name := range slices.Sorted(maps.Keys(compatTemplates)) {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			texts := source(t, name)
			maps.Copy(texts, map[string]string{
				name + " with Windows line ends":    strings.ReplaceAll(texts[name], "\n", "\r\n"),
				name + " without its last line end": strings.TrimSuffix(texts[name], "\n"),
			})
			maps.DeleteFunc(texts, func(_, text string) bool { return text == "" })
			rendered := c.same(texts)
			if !strings.Contains(rendered[name], compatTemplates[name]) {
				t.Errorf("rendered %q, without %q", rendered[name], compatTemplates[name])
			}
		})
	}
}

// Fails if a new version of the library brings a function that is in none of the templates. (Functions of Vault and Nomad
// also have to be among those denied without an address.) sprig's functions are at least all known.
func TestE2ECompatHasEveryFunction(t *testing.T) {
	names := funcMapKeys(t)
	if len(names) < 90 {
		t.Fatalf("only %d functions are found in the library: %q", len(names), names)
	}
	used := map[string]bool{}
	for name := range compatTemplates {
		for _, f := range functions(t, source(t, name)[name]) {
			used[f] = true
		}
	}
	for _, name := range names {
		if !used[name] {
			t.Errorf("no template in testdata/compat has the function %s", name)
		}
	}
	sprig := sprigNames(t)
	if len(sprig) < 150 {
		t.Fatalf("only %d functions are found in sprig: %q", len(sprig), sprig)
	}
	var all strings.Builder
	all.WriteString("{{ if false }}")
	for _, name := range append(names, sprig...) {
		fmt.Fprintf(&all, "{{ %s }}", name)
	}
	all.WriteString("{{ end }}all are known")
	c := &compat{t: t, consulAddress: startConsul(t, "-dev").Address, vault: newFakeVault(t), nomad: newFakeNomad(t)}
	c.same(map[string]string{"all": all.String()})
}

// consul-template users have these variables in their templates' environment, from its configuration.
func TestE2ECompatEnvironmentOfTheConfiguration(t *testing.T) {
	c := &compat{t: t, consulAddress: startConsul(t, "-dev").Address, vault: newFakeVault(t), nomad: newFakeNomad(t)}
	t.Setenv("CONSUL_HTTP_ADDR", c.consulAddress)
	t.Setenv("VAULT_ADDR", c.vault.URL)
	c.same(map[string]string{
		"addresses": `{{ env "CONSUL_HTTP_ADDR" }} {{ env "VAULT_ADDR" }}`,
		"consul":    `{{ env "CONSUL_HTTP_SSL" }} {{ env "CONSUL_HTTP_SSL_VERIFY" }}`,
	})
}

func TestE2ECompatErrors(t *testing.T) {
	c := newCompat(t)
	for name, text := range map[string]string{
		"unclosed":            "one\n{{ if true }}",
		"unknown function":    "{{ nosuch }}",
		"syntax":              "\n  {{ range }}{{ end }}",
		"defined twice":       `{{ define "a" }}x{{ end }}{{ define "a" }}y{{ end }}`,
		"arguments":           `{{ add 1 }}`,
		"type":                `{{ add "a" 1 }}`,
		"index of nothing":    `{{ index (service "nosuch") 0 }}`,
		"no such field":       `{{ range loop 1 }}{{ .Nosuch }}{{ end }}`,
		"service's name":      `{{ service "a b" }}`,
		"service's filter":    `{{ service "web|nosuch" }}`,
		"key's datacenter":    `{{ key "a@b@c" }}`,
		"not JSON":            `{{ "{" | parseJSON }}`,
		"not YAML":            `{{ "a: b: c" | parseYAML }}`,
		"not a number":        `{{ "x" | parseInt }}`,
		"not base64":          `{{ base64Decode "!" }}`,
		"not a regexp":        `{{ regexMatch "(" "x" }}`,
		"divide by zero":      `{{ divide 0 1 }}`,
		"mustEnv":             `{{ mustEnv "COMPAT_NONE" }}`,
		"template":            `{{ template "nosuch" }}`,
		"executeTemplate":     `{{ executeTemplate "nosuch" }}`,
		"in a define":         "{{ define \"x\" }}\n{{ mustEnv \"COMPAT_NONE\" }}{{ end }}{{ template \"x\" }}",
		"in executeTemplate":  "{{ define \"x\" }}\n{{ mustEnv \"COMPAT_NONE\" }}{{ end }}{{ executeTemplate \"x\" }}",
		"scratch":             `{{ scratch.Set "a" 1 }}{{ scratch.MapSet "a" "b" 1 }}`,
		"sprig":               `{{ sprig_fail "as it should" }}`,
		"timestamp":           `{{ timestamp "a" "b" }}`,
		"loop":                `{{ loop 1 2 3 }}`,
		"byTag":               `{{ byTag "x" }}`,
		"indent":              `{{ indent -1 "x" }}`,
		"plugin":              `{{ plugin "/nosuch" }}`,
		"imported services":   `{{ importedServices "" }}`,
		"exit code":           `{{ plugin "sh" "-c" "echo out; echo err >&2; exit 3" }}`,
		"value":               `{{ key "app/name" | parseInt }}`,
		"values that collide": `{{ tree "collide" | explode }}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			_, theirs := c.tryRunner(map[string]string{"out": text})
			_, ours := c.tryBerth(map[string]string{"out": text})
			if theirs == nil || ours == nil {
				t.Fatalf("consul-template: %v; berth: %v", theirs, ours)
			}
			// The cause and the place; the rest differs between the two.
			_, want, found := strings.Cut(theirs.Error(), "template: :")
			if !found {
				t.Fatalf("consul-template: %v", theirs)
			}
			if !strings.HasSuffix(ours.Error(), "out.ctmpl:"+want) {
				t.Errorf("berth: %v\nconsul-template: %v", ours, theirs)
			}
		})
	}
}

// berth waits for the same data as consul-template.
func TestE2ECompatWaits(t *testing.T) {
	c := newCompat(t)
	for name, text := range map[string]string{
		"key":      `{{ key "late/name" }}`,
		"safeLs":   `{{ range safeLs "late" }}{{ .Key }}={{ .Value }}{{ end }}`,
		"safeTree": `{{ range safeTree "late" }}{{ .Key }}={{ .Value }}{{ end }}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			if _, err := c.KV().DeleteTree("late", nil); err != nil {
				t.Fatal(err)
			}
			w := run(t, &api.Config{Address: c.consulAddress}, text, templater.Options{})
			r := c.startRunner(map[string]string{"out": text}, true)
			w.eventually(soon, "both wait", func() error {
				if all := w.all(); w.Ready() == nil || len(all) > 0 {
					t.Fatalf("berth does not wait: %v", all)
				}
				for _, e := range r.RenderEvents() {
					// It looks again after an answer, and key does not count as one.
					if e.MissingDeps != nil && e.MissingDeps.Len() == 1 && (name == "key") == (e.UnwatchedDeps.Len() == 1) {
						return nil
					}
				}
				return errors.New("consul-template does not wait")
			})
			if name == "safeLs" || name == "safeTree" { // these ask no more in once mode: it waits for ever
				r.Stop()
			}
			c.set("late/name", "here")
			w.eventually(soon, "berth renders", w.Ready)
			if got, want := w.last(), c.byRunner(map[string]string{"out": text})["out"]; got != want || got == "" {
				t.Errorf("berth: %q, consul-template: %q", got, want)
			}
			if name == "key" {
				if text, err := r.result(); err != nil || text["out"] != "here" {
					t.Errorf("consul-template: %q, %v", text, err)
				}
			}
		})
	}
}

// After each change, a running templater has the same text as a freshly started consul-template.
func TestE2ECompatChanges(t *testing.T) {
	// With 24 connections, most watches have none of their own.
	for _, connections := range []int{0, 24} {
		t.Run(fmt.Sprint("connections=", connections), func(t *testing.T) { compatChanges(t, connections) })
	}
}

func compatChanges(t *testing.T, connections int) {
	c := newCompat(t)
	names := []string{"app", "catalog", "haproxy", "kv", "nginx", "nomad", "prometheus", "service"}
	texts := map[string]string{
		"exists": `{{ if keyExists "app/extra" }}exists{{ end }} {{ keyOrDefault "app/extra" "none" }}
{{ range ls "app" }}{{ .Key }} {{ end }}`,
	}
	for _, name := range names {
		maps.Copy(texts, source(t, name))
	}
	watches := map[string]*watch{}
	for name, text := range texts {
		watches[name] = run(t, &api.Config{Address: c.consulAddress}, text, templater.Options{
			Library: c.library(), Programs: true, Connections: connections,
		})
	}
	last := c.byRunner(texts)
	check := func(what string, differ ...string) {
		t.Helper()
		want := c.byRunner(texts)
		for _, name := range differ {
			if want[name] == last[name] {
				t.Errorf("%s: %s is as before", what, name)
			}
		}
		last = want
		for name, w := range watches {
			w.eventually(soon, what+": "+name+" is the same", func() error {
				if diff := cmp.Diff(want[name], w.last()); diff != "" {
					return fmt.Errorf("consul-template (-), berth (+):\n%s", diff)
				}
				return nil
			})
		}
	}
	check("at first")
	c.set("app/name", "another shop")
	check("a value", "kv", "app")
	c.set("app/extra", "a new key")
	check("a new key", "kv", "app", "exists")
	c.set("app/extra", "")
	check("an empty value", "kv", "app", "exists")
	c.delete("app/extra")
	check("a key is gone", "kv", "app", "exists")
	c.instance("n3", "web-9", api.HealthPassing, func(s *api.AgentService) { s.Tags = []string{"new"} })
	check("an instance", "service", "haproxy", "nginx", "prometheus", "catalog")
	c.instance("n3", "web-9", api.HealthCritical, nil)
	check("it is critical", "service", "haproxy", "prometheus")
	c.instance("n3", "web-9", api.HealthPassing, func(s *api.AgentService) {
		s.Meta, s.Weights = map[string]string{"version": "9"}, api.AgentWeights{Passing: 9, Warning: 1}
	})
	check("other metadata", "service", "prometheus")
	c.deregister("n3", "web-9")
	check("it is gone", "service", "haproxy", "nginx", "prometheus")
	for _, id := range []string{"web-1", "web-2", "web-3", "web-4", "web-5"} {
		c.deregister("n"+strings.TrimPrefix(id, "web-"), id)
	}
	check("all are gone", "service", "haproxy", "nginx", "prometheus", "catalog")
	c.instance("n1", "web-1", api.HealthPassing, nil)
	check("one is back", "service", "haproxy", "nginx", "prometheus", "catalog")
	c.nomad.change()
	check("a service in Nomad", "nomad")
}

// A query to Nomad blocks for news, like Consul's.
func TestE2ECompatNomadIsAskedToWait(t *testing.T) {
	c := &compat{t: t, consulAddress: startConsul(t, "-dev").Address, vault: newFakeVault(t), nomad: newFakeNomad(t)}
	w := run(t, &api.Config{Address: c.consulAddress}, `{{ range nomadService "api" }}{{ .ID }} {{ end }}`,
		templater.Options{Library: c.library()})
	w.eventually(soon, "ready", w.Ready)
	c.nomad.change()
	w.eventually(soon, "the change is seen", func() error {
		if !strings.Contains(w.last(), "api-3") {
			return errors.New(w.last())
		}
		return nil
	})
	if asked := c.nomad.asked(); asked["/v1/service/api"] != 1 {
		t.Errorf("Nomad was asked this often without waiting for news: %v", asked)
	}
}

// Functions that run programs or write files are off by default; those of Vault and Nomad need an address.
func TestE2ECompatDeniedFunctions(t *testing.T) {
	address := startConsul(t, "-dev").Address
	file := filepath.Join(t.TempDir(), "out")
	t.Setenv("COMPAT_OUT", file)
	for call, want := range map[string]string{
		`plugin "touch" "` + file + `"`:                "template-programs",
		`"x" | writeToFile "` + file + `" "" "" "600"`: "template-programs",
		`with secret "secret/app" }}{{ end`:            "VAULT_ADDR",
		`range secrets "secret/" }}{{ end`:             "VAULT_ADDR",
		`with pkiCert "pki/issue/web" }}{{ end`:        "VAULT_ADDR",
		`range nomadServices }}{{ end`:                 "NOMAD_ADDR",
		`range nomadService "x" }}{{ end`:              "NOMAD_ADDR",
		`range nomadService 1 "key" "x" }}{{ end`:      "NOMAD_ADDR",
		`range nomadVarList }}{{ end`:                  "NOMAD_ADDR",
		`range nomadVarListSafe }}{{ end`:              "NOMAD_ADDR",
		`with nomadVar "x" }}{{ end`:                   "NOMAD_ADDR",
		`if nomadVarExists "x" }}{{ end`:               "NOMAD_ADDR",
	} {
		t.Run(call, func(t *testing.T) {
			c := &compat{t: t, consulAddress: address, bare: true}
			text := "{{ " + call + " }}"
			_, err := c.tryBerth(map[string]string{"out": text})
			if err == nil || !strings.Contains(err.Error(), "out.ctmpl:1:") || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one that names the template, the line and %s", err, want)
			}
			if _, err := os.Stat(file); err == nil {
				t.Errorf("%s did its work", call)
			}
			// A function that exists but is not called does no harm.
			if got := c.byBerth(map[string]string{"out": "{{ if false }}" + text + "{{ end }}rest"})["out"]; got != "rest" {
				t.Errorf("rendered %q", got)
			}
		})
	}
}

// source is one of the templates, by its name.
func source(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/compat", name+".ctmpl"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{name: string(text)}
}

var undefined = regexp.MustCompile(`function "(\w+)" not defined`)

// functions are the functions of a template, in addition to the language's own.
func functions(t *testing.T, text string) []string {
	t.Helper()
	known := texttemplate.FuncMap{}
	for {
		_, err := texttemplate.New("").Funcs(known).Parse(text)
		if err == nil {
			return slices.Collect(maps.Keys(known))
		}
		unknown := undefined.FindStringSubmatch(err.Error())
		if unknown == nil {
			t.Fatal(err)
		}
		known[unknown[1]] = fmt.Sprint
	}
}

// funcMapKeys are the names of consul-template's functions in its source, without sprig's.
func funcMapKeys(t *testing.T) (names []string) {
	t.Helper()
	inspect(t, "github.com/hashicorp/consul-template/template", "template.go", func(n ast.Node) bool {
		f, ok := n.(*ast.FuncDecl)
		if ok && f.Name.Name == "funcMap" {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.KeyValueExpr:
					names = appendString(names, n.Key)
				case *ast.IndexExpr:
					names = appendString(names, n.Index)
				}
				return true
			})
		}
		return !ok
	})
	return names
}

// sprigNames are the sprig functions that consul-template accepts, with its prefix.
func sprigNames(t *testing.T) (names []string) {
	t.Helper()
	var without []string
	inspect(t, "github.com/Masterminds/sprig/v3", "functions.go", func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		list, ok := v.Values[0].(*ast.CompositeLit)
		if !ok {
			return true
		}
		for _, e := range list.Elts {
			switch pair, ok := e.(*ast.KeyValueExpr); {
			case ok && v.Names[0].Name == "genericMap":
				names = appendString(names, pair.Key)
			case v.Names[0].Name == "nonhermeticFunctions":
				without = appendString(without, e)
			}
		}
		return false
	})
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(without, name) })
	for n := range names {
		names[n] = "sprig_" + names[n]
	}
	return names
}

func inspect(t *testing.T, pkg, file string, f func(ast.Node) bool) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, f)
}

func appendString(names []string, e ast.Expr) []string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
		name, _ := strconv.Unquote(l.Value)
		names = append(names, name)
	}
	return names
}
