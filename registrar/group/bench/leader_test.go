//go:build e2e

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

const (
	members    = 3
	killRounds = 12
)

// led measures how long a group has no leader when the leader's command is killed, or its berth is told to end.
func led(b *testing.B, r *report) {
	l := startLab(b)
	r.add("\nthe leader ends → a follower leads, by its own word, %d instances, %d times. In ms, median / max", members, killRounds)
	for _, kind := range []struct {
		unit, what, restart string
		end                 func(*candidate) error
	}{
		{"killed", "SIGKILL to the leader's command, --restart no", "no", (*candidate).kill},
		{"restarted", "SIGKILL to the leader's command, --restart always", "always", (*candidate).kill},
		{"stopped", "SIGTERM to the leader's berth", "no", func(c *candidate) error { return c.Process.Signal(syscall.SIGTERM) }},
	} {
		e := &electorate{lab: l, service: "led-" + kind.unit, restart: kind.restart, leads: make(chan lead, 10)}
		for n := range members {
			e.join(n)
		}
		var took traffic.Times
		is := e.next(b)
		for range killRounds {
			e.standing(b)
			began := time.Now()
			if err := kind.end(e.members[is.n]); err != nil {
				b.Fatal(err)
			}
			was := is
			is = e.next(b)
			took = append(took, is.at.Sub(began))
			if kind.restart == "no" {
				<-e.members[was.n].ended
				e.join(was.n)
			}
		}
		r.times(b, kind.unit, kind.what, took)
		var all []*process
		for _, c := range e.members {
			all = append(all, c.process)
		}
		stopAll(all)
	}
}

// electorate is a group with a leader.
type electorate struct {
	*lab
	service, restart string
	members          [members]*candidate
	leads            chan lead
}

// lead is an instance's report that it leads.
type lead struct {
	n  int
	at time.Time
}

// candidate is an instance of the group.
type candidate struct {
	*process
	command atomic.Int64 // process number
}

func (e *electorate) id(n int) string { return e.service + "-" + strconv.Itoa(n) }

// join starts an instance.
func (e *electorate) join(n int) {
	e.Helper()
	c := &candidate{}
	says := func(line string) {
		at := time.Now()
		var said struct {
			Msg string
			PID int64
		}
		if json.Unmarshal([]byte(line), &said) != nil {
			return
		}
		switch said.Msg {
		case e.id(n) + " leads " + e.service:
			e.leads <- lead{n, at}
		case command[0] + " started":
			c.command.Store(said.PID)
		}
	}
	c.process = e.start(says, program(e, "BERTH"), append([]string{"service", "--name", e.service, "--id", e.id(n),
		"--port", strconv.Itoa(20000 + n), "--ready", "none", "--topology", "leader", "--restart", e.restart, "--"}, command...)...)
	e.members[n] = c
}

func (c *candidate) kill() error { return syscall.Kill(int(c.command.Load()), syscall.SIGKILL) }

// next waits for the next leader.
func (e *electorate) next(b *testing.B) lead {
	b.Helper()
	select {
	case l := <-e.leads:
		return l
	case <-time.After(time.Minute):
		b.Fatal("nobody leads after a minute")
		return lead{}
	}
}

// standing waits until all instances stand for election, and one has been leading for a while.
func (e *electorate) standing(b *testing.B) {
	b.Helper()
	testenv.Eventually(b, time.Minute, "all stand for election", func() error {
		for n := range members {
			pair, _, err := e.KV().Get("berth/leader/"+e.service+"/"+url.PathEscape(e.id(n)), nil)
			switch {
			case err != nil:
				return err
			case pair == nil || pair.Session == "":
				return fmt.Errorf("%s does not", e.id(n))
			}
		}
		if len(e.leads) > 0 {
			return errors.New("another one leads")
		}
		return nil
	})
	time.Sleep(time.Second) // the lock-delay after the last change is over
}
