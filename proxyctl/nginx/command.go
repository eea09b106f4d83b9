package nginx

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"berth/proxyctl/supervise"
)

// Command completes a command line that runs nginx as berth's child: in the foreground, with its configuration file. The error
// names an argument that contradicts that.
func Command(args []string, file string) ([]string, error) {
	files := supervise.OptionValues(args, "-c")
	foreground := false
	for _, value := range supervise.OptionValues(args, "-g") {
		directives := strings.Join(strings.Fields(value), " ")
		if strings.Contains(directives, "daemon on") {
			return nil, fmt.Errorf("%s must not have daemon on: as berth's child it stays in the foreground", args[0])
		}
		foreground = foreground || strings.Contains(directives, "daemon off")
	}
	isFile := func(value string) bool { return supervise.SamePath(value, file) }
	if slices.Contains(args, "-c") && !slices.ContainsFunc(files, isFile) {
		return nil, fmt.Errorf("-c %s differs from nginx-config, which is %s: omit -c", strings.Join(files, " -c "), file)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	command := slices.Clone(args)
	if last := lastValue(command, "-g"); !foreground && last >= 0 { // the last of several counts
		command[last] = strings.TrimRight(command[last], "; ") + "; daemon off;"
	} else if !foreground {
		command = append(command, "-g", "daemon off;")
	}
	if len(files) == 0 {
		command = append(command, "-c", path) // nginx resolves a relative path from its prefix
	}
	return command, nil
}

// lastValue returns the index of the last value of an option in a command line, -1 if it has none.
func lastValue(args []string, option string) int {
	for i := len(args) - 1; i > 0; i-- {
		if args[i-1] == option && !strings.HasPrefix(args[i], "-") {
			return i
		}
	}
	return -1
}
