package docker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	docker "github.com/fsouza/go-dockerclient"
)

// started is a Docker with one container.
type started struct {
	Client
	state docker.State
	err   error // of an inspect
}

func (s started) InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error) {
	return &docker.Container{State: s.state}, s.err
}

// A signal that comes before the container's process exists may end the container.
func TestSettle(t *testing.T) {
	for _, tt := range []struct {
		name        string
		age         time.Duration
		err         error
		limit, want time.Duration
	}{
		{"just started", 10 * time.Millisecond, nil, time.Minute, 990 * time.Millisecond},
		{"long running", time.Hour, nil, time.Minute, 0},
		{"started in the future", -time.Hour, nil, time.Minute, 0},
		{"Docker does not say", 10 * time.Millisecond, errors.New("no"), time.Minute, 0},
		{"no time for it", 10 * time.Millisecond, nil, 100 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
				defer cancel()
				start := time.Now()
				Settle(ctx, started{state: docker.State{Running: true, StartedAt: start.Add(-tt.age)}, err: tt.err}, "app")
				if got := time.Since(start); got != tt.want {
					t.Errorf("it took %v, want %v", got, tt.want)
				}
			})
		})
	}
}
