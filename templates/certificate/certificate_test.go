package certificate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Files are read again only when the sum changes; what is wrong with them is said every time.
func TestListReadsWhenTheSumChanges(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.pem")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	none := fmt.Sprintf("TLS: there is no certificate in %q, so HTTPS is off; put PEM files there, each with a certificate, its chain and its key", dir)
	var store Store
	check := func(sum, problem string) {
		t.Helper()
		var reports []string
		files := store.List(dir, []string{"a.pem", "a.key"}, sum, func(reason string) { reports = append(reports, reason) })
		if want := []string{Problem(file, problem), none}; len(files) > 0 || !slices.Equal(reports, want) {
			t.Errorf("%d files, reports %q, want %q", len(files), reports, want)
		}
	}
	write("garbage")
	check("1", "there is no certificate in PEM form in it; remove it, or put one there")
	write("-----BEGIN CERTIFICATE-----")
	check("1", "there is no certificate in PEM form in it; remove it, or put one there")
	check("2", "it is cut off; copy it there again, and rename it into place")
}
