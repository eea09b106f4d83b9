//go:build e2e

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"berth/deploy/testenv"
)

// The room in a real Redis, which also fails and comes back.
func TestE2EChatRoom(t *testing.T) {
	logging.Disable() // like main
	name := testenv.Name(t) + "-redis"
	port := testenv.FreePort(t)
	testenv.MustDocker(t, "run", "--detach", "--name", name, "--label", "SERVICE_IGNORE=1", "--publish", "127.0.0.1:"+port+":6379",
		testenv.Image(t, "IMAGE_REDIS"), "redis-server", "--protected-mode", "no", "--appendonly", "yes")
	log := &testenv.Log{}
	open := func() *room {
		return newRoom(net.JoinHostPort("127.0.0.1", port), slog.New(slog.NewTextHandler(log, nil)))
	}
	r, other := open(), open()
	defer r.close()
	defer other.close()
	testenv.Eventually(t, 10*time.Second, "Redis answers", func() error { _, err := r.since(t.Context(), ""); return err })
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { r.follow(ctx) })
	defer following.Wait()
	defer stop()

	// One instance hears what another says, in order and only the newest messages.
	for i := range keep + 5 {
		if err := other.say(t.Context(), message{Name: "Ann", Text: fmt.Sprint(i), Host: "host-1"}); err != nil {
			t.Fatal(err)
		}
	}
	said := since(t, r, "")
	if len(said) != keep || said[0].Text != "5" || said[keep-1].Text != fmt.Sprint(keep+4) {
		t.Fatalf("%d messages: %v", len(said), said)
	}
	if m := said[0]; m.Name != "Ann" || m.Host != "host-1" || !isID(m.ID) {
		t.Errorf("message %+v", m)
	}
	last := said[keep-1].ID
	if said := since(t, r, last); len(said) != 0 {
		t.Errorf("after the last one there are %v", said)
	}
	if said := since(t, r, said[keep-3].ID); len(said) != 2 {
		t.Errorf("after the third last one there are %v, want 2", said)
	}

	hear := func(text string) {
		t.Helper()
		next := r.next()
		if err := other.say(t.Context(), message{Name: "Ben", Text: text}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-next:
		case <-time.After(10 * time.Second):
			t.Fatalf("%q is not heard of", text)
		}
		testenv.Eventually(t, 10*time.Second, "it is read", func() error {
			if said := since(t, r, last); len(said) != 1 || said[0].Text != text {
				return fmt.Errorf("%v", said)
			}
			return nil
		})
		last = since(t, r, "")[keep-1].ID
	}
	hear("one more")

	next := r.next()
	testenv.MustDocker(t, "stop", name)
	select {
	case <-next:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is told that Redis is away")
	}
	if _, err := r.since(t.Context(), ""); err == nil {
		t.Error("a Redis that is away has messages")
	}
	if err := other.say(t.Context(), message{Name: "Ben", Text: "lost"}); err == nil {
		t.Error("a Redis that is away takes a message")
	}
	testenv.MustDocker(t, "start", name)
	testenv.Eventually(t, 20*time.Second, "Redis is back", func() error { _, err := r.since(t.Context(), ""); return err })
	if said := since(t, r, ""); len(said) != keep || said[keep-1].ID != last {
		t.Errorf("after a restart there are %d messages, want the same %d", len(said), keep)
	}
	hear("after the restart")
	t.Log(log.String())
}

func since(t *testing.T, r *room, id string) []message {
	t.Helper()
	said, err := r.since(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return said
}
