//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/browser"
)

// The page of a real stack follows events in a real browser, without a reload.
func TestE2EPageOfStack(t *testing.T) {
	s := startStack(t)
	tab := browser.Start(t, s.Project+"-chromium", s.Project+"_default").NewTab(t)
	tab.Run(chromedp.EmulateViewport(1200, 900), chromedp.Navigate("http://"+s.address("templater")+":9652/"))
	shows := func(what, expression string) time.Duration {
		t.Helper()
		return tab.Until(what, `(li => !!li && (`+expression+`))([...document.querySelectorAll("#services > li")].find(li => li.querySelector(".name").textContent == "app"))`)
	}
	shows("app serves", `li.innerText.includes("1/1") && li.innerText.includes("serving")`)
	tab.Run(chromedp.Evaluate[chromedp.Void](`window.loaded = "once"`),
		chromedp.Evaluate[chromedp.Void](`[...document.querySelectorAll("#services > li")].find(li => li.querySelector(".name").textContent == "app").querySelector("button").click()`))
	shows("its instance has come all the way", `li.querySelectorAll(".chain .done").length == 7`)

	s.scale(5)
	took := shows("five serve", `li.innerText.includes("5/5")`)
	t.Logf("five are shown %v after compose is done", took.Round(time.Millisecond))
	shows("all five are listed", `li.querySelectorAll(".instances > li").length == 5`)
	tab.Until("the changes are told", `/app: \d+ → 5 servers, live after \d+ ms/.test(document.querySelector("#stream").textContent)`)
	tab.Until("their times are drawn", `/ of [45], /.test(document.querySelector("#plot").innerText)`)

	// A check added by hand in Consul fails.
	consul, err := api.NewClient(&api.Config{Address: s.consul})
	if err != nil {
		t.Fatal(err)
	}
	services, err := consul.Agent().Services()
	if err != nil {
		t.Fatal(err)
	}
	for id, one := range services {
		if one.Service != "app" {
			continue
		}
		check := &api.AgentCheckRegistration{ID: "added", Name: "disk", ServiceID: id, AgentServiceCheck: api.AgentServiceCheck{TTL: "1m", Status: "passing"}}
		if err := consul.Agent().CheckRegister(check); err != nil {
			t.Fatal(err)
		}
		if err := consul.Agent().UpdateTTL("added", "no space is left", "critical"); err != nil {
			t.Fatal(err)
		}
		break
	}
	took = shows("the reason is shown", `li.innerText.includes("disk: no space is left") && li.innerText.includes("4/5")`)
	if t.Logf("the reason is shown after %v", took.Round(time.Millisecond)); took > 5*time.Second { // a second on an idle machine
		t.Errorf("the reason is shown after %v", took)
	}
	if got := browser.Ask(tab, chromedp.Evaluate[string](`String(window.loaded)`)); got != "once" {
		t.Error("the page was loaded again")
	}
}

// With the token, the page drains and pauses; without it, it does not.
func TestE2EPageActions(t *testing.T) {
	const token = "only-for-this-test"
	s := newStack(t, fmt.Sprintf(`
  templater:
    environment: { BERTH_LISTEN_ADMIN_TOKEN_FILE: /etc/berth/token }
    volumes: ["%s:/etc/berth/token:ro"]
`, testenv.File(t, testenv.Dir(t), "token", token+"\n")))
	s.Do("up", "-d")
	s.Eventually(time.Minute, "one app answers", func() error { return s.expectHosts(1) })
	post := func(path, token string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.page+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
			t.Logf("%s: %s: %s", path, resp.Status, text)
		}
		return resp.StatusCode
	}
	says := func(what, want string) {
		t.Helper()
		s.Eventually(10*time.Second, what, func() error {
			said, err := s.Try("exec", "-T", "templater", "berth", "status", "app")
			if err == nil && !strings.Contains(said, want) {
				err = fmt.Errorf("berth status says\n%s", said)
			}
			return err
		})
	}
	consul, err := api.NewClient(&api.Config{Address: s.consul})
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := consul.Health().Service("app", "", true, nil)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d instances, %v", len(entries), err)
	}
	instance := url.QueryEscape(entries[0].Service.ID)
	if got := post("/v1/drain?instance="+instance, "another-token-of-it"); got != http.StatusForbidden {
		t.Errorf("with another token: %d", got)
	}
	says("it serves on", "app: serving")
	if got := post("/v1/drain?instance="+instance, token); got != http.StatusNoContent {
		t.Errorf("drain: %d", got)
	}
	says("it is drained", "from the page")
	if got := post("/v1/undrain?instance="+instance, token); got != http.StatusNoContent {
		t.Errorf("undrain: %d", got)
	}
	says("it serves again", "app: serving")
	if got := post("/v1/pause?service=app", token); got != http.StatusNoContent {
		t.Errorf("pause: %d", got)
	}
	says("it is paused", "paused since")
	if got := post("/v1/resume?service=app", token); got != http.StatusNoContent {
		t.Errorf("resume: %d", got)
	}
	s.Eventually(20*time.Second, "it answers again", func() error { return s.expectHosts(1) })
	for _, path := range []string{"/v1/drain?instance=nobody", "/v1/pause?service=nobody", "/v1/pause?service=..%2Fconfig", "/v1/drain"} {
		if got := post(path, token); got != http.StatusBadGateway {
			t.Errorf("%s: %d", path, got)
		}
	}
}

// address returns the address of a service's first container on the stack's network.
func (s *stack) address(service string) string {
	s.Helper()
	return s.Docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", s.Containers(service)[0])
}

// Changes, including those of another berth, are followed on the command line; and every documented metric exists.
func TestE2EEventsAndMetrics(t *testing.T) {
	s := startStack(t)
	cmd := exec.Command("docker", "exec", s.Containers("templater")[0], "berth", "events", "--follow")
	log := &testenv.Log{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	log.Wait(t, "berth started")
	s.scale(2)
	log.Wait(t, "1 → 2 servers, live after")
	s.Eventually(10*time.Second, "the registrar's change is told", func() error {
		if text := log.String(); strings.Count(text, " as app on ") < 2 {
			return fmt.Errorf("told is\n%s", text)
		}
		return nil
	})
	text, err := s.metrics()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"berth_ready_to_live_seconds_bucket", `berth_ready_to_live_seconds_bucket{le="0.05"}`, "berth_stop_to_drained_seconds_count", "berth_proxy_refusals_total 0",
		"berth_proxy_drift_repairs_total 0", "berth_proxy_generations_total", "berth_proxy_generation_timestamp_seconds", "berth_rollouts_running 0", "berth_status_publish_failures_total 0"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
	s.scale(1)
	s.Eventually(20*time.Second, "the drain is measured", func() error {
		text, err := s.metrics()
		if err == nil && !strings.Contains(text, "berth_stop_to_drained_seconds_count 1") {
			err = errors.New("it is not")
		}
		return err
	})
}

// metrics returns the templater's metrics.
func (s *stack) metrics() (string, error) {
	resp, err := http.Get("http://" + s.page + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}
