package templates

import (
	"fmt"
	"strings"
	"testing"

	"berth/templates/route"
)

// thousand is 1,000 services of 10 instances.
func thousand() catalog {
	c := catalog{}
	for n := range 1000 {
		name := fmt.Sprintf("service-%03d", n)
		for i := range 10 {
			c.with(name, fmt.Sprintf("host-%d:%s-%d:8080", i%3, name, i), fmt.Sprintf("10.%d.%d.%d", n/250, n%250, i+1), 8080,
				route.KeyHost, fmt.Sprintf("%s.example.com", name), route.KeyPath, "/api", route.KeyBalance, "leastconn")
		}
	}
	return c
}

// shipped are the built-in templates by proxy.
func shipped() map[string]string { return map[string]string{"haproxy": HAProxy(), "nginx": Nginx()} }

// A complete execution, as at berth's start.
func BenchmarkRenderAll(b *testing.B) {
	c := thousand()
	brain := c.brain(b, inOrder)
	for proxy, text := range shipped() {
		b.Run(proxy, func(b *testing.B) {
			r := rendered{files: map[string]string{}, paths: map[string]string{}}
			tmpl := engine(Options{}, &r, text)
			for b.Loop() {
				r.text = execute(b, tmpl, brain)
			}
			b.ReportMetric(float64(len(r.text)), "bytes")
		})
	}
}

// The part executed on every change: the main part, with the partials' texts cached.
func BenchmarkRenderMain(b *testing.B) {
	c := thousand()
	brain := c.brain(b, inOrder)
	for proxy, text := range shipped() {
		b.Run(proxy, func(b *testing.B) {
			whole := renderTemplate(b, text, c, Options{}, inOrder).text
			r := rendered{files: map[string]string{}, paths: map[string]string{}}
			texts := map[string]string{}
			funcs := shippedFuncs(Options{}, &r)
			funcs["partial"] = func(_, service string) string { return texts[service] }
			definitions, _, _ := strings.Cut(text, "{{- $certificates :=")
			for name := range c {
				texts[name] = execute(b, compile(definitions+fmt.Sprintf("{{ executeTemplate `service` %q }}", name), funcs), brain)
			}
			tmpl := compile(text, funcs)
			for b.Loop() {
				r.text = execute(b, tmpl, brain)
			}
			if r.text != whole {
				b.Fatal("it differs from the whole")
			}
		})
	}
}

// Parsing one service.
func BenchmarkService(b *testing.B) {
	thousand().brain(b, inOrder)
	ledger := route.NewLedger(0)
	for b.Loop() {
		route.New("service-000", listed["service-000"], unprivileged, ledger, refuse(b))
	}
}
