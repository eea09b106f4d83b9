//go:build e2e

package haproxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
	"berth/proxyctl"
)

// bare is a configuration as the built-in template renders it for HAProxy 3.4: a map leads the path /NAME to each backend, and no
// other path leads anywhere.
func (r *harness) bare(backends ...group) string {
	settings, _, _ := strings.Cut(r.text("", backends...), "\nfrontend ")
	routes := r.file() + ".routes.map"
	var text, entries strings.Builder
	fmt.Fprintf(&text, `%s
frontend http.in from http.defaults
    bind %s
    http-request set-var(txn.sent) int(0)
    http-request disable-l7-retry unless { method GET HEAD OPTIONS TRACE PUT DELETE }
    http-request set-var(txn.backend) path,map_beg(%s)
    use_backend %%[var(txn.backend)] if { var(txn.backend) -m found }
    default_backend no.route
backend no.route from http.defaults
    http-request return status 404
defaults http.roundrobin from http.defaults
    balance roundrobin
    tcp-response content set-var(txn.sent) var(txn.sent),add(1)
    tcp-response content reject if { var(txn.sent) -m int ge 3 }
`, settings, r.web, routes)
	for _, g := range backends {
		fmt.Fprintf(&text, "backend %s from http.roundrobin\n", g.name)
		for _, s := range g.servers {
			fmt.Fprintf(&text, "    server %s %s weight %d\n", s.name, s.address, s.weight)
		}
		fmt.Fprintf(&entries, "/%s/ %s\n", g.name, g.name)
	}
	return WithMaps(text.String(), map[string]string{routes: entries.String()})
}

// first asks until the path is answered, and returns when that was.
func (r *harness) first(client *http.Client, path string) time.Time {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		resp, err := client.Get("http://" + r.web + path)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Now()
			}
		}
		time.Sleep(time.Millisecond)
	}
	r.Fatalf("no answer at %s", path)
	return time.Time{}
}

// named returns HAProxy's backends, without those of the template itself.
func (r *harness) named() []string {
	r.Helper()
	reply, err := r.runtime("show backend")
	if err != nil {
		r.Fatal(err)
	}
	names := slices.DeleteFunc(strings.Fields(reply), func(name string) bool { return name == "#" || name == "name" || name == "no.route" })
	slices.Sort(names)
	return names
}

// From HAProxy 3.4 on, a new or removed service takes no reload and costs no request, whatever is restarted meanwhile.
func TestE2EBackendsComeAndGo(t *testing.T) {
	t.Parallel()
	for _, image := range images(t, "IMAGES_HAPROXY") {
		t.Run(image, func(t *testing.T) {
			r := startHarness(t, image)
			want := proxyctl.Reload
			if proxyctl.AtLeast(leadingVersion.FindString(r.version), dynamicBackends) {
				want = proxyctl.Runtime
			}
			apps := r.startApps(3)
			service := func(n int) group {
				name := fmt.Sprint("svc", n)
				return group{name, []listed{{name + "-1", apps[n%3], 1}, {name + "-2", apps[(n+1)%3], 2}}}
			}
			all := []group{service(0)}
			d := r.drive(r.options())
			d.apply(r.bare(all...))
			has := func(during string, action proxyctl.Action) {
				t.Helper()
				res, err := d.proxy.Apply(t.Context(), onlyText(r.bare(all...)), true)
				if err != nil || res.Action != action {
					t.Fatalf("%s: %s (%s), %v, want %s", during, res.Action, res.Reason, err, action)
				}
				d.settle(all...)
				for _, g := range all {
					r.first(http.DefaultClient, "/"+g.name+"/")
				}
				var names []string
				for _, g := range all {
					names = append(names, g.name)
				}
				testenv.Eventually(t, 10*time.Second, "HAProxy has the backends that are wanted, and no others", func() error {
					d.tended()
					if got := r.named(); !slices.Equal(got, slices.Sorted(slices.Values(names))) {
						return fmt.Errorf("it has %v, want %v", got, names)
					}
					return nil
				})
			}
			load := traffic.Start(t, r.web, "/svc0/")
			for n := range 4 {
				all = append(all, service(n+1))
				has("a new service", want)
			}
			all = slices.Delete(all, 1, 3)
			has("two services that are gone", want)
			all = slices.Insert(all, 1, service(1))
			has("one of them is back", want)
			if requests := load.End(); requests.Failed() > 0 {
				t.Errorf("%d of %d requests failed: %s", requests.Failed(), len(requests), requests.Failures())
			}

			d.close()
			d = r.drive(r.options())
			has("another berth", proxyctl.None)
			d.proxy.Close()
			testenv.MustDocker(t, "restart", "--time", "0", r.id)
			testenv.Eventually(t, 20*time.Second, "HAProxy's master answers", func() error {
				_, err := ask(r.dir+"/master.sock", "show proc")
				return err
			})
			for _, g := range all {
				r.first(http.DefaultClient, "/"+g.name+"/")
			}
			has("another HAProxy", proxyctl.None)

			if want == proxyctl.Reload {
				return
			}
			// It comes back while it still has a request.
			l, err := net.Listen("tcp", appIP+":0")
			if err != nil {
				t.Fatal(err)
			}
			late := app(l.Addr().String(), time.Second)
			go late.Serve(l)
			t.Cleanup(func() { late.Close() })
			const name = "svc8"
			slow := make(chan int, 1)
			all = append(all, group{name, []listed{{name + "-1", l.Addr().String(), 1}}})
			has("a slow service", proxyctl.Runtime)
			go func() {
				resp, err := http.Get("http://" + r.web + "/" + name + "/")
				if err != nil {
					slow <- 0
					return
				}
				resp.Body.Close()
				slow <- resp.StatusCode
			}()
			testenv.Eventually(t, 5*time.Second, "the request is on its way", func() error {
				if reply, err := r.runtime("show sess"); err != nil || !strings.Contains(reply, "be="+name) {
					return fmt.Errorf("%q, %v", reply, err)
				}
				return nil
			})
			was := all
			all = all[:len(all)-1]
			d.apply(r.bare(all...))
			d.tended()
			if got := r.named(); !slices.Contains(got, name) {
				t.Errorf("a backend is deleted that has a request: HAProxy has %v", got)
			}
			all = was
			has("it is back", proxyctl.Runtime)
			if got := <-slow; got != http.StatusOK {
				t.Errorf("its request had %d", got)
			}

			// The name is taken.
			if reply, err := r.runtime("add backend svc7 from http.defaults"); err != nil || !strings.Contains(reply, "registered") {
				t.Fatalf("%q, %v", reply, err)
			}
			all = append(all, service(7))
			has("a name that is taken", proxyctl.Reload)
			all = all[:len(all)-1]
			has("it is gone", proxyctl.Runtime)
		})
	}
}
