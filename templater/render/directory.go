package render

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// lookEvery is how often a directory is read.
const lookEvery = time.Second

// Directory is the result of the template function directory.
type Directory struct {
	Path  string
	Names []string // regular files, sorted, without names that begin with a dot; empty if the directory does not exist
	Sum   string   // changes with the names, sizes and modification times
}

// directoryQuery is the dependency on a directory.
type directoryQuery struct {
	path string
	last *Directory
	stop chan struct{}
}

func newDirectoryQuery(path string) *directoryQuery {
	return &directoryQuery{path: path, stop: make(chan struct{})}
}

// Fetch returns at once the first time. Later it returns when the directory has changed and two consecutive reads agree, because a
// file may still be written.
func (q *directoryQuery) Fetch(*dependency.ClientSet, *dependency.QueryOptions) (any, *dependency.ResponseMetadata, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for seen := ""; ; {
		d, err := readDirectory(q.path)
		if err != nil {
			return nil, nil, err
		}
		if q.last == nil || d.Sum != q.last.Sum && d.Sum == seen {
			q.last = &d
			return d, &dependency.ResponseMetadata{}, nil
		}
		seen = d.Sum
		select {
		case <-q.stop:
			return nil, nil, dependency.ErrStopped
		case <-tick.C:
		}
	}
}

func (q *directoryQuery) CanShare() bool        { return false }
func (q *directoryQuery) String() string        { return "directory(" + q.path + ")" }
func (q *directoryQuery) Stop()                 { close(q.stop) }
func (q *directoryQuery) Type() dependency.Type { return dependency.TypeLocal }

// readDirectory reads only names: rendering a configuration needs no permission to read the keys of its certificates.
func readDirectory(path string) (Directory, error) {
	d := Directory{Path: path}
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	sum := sha256.New()
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		info, err := os.Stat(path + "/" + e.Name()) // of a link's target
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return d, err
		}
		d.Names = append(d.Names, e.Name())
		fmt.Fprintf(sum, "%q %d %d\n", e.Name(), info.Size(), info.ModTime().UnixNano())
	}
	d.Sum = fmt.Sprintf("%x", sum.Sum(nil)[:8])
	return d, nil
}
