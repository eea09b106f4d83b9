package status

import (
	"strings"
	"testing"

	"berth/registrar"
)

// A template of one's own routes without labels, so none is asked for.
func TestExplainServiceOfOwnTemplate(t *testing.T) {
	d := &Document{
		Proxies:  []Proxy{{Name: "lb", Kind: "haproxy", Template: "/etc/berth/haproxy.ctmpl"}},
		Services: []Service{{Name: "shop", State: Serving, Serving: 1, Total: 1}},
	}
	list, err := d.Explain("shop", nil)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if s := list[0].Steps[0]; s.Step != "routes" || !s.Passed || len(s.Evidence) != 1 || !strings.Contains(s.Evidence[0], "/etc/berth/haproxy.ctmpl") {
		t.Errorf("%+v", s)
	}
}

// What a URL leads to depends on more than its route: redirects, certificates, templates, and containers that ask for its host in vain.
func TestExplainURL(t *testing.T) {
	document := func(change func(*Document)) *Document {
		d := &Document{
			Proxies: []Proxy{{Name: "lb", Kind: "haproxy", Certificates: 1}},
			Services: []Service{
				{Name: "shop", State: Serving, Serving: 1, Total: 1, Routes: []Route{{Route: "shop.example.com/", Host: "shop.example.com", Path: "/", Proxy: "lb", Backend: "shop", Redirect: true}}},
				{Name: "web", State: Serving, Serving: 1, Total: 1, Routes: []Route{{Route: "*/", Path: "/", Proxy: "lb", Backend: "web"}}},
			},
		}
		if change != nil {
			change(d)
		}
		return d
	}
	report := &registrar.Report{Containers: []registrar.Planned{{Container: "mail_1", ID: "1", Asks: map[string]string{"SERVICE_25_ROUTE_HOST": "a.example.com, Mail.example.com"}}}}
	for name, tt := range map[string]struct {
		url    string
		change func(*Document)
		state  State
		want   string // somewhere in it
		not    string
	}{
		"by its route":   {"https://shop.example.com/x", nil, Serving, "service shop answers", "308"},
		"redirected":     {"http://shop.example.com/x?y=1", nil, Serving, "308, to https://shop.example.com/x?y=1", "service shop answers"},
		"no certificate": {"https://shop.example.com/", func(d *Document) { d.Proxies[0].Certificates = 0 }, Down, "port for HTTPS is closed", "answers;"},
		"a template of one's own": {"http://shop.example.com/", func(d *Document) {
			d.Proxies[0].Template, d.Services[0].Routes, d.Services[1].Routes = "/etc/berth/haproxy.ctmpl", nil, nil
		}, Unknown, "/etc/berth/haproxy.ctmpl", "404"},
		"taken by the catch-all instead": {"http://mail.example.com/", nil, Serving, "mail_1 asks for this host and is not registered: berth explain mail_1", "404"},
		"nobody has it":                  {"http://mail.example.com/", func(d *Document) { d.Services = d.Services[:1] }, Down, "mail_1 asks for this host and is not registered", ""},
		"registered": {"http://mail.example.com/", func(d *Document) {
			d.Services = append(d.Services, Service{Name: "mail", Instances: []Instance{{ID: "m", ContainerID: "1", Reached: StepCatalog}}})
		}, Serving, "service web answers", "mail_1"},
	} {
		list, err := document(tt.change).Explain(tt.url, report)
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %v, %v", name, list, err)
			continue
		}
		e := list[0]
		said := e.Verdict + "\n" + strings.Join(e.Do, "\n")
		for _, s := range e.Steps {
			said += "\n" + strings.Join(s.Evidence, "\n")
		}
		if e.State != tt.state || !strings.Contains(said, tt.want) || tt.not != "" && strings.Contains(said, tt.not) {
			t.Errorf("%s: %s:\n%s", name, e.State, said)
		}
	}
}
