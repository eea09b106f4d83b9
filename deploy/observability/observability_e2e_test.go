//go:build e2e

package observability

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// Prometheus accepts the rules, and each alert fires when it should and only then.
func TestE2ERules(t *testing.T) {
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	out, err := testenv.Docker("run", "--rm", "--network", "none", "--label", "SERVICE_IGNORE=1", "--volume", dir+":/rules:ro", "--workdir", "/rules",
		"--entrypoint", "promtool", testenv.Image(t, "IMAGE_PROMETHEUS"), "test", "rules", "rules_test.yml")
	if err != nil || !strings.Contains(out, "SUCCESS") {
		t.Errorf("%v\n%s", err, out)
	}
}

// metric matches the names of metrics in a query.
var metric = regexp.MustCompile(`\b(?:berth|haproxy|process)_[a-z_]+\b`)

// maybe are metrics that exist only after an event.
var maybe = []string{"berth_waiting_requests", "berth_held_requests_total", "berth_certificate_expiry_timestamp_seconds"}

// The demo with Prometheus: every target answers, no rule has an error, and the stack has every metric of the dashboard and
// the rules.
func TestE2EStack(t *testing.T) {
	port := testenv.FreePort(t)
	s := testenv.NewCompose(t, testenv.ComposeOptions{
		Files: []string{"../compose.yml", "compose.yml"},
		Env: []string{"HTTP_PORT=" + testenv.FreePort(t), "CONSUL_PORT=" + testenv.FreePort(t), "STATS_PORT=" + testenv.FreePort(t), "PAGE_PORT=" + testenv.FreePort(t),
			"PROMETHEUS_PORT=" + port, "IMAGE_PROMETHEUS=" + testenv.Image(t, "IMAGE_PROMETHEUS")},
		Show: []string{"prometheus", "templater"},
	})
	s.Do("up", "-d", "consul", "registrar", "templater", "haproxy", "app", "prometheus") // Grafana is not needed
	api := "http://127.0.0.1:" + port + "/api/v1/"
	s.Eventually(90*time.Second, "all targets answer", func() error {
		var answer struct {
			Data struct {
				ActiveTargets []struct {
					Labels            map[string]string
					Health, LastError string
				}
			}
		}
		if err := testenv.GetJSON(api+"targets?state=active", &answer); err != nil {
			return err
		}
		var up []string
		for _, target := range answer.Data.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%v is %s: %s", target.Labels, target.Health, target.LastError)
			}
			up = append(up, target.Labels["job"])
		}
		slices.Sort(up)
		if want := []string{"berth-registrar", "berth-templater", "haproxy"}; !slices.Equal(up, want) {
			return fmt.Errorf("up are %v, want %v", up, want)
		}
		return nil
	})
	s.Eventually(60*time.Second, "all rules are evaluated", func() error {
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		if err := testenv.GetJSON(api+"rules", &answer); err != nil {
			return err
		}
		n := 0
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				if n++; r.Health != "ok" {
					return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if n != 11 {
			return fmt.Errorf("%d rules", n)
		}
		return nil
	})
	names := map[string]bool{}
	for _, q := range readDashboard(t).queries() {
		for _, name := range metric.FindAllString(q, -1) {
			names[name] = true
		}
		if err := query(api, q, nil); err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
	if len(names) < 20 {
		t.Errorf("%d metrics are in the dashboard", len(names))
	}
	for name := range names {
		if slices.Contains(maybe, name) {
			continue
		}
		s.Eventually(30*time.Second, "there is "+name, func() error {
			var samples []json.RawMessage
			if err := query(api, name, &samples); err != nil {
				return err
			}
			if len(samples) == 0 {
				return errors.New("it has no sample")
			}
			return nil
		})
	}
}

// query asks Prometheus.
func query(api, text string, samples *[]json.RawMessage) error {
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := testenv.GetJSON(api+"query?query="+url.QueryEscape(text), &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	if samples != nil {
		*samples = answer.Data.Result
	}
	return nil
}
