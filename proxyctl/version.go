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

// AtLeast says whether a version of a proxy, "1.26.3", is another one or later. What is not known, "", is before any.
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

// versionIn finds the version in what a program says of itself: nginx version: nginx/1.26.3, HAProxy version 3.0.11-1+deb13u5.
var versionIn = regexp.MustCompile(`(?:/|version )([0-9]+(?:\.[0-9]+)+)`)

// VersionOf returns the version of a proxy's program, which it asks by -v.
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

// VersionHere returns the version that a text must suit. It asks the proxy's program, if there is one, and the proxy that
// runs, and returns "" if neither answers in time.
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

// older returns the older of two versions, or the known one. A text must suit both the program that validates it and the
// proxy that runs, which may have been started before the program was replaced.
func older(a, b string) string {
	if b == "" || a != "" && AtLeast(b, a) {
		return a
	}
	return b
}

// renderTime is how long a text for another version is waited for.
const renderTime = 2 * time.Second

// Version follows the version of a proxy, for its driver.
type Version struct {
	Name    string        // of the proxy
	Binary  string        // its program; "" = there is none
	Timeout time.Duration // of that program
	// Report, if not nil, is called with the version that texts must suit when that becomes known, changes, or, as "", is not
	// known any more. It says whether another text is rendered for it.
	Report func(version string) (rendered bool)
	Log    *slog.Logger

	running  string // or ran until just now; "" if it is not known
	binary   string
	program  os.FileInfo // that said so
	reported string
	waits    time.Time // until then another text may come for the version
}

// Running returns the version that runs, or ran until just now, "" if it is not known.
func (v *Version) Running() string { return v.running }

// Rendered says that a text has come: it is the one for the version, if one was waited for.
func (v *Version) Rendered() { v.waits = time.Time{} }

// Set takes in the version that runs, "" if it is not known, and reports the one that texts must suit. The error says that the
// text at hand is for another version: the right one is being rendered.
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

// askProgram asks the program for its version when it is another one than before.
func (v *Version) askProgram(ctx context.Context) {
	info, err := os.Stat(v.Binary)
	switch {
	case err != nil: // there is none
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
