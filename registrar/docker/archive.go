package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	docker "github.com/fsouza/go-dockerclient"
)

// Archive is the part of *docker.Client that reads and writes files of a container, whether or not it runs.
type Archive interface {
	UploadToContainer(id string, opts docker.UploadToContainerOptions) error
	DownloadFromContainer(id string, opts docker.DownloadFromContainerOptions) error
}

const (
	// MaxFile is the largest file that berth replaces, because it keeps the old one to restore it.
	MaxFile = 1 << 20
	// defaultMode is the mode of a new file.
	defaultMode = 0o644
)

// File is a file in a container.
type File struct {
	Name     string // without its directory
	Text     []byte
	Mode     int64 // 0 = default for a new file
	UID, GID int
	Modified time.Time
}

// ReadFile returns a file of a container, or nil if it does not exist.
func ReadFile(ctx context.Context, a Archive, id, name string) (*File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var stream limited
	err := a.DownloadFromContainer(id, docker.DownloadFromContainerOptions{Context: ctx, Path: name, OutputStream: &stream})
	var answer *docker.Error
	switch {
	case stream.full:
		return nil, fmt.Errorf("%s has more than %d bytes, or is a directory: berth does not replace it", name, MaxFile)
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound && !strings.Contains(strings.ToLower(answer.Message), "no such container"):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s in the container: %w", name, err)
	}
	archive := tar.NewReader(&stream.taken)
	header, err := archive.Next()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s in the container: %w", name, err)
	case header.Typeflag == tar.TypeDir:
		return nil, fmt.Errorf("%s is a directory: name a file in it", name)
	case header.Typeflag != tar.TypeReg:
		return nil, fmt.Errorf("%s is a link or not a regular file: name the file itself", name)
	}
	text, err := io.ReadAll(archive)
	if err != nil {
		return nil, fmt.Errorf("read %s in the container: %w", name, err)
	}
	return &File{path.Base(name), text, header.Mode, header.Uid, header.Gid, header.ModTime}, nil
}

// limited is a buffer for one file of MaxFile bytes.
type limited struct {
	taken bytes.Buffer // not embedded: its ReadFrom would know no limit
	full  bool
}

func (l *limited) Write(p []byte) (int, error) {
	if l.taken.Len()+len(p) > MaxFile+16<<10 { // room for the headers and padding of tar
		l.full = true
		return 0, errors.New("too long")
	}
	return l.taken.Write(p)
}

// WriteFiles puts files into an existing directory of a container. The error says what can be done about it.
func WriteFiles(ctx context.Context, a Archive, id, dir string, files []File) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var stream bytes.Buffer
	archive := tar.NewWriter(&stream)
	for _, f := range files {
		header := tar.Header{
			Typeflag: tar.TypeReg, Name: f.Name, Size: int64(len(f.Text)), Mode: f.Mode, Uid: f.UID, Gid: f.GID, ModTime: f.Modified, Format: tar.FormatPAX,
		}
		if header.Mode == 0 {
			header.Mode = defaultMode
		}
		if err := archive.WriteHeader(&header); err != nil {
			return fmt.Errorf("pack %s: %w", f.Name, err)
		}
		if _, err := archive.Write(f.Text); err != nil {
			return fmt.Errorf("pack %s: %w", f.Name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("pack files: %w", err)
	}
	err := a.UploadToContainer(id, docker.UploadToContainerOptions{Context: ctx, Path: dir, InputStream: &stream})
	if err != nil {
		return fmt.Errorf("write into %s of the container: %w", dir, withRemedy(err, dir))
	}
	return nil
}

// withRemedy adds a remedy to Docker's refusal to write.
func withRemedy(err error, dir string) error {
	text := strings.ToLower(err.Error())
	for _, r := range []struct{ says, remedy string }{
		{"no such container", ""},
		{"could not find", "the directory does not exist: create it in the image, or mount a volume there"},
		{"not a directory", "it is not a directory: choose another path"},
		{"read-only", "it is read-only: mount a volume there that can be written"},
		{"busy", "the file is itself a mount and cannot be replaced: mount the directory " + dir + " instead"},
	} {
		if strings.Contains(text, r.says) && r.remedy != "" {
			return fmt.Errorf("%s (Docker: %w)", r.remedy, err)
		}
	}
	return err
}

// Restart returns a function that restarts a container with its own stop signal and timeout, and returns when it runs again.
// ctx must have a deadline, because a container may take its time to stop. (The client's own call takes no context.)
func Restart(client *docker.Client) func(ctx context.Context, id string) error {
	return func(ctx context.Context, id string) error {
		resp, err := ask(ctx, client, http.MethodPost, "/containers/"+id+"/restart")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}
