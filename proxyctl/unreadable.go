package proxyctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// quotedPath matches a path in a proxy's complaint.
var quotedPath = regexp.MustCompile(`['"](/[^'"\s]+)['"]`)

// unreadable returns what a complaint leaves out: that a file it names, or the key of a certificate it names, is there and
// cannot be read. HAProxy only says that it has found no key. It returns "" if berth can open them all.
func unreadable(complaint string, open func(path string) (*os.File, error)) string {
	var paths []string
	for _, m := range quotedPath.FindAllStringSubmatch(complaint, -1) {
		stem := strings.TrimSuffix(strings.TrimSuffix(m[1], ".key"), ".crt") // HAProxy names a.crt.key for a missing a.key
		paths = append(paths, m[1], stem+".key")
	}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		f, err := open(path)
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Sprintf("berth's user %d may not read %s: the proxy has to, so give the file to the proxy's user", os.Getuid(), path)
		}
		if err == nil {
			_ = f.Close()
		}
	}
	return ""
}
