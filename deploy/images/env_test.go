// Package images has the images of the demo and the tests.
package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Lines of build.sh are updated; lines that an operator added or changed stay.
func TestEnvironmentFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".env")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	renew := func(lines string) {
		t.Helper()
		cmd := exec.Command("./env.sh", file)
		cmd.Stdin = strings.NewReader(lines)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	has := func(lines ...string) {
		t.Helper()
		_, got, _ := strings.Cut(read(), "\n") // without the head comment
		if want := strings.Join(lines, "\n") + "\n"; got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}

	renew("COMPOSE_PROJECT_NAME=berth\nIMAGE_HAPROXY=haproxy:3.0\nDOCKER_GID=1\n")
	has("COMPOSE_PROJECT_NAME=berth", "IMAGE_HAPROXY=haproxy:3.0", "DOCKER_GID=1")
	if _, err := os.Stat(file + ".new"); err == nil {
		t.Error("a file is left over")
	}

	write(strings.Replace(read(), "=berth\n", "=shop\n", 1) + "# mine\nHTTP_PORT=18080\n\nIMAGE_HAPROXY=haproxy:3.2 # mine, too\n")
	for range 2 {
		renew("COMPOSE_PROJECT_NAME=berth\nIMAGE_HAPROXY=haproxy:3.1\nDOCKER_GID=2\n")
		has("DOCKER_GID=2", "COMPOSE_PROJECT_NAME=shop", "# mine", "HTTP_PORT=18080", "IMAGE_HAPROXY=haproxy:3.2 # mine, too")
	}

	// A file from before the record of written lines.
	if err := os.Remove(file + ".made"); err != nil {
		t.Fatal(err)
	}
	write("# From deploy/images/build.sh, which renews its own.\nCOMPOSE_PROJECT_NAME=other\nIMAGE_HAPROXY=haproxy:3.0\nDOCKER_GID=1\nHTTP_PORT=1\n")
	renew("COMPOSE_PROJECT_NAME=berth\nIMAGE_HAPROXY=haproxy:3.1\nDOCKER_GID=2\n")
	has("IMAGE_HAPROXY=haproxy:3.1", "DOCKER_GID=2", "COMPOSE_PROJECT_NAME=other", "HTTP_PORT=1")
}
