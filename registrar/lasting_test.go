package registrar

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
)

// logged counts the matching log lines.
func (w *cluster) logged(pattern string) int {
	return len(regexp.MustCompile(pattern).FindAllString(w.log.String(), -1))
}

// A lasting failure is logged again, less and less often. Its end is logged once.
func TestLastingFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.create("a", "10.0.0.1")
		w.create("b", "10.0.0.2")
		_, stop := w.run(t)
		defer stop()
		time.Sleep(5*time.Minute + 8*time.Second) // not at the moment when Consul is read, or the event stream is reopened
		if n := w.logged(`level=INFO msg="all registrations are in step with Docker and Consul" instances=`); n != 1 {
			t.Fatalf("said %d times that all is in step:\n%s", n, w.log.String())
		}
		for _, tt := range []struct {
			name       string
			fail, mend func()
			line       string
			said       int // lines at once, after 1, 5, 10 and 20 minutes, and with another reason
		}{
			{"Consul", func() { w.Err = errors.New("connection refused") }, func() { w.Err = nil }, `requests to Consul fail; .* trying again"`, 5},
			{"Docker", func() { w.dockerErr = errors.New("no daemon"); close(w.broken) }, func() { w.dockerErr = nil; w.broken = make(chan struct{}) }, `"Docker's event stream is broken; .* trying again"`, 6},
		} {
			before, steps := w.logged(tt.line), w.logged("registrations are in step")
			w.do(tt.fail)
			time.Sleep(21*time.Minute + 5*time.Second)
			if n := w.logged(tt.line) - before; n != tt.said {
				t.Errorf("%s was away for 21 minutes, and that was said %d times:\n%s", tt.name, n, w.log.String())
			}
			if w.logged(tt.line+` for=20m`) == 0 {
				t.Errorf("%s: not said for how long:\n%s", tt.name, w.log.String())
			}
			w.do(tt.mend)
			time.Sleep(2 * time.Minute)
			if n := w.logged("registrations are in step") - steps; n != 1 {
				t.Errorf("%s: said %d times that all is in step again:\n%s", tt.name, n, w.log.String())
			}
		}
		if n := w.logged("(event stream is open|Consul answers) again after 21m[0-9]+s\" for=21m"); n != 2 {
			t.Errorf("said %d times for how long it was away:\n%s", n, w.log.String())
		}
	})
}

// A registration that Consul refuses is retried at every resync, and logged less and less often.
func TestLastingRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster()
		w.listen("10.0.0.1:80")
		w.do(func() { w.Fail["register vm:a:80"] = api.StatusError{Code: 403, Body: "Permission denied"} })
		w.create("a", "10.0.0.1")
		r, stop := w.run(t)
		defer stop()
		time.Sleep(21*time.Minute + 8*time.Second) // not at the moment of a resync
		const line = "cannot register a as app: Consul refuses it"
		if n := w.logged(line); n < 4 || n > 5 {
			t.Errorf("said %d times in 21 minutes:\n%s", n, w.log.String())
		}
		if w.logged("registrations are in step") > 0 {
			t.Errorf("said that all is in step:\n%s", w.log.String())
		}
		report, err := r.Report(t.Context())
		if err != nil || !strings.HasPrefix(lines(report)[0], "a [] not registered: Consul refuses it: ") {
			t.Errorf("%q, %v", lines(report), err)
		}
		w.do(func() { delete(w.Fail, "register vm:a:80") })
		time.Sleep(2 * time.Minute)
		if w.logged("registrations are in step") != 1 || w.logged(`Consul no longer refuses app of a" for=2\dm.* instance=vm:a:80`) != 1 {
			t.Errorf("not said that it is over, and that all is in step:\n%s", w.log.String())
		}
	})
}

// All is in step when nothing wanted is missing: instances with time left are awaited, and late ones count as critical.
func TestInStep(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration // when its port begins to accept; 0 = never
		said  time.Duration // when all is in step
	}{
		{"ready in time", 10 * time.Second, 10 * time.Second},
		{"late", 0, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster()
				w.listen("10.0.0.1:80")
				w.create("a", "10.0.0.1")
				w.create("b", "10.0.0.2")
				_, stop := w.run(t)
				defer stop()
				if tt.after > 0 {
					time.AfterFunc(tt.after, func() { w.listen("10.0.0.2:80") })
				}
				time.Sleep(tt.said - 100*time.Millisecond)
				synctest.Wait()
				if w.logged("registrations are in step") > 0 {
					t.Errorf("said too early:\n%s", w.log.String())
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if w.logged(`all registrations are in step with Docker and Consul" instances=2 containers=2`) != 1 {
					t.Errorf("not said:\n%s", w.log.String())
				}
			})
		})
	}
}
