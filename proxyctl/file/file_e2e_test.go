//go:build e2e

package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// inside is the environment variable that tells this program, in a container, which file to write.
const inside = "BERTH_TEST_FILE"

func TestMain(m *testing.M) {
	if path := os.Getenv(inside); path != "" {
		writeInside(path)
		return
	}
	os.Exit(m.Run())
}

// writeInside prints what happens to a file, and which files are next to it afterwards.
func writeInside(path string) {
	_ = os.WriteFile(path, []byte("old"), 0o644)
	f := New(Options{Path: path, Action: func(context.Context) error { return nil }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.Set(strings.Repeat("new", 100_000), time.Now())
	err := f.Ready()
	for end := time.Now().Add(10 * time.Second); err != nil && strings.HasSuffix(err.Error(), "not written yet") && time.Now().Before(end); err = f.Ready() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	fmt.Printf("%v\n%.3s", err, read(path))
	hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"*"))
	fmt.Println(hidden)
}

// If a file cannot be written, one line says what to do, and the existing file stays.
func TestE2ECannotWrite(t *testing.T) {
	image := testenv.Image(t, "IMAGE_HAPROXY")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	single := filepath.Join(t.TempDir(), "app.conf")
	if err := os.WriteFile(single, []byte("old"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		run  []string // of docker run
		want string
	}{
		{"all is well", []string{"--user", "0"}, "<nil>\nnew[]"},
		{"a single file is mounted", []string{"--user", "0", "--volume", single + ":/data/app.conf"}, "write /data/app.conf: device or resource busy: mount its directory, not the single file\nold[]"},
		{"read-only", []string{"--user", "0", "--read-only", "--volume", filepath.Dir(single) + ":/data:ro"}, "write /data/app.conf: read-only file system\nold[]"},
		{"full", []string{"--user", "0", "--tmpfs", "/data:size=64k"}, "write /data/app.conf: no space left on device\nold[]"},
		{"another's directory", []string{"--user", "12345", "--volume", filepath.Dir(single) + ":/data"}, "write /data/app.conf: permission denied: its directory must be writable for user 12345\nold[]"},
		{"a directory that another has to make", []string{"--user", "12345"}, "write /data/app.conf: permission denied: its directory must be writable for user 12345\nope[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "--volume", program + ":/test:ro", "--env", inside + "=/data/app.conf"}, tt.run...)
			out, err := exec.Command("docker", append(args, "--entrypoint", "/test", image)...).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != tt.want {
				t.Errorf("%v\n%s\nwant\n%s", err, out, tt.want)
			}
		})
	}
}
