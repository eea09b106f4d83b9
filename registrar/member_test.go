package registrar

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	fsouza "github.com/fsouza/go-dockerclient"
	"github.com/hashicorp/consul/api"

	"berth/registrar/docker"
	"berth/registrar/group/session/sessiontest"
	"berth/registrar/group/store"
)

// ring is a cluster whose containers take part in groups.
type ring struct {
	*cluster
	consul *sessiontest.Consul
	link   *sessiontest.Link
	kv     *api.KV

	numbered  *sync.Map              // flags of keys
	files     map[string]docker.File // by container and path
	refuses   map[string]error       // to write, by container
	restarts  []string
	restarted func(id string) error // called after the process was stopped; nil = it starts, and listens
}

func newRing(t *testing.T) *ring {
	r := &ring{cluster: newCluster(), consul: sessiontest.New(), numbered: &sync.Map{}, files: map[string]docker.File{}, refuses: map[string]error{}}
	t.Cleanup(r.consul.Close)
	r.link, _ = r.consul.Link()
	client, err := api.NewClient(&api.Config{Address: "consul", HttpClient: &http.Client{Transport: more{r.link, r.numbered}}})
	if err != nil {
		t.Fatal(err)
	}
	r.kv = client.KV()
	r.opts.Groups = &Groups{Consul: client, Archive: r, Restart: r.restartContainer}
	return r
}

// more answers for flags, which never change here once a key exists, and for the names of keys, which sessiontest does not.
type more struct {
	http.RoundTripper
	flags *sync.Map
}

func (m more) RoundTrip(req *http.Request) (*http.Response, error) {
	query := req.URL.Query()
	keys := query.Has("keys")
	if keys {
		query.Set("recurse", "")
		req = req.Clone(req.Context())
		req.URL.RawQuery = query.Encode()
	}
	resp, err := m.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK || req.Method != http.MethodGet || !strings.HasPrefix(req.URL.Path, "/v1/kv/") {
		return resp, err
	}
	var pairs []*api.KVPair
	if err := json.NewDecoder(resp.Body).Decode(&pairs); err != nil {
		return nil, err
	}
	names := []string{}
	for _, p := range pairs {
		if n, ok := m.flags.Load(p.Key); ok {
			p.Flags = n.(uint64)
		}
		names = append(names, p.Key)
	}
	var body any = pairs
	if keys {
		body = names
	}
	text, err := json.Marshal(body)
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, err
}

func (r *ring) UploadToContainer(id string, o fsouza.UploadToContainerOptions) error {
	if err := r.call(o.Context, "upload", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.refuses[id]; err != nil {
		return err
	}
	for archive := tar.NewReader(o.InputStream); ; {
		h, err := archive.Next()
		if err != nil {
			return nil
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		r.files[id+path.Join(o.Path, h.Name)] = docker.File{Name: h.Name, Text: text, Mode: h.Mode, Modified: h.ModTime}
	}
}

func (r *ring) DownloadFromContainer(id string, o fsouza.DownloadFromContainerOptions) error {
	if err := r.call(o.Context, "download", id); err != nil {
		return err
	}
	r.mu.Lock()
	f, ok := r.files[id+o.Path]
	r.mu.Unlock()
	if !ok {
		return &fsouza.Error{Status: http.StatusNotFound, Message: "Could not find the file " + o.Path + " in container " + id}
	}
	out := tar.NewWriter(o.OutputStream)
	return errors.Join(out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Size: int64(len(f.Text)), Mode: f.Mode, ModTime: f.Modified}),
		func() error { _, err := out.Write(f.Text); return err }(), out.Close())
}

// restartContainer acts like Docker: it stops the process, which takes a second, and starts another.
func (r *ring) restartContainer(ctx context.Context, id string) error {
	if err := r.call(ctx, "restart", id); err != nil {
		return err
	}
	text := r.text(id)
	r.do(func() { r.restarts = append(r.restarts, id+" "+text) })
	r.event("kill", id, "signal", "15")
	time.Sleep(time.Second)
	r.stops(id, 0)
	time.Sleep(time.Millisecond) // a process starts later than the previous one ends
	r.mu.Lock()
	restarted := r.restarted
	r.mu.Unlock()
	if restarted != nil {
		return restarted(id)
	}
	r.starts(id)
	return nil
}

// text returns the content of a container's configuration file.
func (r *ring) text(id string) string { return string(r.file(id).Text) }

func (r *ring) file(id string) docker.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files[id+"/etc/c"]
}

// made returns the restarts until now, each with the configuration at its time.
func (r *ring) made() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.restarts)
}

// stops ends a container's process.
func (r *ring) stops(id string, exit int) {
	r.change(id, func(c *fsouza.Container) {
		c.State.Running, c.State.Status, c.State.ExitCode = false, "exited", exit
	})
	r.event("die", id, "exitCode", fmt.Sprint(exit))
}

func (r *ring) starts(id string) {
	r.change(id, func(c *fsouza.Container) {
		c.State.Running, c.State.Status, c.State.StartedAt = true, "running", time.Now()
	})
	r.event("start", id)
}

// app starts a container that has its configuration in /etc/c.
func (r *ring) app(n int, env ...string) (id string) {
	id = fmt.Sprint("app", n)
	address := fmt.Sprintf("10.0.0.%d", n)
	r.listen(address + ":80")
	r.start(id, address, append([]string{"SERVICE_NAME=app", "SERVICE_CONFIG=/etc/c"}, env...)...)
	return id
}

func (r *ring) apply(t *testing.T, text string) {
	t.Helper()
	if _, err := r.kv.Put(&api.KVPair{Key: "berth/config/app", Value: []byte(text)}, nil); err != nil {
		t.Fatal(err)
	}
}

// report returns the report of an instance.
func (r *ring) report(id string) (out store.Report) {
	if pair := r.consul.Key(store.AppliedKey("app", "vm:"+id+":80")); pair != nil {
		if err := json.Unmarshal(pair.Value, &out); err != nil {
			panic(err)
		}
	}
	return out
}

// runs waits until a container reports that it runs a text.
func (r *ring) runs(t *testing.T, within time.Duration, id, text string) {
	t.Helper()
	r.expectThat(t, within, id+" runs "+text, func() bool {
		report := r.report(id)
		return report.State == store.Applied && report.Sum == store.Sum([]byte(text))
	})
	if got := r.text(id); got != text {
		t.Errorf("the file of %s has %q, want %q", id, got, text)
	}
}

// fails waits until a container reports that it does not run what is wanted.
func (r *ring) fails(t *testing.T, within time.Duration, id, reason string) {
	t.Helper()
	r.expectThat(t, within, fmt.Sprintf("%s fails: %s", id, reason), func() bool {
		return r.report(id).State == store.Failed
	})
	if got := r.report(id).Reason; !strings.Contains(got, reason) {
		t.Errorf("the reason is %q, want %q", got, reason)
	}
}

// noneGone fails the test if an instance was deregistered.
func (r *ring) noneGone(t *testing.T) {
	t.Helper()
	r.Do(func() {
		if slices.ContainsFunc(r.History, func(call string) bool { return strings.HasPrefix(call, "deregister") }) {
			t.Errorf("one was deregistered: %q", r.History)
		}
	})
}

// A change goes from one container to the next. Each is in maintenance mode from before its restart until it is ready, and
// stays registered.
func TestRollingContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		_, stop := r.run(t)
		defer stop()
		r.app(1)
		r.app(2)
		r.expect(t, 50*time.Millisecond, "vm:app1:80 vm:app2:80")
		r.apply(t, "one")
		r.expectThat(t, time.Second, "one is out", func() bool { return strings.Contains(r.Registered(), "!") })
		both := false
		for range 10000 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			both = both || strings.Count(r.Registered(), "!") > 1
		}
		if both {
			t.Error("both were out at a time")
		}
		r.runs(t, 0, "app1", "one")
		r.runs(t, 0, "app2", "one")
		r.expect(t, 0, "vm:app1:80 vm:app2:80")
		r.noneGone(t)
		if len(r.made()) != 2 || !strings.HasSuffix(r.made()[0], " one") || !strings.HasSuffix(r.made()[1], " one") {
			t.Errorf("restarts with %q", r.made())
		}
	})
}

// A failure at the first container stays there: the container runs what it had before, and the other one is left alone.
func TestContainerThatCannotTakeItUp(t *testing.T) {
	for _, tt := range []struct {
		name     string
		prepare  func(r *ring)
		reason   string
		restarts int
		within   time.Duration
		after    string // registered; "" = both are in service
	}{
		{
			name: "the archive is refused",
			prepare: func(r *ring) {
				r.refuses["app1"] = &fsouza.Error{Status: 404, Message: "Could not find the file /etc in container"}
			},
			reason: "the directory does not exist: create it in the image, or mount a volume there", within: 10 * time.Second,
		},
		{name: "the archive hangs", prepare: func(r *ring) { r.hang(true, "upload") }, reason: "deadline exceeded", within: 30 * time.Second},
		{name: "the restart hangs", prepare: func(r *ring) { r.hang(true, "restart") }, reason: "not finished after", within: 5 * time.Minute},
		{
			name: "the restart fails", prepare: func(r *ring) {
				r.restarted = func(id string) error {
					if strings.Contains(r.text(id), "bad") {
						return errors.New("OCI runtime create failed")
					}
					r.starts(id)
					return nil
				}
			},
			reason: "restart the container: OCI runtime create failed", restarts: 2, within: 20 * time.Second,
		},
		{
			name: "the new process ends", prepare: func(r *ring) {
				r.restarted = func(id string) error {
					r.starts(id)
					if strings.Contains(r.text(id), "bad") {
						r.stops(id, 3)
					}
					return nil
				}
			},
			reason: "the container ended with exit code 3", restarts: 2, within: 20 * time.Second,
		},
		{
			name: "the new process ends again and again", prepare: func(r *ring) {
				r.restarted = func(id string) error {
					bad := strings.Contains(r.text(id), "bad")
					r.do(func() { r.listening["10.0.0.1:80"] = !bad })
					r.starts(id)
					if strings.Contains(r.text(id), "bad") {
						go func() {
							for range 20 {
								time.Sleep(50 * time.Millisecond)
								if r.text(id) == "old" {
									return
								}
								r.stops(id, 3)
								r.starts(id)
							}
						}()
					}
					return nil
				}
			},
			reason: "the container ended", within: 90 * time.Second, restarts: -1,
		},
		{
			name: "it is not ready", prepare: func(r *ring) {
				r.restarted = func(id string) error {
					bad := strings.Contains(r.text(id), "bad")
					r.do(func() { r.listening["10.0.0.1:80"] = !bad })
					r.starts(id)
					return nil
				}
			},
			reason: "it is not ready: connection refused", restarts: 2, within: 90 * time.Second,
		},
		{
			name: "its check fails", prepare: func(r *ring) {
				r.restarted = func(id string) error {
					bad := strings.Contains(r.text(id), "bad")
					r.Do(func() {
						r.Checks["vm:app1:80:check-1"].Status = map[bool]string{true: "critical", false: "passing"}[bad]
					})
					r.starts(id)
					return nil
				}
			},
			reason: "is critical", restarts: 2, within: 90 * time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRing(t)
				_, stop := r.run(t)
				defer stop()
				env := "SERVICE_CHECK_HTTP=/health"
				r.do(func() { r.listening["http://10.0.0.1:80/health"] = true })
				if tt.name != "its check fails" {
					env = "SERVICE_X=y"
				}
				r.do(func() { r.files["app1/etc/c"] = docker.File{Name: "c", Text: []byte("old"), Mode: 0o600} })
				r.app(1, env)
				r.expect(t, 50*time.Millisecond, "vm:app1:80")
				r.apply(t, "old")
				r.runs(t, 5*time.Second, "app1", "old")
				synctest.Wait()
				tt.prepare(r)
				r.apply(t, "bad")
				defer func() {
					if t.Failed() {
						t.Log(r.log.String())
					}
				}()
				r.fails(t, tt.within, "app1", tt.reason)
				r.hang(false, "upload", "restart")
				r.expectThat(t, 2*time.Minute, "it is in service", func() bool { return r.Registered() == "vm:app1:80" })
				if got := r.file("app1"); string(got.Text) != "old" && tt.reason != "not finished after" {
					t.Errorf("the file has %q", got.Text)
				} else if got.Mode != 0o600 {
					t.Errorf("its mode is %o", got.Mode)
				}
				r.noneGone(t)
				if tt.restarts >= 0 && len(r.made()) != tt.restarts {
					t.Errorf("restarts with %q, want %d", r.made(), tt.restarts)
				}
				report := r.report("app1")
				if report.Sum != store.Sum([]byte("old")) {
					t.Errorf("it runs %+v", report)
				}
				// It can be changed again.
				r.do(func() { r.restarted = nil; delete(r.refuses, "app1") })
				r.listen("10.0.0.1:80")
				r.apply(t, "good")
				r.runs(t, time.Minute, "app1", "good")
			})
		})
	}
}

// Somebody stops or removes the container during a change: it is gone, and nothing starts it again.
func TestContainerThatIsStoppedWhileItChanges(t *testing.T) {
	for name, end := range map[string]func(r *ring){
		"stopped": func(r *ring) {
			r.event("kill", "app1", "signal", "15")
			r.stops("app1", 0)
		},
		"removed": func(r *ring) { r.die("app1"); r.event("destroy", "app1") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRing(t)
				_, stop := r.run(t)
				defer stop()
				r.app(1)
				r.expect(t, 50*time.Millisecond, "vm:app1:80")
				r.do(func() {
					r.restarted = func(id string) error {
						r.do(func() { delete(r.listening, "10.0.0.1:80") })
						r.starts(id)
						return nil
					}
				})
				r.apply(t, "one")
				r.expectThat(t, 10*time.Second, "it was restarted", func() bool { return len(r.made()) == 1 })
				time.Sleep(3 * time.Second)
				end(r)
				r.expect(t, time.Second, "")
				time.Sleep(2 * time.Minute)
				r.expect(t, 0, "")
				if len(r.made()) != 1 {
					t.Errorf("it was started again: %q", r.made())
				}
				if pair := r.consul.Key(store.AppliedKey("app", "vm:app1:80")); pair != nil {
					t.Errorf("its report is there: %s", pair.Value)
				}
			})
		})
	}
}

// A starting registrar finds out what a container has, and whether its process has read it.
func TestContainerFoundAtTheStart(t *testing.T) {
	for _, tt := range []struct {
		name     string
		text     string
		unread   bool
		restarts int
	}{
		{"it runs what is wanted", "one", false, 0},
		{"another text", "old", false, 1},
		{"it has not read what is wanted", "one", true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRing(t)
				r.apply(t, "one")
				r.listen("10.0.0.1:80")
				r.create("app1", "10.0.0.1", "SERVICE_NAME=app", "SERVICE_CONFIG=/etc/c")
				f := docker.File{Name: "c", Text: []byte(tt.text), Modified: time.Now().Add(-time.Minute)}
				if tt.unread {
					f.Modified = unread(time.Now())
				}
				r.files["app1/etc/c"] = f
				_, stop := r.run(t)
				defer stop()
				r.runs(t, 20*time.Second, "app1", "one")
				if len(r.made()) != tt.restarts {
					t.Errorf("restarts: %q, want %d", r.made(), tt.restarts)
				}
			})
		})
	}
}

// A new container has its file before its start, if there is time.
func TestContainerThatIsCreated(t *testing.T) {
	for name, inTime := range map[string]bool{"in time": true, "late": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRing(t)
				r.apply(t, "one")
				_, stop := r.run(t)
				defer stop()
				r.listen("10.0.0.1:80")
				c := r.create("app1", "10.0.0.1", "SERVICE_NAME=app")
				c.Config.Labels = map[string]string{"SERVICE_CONFIG": "/etc/c"}
				c.State = fsouza.State{Status: "created"}
				if !inTime {
					r.hang(true, "upload")
				}
				r.event("create", "app1", "SERVICE_CONFIG", "/etc/c")
				time.Sleep(100 * time.Millisecond)
				r.starts("app1")
				r.hang(false, "upload")
				r.runs(t, 20*time.Second, "app1", "one")
				if restarts := map[bool]int{true: 0, false: 1}[inTime]; len(r.made()) != restarts {
					t.Errorf("restarts: %q, want %d", r.made(), restarts)
				}
			})
		})
	}
}

// A container without labels of a group costs nothing in Consul.
func TestContainerWithoutAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		_, stop := r.run(t)
		defer stop()
		r.listen("10.0.0.1:80")
		r.start("app1", "10.0.0.1", "SERVICE_NAME=app", "SERVICE_GROUP=prod")
		r.expect(t, time.Minute, "vm:app1:80")
		time.Sleep(time.Minute)
		if n := r.link.Calls(""); n > 0 || r.called("download") > 0 {
			t.Errorf("%d calls to Consul, %d to Docker", n, r.called("download"))
		}
		if got := r.Services["vm:app1:80"].Service; got != "app-prod" {
			t.Errorf("its service is %s", got)
		}
	})
}

// A registrar that ends in the middle of a change leaves the container registered, and the next one finishes the change.
func TestRegistrarEndsWhileAContainerChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		_, stop := r.run(t)
		r.app(1)
		r.expect(t, 50*time.Millisecond, "vm:app1:80")
		r.apply(t, "one")
		r.expect(t, time.Second, "vm:app1:80!")
		time.Sleep(2500 * time.Millisecond) // it is being restarted
		stop()
		r.expect(t, 0, "vm:app1:80!")
		_, stop = r.run(t)
		defer stop()
		r.expect(t, time.Minute, "vm:app1:80")
		r.runs(t, time.Minute, "app1", "one")
	})
}

// A restart order restarts a container with its strategy, and no container that does not take part in changes.
func TestOrderToRestartContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		_, stop := r.run(t)
		defer stop()
		for n, env := range []string{"SERVICE_CONFIG_STRATEGY=none", "SERVICE_TAGS=x"} {
			r.listen(fmt.Sprintf("10.0.0.%d:80", n+1))
			r.start(fmt.Sprint("app", n+1), fmt.Sprintf("10.0.0.%d", n+1), "SERVICE_NAME=app", env)
		}
		r.expect(t, 50*time.Millisecond, "vm:app1:80 vm:app2:80")
		r.expectThat(t, time.Second, "a report", func() bool { return r.report("app1").State == store.Applied })
		order, err := json.Marshal(store.Order{By: "test", At: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		r.numbered.Store("berth/restart/app", uint64(1))
		if _, err := r.kv.Put(&api.KVPair{Key: "berth/restart/app", Value: order}, nil); err != nil {
			t.Fatal(err)
		}
		r.expectThat(t, 20*time.Second, "it was restarted", func() bool { return r.report("app1").Restart == 1 })
		time.Sleep(time.Minute)
		if want := []string{"app1 "}; !slices.Equal(r.made(), want) {
			t.Errorf("restarts %q, want %q", r.made(), want)
		}
		r.expect(t, 0, "vm:app1:80 vm:app2:80")
		r.noneGone(t)
	})
}

// The role of an instance in its group is a tag of its registration, which changes and never disappears.
func TestRoleIsATag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		reg, stop := r.run(t)
		defer stop()
		r.listen("10.0.0.1:80")
		r.start("app1", "10.0.0.1", "SERVICE_NAME=app", "SERVICE_TAGS=blue", "SERVICE_TOPOLOGY=leader")
		r.consul.Service("vm:app1:80", "passing")
		tags := func() string {
			var out string
			r.Do(func() {
				if s := r.Services["vm:app1:80"]; s != nil {
					out = strings.Join(s.Tags, " ")
				}
			})
			return out
		}
		r.expectThat(t, 10*time.Second, "it leads", func() bool { return tags() == "blue leader" })
		report, err := reg.Report(t.Context())
		if err != nil || report.Containers[0].Group != "topology leader, priority 0" {
			t.Errorf("the report has %+v (%v)", report.Containers, err)
		}
		r.event("kill", "app1", "signal", "15")
		r.expectThat(t, time.Second, "it has stepped down", func() bool {
			lock := r.consul.Key("service/app/leader")
			return lock == nil || lock.Session == ""
		})
		r.expect(t, 0, "vm:app1:80!")
		r.noneGone(t)
	})
}
