//go:build e2e

package nginx_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

const (
	holdRounds   = 40  // alternating
	holdRequests = 200 // of each kind in a round
	holdConns    = 4
)

// holdLines are the lines of the built-in template that let requests wait.
var holdLines = regexp.MustCompile(`(?m)^ *(access_by_lua_block|log_by_lua_block|set_by_lua_block) \{.*\n|^ *if \(\$berth_body\) \{\n.*\n *\}\n`)

// BenchmarkE2ENginxHold prints how much CPU time nginx takes for a request whose service has servers, with and without the lines
// that let requests wait.
func BenchmarkE2ENginxHold(b *testing.B) {
	servers := startOrigin(b)[:2]
	image := testenv.Image(b, "IMAGE_NGINX_LUA")
	with, without := startNginx(b, "with", image, true), startNginx(b, "without", image, true)
	text := without.text
	without.text = func(servers []string) proxyctl.Config {
		c := text(servers)
		c.Text = holdLines.ReplaceAllString(c.Text, "")
		return c
	}
	for _, c := range []*contender{with, without} {
		defer c.drive(b, servers).stop()
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range []struct {
		method string
		size   int
	}{{"GET", 0}, {"POST", 0}, {"POST", 1000}, {"PUT", 1000}} {
		var used [2]time.Duration
		for range holdRounds {
			for n, c := range []*contender{with, without} {
				before := processorTime(b, c.master)
				c.request(b, k.method, k.size)
				used[n] += processorTime(b, c.master) - before
			}
		}
		each := func(n int) float64 { return float64(used[n].Microseconds()) / (holdRounds * holdRequests) }
		fmt.Printf("%-4s %6d bytes: %5.1f µs a request, %5.1f without holds, ratio %.2f\n", k.method, k.size, each(0), each(1), each(0)/each(1))
	}
}

// request sends requests over kept connections.
func (c *contender) request(b *testing.B, method string, size int) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: holdConns}}
	defer client.CloseIdleConnections()
	body := make([]byte, size)
	var wg sync.WaitGroup
	for range holdConns {
		wg.Go(func() {
			for range holdRequests / holdConns {
				req, err := http.NewRequest(method, "http://"+c.web+"/", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.Error(resp.Status)
					return
				}
			}
		})
	}
	wg.Wait()
}

// processorTime returns nginx's CPU time so far, including that of ended workers.
func processorTime(b *testing.B, master int) (used time.Duration) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", master, master))
	if err != nil {
		b.Fatal(err)
	}
	for _, pid := range append(strings.Fields(string(children)), strconv.Itoa(master)) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue // it has ended, and counts for the master
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))
		last := 14
		if pid == strconv.Itoa(master) {
			last = 16
		}
		for _, ticks := range fields[12:last] {
			n, _ := strconv.Atoi(ticks)
			used += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return used
}
