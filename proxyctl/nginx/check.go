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

// check has the nginx program check a configuration file. The error wraps proxyctl.ErrRefused if it says no.
func check(ctx context.Context, env []string, binary, file string) error {
	return proxyctl.Check(ctx, env, "nginx -t", complaints, binary, "-t", "-q", "-c", file)
}

// complaints returns the messages for which nginx refused a file, in one line, or all that nginx said if there are none.
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

// complaint returns the message in a line of nginx's if its level is emerg, without the process, and "" otherwise.
func complaint(line string) string {
	_, message, _ := strings.Cut(line, "[emerg] ")
	if process, rest, ok := strings.Cut(message, ": "); ok && strings.Trim(process, "0123456789#") == "" {
		message = rest
	}
	return oneLine(message)
}

// Check has the nginx program check a text and the files that it refers to, path to content, away from where they
// belong: berth render --validate. file is where the text belongs, from which nginx looks for what it includes, socket the
// control socket, whose directory nginx writes to. The error wraps proxyctl.ErrRefused if it says no.
func Check(ctx context.Context, binary, file, socket, text string, files map[string]string) error {
	dir, err := os.MkdirTemp("", "berth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Here may be no directory of the control socket, and nothing is to be written to it.
	text = strings.ReplaceAll(text, filepath.Dir(absolute(socket))+"/", dir+"/")
	text, err = configfile.Elsewhere(dir, text, files)
	if err != nil {
		return err
	}

	// nginx takes relative paths in include lines from the directory of the file that it reads.
	beside, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	if err != nil {
		return err
	}
	for _, path := range beside {
		if name := filepath.Base(path); name != filepath.Base(file) {
			_ = os.Symlink(absolute(path), filepath.Join(dir, name)) // but for auxiliary files, which are there by now
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
