package nginx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"berth/proxyctl"
)

// The titles of nginx's processes.
const (
	titleMaster  = "nginx: master process"
	titleWorker  = "nginx: worker process"
	titleLeaving = "nginx: worker process is shutting down"
)

// title returns the title of a process, "" if there is no such process.
func title(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\x00")
	return line
}

// isMaster reports whether a process is an nginx master process that is visible from here.
func isMaster(pid int) bool { return pid > 0 && strings.HasPrefix(title(pid), titleMaster) }

// masterOf returns the master process of an nginx, 0 if it is not visible from here. listener is the process that started to
// listen on the control socket. worker is a process that answers there, by its PID in its own namespace. An nginx that went into
// the background started to listen before that, in a process that is gone. An nginx that replaces another one in place was
// started by the other's master and inherited the control socket.
func masterOf(listener, worker int) (master int) {
	if listener == 0 {
		return 0
	}
	if title(worker) == titleWorker {
		master = parent(worker)
	}
	switch {
	case isMaster(master) && (!isMaster(listener) || parent(master) == listener):
		return master
	case isMaster(listener):
		return listener
	}
	return 0
}

// isReplaced reports whether a master process has started its replacement. Until the replacement is complete, both serve, and the
// old one no longer loads its file: told to, it starts more workers.
func isReplaced(master int) bool { return slices.ContainsFunc(children(master), isMaster) }

// parent returns the parent of a process, 0 if there is none.
func parent(pid int) (started int) {
	if f := processStatus(pid, "PPid"); len(f) == 1 {
		started, _ = strconv.Atoi(f[0])
	}
	return started
}

// processStatus returns the fields under a heading in the status of a process, nil if there is no such process.
func processStatus(pid int, heading string) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(b), "\n"+heading+":")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.Fields(line)
}

// hangup tells a master process to reload its configuration.
func hangup(master int) error {
	if !isMaster(master) {
		return fmt.Errorf("%w: process %d is no longer an nginx master process", proxyctl.ErrUnreachable, master)
	}
	err := syscall.Kill(master, syscall.SIGHUP)
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("no permission to reload nginx (master process %d): run berth as the user of that process, or set nginx-reload-container or nginx-reload-command", master)
	}
	return err
}

// findMaster returns the nginx master process that is visible from here, 0 if there is none. It is needed because an nginx
// without berth's configuration does not say who it is. Of several, it returns the one that shares berth's files.
func findMaster() (pid int, err error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	var all, near []int
	for _, e := range entries {
		n, err := strconv.Atoi(filepath.Base(e))
		// A process in a nested process namespace, such as a container's, has a PID in each of them.
		if err != nil || !isMaster(n) || len(processStatus(n, "NSpid")) != 1 {
			continue
		}
		all = append(all, n)
		if its, err := os.Readlink(e + "/ns/mnt"); err == nil && its == own {
			near = append(near, n)
		}
	}
	switch {
	case len(near) == 1:
		return near[0], nil
	case len(all) == 1:
		return all[0], nil
	case len(all) > 1:
		return 0, fmt.Errorf("%w: there are %d nginx master processes here: set nginx-reload-container or nginx-reload-command to reload the right one", proxyctl.ErrUnreachable, len(all))
	}
	return 0, nil
}

// childMaster returns the nginx master process that berth started, 0 if there is none.
func childMaster() (pid int, err error) {
	for _, n := range children(os.Getpid()) {
		if isMaster(n) {
			return n, nil
		}
	}
	return 0, nil
}

// children returns the child processes of all threads of a process.
func children(pid int) (all []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// workers returns the workers of a master that serve, and those that only finish their connections.
func workers(master int) (serving, leaving []int) {
	for _, pid := range children(master) {
		switch t := title(pid); {
		case strings.HasPrefix(t, titleLeaving):
			leaving = append(leaving, pid)
		case strings.HasPrefix(t, titleWorker):
			serving = append(serving, pid)
		}
	}
	return serving, leaving
}
