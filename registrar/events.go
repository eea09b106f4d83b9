package registrar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	docker "github.com/fsouza/go-dockerclient"
)

// Event is one message of Docker's event stream, as far as it matters here.
type Event struct {
	Type   string // "container" or "network"
	Action string // "start", "die", "connect", ...
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
}

// container says what happened to which container, if it is something that matters here. A dying container is not to be
// inspected: Docker would block for 100 ms and then say what the event says.
func (e Event) container() (ev containerEvent, relevant bool) {
	ev = containerEvent{id: e.Actor.ID, exit: -1}
	if e.Type == "network" {
		ev.id = e.Actor.Attributes["container"]
	}
	switch what := e.Type + " " + e.Action; {
	case what == "container start":
		ev.action = arrived
	case what == "container kill":
		ev.action = killed
		ev.signal, _ = strconv.Atoi(e.Actor.Attributes["signal"])
	case what == "container die":
		ev.action = gone
		if code, err := strconv.Atoi(e.Actor.Attributes["exitCode"]); err == nil {
			ev.exit = code
		}
	case what == "container destroy":
		ev.action = removed
	case what == "container pause", what == "container unpause", what == "container rename",
		what == "network connect", what == "network disconnect", strings.HasPrefix(what, "container health_status"):
		ev.action = changed
	}
	return ev, ev.action != "" && ev.id != ""
}

// Stream follows Docker's events until ctx is done or the stream breaks, and returns why. connected is called once
// events from now on will arrive; each is then given to event, in order. Neither may block for long: a reader that
// falls behind slows the Docker daemon down.
type Stream func(ctx context.Context, connected func(), event func(Event)) error

// DockerEvents is a Stream over the client's own HTTP client. (The client's event listener drops and reorders events
// under load and does not reconnect.)
func DockerEvents(client *docker.Client) Stream {
	return func(ctx context.Context, connected func(), event func(Event)) error {
		body, err := get(ctx, client, "/events?filters="+url.QueryEscape(`{"type":["container","network"]}`))
		if err != nil {
			return err
		}
		defer body.Close()
		connected()
		dec := json.NewDecoder(body)
		for {
			var e Event
			if err := dec.Decode(&e); err != nil {
				if errors.Is(err, io.EOF) {
					err = errors.New("the daemon closed the stream")
				}
				return fmt.Errorf("read docker events: %w", err)
			}
			event(e)
		}
	}
}

// Engine asks the Docker daemon for its ID and for the name of its host. (The client's own call takes no context.)
func Engine(ctx context.Context, client *docker.Client) (id, name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := get(ctx, client, "/info")
	if err != nil {
		return "", "", err
	}
	defer body.Close()
	var info struct{ ID, Name string }
	if err := json.NewDecoder(body).Decode(&info); err != nil {
		return "", "", fmt.Errorf("read docker info: %w", err)
	}
	if info.ID == "" {
		return "", "", errors.New("docker tells no engine ID, by which registrations could be told apart")
	}
	return info.ID, info.Name, nil
}

// get asks the daemon that client talks to, through the client's own transport.
func get(ctx context.Context, client *docker.Client, path string) (io.ReadCloser, error) {
	scheme, host, _ := strings.Cut(client.Endpoint(), "://")
	switch {
	case scheme == "unix":
		scheme, host = "http", "docker" // the transport dials the socket whatever the host
	case client.TLSConfig != nil:
		scheme = "https"
	default:
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+strings.TrimRight(host, "/")+path, nil)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	resp, err := client.HTTPClient.Do(req)
	if err != nil {
		var long *url.Error
		if errors.As(err, &long) {
			err = long.Err // without the encoded address
		}
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: give berth's user the group of the socket (group_add in compose)", err)
		}
		return nil, fmt.Errorf("docker: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return nil, fmt.Errorf("docker: %s: %s", resp.Status, strings.TrimSpace(string(why)))
	}
	return resp.Body, nil
}
