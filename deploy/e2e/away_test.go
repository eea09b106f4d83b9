//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/deploy/testenv"
)

const awayHost = "shop.example.com" // the service api has its /api

// askAway requests the route of the service api. It returns the host that answered, or the status.
func askAway(web string) string {
	req, err := http.NewRequest("GET", "http://"+web+"/api/x", nil)
	if err != nil {
		return err.Error()
	}
	req.Host = awayHost
	resp, err := testenv.Client.Do(req)
	if err != nil {
		return err.Error()
	}
	host, err := testenv.Host(resp)
	if err != nil {
		return strconv.Itoa(resp.StatusCode)
	}
	return host
}

// goesAndComes stops the only instance of the service api, whose route is narrower than the route of all other requests,
// and starts another. Meanwhile no other service answers. It calls answers when the first instance does.
func goesAndComes(t testing.TB, web string, run func() string, answers func()) {
	t.Helper()
	answersOf := func(id string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "the instance answers", func() error {
			if got := askAway(web); got != id[:12] {
				return fmt.Errorf("%s, want %.12s", got, id)
			}
			return nil
		})
	}
	first := run()
	answersOf(first)
	answers()

	// From here on it is requested continuously.
	var all []string
	var asking sync.WaitGroup
	ctx, over := context.WithCancel(t.Context()) // also ends with a failing test
	asking.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Millisecond): // the pace
				all = append(all, askAway(web))
			}
		}
	})
	testenv.MustDocker(t, "stop", first)
	gone := time.Now()
	testenv.Eventually(t, 10*time.Second, "the instance is gone", func() error {
		if got := askAway(web); got != "503" {
			return fmt.Errorf("%s", got)
		}
		if time.Since(gone) < 3*time.Second { // by then the proxy has applied the change
			return fmt.Errorf("it is early")
		}
		return nil
	})
	second := run()
	answersOf(second)
	over()
	asking.Wait()

	count := map[string]int{}
	for _, a := range all {
		count[a]++
	}
	t.Logf("answers: %v", count)
	for a, n := range count {
		if a != first[:12] && a != second[:12] && a != "503" {
			t.Errorf("%d × %s", n, a)
		}
	}
	if count["503"] == 0 {
		t.Error("no answer says that the service is away")
	}
}

// Requests do not wait, so each shows who answers.
var apiLabels = []string{"-e", "SERVICE_NAME=api", "-e", "SERVICE_ROUTE_HOST=" + awayHost, "-e", "SERVICE_ROUTE_PATH=/api", "-e", "SERVICE_ROUTE_HOLD=0"}

// The only instance of a service goes and comes back: its route is held, and HAProxy is not reloaded.
func TestE2EOnlyInstanceAway(t *testing.T) {
	s := startStack(t)
	workers := func() []string {
		return strings.Fields(s.Docker("top", s.Containers("haproxy")[0], "-o", "pid"))
	}
	var before []string
	goesAndComes(t, s.web, func() string {
		return s.Run(append(slices.Clone(apiLabels), testenv.Image(t, "IMAGE_APP"))...)
	}, func() { before = workers() })
	for _, pid := range workers() {
		if !slices.Contains(before, pid) {
			t.Errorf("HAProxy was reloaded: process %s is new, there were %v", pid, before)
		}
	}
}

// The same with nginx.
func TestE2ENginxOnlyInstanceAway(t *testing.T) {
	s := startNginx(t, testenv.Image(t, "IMAGE_NGINX"), superviseIt)
	goesAndComes(t, s.web, func() string {
		return testenv.Run(t, append(append([]string{"--network", s.name + "-net"}, apiLabels...), testenv.Image(t, "IMAGE_APP"))...)
	}, func() {
		// A worker from before the route answers without it until it has processed the reload.
		s.Eventually(10*time.Second, "the workers of before are gone", func() error {
			if n := strings.Count(s.Docker("top", s.proxy, "-eo", "pid,args"), "nginx: worker process"); n != runtime.NumCPU() {
				return fmt.Errorf("%d workers on %d processors", n, runtime.NumCPU())
			}
			return nil
		})
	})
}
