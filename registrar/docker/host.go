package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// Host returns a function that describes the Docker host, based on the configuration. The default networks are those of
// berth's own container, which is attached to the networks that it shares with the load balancer.
func Host(client *docker.Client, configured label.Host) func(ctx context.Context) (label.Host, error) {
	return func(ctx context.Context) (h label.Host, err error) {
		h = configured
		if h.EngineID, h.Name, err = engine(ctx, client); err != nil {
			return h, err
		}
		if len(h.Networks) == 0 {
			h.Networks, err = ownNetworks(ctx, client)
		}
		return h, err
	}
}

// engine asks the Docker daemon for its ID and host name. (The client's own call takes no context.)
func engine(ctx context.Context, client *docker.Client) (id, name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := get(ctx, client, "/info")
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	var info struct{ ID, Name string }
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		return "", "", fmt.Errorf("read docker info: %w", err)
	}
	if info.ID == "" {
		return "", "", errors.New("no engine ID from Docker, which berth needs to tell registrations apart")
	}
	return info.ID, info.Name, nil
}

func ownNetworks(ctx context.Context, client *docker.Client) ([]string, error) {
	id := ownContainer()
	if id == "" {
		return nil, nil
	}
	c, err := inspect(ctx, client, id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("inspect berth's own container: %w", err)
	case c == nil:
		return nil, nil // berth runs in a container of another engine than the one that it watches
	}
	var names []string
	for name := range c.NetworkSettings.Networks {
		if name != "host" && name != "none" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Docker mounts these files into every container; their source contains the container's ID.
var ownMount = regexp.MustCompile(`/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) `)

func ownContainer() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	if m := ownMount.FindSubmatch(mounts); m != nil {
		return string(m[1])
	}
	return ""
}
