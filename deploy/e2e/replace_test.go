//go:build e2e

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// replacement is a way to replace the only instance of a service, without another next to it.
type replacement struct {
	name string
	// replace replaces the container, and returns when the old process was told to stop or was killed.
	replace func(r *replaced, container string) time.Time
}

var replacements = []replacement{
	{"recreate", func(r *replaced, container string) time.Time {
		log := follow(r, container) // it ends with the container
		r.Do("up", "-d", "--force-recreate", "app")
		return lastLogged(r, log.String(), "told to stop")
	}},
	{"crash", func(r *replaced, container string) time.Time {
		// Docker does not restart a container after docker kill, and nothing in the container's own namespace can kill its
		// process.
		pid := r.Docker("inspect", "--format", "{{.State.Pid}}", container)
		said := r.Docker("run", "--rm", "--label", "SERVICE_IGNORE=1", "--network", "none", "--pid", "host", "--user", "root", "--entrypoint", "sh",
			testenv.Image(r, "IMAGE_HAPROXY"), "-c", "kill -9 "+pid+"; date +%s%N")
		killed, err := strconv.ParseInt(said, 10, 64)
		if err != nil {
			r.Fatalf("kill says %q: %v", said, err)
		}
		return time.Unix(0, killed)
	}},
	{"restart", func(r *replaced, container string) time.Time {
		r.Docker("restart", container)
		return lastLogged(r, r.Docker("logs", container), "told to stop")
	}},
}

// follow returns a container's log as it is written.
func follow(t testing.TB, container string) *testenv.Log {
	t.Helper()
	log := &testenv.Log{}
	cmd := exec.Command("docker", "logs", "--follow", container)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	log.Wait(t, "listening")
	return log
}

// lastLogged returns when the demo app last logged a message with this beginning.
func lastLogged(t testing.TB, log, message string) time.Time {
	t.Helper()
	times := regexp.MustCompile(`(?m)^time=(\S+) level=INFO msg="?`+message).FindAllStringSubmatch(log, -1)
	if times == nil {
		t.Fatalf("the app has not logged %q:\n%s", message, testenv.LastLines(log, 10))
	}
	last, err := time.Parse(time.RFC3339, times[len(times)-1][1])
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// replaced is a stack with one application, which is always restarted.
type replaced struct {
	*stack
	posts string // body of POSTs, larger than HAProxy's buffer for a request
}

// startReplaced starts a stack with an application that runs on briefly after SIGTERM. An application that closes its
// connections at that very moment loses POSTs on their way to it, with any load balancer, unless it drains first.
func startReplaced(t testing.TB, haproxy string) *replaced {
	t.Helper()
	s := newStack(t, `
  app:
    restart: always
    environment: { LOG_POSTS: "1", STOP_AFTER: 100ms }
`, "IMAGE_HAPROXY="+haproxy)
	s.Do("up", "-d")
	s.Eventually(time.Minute, "the app answers", func() error { return s.expectHosts(1) })
	return &replaced{s, strings.Repeat("0123456789", 10_000)}
}

// outcome is the result of the requests during a replacement.
type outcome struct {
	traffic.Report
	gap     time.Duration    // from the stop signal, or kill, of the old process until the new one listens
	longest time.Duration    // longest request, including its answer
	failed  traffic.Requests // except for unavoidable losses
	// Requests lost with the killed process: it had begun to read them, or HAProxy had sent them to it.
	read, sent int
}

// limit is the longest allowed duration of a request.
func (o *outcome) limit() time.Duration { return o.gap*11/10 + 50*time.Millisecond }

func (o *outcome) String() string {
	return fmt.Sprintf("gap %s ms, longest wait %s ms; %d of %d requests failed, and of those that the killed process had, %d it had begun to read and %d it had not%s",
		traffic.Ms(o.gap), traffic.Ms(o.longest), len(o.failed), o.Sent(), o.read, o.sent, o.failed.Failures())
}

// round replaces the instance under load.
func (r *replaced) round(how replacement) *outcome {
	r.Helper()
	old := r.Containers("app")[0]
	if how.name == "crash" {
		r.settles(old)
	}
	sum := fmt.Sprintf("%d bytes, CRC-32 %08x", len(r.posts), crc32.ChecksumIEEE([]byte(r.posts)))
	l := traffic.Send(r, r.web, 200, func(kept bool, n int) traffic.Exchange {
		x := traffic.Exchange{Method: http.MethodGet, Host: "app", Path: fmt.Sprintf("/?n=%d&kept=%t&delay=10ms", n, kept), Timeout: 30 * time.Second}
		if n%2 == 1 {
			x.Method, x.Body = http.MethodPost, r.posts
			x.Judge = func(resp *http.Response) (string, error) {
				host, err := testenv.Host(resp)
				if got := resp.Header.Get("Received"); err == nil && got != sum {
					err = fmt.Errorf("the server has received %q, want %q", got, sum)
				}
				return host, err
			}
		}
		return x
	}, traffic.Kept, traffic.Fresh)
	r.Eventually(10*time.Second, "the old process answers", func() error {
		return cmp.Or(l.ExpectSent(200), l.ExpectAnswers(l.Began, old))
	})
	end := how.replace(r, old)
	var ready time.Time
	var log string
	var id string
	r.Eventually(30*time.Second, "a new process listens", func() error {
		ids := r.Containers("app")
		if len(ids) != 1 {
			return fmt.Errorf("%d containers", len(ids))
		}
		id, log = ids[0], r.Docker("logs", ids[0])
		if ready = lastLogged(r, log, "listening"); ready.Before(end) {
			return errors.New("the last one that did has ended")
		}
		return nil
	})
	r.Eventually(20*time.Second, "the new process answers", func() error { return l.ExpectAnswers(ready, id) })
	o := &outcome{Report: l.Finish(), gap: ready.Sub(end)}
	o.longest = o.Within(1)
	haproxy := r.Logs("haproxy")
	for _, q := range o.Where(func(q traffic.Request) bool { return q.Err != nil }) {
		switch {
		case how.name != "crash" || q.Sent.After(ready):
			o.failed = append(o.failed, q)
		case q.Method != http.MethodPost && q.Sent.Before(end):
			// HAProxy sends it again. But after a failure on a kept connection, HAProxy does not pause between tries and
			// soon runs out of them.
			o.sent++
		case q.Method != http.MethodPost:
			o.failed = append(o.failed, q)
		case strings.Contains(log, "post=\""+q.Path+"\""):
			o.read++
		case connected(haproxy, q):
			o.sent++
		default:
			o.failed = append(o.failed, q)
		}
	}
	return o
}

// settles waits until Docker would restart the container at once: its delay doubles with each exit within ten seconds of
// the start.
func (r *replaced) settles(container string) {
	r.Helper()
	r.Eventually(30*time.Second, "Docker forgets the last end of "+container, func() error {
		began, err := time.Parse(time.RFC3339Nano, r.Docker("inspect", "--format", "{{.State.StartedAt}}", container))
		if up := time.Since(began); err == nil && up < 11*time.Second {
			err = fmt.Errorf("up for %v", up)
		}
		return err
	})
}

// connected reports whether HAProxy had a connection to a server for an unanswered request: then the request was sent.
func connected(log string, q traffic.Request) bool {
	times := regexp.MustCompile(`/\d+/(-?\d+)/-1/\+?\d+ \S+ .*"`+regexp.QuoteMeta(q.Exchange.Method+" "+q.Path+" ")).FindAllStringSubmatch(log, -1)
	return times != nil && times[len(times)-1][1] != "-1"
}

// One instance is replaced, requests wait until the new process serves, and none fails. Each version of HAProxy tests one
// of the ways, and each way is tested with at least one version.
func TestE2EReplace(t *testing.T) {
	images := testenv.Images(t, "IMAGES_HAPROXY")
	for i := range max(len(images), len(replacements)) {
		how, image := replacements[i%len(replacements)], images[i%len(images)]
		t.Run(how.name+" "+image, func(t *testing.T) {
			o := startReplaced(t, image).round(how)
			t.Log(o)
			if len(o.failed) > 0 || o.Sent() < 200 {
				t.Errorf("%d of %d requests failed, want 0 of some hundred", len(o.failed), o.Sent())
			}
		})
	}
}

// BenchmarkE2EReplace replaces the instance ten times in each way, with each version of HAProxy in BENCH_HAPROXY or
// IMAGES_HAPROXY.
func BenchmarkE2EReplace(b *testing.B) {
	variable := "IMAGES_HAPROXY"
	if os.Getenv("BENCH_HAPROXY") != "" {
		variable = "BENCH_HAPROXY"
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nHAProxy\tway\truns\trequests\tfailed\tlost with the process\tgap, ms (least, median, most)\tlongest wait, ms (median, most)\tover gap × 1.1 + 50 ms\tfirst failure")
	for b.Loop() {
		for _, image := range testenv.Images(b, variable) {
			r := startReplaced(b, image)
			for _, how := range replacements {
				var gaps, waits traffic.Times
				var sent, lost, over int
				var failed traffic.Requests
				for n := range rounds {
					o := r.round(how)
					b.Logf("%s, %s %d: %s", image, how.name, n+1, o)
					gaps, waits = append(gaps, o.gap), append(waits, o.longest)
					sent, lost, failed = sent+o.Sent(), lost+o.read+o.sent, append(failed, o.failed...)
					if o.longest > o.limit() {
						over++
					}
				}
				first := "-"
				if len(failed) > 0 {
					slices.SortFunc(failed, func(a, b traffic.Request) int { return a.Sent.Compare(b.Sent) })
					first = failed[0].Err.Error()
				}
				gaps, waits = gaps.Sorted(), waits.Sorted()
				fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%s, %s, %s\t%s, %s\t%d\t%s\n", r.version(), how.name, rounds, sent, len(failed), lost,
					traffic.Ms(gaps.Within(0)), traffic.Ms(gaps.Within(0.5)), traffic.Ms(gaps.Within(1)),
					traffic.Ms(waits.Within(0.5)), traffic.Ms(waits.Within(1)), over, first)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // dominated by Docker
	table.Flush()
}

// version returns the version of the running HAProxy.
func (r *replaced) version() string {
	r.Helper()
	said := r.Docker("exec", r.Containers("haproxy")[0], "haproxy", "-v")
	version := regexp.MustCompile(`version (\d+\.\d+\.\d+)`).FindStringSubmatch(said)
	if version == nil {
		r.Fatalf("haproxy -v says %q", said)
	}
	return version[1]
}
