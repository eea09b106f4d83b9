package haproxy

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"berth/proxyctl"
)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func onDisk(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// onlyText is a configuration that refers to no files.
func onlyText(text string) proxyctl.Config { return proxyctl.Config{Text: text} }
