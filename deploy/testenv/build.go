//go:build e2e

package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Build makes an image from a Dockerfile without files, for one test, and returns its name.
func Build(t testing.TB, dockerfile string) string {
	t.Helper()
	name := fmt.Sprintf("%simage:%d-%d", Prefix, os.Getpid(), names.Add(1))
	build := exec.Command("docker", "build", "--force-rm", "-t", name, "-")
	build.Stdin = strings.NewReader(dockerfile)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if _, err := Docker("rmi", name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// WithBerth makes an image from another one and adds berth to its path.
func WithBerth(t testing.TB, image string) string {
	t.Helper()
	return Build(t, "FROM "+Image(t, "IMAGE_BERTH")+" AS berth\nFROM "+image+"\nCOPY --from=berth /berth /usr/local/bin/berth\nSTOPSIGNAL SIGTERM\n")
}

// Berth copies the binary out of berth's image, and returns its path.
func Berth(t testing.TB) string {
	t.Helper()
	id := MustDocker(t, "create", "--name", Name(t)+"-berth", "--label", "SERVICE_IGNORE=1", Image(t, "IMAGE_BERTH"))
	path := filepath.Join(Dir(t), "berth")
	MustDocker(t, "cp", id+":/berth", path)
	return path
}
