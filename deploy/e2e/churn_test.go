//go:build e2e

package e2e

import (
	"testing"
	"time"

	"berth/deploy/testenv/traffic"
)

// rounds is the number of repetitions of each kind of change.
const rounds = 10

// The hardest case for a load balancer: eight of ten addresses disappear at once, and nothing answers there.
func TestE2EScaleTenTimes(t *testing.T) {
	s := startStack(t)
	var ups, downs []traffic.Report
	for round := range rounds {
		l := startLoad(t, s)
		s.scale(10)
		apps := s.Containers("app")
		s.Eventually(20*time.Second, "all ten answer", func() error { return l.ExpectAnswers(l.Began, apps...) })
		up := l.Finish()

		l = startLoad(t, s)
		s.scale(2)
		s.Eventually(10*time.Second, "HAProxy has two servers", func() error { return s.expectServers(2) })
		down := l.Finish()
		t.Logf("round %d\n1 → 10: %v\n10 → 2: %v", round+1, up, down)
		ups, downs = append(ups, up), append(downs, down)

		s.scale(1)
		s.Eventually(10*time.Second, "HAProxy has one server", func() error { return s.expectServers(1) })
	}
	up, down := traffic.Join(ups...), traffic.Join(downs...)
	t.Logf("all %d rounds\n1 → 10: %v\n10 → 2: %v", rounds, up, down)
	up.ExpectNoneFailed(t, "1 → 10")
	down.ExpectNoneFailed(t, "10 → 2")
}

func TestE2EOneOfFour(t *testing.T) {
	s := startStack(t)
	s.scale(4)
	s.Eventually(20*time.Second, "HAProxy has four servers", func() error { return s.expectServers(4) })
	for _, how := range [][]string{{"stop"}, {"kill", "--signal", "KILL"}} {
		t.Run(how[0], func(t *testing.T) {
			s := s.in(t)
			s.takeOneOfFour(how...)
		})
	}
}

// takeOneOfFour repeatedly removes one of four applications and brings it back, each in turn.
func (s *stack) takeOneOfFour(how ...string) {
	apps := s.Containers("app")
	var all []traffic.Report
	for round := range rounds {
		id := apps[round%len(apps)]
		l := startLoad(s, s)
		s.Eventually(10*time.Second, "all four answer", func() error { return l.ExpectAnswers(l.Began, apps...) })
		s.Docker(append(how, id)...)
		s.Eventually(10*time.Second, "HAProxy has three servers", func() error { return s.expectServers(3) })
		back := time.Now()
		s.Docker("start", id)
		s.Eventually(20*time.Second, "it answers again", func() error { return l.ExpectAnswers(back, id) })
		r := l.Finish()
		s.Logf("round %d: %v", round+1, r)
		all = append(all, r)
	}
	r := traffic.Join(all...)
	s.Logf("all %d rounds: %v", rounds, r)
	r.ExpectNoneFailed(s, "docker "+how[0]+" of one of four")
}
