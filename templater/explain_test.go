package templater

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExplain(t *testing.T) {
	consul := newFakeConsul(t)
	consul.set("web", 1, 2)
	consul.set("api", 3)
	r := newHarness(t, consul, Options{Templates: append(one(`head
{{ define "ports" }}{{ range service . }}{{ .Port }}
{{ end }}{{ end }}{{ range services }}[{{ .Name }}]
{{ partial "ports" .Name }}{{ end }}{{ with service "web" }}{{ len . }} of web{{ else }}no web{{ end }}
tail
`), Template{Name: "failing", Source: "failing.ctmpl", Text: `{{ if service "web" }}{{ divide (len (service "api")) 6 }}
{{ end }}six`})})
	if _, err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	const web, api, all = "health.service(web|passing)", "health.service(api|passing)", "catalog.services"
	want := map[string][]string{
		"out": {
			"head: ",
			"[api]: " + all,
			"3: " + all + " " + api,
			"[web]: " + all,
			"1: " + all + " " + web,
			"2: " + all + " " + web,
			"2 of web: " + web,
			"tail: ",
		},
		// Its text without the service api is unknown.
		"failing": {"6: " + api + " " + web, "six: " + api},
	}
	for range 2 { // it changes nothing
		got := map[string][]string{}
		for name := range want {
			for _, line := range r.Explain(name) {
				got[name] = append(got[name], fmt.Sprintf("%s: %s", line.Text, strings.Join(line.Depends, " ")))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if lines := r.Explain("nosuch"); lines != nil {
		t.Errorf("%v", lines)
	}
}
