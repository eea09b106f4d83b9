package docker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
)

// packed is a tar with one entry.
func packed(t *testing.T, h tar.Header, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	h.Size = int64(len(text))
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReadFile(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   []byte
		want   string // "none" = the file does not exist
		err    string
	}{
		{name: "a file", status: 200, body: packed(t, tar.Header{Typeflag: tar.TypeReg, Name: "c", Mode: 0o640, Uid: 7}, "text"), want: "text 640 7"},
		{name: "none", status: 404, body: []byte(`{"message":"Could not find the file /etc/c in container x"}`), want: "none"},
		{name: "no container", status: 404, body: []byte(`{"message":"No such container: x"}`), err: "No such container"},
		{name: "a directory", status: 200, body: packed(t, tar.Header{Typeflag: tar.TypeDir, Name: "c/"}, ""), err: "is a directory"},
		{name: "a link", status: 200, body: packed(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "c", Linkname: "d"}, ""), err: "is a link"},
		{name: "a long one", status: 200, body: packed(t, tar.Header{Typeflag: tar.TypeReg, Name: "c"}, strings.Repeat("x", MaxFile+32<<10)), err: "berth does not replace it"},
		{name: "cut off", status: 200, body: []byte("x"), err: "read /etc/c in the container"},
		{name: "an error", status: 500, body: []byte(`{"message":"disk is on fire"}`), err: "disk is on fire"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/containers/x/archive" || r.URL.Query().Get("path") != "/etc/c" {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				w.WriteHeader(tt.status)
				_, _ = w.Write(tt.body)
			})
			f, err := ReadFile(t.Context(), client, "x", "/etc/c")
			got := "none"
			if f != nil {
				got = fmt.Sprintf("%s %o %d", f.Text, f.Mode, f.UID)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("err = %v, want %q", err, tt.err)
				}
			} else if err != nil || got != tt.want {
				t.Errorf("got %q (%v), want %q", got, err, tt.want)
			}
		})
	}
}

func TestWriteFiles(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var got []string
	client := daemon(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || r.URL.Path != "/containers/x/archive" || r.URL.Query().Get("path") != "/etc" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		for archive := tar.NewReader(r.Body); ; {
			h, err := archive.Next()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(archive)
			got = append(got, fmt.Sprintf("%s %o %d %s %s", h.Name, h.Mode, h.Uid, h.ModTime.UTC().Format(time.RFC3339), text))
		}
	})
	err := WriteFiles(t.Context(), client, "x", "/etc", []File{{Name: "new", Text: []byte("a"), Modified: at}, {Name: "old", Text: []byte("b"), Mode: 0o600, UID: 7, Modified: at}})
	if want := []string{"new 644 0 2026-01-02T03:04:05Z a", "old 600 7 2026-01-02T03:04:05Z b"}; err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q (%v), want %q", got, err, want)
	}
}

// Docker's refusals come with a remedy.
func TestWriteFilesRefused(t *testing.T) {
	for message, want := range map[string]string{
		"Could not find the file /etc in container x": "create it in the image, or mount a volume there",
		"container rootfs is marked read-only":        "mount a volume there that can be written",
		"mounted volume is marked read-only":          "mount a volume there that can be written",
		"unlinkat /etc/c: device or resource busy":    "mount the directory /etc instead",
		"extraction point is not a directory":         "choose another path",
		"No such container: x":                        "No such container: x",
		"something that nobody has ever seen":         "something that nobody has ever seen",
	} {
		client := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"message":%q}`, message)
		})
		err := WriteFiles(t.Context(), client, "x", "/etc", []File{{Name: "c"}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want %q", message, err, want)
		}
	}
}

func TestRestart(t *testing.T) {
	status := http.StatusNoContent
	client := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.RequestURI() != "/containers/x/restart" { // no t: Docker knows the container's own timeout
			t.Errorf("%s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_, _ = w.Write([]byte("no such program"))
		}
	})
	if err := Restart(client)(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	status = http.StatusInternalServerError
	if err := Restart(client)(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("err = %v", err)
	}
}

var _ Archive = (*docker.Client)(nil)
