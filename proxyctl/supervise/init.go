package supervise

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Init acts as process 1 of a container: it runs this program with the same arguments as a child, forwards signals to it, reaps
// orphans, and returns the child's exit code as a shell reports it (128 plus the signal if one killed it). This needs a separate
// process, because wait4(-1) would take away the exit codes that os/exec waits for. When Init returns and process 1 ends, the
// kernel kills all other processes of the container.
func Init(args []string) (code int, err error) {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	child, err := syscall.ForkExec("/proc/self/exe", args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("cannot start %s as a child of process 1: %w", args[0], err)
	}
	go forward(signals, child)
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for processes: %w", err)
		case ended == child:
			return exitCode(status), nil
		}
	}
}

// forward forwards signals, except those meant for this process itself: about its children, its pipes and its terminal, and the
// signal that Go's scheduler uses for preemption.
func forward(signals <-chan os.Signal, pid int) {
	own := []os.Signal{syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGURG}
	for s := range signals {
		if !slices.Contains(own, s) {
			_ = syscall.Kill(pid, s.(syscall.Signal))
		}
	}
}
