//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/deploy/testenv/traffic"
)

// rolled is a service of the stack with everything a rollout needs.
const rolled = `  app:
    healthcheck: {test: [CMD, /app, get, "http://127.0.0.1:8080/health"], interval: 1s, timeout: 20s, retries: 3}
    deploy: {update_config: {parallelism: 2, monitor: 1s}}
`

// berth rollout replaces containers under constant load and rolls back what does not work, without a failed request.
func TestE2ERollout(t *testing.T) {
	berth := testenv.Berth(t)
	v2 := testenv.Build(t, "FROM "+os.Getenv("IMAGE_APP")+"\nENV VERSION=2\n")
	broken := testenv.Build(t, "FROM "+os.Getenv("IMAGE_APP")+"\nENV PORT=8081\n")
	s := newStack(t, rolled) // removed before the images
	s.Do("up", "-d", "--scale", "app=5")
	s.Eventually(time.Minute, "five apps answer", func() error { return s.expectHosts(5) })

	t.Run("another image", func(t *testing.T) {
		s := s.in(t)
		before := s.Containers("app")
		watched := s.watch()
		out := s.rollout(berth, v2, "app")
		out.says("serves, ")
		second := s.rollout(berth, v2, "app")
		if err := second.ends(); err == nil || !strings.Contains(second.String(), "has been rolling it out since") {
			t.Errorf("the second rollout: %v\n%s", err, second)
		}
		if err := out.ends(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		watched.expectNoneFailed(out)
		after := s.Containers("app")
		for _, id := range after {
			if slices.Contains(before, id) || !strings.Contains(s.Docker("inspect", "--format", "{{.Config.Env}}", id), "VERSION=2") {
				t.Errorf("%.12s is an old one", id)
			}
		}
		if len(after) != 5 {
			t.Errorf("%d containers", len(after))
		}
		if !strings.Contains(out.String(), ":/etc/haproxy/haproxy.cfg") {
			t.Errorf("the balancer does not tell:\n%s", out)
		}
		cmd := s.Command("up", "-d", "--scale", "app=5", "app")
		cmd.Env = append(cmd.Env, "IMAGE_APP="+v2)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
		if now := s.Containers("app"); !slices.Equal(now, after) {
			t.Errorf("up -d after the rollout changes %.12s to %.12s", after, now)
		}
	})

	t.Run("nothing to replace", func(t *testing.T) {
		s := s.in(t)
		out := s.rollout(berth, v2, "app")
		if err := out.ends(); err != nil || !strings.Contains(out.String(), "nothing to replace") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	t.Run("never healthy", func(t *testing.T) {
		s := s.in(t)
		before := s.Containers("app")
		watched := s.watch()
		out := s.rollout(berth, broken, "app")
		err := out.ends()
		watched.expectNoneFailed(out)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("it ends with %v, want 1", err)
		}
		for _, says := range []string{"is unhealthy", "rolled back: the old ones serve", "address=[::]:8081", "connection refused"} {
			if !strings.Contains(out.String(), says) {
				t.Errorf("it does not say %q:\n%s", says, out)
			}
		}
		s.expectSame(before)
	})

	t.Run("watched", func(t *testing.T) {
		s := s.in(t)
		before := s.Containers("app")
		named := strings.TrimSuffix(v2, v2[strings.LastIndex(v2, ":"):]) + ":watched-" + s.Project
		s.Docker("tag", v2, named)
		t.Cleanup(func() { s.Docker("rmi", named) })
		watching := s.rollout(berth, named, "--watch", "--parallelism", "0", "app")
		watching.says("watching the images of app")
		s.Docker("tag", os.Getenv("IMAGE_APP"), named)
		watching.says("5 of 5 replaced")
		if err := watching.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := watching.ends(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
			t.Errorf("it ends with %v\n%s", err, watching)
		}
		for _, id := range s.Containers("app") {
			if slices.Contains(before, id) {
				t.Errorf("%.12s is an old one", id)
			}
		}
	})

	t.Run("killed, then aborted", func(t *testing.T) {
		s := s.in(t)
		before := s.Containers("app")
		watched := s.watch()
		out := s.rollout(berth, v2, "app")
		out.says("serves, ")
		if err := out.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = out.ends() // it was killed
		if n := len(s.Containers("app")); n <= 5 {
			t.Errorf("%d containers, none is new", n)
		}
		abort := s.rollout(berth, v2, "--abort", "app")
		if err := abort.ends(); err != nil {
			t.Errorf("%v\n%s", err, abort)
		}
		watched.expectNoneFailed(abort)
		s.expectSame(before)
		resume := s.rollout(berth, v2, "--resume", "app")
		if err := resume.ends(); err == nil || !strings.Contains(resume.String(), "no rollout of it was interrupted") {
			t.Errorf("%v\n%s", err, resume)
		}
	})

	t.Run("killed, then resumed", func(t *testing.T) {
		s := s.in(t)
		before := s.Containers("app")
		watched := s.watch()
		out := s.rollout(berth, v2, "app")
		out.Eventually(2*time.Minute, "a container of the second batch serves", func() error {
			if strings.Count(out.String(), "serves, ") < 3 {
				return errors.New(out.String())
			}
			return nil
		})
		if err := out.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = out.ends() // it was killed
		resume := s.rollout(berth, v2, "--resume", "app")
		if err := resume.ends(); err != nil || !strings.Contains(resume.String(), "resuming, 2 of 5 were already replaced") {
			t.Errorf("%v\n%s", err, resume)
		}
		watched.expectNoneFailed(resume)
		after := s.Containers("app")
		for _, id := range after {
			if slices.Contains(before, id) {
				t.Errorf("%.12s is an old one", id)
			}
		}
		s.expectSame(after)
		if len(after) != 5 {
			t.Errorf("%d containers", len(after))
		}
	})
}

// Images are built, and services are replaced in the order of their dependencies.
func TestE2ERolloutBuild(t *testing.T) {
	berth := testenv.Berth(t)
	app, back := testenv.Dir(t), testenv.Dir(t)
	image := testenv.Name(t)
	var built []string
	t.Cleanup(func() { testenv.MustDocker(t, append([]string{"rmi", "-f"}, built...)...) }) // after their containers
	const build = `  %s:
    image: %s
    build: %s
    deploy: {update_config: {monitor: 1s}}
`
	s := newStack(t, fmt.Sprintf(build, "back", image+":back", back)+"    labels: {SERVICE_NAME: back, SERVICE_ROUTE_HOST: back.example.com}\n"+
		fmt.Sprintf(build, "app", image+":app", app)+"    depends_on: [back]\n")
	source := func(version string) {
		for _, dir := range []string{app, back} {
			testenv.File(t, dir, "Dockerfile", "FROM "+os.Getenv("IMAGE_APP")+"\nENV VERSION="+version+"\n")
		}
	}
	source("1")
	s.Do("up", "-d", "--scale", "app=2")
	s.Eventually(time.Minute, "two apps answer", func() error { return s.expectHosts(2) })
	images := func() []string { return strings.Fields(s.Docker("images", "--quiet", "--no-trunc", image)) }
	built = images()
	source("2")
	watched := s.watch()
	out := s.rollout(berth, os.Getenv("IMAGE_APP"), "--build", "app", "back")
	if err := out.ends(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	watched.expectNoneFailed(out)
	built = append(built, images()...)
	slices.Sort(built)
	built = slices.Compact(built)
	if back, app := strings.Index(out.String(), "back: 1 of 1 replaced"), strings.Index(out.String(), "app: 2 to replace"); back < 0 || app < back {
		t.Errorf("back is not replaced before app:\n%s", out)
	}
	for _, name := range []string{"app", "back"} {
		for _, id := range s.Containers(name) {
			if env := s.Docker("inspect", "--format", "{{.Config.Env}}", id); !strings.Contains(env, "VERSION=2") {
				t.Errorf("%s has an old container: %s", name, env)
			}
		}
	}
}

// The same with compose v2, as a docker plugin: compose created the containers, and berth calls it according to the labels
// it set.
func TestE2ERolloutV2(t *testing.T) {
	berth := testenv.Berth(t)
	v2 := testenv.Build(t, "FROM "+os.Getenv("IMAGE_APP")+"\nENV VERSION=2\n")
	s := newStackOf(t, testenv.ComposeOptions{}.V2(t), rolled)
	plugins := filepath.Join(dockerConfig(s.Env()), "cli-plugins")
	if err := os.Symlink(berth, filepath.Join(plugins, "docker-berth")); err != nil {
		t.Fatal(err)
	}
	s.Do("up", "-d", "--scale", "app=3")
	s.Eventually(time.Minute, "three apps answer", func() error { return s.expectHosts(3) })
	before := s.Containers("app")
	watched := s.watch()
	out := s.rollout("docker", v2, "--parallelism", "0", "app")
	if err := out.ends(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	watched.expectNoneFailed(out)
	after := s.Containers("app")
	for _, id := range after {
		if slices.Contains(before, id) {
			t.Errorf("%.12s is an old one", id)
		}
	}
	cmd := s.Command("up", "-d", "--scale", "app=3", "app")
	cmd.Env = append(cmd.Env, "IMAGE_APP="+v2)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	if now := s.Containers("app"); len(now) != 3 || !slices.Equal(now, after) {
		t.Errorf("up -d after the rollout changes %.12s to %.12s", after, now)
	}
	again := s.rollout("docker", v2, "app")
	if err := again.ends(); err != nil || !strings.Contains(again.String(), "nothing to replace") {
		t.Errorf("%v\n%s", err, again)
	}
}

// dockerConfig returns the directory in DOCKER_CONFIG.
func dockerConfig(env []string) string {
	dir := ""
	for _, variable := range env {
		if value, is := strings.CutPrefix(variable, "DOCKER_CONFIG="); is {
			dir = value
		}
	}
	return dir
}

// expectSame checks that the app has exactly these containers, all in service.
func (s *stack) expectSame(containers []string) {
	s.Helper()
	now := s.Containers("app")
	slices.Sort(now)
	slices.Sort(containers)
	if !slices.Equal(now, containers) {
		s.Errorf("containers are %.12s, want %.12s", now, containers)
	}
	s.Eventually(10*time.Second, "all are in service", func() error { return s.expectServers(len(containers)) })
}

// running is a berth rollout in progress.
type running struct {
	*stack
	out   testenv.Log
	cmd   *exec.Cmd
	ended chan error
}

func (r *running) String() string { return r.out.String() }

// rollout starts berth rollout with an image of the app, directly or as a docker plugin.
func (s *stack) rollout(berth, image string, args ...string) *running {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	args = append([]string{"rollout", "--project-name", s.Project}, args...)
	if berth == "docker" {
		args = append([]string{"berth"}, args...)
	}
	r := &running{stack: s, cmd: exec.CommandContext(ctx, berth, args...), ended: make(chan error, 1)}
	r.cmd.Env = append(s.Env(), "IMAGE_APP="+image, "CONSUL_HTTP_ADDR=http://"+s.consul)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	go func() {
		defer cancel()
		r.ended <- r.cmd.Wait()
	}()
	s.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGKILL) // usually it has ended
	})
	return r
}

func (r *running) says(text string) {
	r.Helper()
	r.Eventually(2*time.Minute, "it says "+text, func() error {
		if out := r.String(); !strings.Contains(out, text) {
			return errors.New(out)
		}
		return nil
	})
}

func (r *running) ends() error {
	r.Helper()
	return <-r.ended
}

// watched is all load on the app.
type watched struct {
	load    *traffic.Load
	posts   *posts
	tunnels *tunnels
}

func (s *stack) watch() *watched {
	s.Helper()
	return &watched{traffic.ToApp(s, s.web, 100, traffic.Kept, traffic.Fresh), startPosts(s, s), startTunnels(s, s)}
}

func (w *watched) expectNoneFailed(out *running) {
	out.Helper()
	report, p, tunnels := w.load.Finish(), w.posts.finish(), w.tunnels.finish()
	out.Logf("%s\n%s; %s; %s", out, report, p, tunnels)
	report.ExpectNoneFailed(out, "rollout")
	if p.failed > 0 || p.sent == 0 || tunnels.failed > 0 || tunnels.ended == 0 {
		out.Errorf("%s; %s: want none failed of some", p, tunnels)
	}
}

// tunnels are websockets of three seconds each, always five at a time.
type tunnels struct {
	stop chan struct{}
	done sync.WaitGroup

	mu            sync.Mutex
	ended, failed int
	first         error // first failure
}

func startTunnels(t testing.TB, s *stack) *tunnels {
	u := &tunnels{stop: make(chan struct{})}
	t.Cleanup(func() { u.finish() })
	for range 5 {
		u.done.Go(func() {
			for u.goesOn() {
				err := tunnel(s.web, 3*time.Second)
				u.mu.Lock()
				if u.ended++; err != nil {
					u.failed++
					if u.first == nil {
						u.first = err
					}
				}
				u.mu.Unlock()
			}
		})
	}
	return u
}

func (u *tunnels) goesOn() bool {
	select {
	case <-u.stop:
		return false
	default:
		return true
	}
}

func (u *tunnels) finish() *tunnels {
	if u.goesOn() {
		close(u.stop)
	}
	u.done.Wait()
	return u
}

func (u *tunnels) String() string {
	return fmt.Sprintf("%d of %d tunnels failed, first: %v", u.failed, u.ended, u.first)
}

// tunnel echoes data for the given time.
func tunnel(address string, lasts time.Duration) error {
	began := time.Now()
	conn, err := net.DialTimeout("tcp", address, traffic.Timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(lasts + traffic.Timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /echo HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return errors.New(resp.Status)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := 0; time.Since(began) < lasts; n++ {
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(conn, line); err != nil {
			return fmt.Errorf("after %s: %w", time.Since(began), err)
		}
		if back, err := in.ReadString('\n'); err != nil || back != line {
			return fmt.Errorf("after %s: %q, %w", time.Since(began), back, err)
		}
		<-tick.C
	}
	return nil
}
