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

// Prefix begins the names of everything that tests make in Docker; the PID of their process follows.
const Prefix = "berth-e2e-"

var (
	names     atomic.Int64
	leftovers = sync.OnceValue(func() error { return Remove(Leftover) })
)

// Name returns a name for a test's own containers, networks and volumes: each of them is called this name, a dash and
// more. They are removed at the end of the test. What test processes that are gone have left behind is removed once, by
// the first call: a run that crashed could not do it itself.
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

// belongs says whether a thing in Docker is one of a test's: docker-compose puts an underscore where docker compose puts a dash.
func belongs(thing, name string) bool {
	rest, ours := strings.CutPrefix(thing, name)
	return ours && rest != "" && strings.Contains("-_", rest[:1])
}

// Leftover says whether a name is one of a test process that is gone.
func Leftover(name string) bool {
	rest, ours := strings.CutPrefix(name, Prefix)
	number, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(number)
	return ours && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// Remove removes the containers, networks and volumes that have such names.
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
			// One by one: Docker 20.10 loses count of a network's endpoints when many go at once, and then keeps the
			// network, without anything on it, until it is restarted. That is no reason to fail.
			if _, err := Docker(append(kind.remove, name)...); err != nil && !stuck(err) && !goneAlready(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func stuck(err error) bool { return strings.Contains(err.Error(), "has active endpoints") }

// goneAlready says that somebody else removes it, or has: a test process beside this one finds the same leftovers.
func goneAlready(err error) bool {
	said := strings.ToLower(err.Error())
	return slices.ContainsFunc([]string{"is already in progress", "no such ", "not found"}, func(s string) bool { return strings.Contains(said, s) })
}

// Docker runs a docker command and returns what it prints, without the space around: for docker logs both outputs of the
// container, else what the command complains of is in the error only.
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

// MustDocker is Docker for a command that has to work, or else the test ends.
func MustDocker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := Docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Run starts a container, by the arguments of docker run without a name, and returns its ID. It is removed at the end of
// the test, which then shows the last lines of its log if it failed.
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

// Image is the image, or another thing for the tests, that an environment variable names. The test ends if that is not set.
func Image(t testing.TB, variable string) string {
	t.Helper()
	name := os.Getenv(variable)
	if name == "" {
		t.Fatalf("%s is not set: run the tests with make test, which builds the images and sets it", variable)
	}
	return name
}

// Images are the images that an environment variable names, separated by commas.
func Images(t testing.TB, variable string) []string {
	t.Helper()
	return strings.Split(Image(t, variable), ",")
}

// Hostname returns the name that Docker gives a container, which is what the demo app calls itself.
func Hostname(container string) string { return container[:min(12, len(container))] }
