package registrar

import (
	"os"
	"os/exec"
	"syscall"
)

// child is a process that leads a process group of its own: ctrl-C in a terminal reaches berth alone, which then
// drains before it tells the child.
type child struct {
	*os.Process
	told  bool // to end, by SIGTERM
	ended chan struct{}
	state *os.ProcessState // from then on
}

// startChild starts the command with berth's environment, CONSUL_HTTP_TOKEN included: it may have use for it.
func startChild(opts ProcessOptions) (*child, error) {
	cmd := exec.Command(opts.Command[0], opts.Command[1:]...)
	// A nil *os.File would be an interface that is not nil.
	if opts.Stdin != nil {
		cmd.Stdin = opts.Stdin
	}
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
	c := &child{Process: cmd.Process, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // with files for input and output it fails only as the state tells
		c.state = cmd.ProcessState
		// What it leaves in its group ends, too: it could keep the port of the next one.
		_ = syscall.Kill(-c.Pid, syscall.SIGTERM)
		close(c.ended)
	}()
	return c, nil
}

func (c *child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// terminate tells the child to end. It alone is told: many programs stop their own children better than a signal does.
func (c *child) terminate() {
	c.told = true
	_ = c.Signal(syscall.SIGTERM)
}

// kill ends the child and all of its group.
func (c *child) kill() { _ = syscall.Kill(-c.Pid, syscall.SIGKILL) }

// code is the exit code of a child that has ended, as a shell has it.
func (c *child) code() int {
	status := c.state.Sys().(syscall.WaitStatus)
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if c.told && code == 128+int(syscall.SIGTERM) { // some programs exit with that number themselves
		return 0
	}
	return code
}
