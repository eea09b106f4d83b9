//go:build e2e

package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// Prefix is the prefix of everything that tests create in Docker; the PID of their process follows.
const Prefix = "berth-e2e-"

var (
	names     atomic.Int64
	leftovers = sync.OnceValue(func() error { return Remove(Leftover) })
)

// Name returns a name prefix for a test's containers, networks and volumes: each is named by it, a dash and more. They are
// removed at the end of the test. The first call also removes leftovers of dead test processes, such as a crashed run.
func Name(t testing.TB) string {
	t.Helper()
	if err := leftovers(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%s%d-%d", Prefix, os.Getpid(), names.Add(1))
	t.Cleanup(func() {
		if err := Remove(func(other string) bool { return belongs(other, name) }); err != nil {
			t.Error(err)
		}
	})
	return name
}

// belongs reports whether a Docker object belongs to a test: docker-compose uses an underscore where docker compose uses a
// dash.
func belongs(thing, name string) bool {
	rest, ours := strings.CutPrefix(thing, name)
	return ours && rest != "" && strings.Contains("-_", rest[:1])
}

// Leftover reports whether a name belongs to a dead test process.
func Leftover(name string) bool {
	rest, ours := strings.CutPrefix(name, Prefix)
	number, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(number)
	return ours && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// Remove removes the containers, networks and volumes with such names.
func Remove(ours func(name string) bool) error {
	var errs []error
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"container", "ls", "--all", "--format", "{{.Names}}"}, []string{"container", "rm", "--force", "--volumes"}},
		{[]string{"network", "ls", "--format", "{{.Name}}"}, []string{"network", "rm"}},
		{[]string{"volume", "ls", "--format", "{{.Name}}"}, []string{"volume", "rm", "--force"}},
	} {
		out, err := Docker(append(kind.list, "--filter", "name="+Prefix)...)
		errs = append(errs, err)
		for _, name := range strings.Fields(out) {
			if !ours(name) {
				continue
			}
			// One by one: Docker 20.10 miscounts a network's endpoints when many disappear at once. It then keeps the empty
			// network until it is restarted. That is no reason to fail.
			if _, err := Docker(append(kind.remove, name)...); err != nil && !stuck(err) && !goneAlready(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func stuck(err error) bool { return strings.Contains(err.Error(), "has active endpoints") }

// goneAlready reports whether another process removes the object or already has: parallel test processes find the same
// leftovers.
func goneAlready(err error) bool {
	said := strings.ToLower(err.Error())
	return slices.ContainsFunc([]string{"is already in progress", "no such ", "not found"}, func(s string) bool { return strings.Contains(said, s) })
}

// Docker runs a docker command and returns its trimmed output. For docker logs that includes both streams of the container;
// otherwise stderr is only in the error.
func Docker(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("docker", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if args[0] == "logs" {
		cmd.Stderr = &stdout
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, stdout.String()+stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// MustDocker is Docker for a command that must succeed; otherwise the test ends.
func MustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := Docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Run starts a container with the given arguments of docker run, which include no name, and returns its ID. At the end of
// the test it is removed, and the last lines of its log are shown if the test failed.
func Run(t testing.TB, args ...string) string {
	t.Helper()
	id := MustDocker(t, append([]string{"run", "--detach", "--name", Name(t) + "-run"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := Docker("logs", "--tail", "30", id)
			t.Logf("log of %.12s: %v\n%s", id, err, out)
		}
	})
	return id
}

// Image returns the value of an environment variable that names an image or other test resource. The test ends if it is not
// set.
func Image(t testing.TB, variable string) string {
	t.Helper()
	name := os.Getenv(variable)
	if name == "" {
		t.Fatalf("%s is not set: run the tests with make test, which builds the images and sets it", variable)
	}
	return name
}

// Images returns the images in an environment variable, separated by commas.
func Images(t testing.TB, variable string) []string {
	t.Helper()
	return strings.Split(Image(t, variable), ",")
}

// Edges returns the usual version (the first one), the oldest and the newest: what a version in between does, these do as
// well, apart from wording.
func Edges(images []string) []string {
	if len(images) <= 3 {
		return images
	}
	return []string{images[0], images[1], images[len(images)-1]}
}

// Hostname returns the name that Docker gives a container, which is the demo app's name for itself.
func Hostname(container string) string { return container[:min(12, len(container))] }
