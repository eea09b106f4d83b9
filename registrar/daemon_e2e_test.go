//go:build e2e

package registrar_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/registrar"
	watch "berth/registrar/docker"
	"berth/registrar/label"
)

// daemon is a test's private Docker daemon next to the machine's, with its own bridge and data, and without access to the
// firewall.
type daemon struct {
	engine
	name, dir string
	bridge    string
	cmd       *exec.Cmd
	exited    chan struct{}
}

const (
	daemonSuffix = "-dockerd"
	bridgePrefix = "be2e" // an interface name has at most 15 characters

	// daemonMark is in the environment of a private daemon's containers, with the daemon's name.
	daemonMark = "BERTH_E2E_DAEMON="
)

func newDaemon(l *harness) *daemon {
	l.t.Helper()
	if os.Getuid() != 0 {
		l.t.Skip("a Docker daemon of the test's own needs root")
	}
	for _, program := range []string{"dockerd", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			l.t.Skip(err)
		}
	}
	d := &daemon{name: l.name, dir: filepath.Join(os.TempDir(), l.name+daemonSuffix), bridge: bridgePrefix + strconv.Itoa(os.Getpid())}
	d.engine = engine{l.t, "unix://" + filepath.Join(d.dir, "docker.sock")}
	l.t.Cleanup(func() {
		if err := removeDaemons(func(name string) bool { return name == l.name+daemonSuffix }); err != nil {
			l.t.Error(err)
		}
		if d.exited != nil {
			<-d.exited
		}
	})
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	for _, args := range [][]string{
		{"link", "add", d.bridge, "type", "bridge"},
		{"address", "add", freeSubnet(l.t), "dev", d.bridge},
		{"link", "set", d.bridge, "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			l.t.Skipf("no bridge for a Docker daemon of the test's own: ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return d
}

// freeSubnet returns a small network that this machine does not use, as the address of its gateway.
func freeSubnet(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(os.Getpid() + i), 1}), 24)
		free := true
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(subnet) {
				free = false
			}
		}
		if free {
			return subnet.String()
		}
	}
	t.Fatal("no subnet is free")
	return ""
}

// start starts the daemon, and waits until it answers. With live-restore its containers keep running without it.
func (d *daemon) start(liveRestore bool) time.Duration {
	d.t.Helper()
	config := filepath.Join(d.dir, "config.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"live-restore": %v}`, liveRestore), 0o600); err != nil {
		d.t.Fatal(err)
	}
	output, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer output.Close()
	d.cmd = exec.Command("dockerd", "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "pid"), "--host", d.host, "--bridge", d.bridge, "--iptables=false", "--ip6tables=false",
		"--storage-driver", "vfs", "--config-file", config)
	d.cmd.Stdout, d.cmd.Stderr = output, output
	start := time.Now()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() { defer close(exited); _ = cmd.Wait() }()
	d.eventually(time.Minute, "the private Docker daemon answers", func() error {
		_, err := d.try("version")
		select {
		case <-exited:
			text, _ := os.ReadFile(output.Name())
			d.t.Fatalf("the private Docker daemon ended: %s", text)
		default:
		}
		return err
	})
	return time.Since(start)
}

// stop ends the daemon with a signal, and waits for its end.
func (d *daemon) stop(signal syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.exited:
	case <-time.After(time.Minute):
		d.t.Fatalf("the private Docker daemon does not end on %s", signal)
	}
	// Its containerd ends a moment later: a daemon that starts in between would use it.
	text, err := os.ReadFile(filepath.Join(d.dir, "exec", "containerd", "containerd.pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && pid > 0 {
		d.eventually(20*time.Second, "its containerd ends", func() error {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("it runs (%v)", err)
			}
			return nil
		})
	}
}

// load copies an image from the machine's own daemon.
func (d *daemon) load(image string) {
	d.t.Helper()
	save, load := exec.Command("docker", "save", image), exec.Command("docker", "--host", d.host, "load")
	var words bytes.Buffer
	var err error
	save.Stderr, load.Stdout, load.Stderr = &words, &words, &words
	if load.Stdin, err = save.StdoutPipe(); err == nil {
		err = errors.Join(save.Start(), load.Run(), save.Wait())
	}
	if err != nil {
		d.t.Fatalf("copy %s: %v\n%s", image, err, words.String())
	}
}

// app starts the demo application in this daemon.
func (d *daemon) app(service string) container {
	d.t.Helper()
	c := container{name: d.name + "-" + service, service: service}
	c.id = d.docker("run", "--detach", "--name", c.name, "--label", harnessLabel+"="+d.name, "--env", "SERVICE_NAME="+service,
		"--env", daemonMark+d.name+daemonSuffix, os.Getenv("IMAGE_APP"))
	return c
}

// removeDaemons ends the private daemons with such names and everything they started, and removes their data.
func removeDaemons(ours func(name string) bool) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), testenv.Prefix+"*"+daemonSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if ours(filepath.Base(dir)) {
			errs = append(errs, removeDaemon(dir))
		}
	}
	return errors.Join(errs...)
}

func removeDaemon(dir string) error {
	// End the daemon first: it would clean up after its containers and start containerd again.
	for deadline := time.Now().Add(30 * time.Second); ; {
		pids := processesOf(dir)
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of %s do not end", pids, dir)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			_ = syscall.Unmount(fields[4], syscall.MNT_DETACH)
		}
	}
	pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), testenv.Prefix), "-")
	if out, err := exec.Command("ip", "link", "delete", bridgePrefix+pid).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("Cannot find device")) {
		return fmt.Errorf("ip link delete: %w: %s", err, out)
	}
	return os.RemoveAll(dir)
}

// processesOf returns the daemon, its containerd and shims, which have its directory in their arguments, and its containers,
// which have a mark in their environment.
func processesOf(dir string) (pids []int) {
	for _, pattern := range []struct{ file, text string }{
		{"cmdline", dir + "/"},
		{"environ", daemonMark + filepath.Base(dir) + "\x00"},
	} {
		files, _ := filepath.Glob("/proc/[0-9]*/" + pattern.file)
		for _, file := range files {
			text, err := os.ReadFile(file)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err == nil && pid != os.Getpid() && bytes.Contains(text, []byte(pattern.text)) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// The Docker daemon is killed and restarted while containers change without an event.
func TestE2EDockerRestart(t *testing.T) {
	l := newHarness(t)
	d := newDaemon(l)
	d.start(true)
	d.load(os.Getenv("IMAGE_APP"))
	client := dockerClient(t, d.host)
	r := l.registrar(func(o *registrar.Options, h *label.Host) {
		o.Docker, o.Events, h.Networks = restrained{client, l}, watch.Events(client), []string{"bridge"}
	})
	history := l.watch("stays")
	stays, dies := d.app("stays"), d.app("dies")
	l.expectOf(soon, "stays passing", "dies passing")

	notReady := func() time.Duration {
		return l.eventually(soon, "the registrar knows that Docker is away", func() error {
			if r.Ready() == nil {
				return errors.New("it calls itself ready")
			}
			return nil
		})
	}

	// Killed: its containers keep running, and one of them dies unnoticed.
	pid, err := strconv.Atoi(d.inspect(dies.id, ".State.Pid"))
	if err != nil {
		t.Fatal(err)
	}
	d.stop(syscall.SIGKILL)
	notReady()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.expectOf(0, "stays passing", "dies passing") // no better information exists
	took := d.start(true)
	whole := l.expectOf(20*time.Second, "stays passing")
	ready := l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	t.Logf("dockerd killed and started (it took %s to answer), one container died meanwhile: right %s after it answered, registrar ready %s after that", ms(took), ms(whole), ms(ready))
	d.app("new")
	l.expectOf(soon, "stays passing", "new passing")
	history.expect(soon, "passing")

	// Stopped, and started again with all containers ended: one is restarted, one is new.
	d.stop(syscall.SIGTERM)
	notReady()
	took = d.start(false)
	d.docker("start", stays.id)
	d.app("newer")
	whole = l.expectOf(20*time.Second, "stays passing", "newer passing")
	ready = l.eventually(20*time.Second, "the registrar is ready", r.Ready)
	t.Logf("dockerd stopped with all its containers and started (%s), one of them started, one new: right %s after docker run, registrar ready %s after that", ms(took), ms(whole), ms(ready))

	// Nothing of it runs.
	d.stop(syscall.SIGTERM)
	notReady()
	d.start(false)
	l.expectOf(20 * time.Second)
}
