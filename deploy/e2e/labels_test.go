//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// labelChange is a rollout that changes a label: a service's containers before and after.
type labelChange struct {
	name     string
	path     string // of the route
	old, new version

	stripped   bool // one version does not see the route's path
	redirected bool // one version redirects clients to HTTPS
}

// version is the YAML of containers beyond the name and the route of their service.
type version struct{ labels, environment string }

// labelChanges makes each application answer 404 at the other's health path: an instance checked with another version's
// path is taken out.
var labelChanges = []labelChange{
	{name: "check-added", old: version{"", "MISSING: /health"}, new: version{"SERVICE_ROUTE_CHECK: /health", "READY_AFTER: 3s"}},
	{name: "check-moved", old: version{"SERVICE_ROUTE_CHECK: /old", "MISSING: /new"}, new: version{"SERVICE_ROUTE_CHECK: /new", "MISSING: /old"}},
	{name: "check-removed", old: version{"SERVICE_ROUTE_CHECK: /old", ""}, new: version{"", "MISSING: /old"}},
	{name: "strip-added", path: "/api", new: version{"SERVICE_ROUTE_STRIP: 'true'", ""}, stripped: true},
	{name: "strip-removed", path: "/api", old: version{"SERVICE_ROUTE_STRIP: 'true'", ""}, stripped: true},
	{name: "sticky-added", new: version{"SERVICE_ROUTE_STICKY: 'true'", ""}},
	{name: "sticky-removed", old: version{"SERVICE_ROUTE_STICKY: 'true'", ""}},
	{name: "balance", old: version{"SERVICE_ROUTE_BALANCE: leastconn", ""}, new: version{"SERVICE_ROUTE_BALANCE: uri", ""}},
	{name: "redirect-added", new: version{"SERVICE_ROUTE_REDIRECT: https", ""}, redirected: true},
	{name: "redirect-removed", old: version{"SERVICE_ROUTE_REDIRECT: https", ""}, redirected: true},
}

// compose is a compose service for one version, with two containers that drain before they are told to stop: otherwise a
// POST could meet the end of the process.
func (c *labelChange) compose(name string, v version) string {
	return fmt.Sprintf(`
  %s:
    image: %s
    scale: 2
    stop_signal: SIGCONT
    stop_grace_period: 20s
    environment: { %s }
    labels: { SERVICE_STOP_SIGNAL: SIGTERM, SERVICE_NAME: %s, SERVICE_ROUTE_HOST: %s, SERVICE_ROUTE_PATH: "%s/"%s }
`, name, "${IMAGE_APP}", v.environment, c.name, c.host(), c.path, strings.TrimSuffix(", "+v.labels, ", "))
}

func (c *labelChange) host() string { return c.name + ".example.com" }

const labelBody = "some=form&and=more"

// exchange is the nth request: an answer of either version is correct.
func (c *labelChange) exchange(n int) traffic.Exchange {
	path := fmt.Sprintf("/page-%d", n%64)
	x := traffic.Exchange{Method: http.MethodGet, Host: c.host(), Path: c.path + path, Header: "X-Forwarded-Proto: http\r\n"}
	if n%2 == 1 {
		x.Method, x.Body = http.MethodPost, labelBody
	}
	x.Judge = func(resp *http.Response) (string, error) {
		if c.redirected && resp.StatusCode == http.StatusPermanentRedirect {
			resp.Body.Close()
			if got, want := resp.Header.Get("Location"), "https://"+x.Host+x.Path; got != want {
				return "", fmt.Errorf("redirected to %q, want %q", got, want)
			}
			return "", nil
		}
		host, err := testenv.Host(resp)
		if err != nil {
			return "", err
		}
		asked, received := resp.Header.Get("Asked"), ""
		if x.Body != "" {
			received = fmt.Sprintf("%d bytes, CRC-32 %08x", len(x.Body), crc32.ChecksumIEEE([]byte(x.Body)))
		}
		if asked != x.Method+" "+x.Path && !(c.stripped && asked == x.Method+" "+path) {
			return "", fmt.Errorf("the server was asked %q", asked)
		}
		if got := resp.Header.Get("Received"); got != received {
			return "", fmt.Errorf("the server has received %q, want %q", got, received)
		}
		return host, nil
	}
	return x
}

// expectOld and expectNew return nil if a request is answered according to the labels of that version.
func (c *labelChange) expectOld(s *stack) error { return c.expect(s, c.old.labels) }
func (c *labelChange) expectNew(s *stack) error { return c.expect(s, c.new.labels) }

func (c *labelChange) expect(s *stack, labels string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+s.web+c.path+"/x", nil)
	if err != nil {
		return err
	}
	req.Host = c.host()
	req.Header.Set("X-Forwarded-Proto", "http")
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	got := fmt.Sprintf("%d %s cookie %t", resp.StatusCode, resp.Header.Get("Asked"), resp.Header.Get("Set-Cookie") != "")
	want := fmt.Sprintf("200 GET %s/x cookie %t", c.path, strings.Contains(labels, "STICKY"))
	if strings.Contains(labels, "STRIP") {
		want = "200 GET /x cookie false"
	} else if strings.Contains(labels, "REDIRECT") {
		want = "308  cookie false"
	}
	if got != want {
		return fmt.Errorf("%s: %s, want %s", c.name, got, want)
	}
	return nil
}

// A rollout that changes a label fails no request, from the first new container to the last old one. Each request is
// answered according to one of the two versions.
func TestE2ELabelsChange(t *testing.T) {
	var services strings.Builder
	services.WriteString("  templater:\n    environment: { BERTH_TRUSTED_PROXIES: '10.0.0.0/8,172.16.0.0/12,192.168.0.0/16' }\n")
	services.WriteString("  registrar:\n    environment: { BERTH_DRAIN_TIME: 6s }\n") // ten services change at once, each by a reload
	var old, new []string
	for _, c := range labelChanges {
		old, new = append(old, c.name+"-old"), append(new, c.name+"-new")
		services.WriteString(c.compose(c.name+"-old", c.old) + c.compose(c.name+"-new", c.new))
	}
	s := newStack(t, services.String())
	s.Do(append([]string{"up", "-d", "consul", "registrar", "templater", "haproxy"}, old...)...)
	each := func(what string, of func(c *labelChange) error) {
		t.Helper()
		s.Eventually(time.Minute, what, func() error {
			var errs []error
			for i := range labelChanges {
				errs = append(errs, of(&labelChanges[i]))
			}
			return errors.Join(errs...)
		})
	}
	servers := func(n int) func(*labelChange) error {
		return func(c *labelChange) error { return s.expectServersOf(c.name, n) }
	}
	each("HAProxy has the old servers", servers(2))
	each("the old labels count", func(c *labelChange) error { return c.expectOld(s) })

	l := traffic.Send(t, s.web, 200, func(kept bool, n int) traffic.Exchange {
		return labelChanges[n%len(labelChanges)].exchange(n / len(labelChanges))
	}, traffic.Kept, traffic.Fresh)
	began := time.Now()
	s.Do(append([]string{"up", "-d", "--no-deps"}, new...)...)
	var answering []string
	for _, c := range labelChanges {
		if !c.redirected { // by HAProxy, so no server is named
			answering = append(answering, s.Containers(c.name+"-new")...)
		}
	}
	each("HAProxy has the new servers, too", servers(4))
	came := time.Now()
	s.Eventually(20*time.Second, "all new servers answer", func() error { return l.ExpectAnswers(began, answering...) })
	s.lasts(came, 3*time.Second) // two failed checks take a server out
	s.Do(append([]string{"stop"}, old...)...)
	each("HAProxy has the new servers only", servers(2))
	each("the new labels count", func(c *labelChange) error { return c.expectNew(s) })
	s.lasts(time.Now(), time.Second)

	r := l.Finish()
	t.Log(r)
	r.ExpectNoneFailed(t, "labels changed")
	for _, c := range labelChanges {
		its := r.Where(func(q traffic.Request) bool { return q.Host == c.host() })
		t.Logf("%s: %s%s", c.name, its, its.Failures())
		if its.Failed() > 0 || len(its) < 100 {
			t.Errorf("%s: %d of %d requests failed, want 0 of some hundred", c.name, its.Failed(), len(its))
		}
	}
}
