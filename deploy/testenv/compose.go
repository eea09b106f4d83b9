//go:build e2e

package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Compose is a compose project of one test.
type Compose struct {
	testing.TB
	Project string

	command []string
	env     []string
}

// ComposeOptions configure a Compose. All are optional.
type ComposeOptions struct {
	Command []string // command instead of docker compose
	Files   []string // instead of compose.yml in the test's directory
	Env     []string // in addition to the environment of the test
	Down    []string // more arguments of compose down
	Show    []string // services whose logs are shown if the test fails
}

// composeCommand is the compose command of this machine.
var composeCommand = sync.OnceValue(func() []string {
	if exec.Command("docker", "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	return []string{"docker-compose"}
})

// V2 makes a project use compose v2, run as a plugin of the docker command, whichever compose this machine has.
func (o ComposeOptions) V2(t testing.TB) ComposeOptions {
	t.Helper()
	plugin := Image(t, "COMPOSE_V2")
	config := t.TempDir()
	plugins := filepath.Join(config, "cli-plugins")
	err := os.Mkdir(plugins, 0o755)
	if err == nil {
		err = os.Symlink(plugin, filepath.Join(plugins, "docker-compose"))
	}
	if err != nil {
		t.Fatal(err)
	}
	o.Command, o.Env = []string{"docker", "compose"}, append(o.Env, "DOCKER_CONFIG="+config)
	return o
}

// NewCompose returns a project without starting anything. COMPOSE_PROJECT_NAME and PROJECT hold its name. Everything
// started in it is removed at the end of the test.
func NewCompose(t testing.TB, o ComposeOptions) *Compose {
	t.Helper()
	c := &Compose{TB: t, Project: Name(t), command: o.Command}
	if c.command == nil {
		c.command = composeCommand()
	}
	for _, file := range o.Files {
		c.command = append(c.command[:len(c.command):len(c.command)], "-f", file)
	}
	c.env = append(append(os.Environ(), "COMPOSE_PROJECT_NAME="+c.Project, "PROJECT="+c.Project, "BIND_ADDRESS=127.0.0.1"), o.Env...)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.Try(append([]string{"logs", "--no-color", "--tail", "100"}, o.Show...)...)
			t.Logf("logs of %s:\n%s", c.Project, out)
		}
		down := append([]string{"down", "--volumes", "--remove-orphans", "--timeout", "1"}, o.Down...)
		if _, err := c.Try(down...); err != nil && !stuck(err) {
			t.Errorf("remove %s: %v", c.Project, err)
		}
	})
	return c
}

// In is the same project for a subtest, which receives the failures.
func (c *Compose) In(t testing.TB) *Compose {
	part := *c
	part.TB = t
	return &part
}

// Env returns the environment in which compose runs.
func (c *Compose) Env() []string { return slices.Clone(c.env) }

// Command returns a compose command without running it.
func (c *Compose) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.command[0], append(c.command[1:len(c.command):len(c.command)], args...)...)
	cmd.Env = c.env
	return cmd
}

// Try runs a compose command and returns both of its outputs.
func (c *Compose) Try(args ...string) (string, error) {
	out, err := c.Command(args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("compose %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Do runs a compose command that must succeed; otherwise the test ends.
func (c *Compose) Do(args ...string) string {
	c.Helper()
	out, err := c.Try(args...)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// Docker runs a docker command that must succeed; otherwise the test ends.
func (c *Compose) Docker(args ...string) string {
	c.Helper()
	return MustDocker(c, args...)
}

// Run starts a container outside compose, on the project's network.
func (c *Compose) Run(args ...string) string {
	c.Helper()
	return Run(c, append([]string{"--network", c.Project + "_default"}, args...)...)
}

// Scale sets the number of a service's containers, and returns when compose is done.
func (c *Compose) Scale(service string, n int) {
	c.Helper()
	c.Do("up", "-d", "--no-recreate", "--scale", fmt.Sprintf("%s=%d", service, n), service)
}

// Containers returns the IDs of the running containers of a service.
func (c *Compose) Containers(service string) []string {
	c.Helper()
	return strings.Fields(c.Docker("ps", "--quiet", "--no-trunc", "--filter", "label=com.docker.compose.project="+c.Project,
		"--filter", "label=com.docker.compose.service="+service))
}

// Eventually is testenv.Eventually for the project's test.
func (c *Compose) Eventually(within time.Duration, what string, f func() error) time.Duration {
	c.Helper()
	return Eventually(c, within, what, f)
}

// Logs returns the output of a service's containers.
func (c *Compose) Logs(service string) string {
	c.Helper()
	return c.Do("logs", "--no-color", service)
}

// Logged waits until the logs of a service contain a text.
func (c *Compose) Logged(service, text string) {
	c.Helper()
	c.Eventually(20*time.Second, service+" logs "+strconv.Quote(text), func() error {
		if out := c.Logs(service); !strings.Contains(out, text) {
			return errors.New("the log ends with\n" + LastLines(out, 20))
		}
		return nil
	})
}

// LastLines returns the last n lines of a text.
func LastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
