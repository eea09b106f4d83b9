// Package unixcred finds the process that listens on a unix socket.
package unixcred

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Running returns the process that listens on a socket, 0 if there is none. It returns an error if the listening process is not
// visible from here, such as one in another container.
func Running(socket string) (pid int, err error) {
	conn, err := net.DialTimeout("unix", socket, 2*time.Second)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	pid, err = Of(conn.(*net.UnixConn))
	if err == nil && pid == 0 {
		return 0, fmt.Errorf("a process that berth cannot see, such as one in another container, listens on %s", socket)
	}
	return pid, err
}

// Of returns the process that listens at the other end, 0 if it is in a process namespace that is not visible from here.
func Of(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// SharesNetwork reports whether the process at the other end is known to be in this process's network namespace.
func SharesNetwork(conn *net.UnixConn) bool {
	pid, err := Of(conn)
	if err != nil || pid == 0 {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && own == its
}
