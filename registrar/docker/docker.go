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

// Client is the part of *docker.Client that berth uses.
type Client interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	KillContainer(docker.KillContainerOptions) error
}

const callTimeout = 10 * time.Second // of one call

// List returns the IDs of the running containers, or with all the IDs of stopped containers, too.
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

// Inspected is the result of inspecting a container. The zero value stands for a container that was removed.
type Inspected struct {
	label.Container
	Running, Exited bool
}

// Inspect asks Docker about a container. See FromInspect for tags.
func Inspect(ctx context.Context, client Client, id string, tags *template.Template) (Inspected, error) {
	c, err := inspect(ctx, client, id)
	switch {
	case err != nil:
		return Inspected{}, fmt.Errorf("inspect container %.12s: %w", id, err)
	case c == nil:
		return Inspected{}, nil
	}
	return Inspected{FromInspect(c, tags), Running(c), c.State.Status == "exited"}, nil
}

// inspect returns what Docker says of a container, or nil if there is none with this ID.
func inspect(ctx context.Context, client Client, id string) (*docker.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: id})
	var none *docker.NoSuchContainer
	if errors.As(err, &none) {
		return nil, nil
	}
	return c, err
}

// Kill has Docker send a signal to a container.
func Kill(ctx context.Context, client Client, id string, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.KillContainer(docker.KillContainerOptions{Context: ctx, ID: id, Signal: docker.Signal(signal)})
}

// Follow calls event for each event of a container until ctx is done. It calls connected with nil when the stream is open,
// or with the reason why it is not. A connection that dies silently would go unnoticed, so Follow opens a new stream,
// which continues where the last one ended, at an interval.
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

// followOnce follows one stream. The error is nil if the stream was open until its time was over.
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
