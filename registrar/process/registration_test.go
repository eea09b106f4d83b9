package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
	"berth/deploy/testenv/agenttest"
	"berth/registrar/agent"
	"berth/registrar/label"
	"berth/templates/claim"
)

// registrationAt returns a registration at a fake agent for the berth with process ID pid. Call it in a synctest bubble, and
// remove it there.
func registrationAt(t *testing.T, fake *agenttest.Agent, pid int) *registration {
	t.Helper()
	opts := Options{
		Process:      label.Process{Host: "vm", Name: "www", ID: "www-1", Port: 20001, TTL: 15 * time.Second, Ready: "none"},
		ReadyTimeout: time.Minute, Consul: fake, Log: slog.New(slog.DiscardHandler),
	}
	in, err := opts.Instance()
	if err != nil {
		t.Fatal(err)
	}
	return newRegistration(opts, in, pid)
}

// catalogOf returns the catalog of the fake's node.
func catalogOf(fake *agenttest.Agent) *agent.Catalog {
	return &agent.Catalog{Client: fake, Self: func(context.Context) (agent.Node, error) { return agent.Node{Name: "node"}, nil }}
}

// registrationWithToken returns a registration that is a minute old, with a catalog and a changeable token.
func registrationWithToken(t *testing.T, fake *agenttest.Agent, token *string) *registration {
	t.Helper()
	r := registrationAt(t, fake, 1)
	r.catalog = catalogOf(fake)
	r.token = func() (s string) { fake.Do(func() { s = *token }); return s }
	r.register(nil)
	expect(t, fake, 0, "www-1")
	time.Sleep(time.Minute)
	return r
}

// expect lets time pass until this is registered, within a limit.
func expect(t *testing.T, fake *agenttest.Agent, within time.Duration, want string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for synctest.Wait(); fake.Registered() != want && time.Now().Before(deadline); synctest.Wait() {
		time.Sleep(time.Millisecond) // of the bubble's time
	}
	if got := fake.Registered(); got != want {
		t.Fatalf("after %v registered: %q, want %q", within, got, want)
	}
}

func TestRegistrationIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		r := registrationAt(t, fake, 1)
		r.register(nil)
		expect(t, fake, 0, "www-1")
		if c := fake.Check("www-1:check-1"); c.Output != "berth service runs as process 1" {
			t.Errorf("the TTL check was not passed at once: %+v", c)
		}
		fake.Do(func() { fake.Checks["www-1:check-1"].Status = api.HealthCritical })
		expect(t, fake, checkEvery, "www-1")
		fake.Do(fake.Forget) // an agent that has lost its state
		expect(t, fake, checkEvery, "www-1")
		fake.Do(func() { fake.Services["www-1"].Tags = []string{"edited"} })
		time.Sleep(checkEvery + time.Second)
		fake.Do(func() {
			if tags := fake.Services["www-1"].Tags; len(tags) > 0 {
				t.Errorf("what was edited is still there: %q", tags)
			}
		})
		r.remove()
		expect(t, fake, 0, "")
	})
}

func TestRegistrationWithoutConsul(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		fake.Err = errors.New("connection refused")
		r := registrationAt(t, fake, 1)
		r.register(nil)
		time.Sleep(time.Hour)
		if n := fake.Called("all"); n < 3600/10 || n > 3600*4 {
			t.Errorf("%d calls to Consul in an hour away, want one every few seconds", n)
		}
		fake.Do(func() { fake.Err = nil })
		expect(t, fake, 8*time.Second, "www-1")

		// If the agent is away at the end, the wait is short.
		fake.Do(func() { fake.Err = errors.New("connection refused") })
		before := time.Now()
		r.remove()
		if took := time.Since(before); took != agent.Timeout {
			t.Errorf("removed after %v, want %v", took, agent.Timeout)
		}
	})
}

// A hanging Consul delays neither the next step of the process nor the next registration.
func TestRegistrationWithHangingConsul(t *testing.T) {
	for _, call := range []string{"services", "checks", "enable", "update"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := agenttest.New()
				r := registrationAt(t, fake, 1)
				r.register(nil)
				expect(t, fake, 0, "www-1")
				fake.Do(func() { fake.Hang[call] = true })
				time.Sleep(checkEvery + time.Second) // during the next call
				before := time.Now()
				if !r.drain("told to stop") {
					t.Error("what is registered needs no draining")
				}
				if took := time.Since(before); took != 0 {
					t.Errorf("to take it out of service takes %v of the loop", took)
				}
				time.Sleep(time.Second)
				fake.Do(func() { clear(fake.Hang) })
				expect(t, fake, agent.Timeout, "www-1!")
				fake.Do(func() { fake.Hang["deregister"] = true })
				before = time.Now()
				r.remove()
				if took := time.Since(before); took != agent.Timeout {
					t.Errorf("removed after %v, want %v", took, agent.Timeout)
				}
			})
		})
	}
}

// A refused registration does not stop heartbeats, and stays registered.
func TestRegistrationIsRefused(t *testing.T) {
	for _, call := range []string{"register", "disable", "check deregister"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := agenttest.New()
				r := registrationAt(t, fake, 1)
				r.register(nil)
				expect(t, fake, 0, "www-1")
				fake.Do(func() {
					fake.Fail[call] = api.StatusError{Code: 403, Body: "Permission denied"}
					switch call {
					case "register":
						fake.Services["www-1"].Tags = []string{"edited"}
					case "disable":
						fake.Maintain("www-1", agent.Automatic+"of an earlier start")
					case "check deregister":
						fake.Checks["old"] = &api.AgentCheck{CheckID: "old", ServiceID: "www-1"}
					}
				})
				for range 10 {
					time.Sleep(time.Minute)
					fake.Do(func() {
						if fake.Services["www-1"] == nil {
							t.Error("it is registered no more")
						}
						fake.Checks["www-1:check-1"].Status = api.HealthCritical // as after the TTL
					})
					time.Sleep(10 * time.Second)
					if c := fake.Check("www-1:check-1"); c.Status != api.HealthPassing {
						t.Fatalf("its TTL check is %s", c.Status)
					}
				}
				fake.Do(func() { clear(fake.Fail) })
				expect(t, fake, 10*time.Second, "www-1")
				r.remove()
				expect(t, fake, 0, "")
			})
		})
	}
}

// Of two registrations with one ID, only one whose process is gone is replaced.
func TestRegistrationOfOthers(t *testing.T) {
	others := func(owner string) *api.AgentService {
		return &api.AgentService{ID: "www-1", Service: "www", Port: 1, Meta: map[string]string{label.MetaOwner: owner}}
	}
	t.Run("a process whose berth was killed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fake := agenttest.New()
			fake.Services["www-1"] = others("process:vm:7")
			fake.Maintain("www-1", agent.Automatic+"the process was told to stop by SIGTERM")
			r := registrationAt(t, fake, 1)
			r.register(nil)
			expect(t, fake, 0, "www-1")
			r.remove()
			expect(t, fake, 0, "")
		})
	})
	t.Run("not a process", func(t *testing.T) {
		for _, owner := range []string{"", "ENGINE"} {
			synctest.Test(t, func(t *testing.T) {
				fake := agenttest.New()
				fake.Services["www-1"] = others(owner)
				r := registrationAt(t, fake, 1)
				r.register(nil)
				time.Sleep(time.Minute)
				r.remove()
				expect(t, fake, 0, "www-1")
				if n := fake.Called("register") + fake.Called("deregister") + fake.Called("update"); n != 0 {
					t.Errorf("%d calls change the registration of %q", n, owner)
				}
			})
		}
	})
	t.Run("a process that came later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fake := agenttest.New()
			r := registrationAt(t, fake, 1)
			r.register(nil)
			expect(t, fake, 0, "www-1")
			later := registrationAt(t, fake, 2)
			later.register(nil)
			time.Sleep(time.Minute)
			r.remove()
			fake.Do(func() {
				if s := fake.Services["www-1"]; s == nil || s.Meta[label.MetaOwner] != "process:vm:2" || fake.Calls["register"] != 2 {
					t.Errorf("it is %+v after %d registrations, want that of the second after 2", s, fake.Calls["register"])
				}
			})
			later.remove()
			expect(t, fake, 0, "")
		})
	})
}

func TestRegistrationInMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		r := registrationAt(t, fake, 1)
		if r.drain("told to stop") {
			t.Error("what is not registered needs draining")
		}
		r.resume()
		r.register(nil)
		expect(t, fake, 0, "www-1")
		fake.Do(func() { fake.Maintain("www-1", "berth drain: by hand") })
		time.Sleep(time.Minute)
		expect(t, fake, 0, "www-1!") // it is left as it is
		fake.Do(func() { delete(fake.Checks, api.ServiceMaintPrefix+"www-1") })

		r.drain("told to stop")
		expect(t, fake, 0, "www-1!")
		fake.Do(fake.Forget)
		time.Sleep(time.Minute)
		expect(t, fake, 0, "") // it is not worth registering
		r.remove()
	})
}

func TestRegistrationNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		r := registrationAt(t, fake, 1)
		r.register(errors.New("connection refused"))
		expect(t, fake, 0, "www-1?")
		if c := fake.Check("www-1:ready"); c.Notes != "connection refused" {
			t.Errorf("Consul does not have the reason: %+v", c)
		}
		r.register(nil)
		expect(t, fake, 0, "www-1")
		r.remove()
		fake.Do(func() {
			if len(fake.Checks) > 0 {
				t.Errorf("checks are left: %v", fake.Checks)
			}
		})
	})
}

// What the catalog lost is put back, and a replaced token is given to the agent.
func TestRegistrationInTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		token := "a"
		r := registrationWithToken(t, fake, &token)
		if n, puts := fake.Called("register"), fake.Called("put"); n != 1 || puts != 0 {
			t.Errorf("registered %d times and put into the catalog %d times, want 1 and 0", n, puts)
		}
		for n := range 2 {
			fake.Do(func() { fake.Lost["www-1"] = true })
			time.Sleep(checkEvery + settles)
			if puts := fake.Called("put"); puts != n+1 {
				t.Errorf("put into the catalog %d times, want %d", puts, n+1)
			}
		}
		fake.Do(func() { token = "b" })
		time.Sleep(time.Minute)
		if n, puts := fake.Called("register"), fake.Called("put"); n != 2 || puts != 3 {
			t.Errorf("with another token registered %d times and put into the catalog %d times, want 2 and 3", n, puts)
		}
		r.remove()
		expect(t, fake, 0, "")
	})
}

// Data that another token left in the catalog is replaced once, as soon as the catalog accepts it; not during a drain.
func TestTokenReplacedWhileTheCatalogRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		token := "a"
		r := registrationWithToken(t, fake, &token)
		fake.Do(func() { token, fake.Fail["put"] = "b", errors.New("no leader") })
		time.Sleep(time.Minute)
		before := fake.Called("put")
		fake.Do(func() { delete(fake.Fail, "put") })
		time.Sleep(time.Minute + time.Second) // and no read of the agent is running
		if n := fake.Called("put") - before; n != 1 {
			t.Errorf("put into the catalog %d times after it took that again, want 1", n)
		}
		before = fake.Called("put")
		fake.Do(func() { token = "c" })
		r.drain("it is stopped")
		time.Sleep(time.Minute)
		if n := fake.Called("put") - before; n > 0 {
			t.Errorf("put into the catalog %d times while it drains", n)
		}
		r.remove()
	})
}

// Silent servers behind an agent that answers do not delay heartbeats.
func TestCatalogHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := agenttest.New()
		fake.Hang["catalog"] = true
		r := registrationAt(t, fake, 1)
		r.catalog = catalogOf(fake)
		r.register(nil)
		expect(t, fake, 0, "www-1")
		silent, before := 0, 0
		for range 120 {
			time.Sleep(time.Second)
			silent++
			if n := fake.Called("update"); n > before {
				silent, before = 0, n
			}
			if silent > 7 { // half of the TTL
				t.Errorf("no heartbeat for %d s", silent)
				break
			}
		}
		if fake.Called("catalog") == 0 {
			t.Error("the catalog was not asked")
		}
		r.remove()
	})
}

// A lasting failure of a registration is logged again, and does not fill the log if its text keeps changing.
func TestRegistrationFailsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, log := agenttest.New(), testenv.Log{}
		r := registrationAt(t, fake, 1)
		r.log = slog.New(slog.NewTextHandler(&log, nil))
		r.register(nil)
		expect(t, fake, 0, "www-1")
		for n := range 11 * 60 {
			fake.Do(func() { fake.Err = fmt.Errorf("read: port %d: connection reset", n) })
			time.Sleep(time.Second)
		}
		fake.Do(func() { fake.Err = nil })
		expect(t, fake, checkEvery, "www-1")
		time.Sleep(checkEvery)
		said := log.String()
		if n := strings.Count(said, "registered as wanted; its process runs on"); n < 5 || n > 10 || !strings.Contains(said, " for=10m") {
			t.Errorf("said %d times in eleven minutes:\n%s", n, said)
		}
		if n := strings.Count(said, `is registered as wanted again" for=10m5`); n != 1 {
			t.Errorf("said %d times that it is over:\n%s", n, said)
		}
		r.remove()
	})
}

// The time when a process became ready survives further registrations, until it is not ready or another process is.
func TestReadyAtOfAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testenv.Log
		u := serve(t, func(u *underTest, opts *Options) {
			u.unready = errRefused
			opts.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		readyAt := func() (value string) {
			synctest.Wait()
			u.fake.Do(func() {
				if s := u.fake.Services["www-1"]; s != nil {
					value = s.Meta[claim.MetaReadyAt]
				}
			})
			return value
		}
		time.Sleep(31 * time.Second)
		u.is("www-1?")
		if at := readyAt(); at != "" {
			t.Errorf("ready since %s, and it is not", at)
		}
		u.do(func() { u.unready = nil })
		time.Sleep(time.Second)
		u.is("www-1")
		first := readyAt()
		if at, told := claim.ReadyAt(map[string]string{claim.MetaReadyAt: first}); !told || time.Since(at) > time.Second {
			t.Errorf("ready since %q, and it is %v", first, time.Now())
		}
		u.fake.Do(u.fake.Forget)
		time.Sleep(time.Minute)
		u.is("www-1")
		if at := readyAt(); at != first {
			t.Errorf("registered again, it is ready since %q, before since %q", at, first)
		}
		u.works(u.Restart(t.Context()))
		time.Sleep(time.Second)
		if at := readyAt(); at <= first {
			t.Errorf("another process is ready since %q, the one before since %q", at, first)
		}
		if text := log.String(); strings.Count(text, `level=INFO msg="registered `) != 3 || strings.Count(text, "took=") != 2 {
			t.Errorf("want three registrations, two of which took a time:\n%s", text)
		}

		sent := time.Now()
		u.stop <- syscall.SIGTERM
		u.is("www-1!")
		if at, is := claim.StoppedAt(u.fake.Check(api.ServiceMaintPrefix + "www-1").Notes); !is || at.Sub(sent).Abs() > time.Second {
			t.Errorf("it was told to stop at %v, want %v", at, sent)
		}
		if reason := u.State().Reason; reason != "the process was told to stop by SIGTERM" {
			t.Errorf("the state has the reason %q", reason)
		}
		<-u.code
	})
}
