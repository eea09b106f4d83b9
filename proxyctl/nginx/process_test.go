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

// startTitles starts a process with the first title as a child of this one, and so on. Each prints its PID first, and ends with
// its input.
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

// runTitles runs such processes until the test ends, and returns their PIDs.
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

// The master whose worker answers is told, even while another nginx that it replaces still runs.
func TestMasterOf(t *testing.T) {
	t.Parallel()
	const master, worker = titleMaster + " /usr/sbin/nginx", titleWorker
	other := runTitles(t, master, worker)
	all := runTitles(t, master, master, worker)
	for _, tt := range []struct {
		name             string
		listener, worker int
		want             int
		replaced         bool
	}{
		{name: "its own", listener: other[0], worker: other[1], want: other[0]},
		{name: "a worker that is known by another number", listener: other[0], worker: 1 << 30, want: other[0]},
		{name: "a number that is another nginx's worker here", listener: other[0], worker: all[2], want: other[0]},
		{name: "it went into the background, or the one that it replaced is gone", listener: 1 << 30, worker: other[1], want: other[0]},
		{name: "it replaces another one", listener: all[0], worker: all[2], want: all[1]},
		{name: "it replaces another one, which went into the background", listener: 1 << 30, worker: all[2], want: all[1]},
		{name: "it is being replaced", listener: all[0], worker: 1 << 30, want: all[0], replaced: true},
		{name: "in another process namespace", worker: other[1]},
	} {
		if got := masterOf(tt.listener, tt.worker); got != tt.want || isReplaced(got) != tt.replaced {
			t.Errorf("%s: %d, replaced: %v; want %d, %v", tt.name, got, isReplaced(got), tt.want, tt.replaced)
		}
	}
}
