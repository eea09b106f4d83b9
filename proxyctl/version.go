package proxyctl

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AtLeast reports whether a proxy version, such as "1.26.3", is other or later. An unknown version, "", is before any other.
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

// versionIn matches the version in a program's output: nginx version: nginx/1.26.3, HAProxy version 3.0.11-1+deb13u5.
var versionIn = regexp.MustCompile(`(?:/|version )([0-9]+(?:\.[0-9]+)+)`)

// VersionOf returns the version of a proxy's program, as printed by -v.
func VersionOf(ctx context.Context, binary string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, "-v")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	said := versionIn.FindSubmatch(out)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s -v: %w", binary, err)
	case said == nil:
		return "", fmt.Errorf("%s -v names no version: %.100q", binary, out)
	}
	return string(said[1]), nil
}

// VersionHere returns the version that a text must suit. It asks the proxy's program, if there is one, and the running proxy. It
// returns "" if neither answers in time.
func VersionHere(ctx context.Context, binary string, running func(context.Context) (string, error), timeout time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	program := ""
	if binary != "" {
		program, _ = VersionOf(ctx, binary)
	}
	version, _ := running(ctx)
	return older(program, version)
}

// older returns the older of two versions, or the only known one. A text must suit both the program that validates it and the
// running proxy, which may have started before the program was replaced.
func older(a, b string) string {
	if b == "" || a != "" && AtLeast(b, a) {
		return a
	}
	return b
}

// renderTime is how long to wait for a text for another version.
const renderTime = 2 * time.Second

// Version tracks the version of a proxy for its driver.
type Version struct {
	Name    string        // of the proxy
	Binary  string        // its program; "" if there is none
	Timeout time.Duration // of that program
	// Report, if not nil, is called with the version that texts must suit when it becomes known or changes, and with "" when it
	// becomes unknown. It returns whether another text is rendered for it.
	Report func(version string) (rendered bool)
	Log    *slog.Logger

	running  string // the running version, or the one that ran until just now; "" if unknown
	binary   string
	program  os.FileInfo // the program that reported it
	reported string
	waits    time.Time // until when to wait for a text for the version
}

// Running returns the running version, or the one that ran until just now; "" if unknown.
func (v *Version) Running() string { return v.running }

// Rendered records that a text has come, which ends the wait for one.
func (v *Version) Rendered() { v.waits = time.Time{} }

// Set records the running version, "" if unknown, and reports the version that texts must suit. The error means that the current
// text is for another version and the right one is being rendered.
func (v *Version) Set(ctx context.Context, running string) error {
	v.running = running
	v.askProgram(ctx)
	if version := older(v.running, v.binary); version != v.reported {
		v.reported = version
		if v.Report != nil && v.Report(version) {
			v.waits = time.Now().Add(renderTime)
			v.Log.Info("rendering the configuration again for "+v.Name+" "+cmp.Or(version, "of unknown version"), "version", cmp.Or(version, "not known"))
		}
	}
	if time.Now().Before(v.waits) {
		return fmt.Errorf("%w: the configuration is being rendered for its version (%s)", ErrUnreachable, cmp.Or(v.reported, "not known"))
	}
	return nil
}

// askProgram asks the program for its version if the program was replaced.
func (v *Version) askProgram(ctx context.Context) {
	info, err := os.Stat(v.Binary)
	switch {
	case err != nil: // there is no program
		v.binary, v.program = "", nil
		return
	case v.program != nil && os.SameFile(info, v.program) && info.ModTime().Equal(v.program.ModTime()):
		return
	}
	ctx, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	if v.binary, err = VersionOf(ctx, v.Binary); err != nil {
		v.Log.Debug("cannot read the version of the "+v.Name+" program", "err", err)
	}
	v.program = info
}
