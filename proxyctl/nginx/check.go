package nginx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// check has the nginx program check a configuration file. The error wraps proxyctl.ErrRefused if the program refuses it.
func check(ctx context.Context, env []string, binary, file string) error {
	return proxyctl.Check(ctx, env, "nginx -t", complaints, binary, "-t", "-q", "-c", file)
}

// complaints returns nginx's reasons for refusing a file, on one line, or its whole output if it gave none.
func complaints(out string) string {
	var all []string
	for line := range strings.Lines(out) {
		if message := complaint(line); message != "" {
			all = append(all, message)
		}
	}
	if len(all) == 0 {
		all = []string{oneLine(out)}
	}
	return fmt.Sprintf("%.500s", strings.Join(all, "; "))
}

// complaint returns the message of a line of nginx's log without the process if its level is emerg, otherwise "".
func complaint(line string) string {
	_, message, _ := strings.Cut(line, "[emerg] ")
	if process, rest, ok := strings.Cut(message, ": "); ok && strings.Trim(process, "0123456789#") == "" {
		message = rest
	}
	return oneLine(message)
}

// Check has the nginx program check a text and the files it refers to, path to content, in another directory: berth render
// --validate. file is the text's place, where nginx looks for included files. socket is the control socket, whose directory nginx
// writes to. The error wraps proxyctl.ErrRefused if the program refuses the text.
func Check(ctx context.Context, binary, file, socket, text string, files map[string]string) error {
	dir, err := os.MkdirTemp("", "berth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The directory of the control socket may not exist here, and nothing should be written to it.
	text = strings.ReplaceAll(text, filepath.Dir(absolute(socket))+"/", dir+"/")
	text, err = configfile.Elsewhere(dir, text, files)
	if err != nil {
		return err
	}

	// nginx resolves relative paths in include lines from the directory of its configuration file.
	beside, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	if err != nil {
		return err
	}
	for _, path := range beside {
		if name := filepath.Base(path); name != filepath.Base(file) {
			_ = os.Symlink(absolute(path), filepath.Join(dir, name)) // fails for auxiliary files, which are already there
		}
	}
	candidate := filepath.Join(dir, filepath.Base(file))
	m, err := mark(text, filepath.Join(dir, "control.sock"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(candidate, []byte(m.Text), 0o600); err != nil {
		return err
	}
	return check(ctx, nil, binary, candidate)
}
