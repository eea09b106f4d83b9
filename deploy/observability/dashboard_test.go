package observability

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// dashboard is the checked part of Grafana's file.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Panels        []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		GridPos struct {
			X, Y, W, H int
		} `json:"gridPos"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
		Targets []struct {
			Expr string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

func readDashboard(t testing.TB) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("grafana/berth.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// queries returns the queries of all panels, with values for Grafana's variables.
func (d dashboard) queries() (out []string) {
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out = append(out, strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*").Replace(target.Expr))
		}
	}
	return out
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.UID != "berth" || d.SchemaVersion < 39 || len(d.Panels) < 10 {
		t.Errorf("%s %d with %d panels", d.UID, d.SchemaVersion, len(d.Panels))
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %d is %+v", i, p)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.W == 0 || g.H == 0 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v", p.Title, g)
		}
		for _, q := range d.Panels[:i] {
			o := q.GridPos
			if g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H {
				t.Errorf("%s lies on %s", p.Title, q.Title)
			}
		}
	}
	if q := strings.Join(d.queries(), "\n"); strings.Contains(q, "$") {
		t.Errorf("a variable without a value: %s", q)
	}
}

// Every alert is documented, has an action, and is tested to fire and not to fire.
func TestAlerts(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := yaml.Unmarshal([]byte(read("rules.yml")), &rules); err != nil {
		t.Fatal(err)
	}
	tests, docs := read("rules_test.yml"), read("../../docs/operate/monitoring.md")
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["action"] == "" || !strings.Contains(docs, "`"+r.Alert+"`") {
				t.Errorf("%s: %v %v, or it is not documented", r.Alert, r.Labels, r.Annotations)
			}
			quiet := regexp.MustCompile(`\{eval_time: \S+, alertname: ` + r.Alert + `\}`)
			fires := regexp.MustCompile(`alertname: ` + r.Alert + `\n\s+exp_alerts:\n\s+- `)
			if !quiet.MatchString(tests) || !fires.MatchString(tests) {
				t.Errorf("%s is not tested to fire and not to fire", r.Alert)
			}
		}
	}
	if alerts != 8 {
		t.Errorf("%d alerts", alerts)
	}
}
