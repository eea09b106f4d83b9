package rollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Labels that compose sets on containers.
const (
	labelProject = "com.docker.compose.project"
	labelService = "com.docker.compose.service"
	labelNumber  = "com.docker.compose.container-number"
	labelOneOff  = "com.docker.compose.oneoff"
	labelHash    = "com.docker.compose.config-hash"
	labelVersion = "com.docker.compose.version"
	labelFiles   = "com.docker.compose.project.config_files"
	labelDir     = "com.docker.compose.project.working_dir"
	labelEnv     = "com.docker.compose.project.environment_file"
)

// Compose runs the compose command for a project.
type Compose struct {
	Command []string // with the options before a subcommand
	Dir     string   // to run it in
}

// upTime limits the time in which compose creates containers, including the pull of images.
const upTime = 15 * time.Minute

// configTime limits the time in which compose reads its files, which may be on a network that hangs.
const configTime = time.Minute

// NewCompose returns the command for the project of a container, according to the container's labels: the version of compose
// that made it, or else the installed one. A command other than "" is used instead; its options that name files replace
// those in the labels.
func NewCompose(labels map[string]string, command string) (Compose, error) {
	c := Compose{Dir: labels[labelDir]}
	if c.Command = strings.Fields(command); len(c.Command) == 0 {
		c.Command = installed(labels[labelVersion])
	}
	if len(c.Command) == 0 {
		return c, errors.New("neither docker compose nor docker-compose is installed: install one, or give its command with --compose")
	}
	project := labels[labelProject]
	if info, err := os.Stat(c.Dir); err != nil || !info.IsDir() {
		return c, fmt.Errorf("the directory %s of the project %s does not exist here: run berth where its compose file is", c.Dir, project)
	}
	names := slices.ContainsFunc(c.Command, func(word string) bool {
		return word == "--file" || strings.HasPrefix(word, "--file=") || strings.HasPrefix(word, "-f")
	})
	c.Command = append(c.Command, "--project-name", project, "--project-directory", c.Dir)
	if names {
		c.Dir = "" // they are relative to berth's working directory
		return c, nil
	}
	for n, name := range split(labels[labelFiles]) {
		file, err := findFile(c.Dir, name)
		// The project's directory is that of the first file. A file of that name above it belongs to another project.
		if err == nil && n == 0 && !filepath.IsAbs(name) && !strings.HasPrefix(file, filepath.Clean(c.Dir)+"/") {
			err = fs.ErrNotExist
		}
		if err != nil {
			return c, fmt.Errorf("the file %s of the project %s does not exist here: name it with --compose 'docker compose -f FILE'", name, project)
		}
		c.Command = append(c.Command, "--file", file)
	}
	for _, name := range split(labels[labelEnv]) {
		file, err := findFile(c.Dir, name)
		if err != nil {
			return c, fmt.Errorf("the environment file %s of the project %s does not exist here", name, project)
		}
		c.Command = append(c.Command, "--env-file", file)
	}
	return c, nil
}

func split(label string) []string {
	return slices.DeleteFunc(strings.Split(label, ","), func(s string) bool { return s == "" })
}

// installed returns the installed compose, the one of a version if both exist.
func installed(version string) []string {
	_, noV1 := exec.LookPath("docker-compose")
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	v2 := exec.CommandContext(ctx, "docker", "compose", "version").Run() == nil
	switch {
	case noV1 == nil && (strings.HasPrefix(version, "1.") || !v2):
		return []string{"docker-compose"}
	case v2:
		return []string{"docker", "compose"}
	}
	return nil
}

// findFile returns the path of a file named by a label. docker-compose 1.29 stores it as written, relative to its working
// directory: there, or in a directory above the project's.
func findFile(dir, name string) (string, error) {
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return name, err
	}
	for at := dir; ; at = filepath.Dir(at) {
		path := filepath.Join(at, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path, nil
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	path := filepath.Join(dir, filepath.Base(name)) // it was called in a directory below
	_, err := os.Stat(path)
	return path, err
}

// Config returns the file's description of its services.
func (c Compose) Config(ctx context.Context) (map[string]Service, error) {
	out, err := c.config(ctx)
	if err != nil {
		return nil, err
	}
	return ParseFile([]byte(out))
}

func (c Compose) config(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, configTime, fmt.Errorf("no answer within %s", configTime))
	defer cancel()
	return c.run(ctx, append([]string{"config"}, args...)...)
}

// Hash returns the hash label that a new container of a service would get.
func (c Compose) Hash(ctx context.Context, service string) (string, error) {
	out, err := c.config(ctx, "--hash", service)
	_, hash, found := strings.Cut(strings.TrimSpace(out), " ")
	if err == nil && !found {
		err = fmt.Errorf("compose config --hash %s says %q", service, out)
	}
	return strings.TrimSpace(hash), err
}

// Pull pulls the image of a service.
func (c Compose) Pull(ctx context.Context, service string) error {
	_, err := c.run(ctx, "pull", service)
	return err
}

// Build builds the image of a service.
func (c Compose) Build(ctx context.Context, service string) error {
	_, err := c.run(ctx, "build", service)
	return err
}

// Up creates containers until a service has n. It always waits for compose to end, even if ctx is done, because the created
// containers must be known.
func (c Compose) Up(ctx context.Context, service string, n int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upTime)
	defer cancel()
	_, err := c.run(ctx, "up", "--detach", "--no-deps", "--no-recreate", "--scale", fmt.Sprintf("%s=%d", service, n), service)
	return err
}

// run runs a subcommand and returns its output. The error contains the end of its complaints.
func (c Compose) run(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	words := append(c.Command[1:len(c.Command):len(c.Command)], args...)
	cmd := exec.CommandContext(ctx, c.Command[0], words...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the terminal's ^C is for berth, which decides
	if args[0] == "config" {                              // without it, config in compose v2 omits services with profiles; up does not if they are named
		cmd.Env = append(os.Environ(), "COMPOSE_PROFILES=*")
	}
	// docker starts its plugin compose as another process, which would continue to build.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("compose %s: %w", args[0], context.Cause(ctx))
	case err != nil:
		if why := complaint(stderr.String(), stdout.String()); why != "" {
			err = fmt.Errorf("%w: %s", err, why)
		}
		return "", fmt.Errorf("compose %s: %w", strings.Join(args, " "), err)
	}
	return stdout.String(), nil
}

// complaint returns the end of compose's error output, in one line. The steps of a build go to stdout and would hide the
// reason.
func complaint(stderr, stdout string) string {
	lines := complaints(stderr)
	if len(lines) == 0 {
		lines = complaints(stdout)
	}
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// complaints returns the lines of a text from its first error on, without warnings and repetitions.
func complaints(text string) (lines []string) {
	warning, failed := false, false
	for line := range strings.Lines(text) {
		indented := strings.HasPrefix(line, " ")
		if line = strings.Map(printable, strings.TrimSpace(line)); line == "" {
			continue
		}
		// docker-compose 1.29 warns of update_config, compose v2 of a missing buildx, and docker of its builder in several
		// lines.
		warning = warning && indented || strings.Contains(line, "level=warning") || strings.Contains(line, "deploy sub-keys are not supported") ||
			strings.HasPrefix(line, "DEPRECATED:")
		if warning {
			continue
		}
		if !failed && strings.HasPrefix(strings.ToUpper(line), "ERROR") {
			lines, failed = nil, true // earlier lines only show compose's progress
		}
		if len(lines) == 0 || !strings.Contains(lines[len(lines)-1], line) {
			lines = append(lines, line)
		}
	}
	return lines
}
