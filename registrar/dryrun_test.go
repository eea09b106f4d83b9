package registrar

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lines formats a report in short lines: container, routes, state and reasons.
func lines(r Report) (out []string) {
	for _, p := range r.Containers {
		for _, i := range p.Instances {
			routes := strings.Join(i.Routes, " ")
			if i.NoRoute != "" {
				routes = "(" + i.NoRoute + ")"
			}
			out = append(out, fmt.Sprintf("%s [%s] %s", p.Container, routes, i))
		}
		for _, verdict := range p.Verdicts() {
			out = append(out, p.Container+" "+verdict)
		}
	}
	return append(out, r.Problems...)
}

// A running registrar and a dry run agree on what is registered, and what is wrong with it.
func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		for n, name := range []string{"fine", "failing", "warns", "byhand", "late", "routed", "unrouted", "paused", "lighter"} {
			address := fmt.Sprintf("10.0.0.%d", n+1)
			env := map[string]string{
				"failing":  "SERVICE_CHECK_HTTP=/health",
				"warns":    "SERVICE_CHECK_HTTP=/health",
				"routed":   "SERVICE_ROUTE_HOST=shop.example.com,a.example.com",
				"unrouted": "SERVICE_ROUTE_HOST=bad!",
				"lighter":  "SERVICE_TAGS=blue",
			}[name]
			ready := "SERVICE_READY=tcp"
			if name != "late" {
				w.listen(address + ":80")
			}
			w.create(name, address, ready, env)
			time.Sleep(time.Millisecond) // so that they differ in age
		}
		w.create("ignored", "10.0.0.20", "SERVICE_IGNORE=1")
		time.Sleep(time.Millisecond)
		w.create("badly", "10.0.0.21", "SERVICE_READY=maybe")
		r, stop := w.run(t)
		time.Sleep(31 * time.Second)
		w.do(func() {
			w.Checks["vm:failing:80:check-1"].Status, w.Checks["vm:failing:80:check-1"].Output = "critical", "HTTP GET: 500\nInternal\tServer Error\n"
			w.Checks["vm:warns:80:check-1"].Status, w.Checks["vm:warns:80:check-1"].Output = "warning", "HTTP GET: 429"
			w.Maintain("vm:byhand:80", "new disk")
			w.containers["paused"].State.Paused = true
		})
		w.event("pause", "paused")
		w.start("new", "10.0.0.30")
		time.Sleep(reread + time.Second)
		got, err := r.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"fine [] registered",
			"failing [] critical: HTTP GET /health: HTTP GET: 500 Internal Server Error",
			"warns [] warning: HTTP GET /health: HTTP GET: 429",
			"byhand [] out of service: new disk",
			"late [] critical: not ready in time: connection refused",
			"routed [a.example.com/ shop.example.com/] registered",
			`unrouted [(its route_host "bad!" is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST)] registered`,
			`unrouted registered, but port 80/tcp: no route: its route_host "bad!" is not a host name like shop.example.com or *.example.com; set SERVICE_ROUTE_HOST`,
			"paused [] out of service: the container is paused",
			"lighter [] registered",
			"ignored not registered: SERVICE_IGNORE is set",
			`badly not registered: port 80/tcp: SERVICE_READY="maybe" is not known: use tcp, http:/path, https:/path, healthcheck or none`,
			"new [] waiting: for 11s; not ready: waiting until 10.0.0.30:80 accepts",
		}
		if d := cmp.Diff(want, lines(got)); d != "" {
			t.Errorf("a running registrar (-want +got):\n%s", d)
		}
		stop()

		// A dry run does not probe.
		want[len(want)-1] = "new [] to be registered"
		before := w.called("register")
		got, err = w.registrar().Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, lines(got)); d != "" {
			t.Errorf("a dry run (-want +got):\n%s", d)
		}
		if n := w.called("register") - before; n > 0 {
			t.Errorf("a dry run registers %d", n)
		}
	})
}

// The report names every difference from the registrations, and registrations without a container.
func TestReportOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		for n, name := range []string{"tags", "meta", "address", "gone"} {
			address := fmt.Sprintf("10.0.0.%d", n+1)
			w.listen(address + ":80")
			w.create(name, address)
			time.Sleep(time.Millisecond)
		}
		_, stop := w.run(t)
		time.Sleep(time.Second)
		stop()
		w.do(func() {
			w.Services["vm:tags:80"].Tags = []string{"by hand"}
			w.Services["vm:meta:80"].Meta["version"] = "2"
			w.Services["vm:address:80"].Port = 81
			delete(w.containers, "gone")
			other := *w.Services["vm:gone:80"]
			other.ID, other.Address = "vm:other:80", "2001:db8::1"
			w.Services[other.ID] = &other
		})
		got, err := w.registrar().Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"tags [] to be changed: its tags differ",
			"meta [] to be changed: its metadata version will be removed",
			"address [] to be changed: its address is 10.0.0.3 port 81",
			" [] to be deregistered: no container registers it any more",
			" [] to be deregistered: no container registers it any more",
		}
		if d := cmp.Diff(want, lines(got)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		// The remains of one container are found by its ID.
		if got, err = got.Only("gone"); err != nil || len(got.Containers) != 1 || len(got.Containers[0].Instances) != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		if at := got.Containers[0].Instances[1].Endpoint; at != "[2001:db8::1]:80" {
			t.Errorf("the endpoint is %s", at)
		}
	})
}

// A registrar that cannot ask reports what it knows, and what is wrong.
func TestReportWithoutNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1")
		w.create("odd", "10.0.0.2")
		w.inspectErr["odd"] = errors.New("500 internal error")
		r, stop := w.run(t)
		defer stop()
		time.Sleep(2 * time.Second)
		w.do(func() { w.Err = errors.New("connection refused") })
		time.Sleep(reread + time.Second)
		got, err := r.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"a [] registered",
			"odd not registered: inspect container odd: 500 internal error",
			"inspect container odd: 500 internal error",
			"read services and checks: connection refused",
		}
		if d := cmp.Diff(want, lines(got)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

func TestReportOnly(t *testing.T) {
	report := Report{Containers: []Planned{
		{Container: "shop_web_1", ID: "abc1", ComposeService: "web"},
		{Container: "shop_web_2", ID: "abd2", ComposeService: "web"},
		{Container: "web", ID: "fff3"},
		{Container: "shop_db_1", ID: "ddd4", ComposeService: "db"},
		{Container: "abc", ID: "eee5"},
		{ID: "999"},
	}}
	for _, tt := range []struct {
		names, want, err string
	}{
		{"", "abc1 abd2 fff3 ddd4 eee5 999", ""},
		{"shop_web_2", "abd2", ""},
		{"/shop_web_2", "abd2", ""},
		{"abd", "abd2", ""},
		{"abc", "eee5", ""},    // a name takes precedence over the beginning of an ID
		{"web", "fff3", ""},    // and over a compose service
		{"db ddd", "ddd4", ""}, // once
		{"db shop_web_1", "ddd4 abc1", ""},
		{"ab", "", "the IDs of 2 containers begin with ab: give more digits"},
		{"web nosuch", "fff3", `no container that runs here has the name, the ID or the compose service "nosuch"`},
	} {
		got, err := report.Only(strings.Fields(tt.names)...)
		var ids []string
		for _, p := range got.Containers {
			ids = append(ids, p.ID)
		}
		if is := strings.Join(ids, " "); is != tt.want {
			t.Errorf("%q: %s, want %s", tt.names, is, tt.want)
		}
		if (err == nil) != (tt.err == "") || (err != nil && !strings.HasPrefix(err.Error(), tt.err)) {
			t.Errorf("%q: %v, want %q", tt.names, err, tt.err)
		}
	}
}

// Lists are lists in JSON, even if they are empty.
func TestReportJSON(t *testing.T) {
	s := known(Options{}, containerOf("a", "10.0.0.1"), containerOf("b", "10.0.0.2", "SERVICE_IGNORE=1"))
	r := New(Options{})
	r.state = s
	text, err := json.Marshal(r.report(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "null") || !strings.Contains(string(text), `"state":"to be registered"`) {
		t.Errorf("%s", text)
	}
}
