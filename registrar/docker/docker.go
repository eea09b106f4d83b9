// Package docker asks a Docker daemon about its containers, follows its events, and sends signals through it. Each call has
// a deadline.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
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

// NoticeVanished makes a client that reaches its daemon over the network detect within a quarter of a minute that the
// daemon's host has vanished. Without it, the event stream would wait forever for a message.
func NoticeVanished(client *docker.Client) {
	if t, ok := client.HTTPClient.Transport.(*http.Transport); ok && !strings.HasPrefix(client.Endpoint(), "unix:") {
		t.DialContext = (&net.Dialer{
			Timeout:         callTimeout,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3},
		}).DialContext
	}
}

const callTimeout = 10 * time.Second // for one call

// List returns the IDs of the running containers, or with all, also of the stopped ones.
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

// Inspected is the result of inspecting a container. The zero value is a removed container.
type Inspected struct {
	label.Container
	Running, Exited bool
	Unstarted       bool     // it was created but never started
	Tmpfs           []string // paths that Docker's archive API cannot reach
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
	return fromDocker(c, tags), nil
}

// InspectCreated inspects a container that may not have been started yet, and so has no addresses. It gets a placeholder
// address on each of its networks.
func InspectCreated(ctx context.Context, client Client, id string) (Inspected, error) {
	c, err := inspect(ctx, client, id)
	if err != nil || c == nil {
		return Inspected{}, err
	}
	if c.NetworkSettings != nil {
		networks := map[string]docker.ContainerNetwork{}
		for name, n := range c.NetworkSettings.Networks {
			n.IPAddress = cmp.Or(n.IPAddress, "192.0.2.1")
			networks[name] = n
		}
		c.NetworkSettings.Networks = networks
	}
	return fromDocker(c, nil), nil
}

func fromDocker(c *docker.Container, tags *template.Template) Inspected {
	in := Inspected{Container: FromInspect(c, tags), Running: Running(c), Exited: c.State.Status == "exited", Unstarted: c.State.Status == "created"}
	if c.HostConfig != nil {
		in.Tmpfs = slices.Collect(maps.Keys(c.HostConfig.Tmpfs))
		for _, m := range c.HostConfig.Mounts {
			if m.Type == "tmpfs" {
				in.Tmpfs = append(in.Tmpfs, m.Target)
			}
		}
	}
	return in
}

// inspect returns Docker's description of a container, or nil if the ID is unknown.
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

// settles is how long after its start a container gets its first notification. Docker reports it as running before its
// process exists: a SIGHUP in between ends runc's own process with exit code 2, and a process without a handler yet ignores
// the signal.
const settles = time.Second

// Settle returns when a container may get a signal meant to notify rather than end it: at once, unless it started within the
// last second. It also returns when ctx is done or Docker does not answer.
func Settle(ctx context.Context, client Client, id string) {
	c, err := inspect(ctx, client, id)
	if err != nil || c == nil || !Running(c) {
		return
	}
	age := time.Since(c.State.StartedAt)
	if age < 0 || age >= settles { // negative if Docker's clock differs
		return
	}
	retry.Pause(ctx, settles-age)
}

// Kill makes Docker send a signal to a container.
func Kill(ctx context.Context, client Client, id string, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.KillContainer(docker.KillContainerOptions{Context: ctx, ID: id, Signal: docker.Signal(signal)})
}

// Follow calls event for each event of a container until ctx is done. It calls connected with nil when the stream is open,
// or with the reason why it is not. Because a connection can die silently, Follow opens a new stream at an interval, which
// continues where the last one ended.
func Follow(ctx context.Context, stream Stream, every time.Duration, connected func(error), event func(Event)) {
	delays := retry.Delays()
	for ctx.Err() == nil {
		err := followOnce(ctx, stream, every, func() { delays.Reset(); connected(nil) }, event)
		if err == nil || ctx.Err() != nil {
			continue
		}
		connected(err)
		retry.Pause(ctx, delays.NextBackOff())
	}
}

// followOnce follows one stream. The error is nil if the stream stayed open until its time was over.
func followOnce(ctx context.Context, stream Stream, every time.Duration, connected func(), event func(Event)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	timer := time.AfterFunc(callTimeout, stop) // for a daemon that accepts the connection but does not answer
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
