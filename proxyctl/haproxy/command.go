package haproxy

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"berth/proxyctl/supervise"
)

// Command completes a command line that runs HAProxy as berth's child: in the foreground, with its configuration file and master
// socket. The error names an argument that contradicts that.
func Command(args []string, file, socket string) ([]string, error) {
	has := func(arg string) bool { return slices.Contains(args, arg) }
	isSocket := func(value string) bool { return supervise.SamePath(socketPath(value), socket) }
	isFile := func(value string) bool {
		return supervise.SamePath(value, file) || supervise.SamePath(value, filepath.Dir(file))
	}
	files, sockets := supervise.OptionValues(args, "-f"), supervise.OptionValues(args, "-S")
	switch {
	case !has("-W") && !has("-Ws"):
		return nil, fmt.Errorf("%s needs -W (or -Ws): without a master process it cannot be reloaded", args[0])
	case has("-D"):
		return nil, fmt.Errorf("%s must not have -D: as berth's child it stays in the foreground", args[0])
	case socket == "":
		return nil, errors.New("haproxy-socket is none: berth needs the master socket of the HAProxy that it runs")
	case has("-S") && !slices.ContainsFunc(sockets, isSocket):
		return nil, fmt.Errorf("-S %s differs from haproxy-socket, which is %s: omit -S", strings.Join(sockets, " "), socket)
	case has("-f") && !slices.ContainsFunc(files, isFile):
		return nil, fmt.Errorf("-f %s differs from haproxy-config, which is %s: omit -f", strings.Join(files, " -f "), file)
	}
	command := slices.Clone(args)
	if !has("-db") {
		command = append(command, "-db")
	}
	if !has("-S") {
		command = append(command, "-S", "unix@"+socket+",mode,660") // without unix@, HAProxy refuses a relative path
	}
	if !has("-f") {
		command = append(command, "-f", file)
	}
	return command, nil
}

// socketPath returns the path in a value of -S, such as unix@/run/haproxy/master.sock,mode,660.
func socketPath(value string) string {
	path, _, _ := strings.Cut(value, ",")
	return strings.TrimPrefix(path, "unix@")
}
