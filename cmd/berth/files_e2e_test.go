//go:build e2e

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// A container gets the signal when its file has changed, and when it is there at last.
func TestE2EFileSignalsContainer(t *testing.T) {
	dir := t.TempDir()
	tmpl, conf := filepath.Join(dir, "app.ctmpl"), filepath.Join(dir, "app.conf")
	if err := os.WriteFile(tmpl, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// Not started yet, and it says what it reads at each signal.
	id := testenv.MustDocker(t, "create", "--name", testenv.Name(t)+"-app", "--volume", dir+":/etc/app:ro", testenv.Image(t, "IMAGE_HAPROXY"), "sh", "-c",
		`trap 'echo "told of $(cat /etc/app/app.conf)"' HUP; echo started; while :; do sleep 0.05; done`)
	says := func(what string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "the container says "+what, func() error {
			out, err := testenv.Docker("logs", id)
			if err == nil && !strings.Contains(out, what) {
				err = errors.New(out)
			}
			return err
		})
	}
	set, out := filesProcess(t, fileEntry{Template: tmpl, File: conf, Container: id})
	set(conf, "one")
	out.Wait(t, "the file has the newest text, but its action failed: send HUP to container "+id)
	testenv.MustDocker(t, "start", id)
	out.Wait(t, "ran the action of "+conf+", live after")
	says("started") // that signal may have come before the shell could take one, and has not ended it
	set(conf, "two")
	says("told of two")
}
