package supervise

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a child, or one that somebody else has started.
type process struct {
	*os.Process
	group bool             // whether it leads a process group
	told  []syscall.Signal // to end
	ended chan struct{}
	state *os.ProcessState // from then on; nil if it was no child
}

// start starts a child that leads a process group of its own.
func start(opts Options) (*process, error) {
	cmd := exec.Command(opts.Command[0], opts.Command[1:]...)
	cmd.Env = opts.Env
	// A nil *os.File would be an io.Writer that is not nil.
	if opts.Stdout != nil {
		cmd.Stdout = opts.Stdout
	}
	if opts.Stderr != nil {
		cmd.Stderr = opts.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{Process: cmd.Process, group: true, ended: make(chan struct{})}
	go p.end(opts.StopSignal, func() {
		_ = cmd.Wait() // with files for output it fails only as the state tells
		p.state = cmd.ProcessState
	})
	return p, nil
}

// adopt supervises a process that is not berth's child. The error wraps os.ErrProcessDone if there is none.
func adopt(pid int, stop syscall.Signal) (*process, error) {
	found, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	if err := found.Signal(syscall.Signal(0)); err != nil {
		return nil, err
	}
	done, err := hasEnded(found, 0)
	if err != nil {
		return nil, err
	}
	if done {
		return nil, os.ErrProcessDone
	}
	group, err := syscall.Getpgid(pid)
	p := &process{Process: found, group: err == nil && group == pid, ended: make(chan struct{})}
	go p.end(stop, func() { _, _ = hasEnded(found, -1) })
	return p, nil
}

// hasEnded says whether a process has ended, within so many milliseconds; -1 is for ever.
func hasEnded(p *os.Process, within int) (ended bool, err error) {
	handleErr := p.WithHandle(func(pidfd uintptr) { // a file that can be read once the process has ended
		var n int
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, within)
		}
		ended = n > 0
	})
	return ended, errors.Join(handleErr, err)
}

// end waits for the process, and has those that it leaves in its group end, too: they could keep the ports of the next.
func (p *process) end(stop syscall.Signal, wait func()) {
	wait()
	if p.group {
		_ = syscall.Kill(-p.Pid, stop)
	}
	close(p.ended)
}

// insist tells the process to end until it does or ctx is done, and says whether it has ended.
func (p *process) insist(ctx context.Context, s syscall.Signal) bool {
	p.told = append(p.told, s)
	for again := repeatAfter; ; again *= 2 { // HAProxy has a line in its log for each
		if s == syscall.SIGKILL && p.group {
			_ = syscall.Kill(-p.Pid, s)
		} else {
			_ = p.Signal(s)
		}
		select {
		case <-p.ended:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(again):
		}
	}
}

// code is the exit code of a process that has ended. To die of the signal that told it to end is as good as 0, but for
// SIGKILL, which means that it did not end as told.
func (p *process) code() int {
	if p.state == nil {
		return 0
	}
	code := exitCode(p.state.Sys().(syscall.WaitStatus))
	if slices.ContainsFunc(p.told, func(s syscall.Signal) bool { return s != syscall.SIGKILL && code == 128+int(s) }) {
		return 0
	}
	return code
}

// String says how a process ended that has ended.
func (p *process) String() string {
	if p.state == nil {
		return "it was not berth's child, so nothing is known"
	}
	return p.state.String()
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
