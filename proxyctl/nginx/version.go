package nginx

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/proxyctl"
)

// AtLeast says whether a version of nginx, "1.26.3", is another one or later. The unknown version, "", never is.
func AtLeast(version, other string) bool {
	return slices.Compare(numbers(version), numbers(other)) >= 0
}

func numbers(version string) (all []int) {
	for number := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil
		}
		all = append(all, n)
	}
	return all
}

// saysVersion finds the version in the output of nginx -v: nginx version: nginx/1.26.3.
var saysVersion = regexp.MustCompile(`/([0-9]+(?:\.[0-9]+)+)`)

// VersionOf returns the version of an nginx program.
func VersionOf(ctx context.Context, binary string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, "-v")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	said := saysVersion.FindSubmatch(out)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s -v: %w", binary, err)
	case said == nil:
		return "", fmt.Errorf("%s -v names no version: %.100q", binary, out)
	}
	return string(said[1]), nil
}

// VersionHere returns the version that a text must suit. It asks the nginx program, if there is one, and the nginx that
// listens on the control socket, and returns "" if neither answers in time.
func VersionHere(ctx context.Context, binary, socket string, timeout time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	program := ""
	if binary != "" {
		program, _ = VersionOf(ctx, binary)
	}
	v, _ := control{socket, timeout}.status(ctx)
	return older(program, v.version)
}

// older returns the older of two versions, or the known one. A text must suit both the program that validates it and the
// nginx that runs, which may have been started before the program was replaced.
func older(a, b string) string {
	if b == "" || a != "" && AtLeast(b, a) {
		return a
	}
	return b
}

// renderTime is how long a text for another version is waited for.
const renderTime = 2 * time.Second

// knownVersion holds the versions of nginx that are known.
type knownVersion struct {
	running  string      // of the nginx that runs, or ran until just now; "" if it is not known
	binary   string      // of the program
	program  os.FileInfo // that program
	reported string
	waits    time.Time // until then another text may come for the version
}

// setVersion takes in the version of the nginx that runs, "" if it is not known, and reports the one that texts must suit.
// The error says that the text at hand is for another version: the right one is being rendered.
func (d *driver) setVersion(ctx context.Context, running string) error {
	v := &d.version
	v.running = running
	d.askProgram(ctx)
	if version := older(v.running, v.binary); version != v.reported {
		v.reported = version
		if d.opts.Version != nil && d.opts.Version(version) {
			v.waits = time.Now().Add(renderTime)
			d.opts.Log.Info("the configuration is rendered again for nginx's version", "version", cmp.Or(version, "not known"))
		}
	}
	if time.Now().Before(v.waits) {
		return fmt.Errorf("%w: the configuration is being rendered for its version (%s)", proxyctl.ErrUnreachable, cmp.Or(v.reported, "not known"))
	}
	return nil
}

// askProgram asks nginx's program for its version when it is another one than before.
func (d *driver) askProgram(ctx context.Context) {
	v := &d.version
	info, err := os.Stat(d.opts.Binary)
	switch {
	case err != nil: // there is none
		v.binary, v.program = "", nil
		return
	case v.program != nil && os.SameFile(info, v.program) && info.ModTime().Equal(v.program.ModTime()):
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	if v.binary, err = VersionOf(ctx, d.opts.Binary); err != nil {
		d.opts.Log.Debug("nginx's program does not tell its version", "err", err)
	}
	v.program = info
}
