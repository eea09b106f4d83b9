// Package docker asks a Docker daemon about its containers, each call with its deadline, follows its events, and has it
// send signals.
package docker

import (
	"context"
	"errors"
	"fmt"
	"text/template"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
	"berth/registrar/retry"
)

// Client is the part of *docker.Client that is used.
type Client interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	KillContainer(docker.KillContainerOptions) error
}

const callTimeout = 10 * time.Second // of one call

// List returns the IDs of the containers that run, or with all also of those that have ended.
func List(ctx context.Context, client Client, all bool) (ids []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := client.ListContainers(docker.ListContainersOptions{Context: ctx, All: all})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// Inspected is what Docker says of a container. The zero value stands for one that is none that registers anything: it
// was removed, or waits for its restart.
type Inspected struct {
	label.Container
	Running, Exited bool
}

// Inspect asks Docker about a container. See FromInspect for tags.
func Inspect(ctx context.Context, client Client, id string, tags *template.Template) (in Inspected, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: id})
	var none *docker.NoSuchContainer
	switch {
	case errors.As(err, &none):
		return in, nil
	case err != nil:
		return in, fmt.Errorf("inspect container %.12s: %w", id, err)
	}
	return Inspected{FromInspect(c, tags), Running(c), c.State.Status == "exited"}, nil
}

// Kill has Docker send a signal to a container.
func Kill(ctx context.Context, client Client, id string, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.KillContainer(docker.KillContainerOptions{Context: ctx, ID: id, Signal: docker.Signal(signal)})
}

// Follow tells event what happens to containers until ctx is done. It tells connected when it hears what happens from now
// on, or why it does not. A stream that has died without a word is not noticed otherwise: so it is opened anew, where it
// left off, at an interval.
func Follow(ctx context.Context, stream Stream, every time.Duration, connected func(error), event func(Event)) {
	delays := retry.Delays()
	for ctx.Err() == nil {
		err := followOnce(ctx, stream, every, func() { delays.Reset(); connected(nil) }, event)
		if err == nil || ctx.Err() != nil {
			continue
		}
		connected(err)
		select {
		case <-ctx.Done():
		case <-time.After(delays.NextBackOff()):
		}
	}
}

// followOnce follows one stream. The error is nil when it was heard until its time was over.
func followOnce(ctx context.Context, stream Stream, every time.Duration, connected func(), event func(Event)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	timer := time.AfterFunc(callTimeout, stop) // a daemon that takes the connection and does not answer
	defer timer.Stop()
	heard := false
	err := stream(ctx,
		func() {
			heard = true
			timer.Reset(every)
			connected()
		},
		func(m Message) {
			if ev, relevant := m.event(); relevant {
				event(ev)
			}
		})
	switch {
	case ctx.Err() == nil:
		return err
	case heard:
		return nil
	}
	return fmt.Errorf("docker: no answer within %v", callTimeout)
}
