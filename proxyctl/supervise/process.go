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

// Process is a child of berth, or a process that an earlier berth left running. Its methods must be called from one goroutine.
type Process struct {
	process *os.Process
	group   bool             // whether it leads a process group
	told    []syscall.Signal // signals sent to end it
	ended   chan struct{}
	state   *os.ProcessState // set when it has ended; nil if it was not a child
}

// Start starts a child that leads its own process group, so that ctrl-C in a terminal reaches only berth. When the child has
// ended, the rest of its group gets the signal leftovers: a process left over could hold the ports of the next child. Input and
// output must be files or nil.
func Start(cmd *exec.Cmd, leftovers syscall.Signal) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{process: cmd.Process, group: true, ended: make(chan struct{})}
	go p.await(leftovers, func() {
		_ = cmd.Wait() // with files for input and output, it fails only as state reports
		p.state = cmd.ProcessState
	})
	return p, nil
}

// adopt returns a Process for a process that is not berth's child. The error wraps os.ErrProcessDone if it has ended.
func adopt(pid int, leftovers syscall.Signal) (*Process, error) {
	found, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	if err := found.Signal(syscall.Signal(0)); err != nil {
		return nil, err
	}
	done, err := poll(found, 0)
	if err != nil {
		return nil, err
	}
	if done {
		return nil, os.ErrProcessDone
	}
	group, err := syscall.Getpgid(pid)
	p := &Process{process: found, group: err == nil && group == pid, ended: make(chan struct{})}
	go p.await(leftovers, func() { _, _ = poll(found, -1) })
	return p, nil
}

// poll reports whether a process ends within this many milliseconds; -1 waits forever.
func poll(p *os.Process, milliseconds int) (ended bool, err error) {
	handleErr := p.WithHandle(func(pidfd uintptr) { // becomes readable when the process has ended
		var n int
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, milliseconds)
		}
		ended = n > 0
	})
	return ended, errors.Join(handleErr, err)
}

// await waits for the process to end, then signals the rest of its group.
func (p *Process) await(leftovers syscall.Signal, end func()) {
	end()
	if p.group {
		_ = syscall.Kill(-p.process.Pid, leftovers)
	}
	close(p.ended)
}

// PID returns the process ID.
func (p *Process) PID() int { return p.process.Pid }

// Ended returns a channel that is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Signal sends a signal to the process alone, not to its group: many programs stop their children themselves.
func (p *Process) Signal(s syscall.Signal) { _ = p.process.Signal(s) }

// Tell sends a signal meant to end the process. SIGKILL goes to its whole group.
func (p *Process) Tell(s syscall.Signal) {
	p.told = append(p.told, s)
	if s == syscall.SIGKILL && p.group {
		_ = syscall.Kill(-p.process.Pid, s)
		return
	}
	p.Signal(s)
}

// insist sends a signal until the process ends or ctx is done, and reports whether it has ended.
func (p *Process) insist(ctx context.Context, s syscall.Signal) bool {
	for again := repeatAfter; ; again *= 2 { // HAProxy logs a line for each signal
		p.Tell(s)
		select {
		case <-p.ended:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(again):
		}
	}
}

// Code returns the exit code of a process that has ended, as a shell reports it: 128 plus the signal if one killed it. The code
// is 0 if the process died of a signal sent by Tell, except for SIGKILL, which means that it did not end when told to.
func (p *Process) Code() int {
	if p.state == nil {
		return 0
	}
	code := exitCode(p.state.Sys().(syscall.WaitStatus))
	if slices.ContainsFunc(p.told, func(s syscall.Signal) bool { return s != syscall.SIGKILL && code == 128+int(s) }) {
		return 0
	}
	return code
}

// String describes how the process ended.
func (p *Process) String() string {
	if p.state == nil {
		return "unknown exit status: it was not berth's child"
	}
	return p.state.String()
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
