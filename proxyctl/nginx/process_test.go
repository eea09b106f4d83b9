package nginx

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// envTitles makes this program a process with the first of these titles, which starts one with the others.
const envTitles = "BERTH_TEST_TITLES"

func TestMain(m *testing.M) {
	if titles := os.Getenv(envTitles); titles != "" {
		child, in, err := startTitles(strings.Split(titles, ";")[1:], os.Stdout)
		if err != nil {
			panic(err)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		if child != nil {
			in.Close()
			_ = child.Wait()
		}
		return
	}
	os.Exit(m.Run())
}

// startTitles starts a process with the first title as a child of this one, and so on. Each ends with its input, and writes
// its number first.
func startTitles(titles []string, out io.Writer) (*exec.Cmd, io.WriteCloser, error) {
	fmt.Fprintln(out, os.Getpid())
	if len(titles) == 0 {
		return nil, nil, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := &exec.Cmd{Path: exe, Args: []string{titles[0]}, Env: append(os.Environ(), envTitles+"="+strings.Join(titles, ";")), Stdout: out, Stderr: os.Stderr}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	return cmd, in, cmd.Start()
}

// runTitles runs such processes until the end of the test, and returns their numbers.
func runTitles(t *testing.T, titles ...string) (pids []int) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd, in, err := startTitles(titles, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	lines := bufio.NewScanner(r)
	for range len(titles) + 1 {
		pid := 0
		if !lines.Scan() {
			t.Fatalf("%d of %d processes have started: %v", len(pids), len(titles), lines.Err())
		}
		if _, err := fmt.Sscan(lines.Text(), &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids[1:]
}

// The master is told whose worker answers, also while another nginx that it replaces runs still.
func TestMasterOf(t *testing.T) {
	t.Parallel()
	const master, worker = titleMaster + " /usr/sbin/nginx", titleWorker
	other := runTitles(t, master, worker)
	all := runTitles(t, master, master, worker)
	for _, tt := range []struct {
		name             string
		listener, worker int
		master           int
		replaces         bool
	}{
		{name: "its own", listener: other[0], worker: other[1], master: other[0]},
		{name: "a worker that is known by another number", listener: other[0], worker: 1 << 30, master: other[0]},
		{name: "a number that is another nginx's worker here", listener: other[0], worker: all[2], master: other[0]},
		{name: "it went into the background, or the one that it replaced is gone", listener: 1 << 30, worker: other[1], master: other[0]},
		{name: "upgraded in place, and the old one runs", listener: all[0], worker: all[2], master: all[1], replaces: true},
		{name: "the same, and the old one went into the background", listener: 1 << 30, worker: all[2], master: all[1], replaces: true},
		{name: "in another process namespace", worker: other[1]},
	} {
		if got, replaces := masterOf(tt.listener, tt.worker); got != tt.master || replaces != tt.replaces {
			t.Errorf("%s: %d, %v; want %d, %v", tt.name, got, replaces, tt.master, tt.replaces)
		}
	}
}

// While workers of the old and the new nginx answer by turns, the text suits both.
func TestVersionDuringUpgrade(t *testing.T) {
	var said []string
	n := startFake(t, "")
	p := n.proxy(func(o *Options) { o.Version = func(v string) bool { said = append(said, v); return false } })
	for range 3 {
		for _, s := range []status{{version: "1.26.3"}, {version: "1.30.0", replaces: true}} {
			if err := p.driver.setVersion(t.Context(), s); err != nil {
				t.Error(err)
			}
		}
	}
	if err := p.driver.setVersion(t.Context(), status{version: "1.30.0"}); err != nil || strings.Join(said, " ") != "1.26.3 1.30.0" {
		t.Errorf("%v, told %q", err, said)
	}
}
