package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/deploy/testenv"
)

func TestMountedAlone(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"alone", "in directory", "real"} {
		if err := os.WriteFile(at(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", at("link")); err != nil {
		t.Fatal(err)
	}
	const before, after = "640 620 8:1 /data/x ", " rw,relatime - ext4 /dev/sda1 rw\n"
	mounts := "630 620 0:62 / / rw - overlay overlay rw\n"
	for _, path := range []string{dir, at("alone"), at("with blank"), at("real")} {
		mounts += before + strings.ReplaceAll(path, " ", `\040`) + after
	}
	var files []watchedFile
	for _, name := range []string{"alone", "in directory", "with blank", "link", "alone"} {
		files = append(files, watchedFile{"template", at(name)})
	}
	files = append(files, watchedFile{"token file", ""})
	var got []string
	for _, f := range mountedAlone(files, mounts) {
		got = append(got, filepath.Base(f.path))
	}
	if want := []string{"alone", "with blank", "link"}; !slices.Equal(got, want) {
		t.Errorf("mounted alone: %q, want %q", got, want)
	}
}

// The registrar reads files again, too, and warns of them.
func TestRegistrarWarnsOfMounts(t *testing.T) {
	if out, err := exec.Command("unshare", "--map-root-user", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mounts can be made here: %v: %s", err, out)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log testenv.Log
	cmd := exec.Command("unshare", "--map-root-user", "--mount", "sh", "-c", `mount --bind "$0" "$0" && exec berth registrar --listen none --consul-token-file "$0"`, token)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(t.TempDir(), "docker.sock"), "CONSUL_HTTP_ADDR=127.0.0.1:1")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ends with %v:\n%s", err, log.String())
		}
	}()
	log.Wait(t, "token file "+token+" is mounted as a single file")
	log.Wait(t, "berth started") // from here on it ends in order
}
