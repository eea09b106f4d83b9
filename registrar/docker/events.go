package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// Message is one message of Docker's event stream, with the fields that berth needs.
type Message struct {
	Type   string // "container" or "network"
	Action string // "start", "die", "connect", ...
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64 `json:"timeNano"`
}

// Event is something that happened to a container.
type Event struct {
	ID     string
	Action Action
	Signal int       // of Killed
	Exit   int       // of Died, -1 = not known
	Files  bool      // of Created: a label asks for the group's configuration or files
	Old    string    // of Created: first digits of the ID of the container to replace by starting first; "" = none
	At     time.Time // on Docker's clock; zero = not known
}

// Action names a kind of Event.
type Action string

const (
	Started Action = "started" // it runs: inspect it
	Changed Action = "changed" // inspect it if it is known
	Killed  Action = "killed"  // it was sent a signal
	Died    Action = "died"    // do not inspect it
	Removed Action = "removed" // nothing is left of it
	Created Action = "created" // not started yet, and a label asks for work before the start
)

// event returns the Event of a message, and whether it is relevant. A dying container is not inspected: Docker would block
// for 100 ms and then say no more than the event.
func (m Message) event() (ev Event, relevant bool) {
	ev = Event{ID: m.Actor.ID, Exit: -1}
	if m.TimeNano > 0 {
		ev.At = time.Unix(0, m.TimeNano)
	}
	if m.Type == "network" {
		ev.ID = m.Actor.Attributes["container"]
	}
	switch what := m.Type + " " + m.Action; {
	case what == "container start":
		ev.Action = Started
	case what == "container create":
		ev.Files = label.AsksForFiles(m.Actor.Attributes)
		if label.AsksToStartFirst(m.Actor.Attributes) {
			ev.Old, _ = label.Replaces(m.Actor.Attributes["name"], m.Actor.Attributes)
		}
		if ev.Files || ev.Old != "" {
			ev.Action = Created
		}
	case what == "container kill":
		ev.Action = Killed
		ev.Signal, _ = strconv.Atoi(m.Actor.Attributes["signal"])
	case what == "container die":
		ev.Action = Died
		if code, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil {
			ev.Exit = code
		}
	case what == "container destroy":
		ev.Action = Removed
	case what == "container pause", what == "container unpause", what == "container rename",
		what == "network connect", what == "network disconnect", strings.HasPrefix(what, "container health_status"):
		ev.Action = Changed
	}
	return ev, ev.Action != "" && ev.ID != ""
}

// Stream follows Docker's events until ctx is done or the stream breaks, and returns the reason. It calls connected once
// events will arrive, and again when one was skipped. It then passes each event to message, in order. Neither may block for
// long, because a slow reader slows the Docker daemon down. A Stream called again after it returned continues where it was,
// as far as Docker remembers.
type Stream func(ctx context.Context, connected func(), message func(Message)) error

// maxMessage limits the size of a message, with all labels of its container. A longer message is skipped, and berth lists
// everything instead.
const maxMessage = 1 << 20

// filters excludes events that berth does not use. A container with many labels and a HEALTHCHECK then costs little,
// although each check run makes three events.
const filters = `{"type":["container","network"],"event":["create","start","kill","die","destroy","pause","unpause","rename","health_status","connect","disconnect"]}`

// imageFilters selects events that may give an image another name.
const imageFilters = `{"type":["image"],"event":["tag","pull","load","import"]}`

// Events is a Stream over the client's own HTTP client. (The client's event listener drops and reorders events under load
// and does not reconnect.)
func Events(client *docker.Client) Stream { return stream(client, filters) }

// ImageEvents is like Events, for images that may have received a name.
func ImageEvents(client *docker.Client) Stream { return stream(client, imageFilters) }

func stream(client *docker.Client, filters string) Stream {
	var since time.Time // time of the last message, on Docker's clock
	return func(ctx context.Context, connected func(), message func(Message)) error {
		path := "/events?filters=" + url.QueryEscape(filters)
		if !since.IsZero() {
			path += fmt.Sprintf("&since=%d.%09d", since.Unix(), since.Nanosecond())
		}
		resp, err := get(ctx, client, path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if now, err := http.ParseTime(resp.Header.Get("Date")); err == nil && since.IsZero() {
			since = now.Add(time.Second) // the header has no fraction; earlier events are covered by Docker's list
		}
		connected()
		lines := bufio.NewReaderSize(resp.Body, maxMessage)
		for {
			line, err := lines.ReadSlice('\n')
			long := errors.Is(err, bufio.ErrBufferFull)
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			if long {
				connected()
			}
			if len(line) > 0 && !long {
				var m Message
				if err := json.Unmarshal(line, &m); err != nil {
					return fmt.Errorf("read docker events: %w", err)
				}
				if m.TimeNano > 0 {
					since = time.Unix(0, m.TimeNano+1)
				}
				message(m)
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the daemon closed the stream")
			}
			if err != nil {
				return fmt.Errorf("read docker events: %w", err)
			}
		}
	}
}

func get(ctx context.Context, client *docker.Client, path string) (*http.Response, error) {
	return ask(ctx, client, http.MethodGet, path)
}

// ask sends a request to the client's daemon, through the client's own transport.
func ask(ctx context.Context, client *docker.Client, method, path string) (*http.Response, error) {
	scheme, host, _ := strings.Cut(client.Endpoint(), "://")
	switch {
	case scheme == "unix":
		scheme, host = "http", "docker" // the transport dials the socket for any host
	case client.TLSConfig != nil:
		scheme = "https"
	default:
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+strings.TrimRight(host, "/")+path, nil)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	resp, err := client.HTTPClient.Do(req)
	if err != nil {
		var long *url.Error
		if errors.As(err, &long) {
			err = long.Err // without the URL
		}
		return nil, fmt.Errorf("docker: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		defer resp.Body.Close()
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return nil, refusal(resp.StatusCode, why)
	}
	return resp, nil
}
