package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// Start returns a function that starts a container. Starting a running one is no error. A *Refusal means that the container
// was not started; after any other error it may have been.
func Start(client *docker.Client) func(ctx context.Context, id string) error {
	return func(ctx context.Context, id string) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		resp, err := ask(ctx, client, http.MethodPost, "/containers/"+id+"/start")
		var refused *Refusal
		if errors.As(err, &refused) && refused.Status == http.StatusNotModified {
			return nil
		}
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// Refusal is Docker's answer to a call that it refuses.
type Refusal struct {
	Status int
	Why    string // Docker's reason
}

func refusal(status int, body []byte) *Refusal {
	var said struct{ Message string }
	_ = json.Unmarshal(body, &said) // a body that is not JSON is used as it is
	return &Refusal{status, cmp.Or(said.Message, strings.TrimSpace(string(body)))}
}

// Error returns the status and Docker's reason.
func (r *Refusal) Error() string {
	return fmt.Sprintf("docker: %d %s: %s", r.Status, http.StatusText(r.Status), r.Why)
}

// Replacements returns the containers that ask to start before the ones they replace and that compose has not renamed yet,
// with the first digits of the old containers' IDs.
func Replacements(ctx context.Context, client Client) (olds map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := client.ListContainers(docker.ListContainersOptions{Context: ctx, All: true, Filters: map[string][]string{
		"label": {label.ReplaceLabel}, "status": {"created", "running"},
	}})
	if err != nil {
		return nil, fmt.Errorf("list replacements: %w", err)
	}
	olds = map[string]string{}
	for _, c := range list {
		for _, name := range c.Names {
			if old, _ := label.Replaces(strings.TrimPrefix(name, "/"), c.Labels); old != "" && label.AsksToStartFirst(c.Labels) {
				olds[c.ID] = old
			}
		}
	}
	return olds, nil
}
