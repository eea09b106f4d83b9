package docker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// followed runs Follow with a stream for a time, and returns its reports.
func followed(t *testing.T, took time.Duration, stream Stream) (told []string) {
	ctx, cancel := context.WithTimeout(t.Context(), took)
	defer cancel()
	Follow(ctx, stream, time.Minute,
		func(err error) {
			if err == nil {
				err = errors.New("connected")
			}
			told = append(told, err.Error())
		},
		func(ev Event) { told = append(told, string(ev.Action)+" "+ev.ID) })
	return told
}

func TestFollow(t *testing.T) {
	start := Message{Type: "container", Action: "start"}
	start.Actor.ID = "c"
	hangs := func(ctx context.Context, _ func(), _ func(Message)) error { <-ctx.Done(); return ctx.Err() }
	for _, tt := range []struct {
		name   string
		stream Stream
		took   time.Duration
		want   []string
	}{
		{
			name: "events, and what is none that matters",
			stream: func(ctx context.Context, connected func(), message func(Message)) error {
				connected()
				message(start)
				message(Message{Type: "image", Action: "pull"})
				return hangs(ctx, connected, message)
			},
			took: 59 * time.Second,
			want: []string{"connected", "started c"},
		},
		{
			name: "a stream that falls silent is opened anew",
			stream: func(ctx context.Context, connected func(), message func(Message)) error {
				connected()
				return hangs(ctx, connected, message)
			},
			took: 3*time.Minute + 30*time.Second,
			want: []string{"connected", "connected", "connected", "connected"},
		},
		{
			name:   "a daemon that takes the connection and does not answer",
			stream: hangs,
			took:   callTimeout + 100*time.Millisecond/3,
			want:   []string{"docker: no answer within 10s"},
		},
		{
			name: "a stream that breaks",
			stream: func(_ context.Context, connected func(), _ func(Message)) error {
				connected()
				return errors.New("the daemon closed the stream")
			},
			took: 100 * time.Millisecond / 3,
			want: []string{"connected", "the daemon closed the stream"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if d := cmp.Diff(tt.want, followed(t, tt.took, tt.stream)); d != "" {
					t.Errorf("told (-want +got):\n%s", d)
				}
			})
		})
	}
}

// A daemon that is away is asked again with pauses.
func TestFollowIsNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := followed(t, time.Hour, func(context.Context, func(), func(Message)) error { return errors.New("connection refused") })
		if n := len(told); n < 3600/10 || n > 3600/2 {
			t.Errorf("tried %d times in an hour", n)
		}
	})
}
