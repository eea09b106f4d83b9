package rollout

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"

	registrardocker "berth/registrar/docker"
	"berth/registrar/label"
)

// Docker is the part of *docker.Client that a rollout uses.
type Docker interface {
	ListContainers(docker.ListContainersOptions) ([]docker.APIContainers, error)
	InspectContainerWithOptions(docker.InspectContainerOptions) (*docker.Container, error)
	StopContainerWithContext(id string, timeout uint, ctx context.Context) error
	RemoveContainer(docker.RemoveContainerOptions) error
	Logs(docker.LogsOptions) error
	InspectImage(name string) (*docker.Image, error)
	Info() (*docker.DockerInfo, error)
}

const callTime = 10 * time.Second // limit of one call to Docker that does not wait for a container

// Container is a container of a service.
type Container struct {
	label.Container
	Number   int
	Hash     string // of its configuration, computed by compose
	ImageID  string
	Status   string // created, running, restarting, exited, ...
	Restarts int
	TTY      bool
}

// Running reports whether the container runs and is not between two starts.
func (c Container) Running() bool { return c.Status == "running" }

// Engine returns the ID of the Docker Engine.
func Engine(client Docker) (string, error) {
	info, err := bounded(client.Info)
	if err != nil {
		return "", fmt.Errorf("ask Docker for its ID: %w", err)
	}
	return info.ID, nil
}

// short is the container's name in messages.
func (c Container) short() string { return fmt.Sprintf("%s (%.12s)", c.Name, c.ID) }

// Find returns, for each project that has a service, the labels of one of its containers, by project name.
func Find(ctx context.Context, client Docker, service string) (map[string]map[string]string, error) {
	list, err := listed(ctx, client, labelService+"="+service)
	if err != nil {
		return nil, err
	}
	projects := map[string]map[string]string{}
	slices.SortFunc(list, func(a, b docker.APIContainers) int { return cmp.Compare(a.Created, b.Created) })
	for _, c := range list { // the newest one counts
		projects[c.Labels[labelProject]] = c.Labels
	}
	return projects, nil
}

// ProjectOf returns the project in a directory among those from Find, or "" if none or several match.
func ProjectOf(dir string, projects map[string]map[string]string) (project string) {
	for name, labels := range projects {
		if labels[labelDir] == dir {
			if project != "" {
				return ""
			}
			project = name
		}
	}
	return project
}

// composeName matches compose's names for projects and services. Labels may contain anything, and go to a terminal and to
// compose.
var composeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// listed lists containers by label in any state, except those of compose run.
func listed(ctx context.Context, client Docker, labels ...string) ([]docker.APIContainers, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list, err := client.ListContainers(docker.ListContainersOptions{Context: ctx, All: true, Filters: map[string][]string{"label": labels}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return slices.DeleteFunc(list, func(c docker.APIContainers) bool {
		return strings.EqualFold(c.Labels[labelOneOff], "true") || !composeName.MatchString(c.Labels[labelProject]) || !composeName.MatchString(c.Labels[labelService])
	}), nil
}

// Containers returns the containers of a service, sorted by their number.
func Containers(ctx context.Context, client Docker, project, service string) (out []Container, err error) {
	list, err := listed(ctx, client, labelProject+"="+project, labelService+"="+service)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		in, err := inspect(ctx, client, c.ID)
		if err != nil {
			return nil, err
		}
		if in != nil {
			out = append(out, *in)
		}
	}
	slices.SortFunc(out, func(a, b Container) int { return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// inspect returns a container, or nil if it does not exist.
func inspect(ctx context.Context, client Docker, id string) (*Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	in, err := client.InspectContainerWithOptions(docker.InspectContainerOptions{Context: ctx, ID: id})
	var none *docker.NoSuchContainer
	switch {
	case errors.As(err, &none):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspect container %.12s: %w", id, err)
	}
	c := &Container{Container: registrardocker.FromInspect(in, nil), ImageID: in.Image, Restarts: in.RestartCount, Status: in.State.Status}
	c.Number, _ = strconv.Atoi(c.Labels[labelNumber])
	c.Hash = c.Labels[labelHash]
	c.TTY = in.Config != nil && in.Config.Tty
	return c, nil
}

// ImageOf returns the ID of the image for a new container of a service, or "" if it is not here. If the service is built,
// its name comes from the containers' image.
func ImageOf(client Docker, s Service, containers []Container) (id string, err error) {
	name := s.Image
	if name == "" && len(containers) > 0 {
		name = containers[len(containers)-1].Image
	}
	if name == "" {
		return "", nil
	}
	return imageID(client, name)
}

// Services returns the names of the compose services that have containers here, sorted.
func Services(ctx context.Context, client Docker) (names []string) {
	list, err := listed(ctx, client, labelService)
	if err != nil {
		return nil
	}
	for _, c := range list {
		names = append(names, c.Labels[labelService])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// imageID returns the ID of the image with a name, or "" if it is not here.
func imageID(client Docker, name string) (string, error) {
	image, err := bounded(func() (*docker.Image, error) { return client.InspectImage(name) })
	switch {
	case errors.Is(err, docker.ErrNoSuchImage):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	return image.ID, nil
}

// bounded makes a call to Docker that has no context.
func bounded[T any](call func() (T, error)) (out T, err error) {
	type answer struct {
		out T
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		out, err := call()
		answered <- answer{out, err}
	}()
	select {
	case a := <-answered:
		return a.out, a.err
	case <-time.After(callTime):
		return out, fmt.Errorf("Docker has not answered within %s", callTime)
	}
}

// end stops a container in its own time and removes it. A missing container is no error.
func end(ctx context.Context, client Docker, c Container) error {
	var none *docker.NoSuchContainer
	var stopped *docker.ContainerNotRunning
	seconds := max(c.StopTimeout, 0) / time.Second
	err := client.StopContainerWithContext(c.ID, uint(seconds), ctx)
	if err != nil && !errors.As(err, &none) && !errors.As(err, &stopped) {
		return fmt.Errorf("stop %s: %w", c.short(), err)
	}
	err = client.RemoveContainer(docker.RemoveContainerOptions{Context: ctx, ID: c.ID, Force: true})
	if err != nil && !errors.As(err, &none) {
		return fmt.Errorf("remove %s: %w", c.short(), err)
	}
	return nil
}

// logLines is how many lines of a failed container's log are shown.
const logLines = 10

// lastLog returns the last lines of a container's log.
func lastLog(ctx context.Context, client Docker, c Container) []string {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var out bytes.Buffer
	err := client.Logs(docker.LogsOptions{Context: ctx, Container: c.ID, OutputStream: &out, ErrorStream: &out, Stdout: true, Stderr: true,
		Tail: strconv.Itoa(logLines), RawTerminal: c.TTY})
	if err != nil {
		return []string{"its log cannot be read: " + err.Error()}
	}
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(out.String(), "\uFFFD")) {
		if line = strings.Map(printable, strings.TrimSpace(line)); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// printable keeps foreign text from controlling a terminal.
func printable(r rune) rune {
	if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return '\uFFFD'
	}
	return r
}
