//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A container gets the signal when its file has changed, and when it is there at last.
func TestE2EFileSignalsContainer(t *testing.T) {
	image := os.Getenv("IMAGE_HAPROXY")
	if image == "" {
		t.Fatal("IMAGE_HAPROXY is not set: run the tests with make test")
	}
	docker := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("docker", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	dir := t.TempDir()
	tmpl, conf := filepath.Join(dir, "app.ctmpl"), filepath.Join(dir, "app.conf")
	if err := os.WriteFile(tmpl, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// Not started yet, and it says what it reads at each signal.
	id := docker("create", "--volume", dir+":/etc/app:ro", image, "sh", "-c",
		`trap 'echo "told of $(cat /etc/app/app.conf)"' HUP; echo started; while :; do sleep 0.05; done`)
	t.Cleanup(func() { docker("rm", "--force", "--volumes", id) })
	says := func(what string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !strings.Contains(docker("logs", id), what); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the container does not say %q, but:\n%s", what, docker("logs", id))
			}
		}
	}
	set, out := filesProcess(t, fileEntry{Template: tmpl, File: conf, Container: id})
	set(conf, "one")
	out.wait(t, "the file has the newest text, but its action failed: send HUP to container "+id)
	docker("start", id)
	out.wait(t, "action done, live after")
	says("started") // that signal may have come before the shell could take one
	set(conf, "two")
	says("told of two")
}
