package main

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
)

// watchedFile is a file that berth reads again when it changes.
type watchedFile struct{ what, path string }

// warnOfMounts warns of templates, tokens and certificates that are mounted as single files, as with
// -v ./haproxy.ctmpl:/etc/berth/haproxy.ctmpl. An editor replaces the file, but the mount keeps showing the old one.
func (p *process) warnOfMounts(outputs []output) {
	var files []watchedFile
	for _, o := range outputs {
		files = append(files, watchedFile{"template", o.template.File})
	}
	files = append(files, watchedFile{"token file", cmp.Or(p.config.ConsulTokenFile, os.Getenv(api.HTTPTokenFileEnvName))},
		watchedFile{"client certificate", os.Getenv(api.HTTPClientCert)})
	mounts, _ := os.ReadFile("/proc/self/mountinfo") // which exists on Linux
	for _, f := range mountedAlone(files, string(mounts)) {
		p.log.Warn(f.what+" "+f.path+" is mounted as a single file, so edits that replace it go unnoticed; mount its directory", "path", f.path)
	}
}

// mountedAlone returns the files that are mount points, by the text of /proc/self/mountinfo.
func mountedAlone(files []watchedFile, mounts string) (alone []watchedFile) {
	points := map[string]bool{}
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[unescaped(fields[4])] = true
		}
	}
	for _, f := range files {
		if f.path == "" || slices.Contains(alone, f) {
			continue
		}
		path, err := filepath.Abs(f.path)
		if err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if points[path] {
			alone = append(alone, f)
		}
	}
	return alone
}

var octal = regexp.MustCompile(`\\[0-7]{3}`)

// unescaped returns a path of mountinfo, which escapes a blank as \040.
func unescaped(path string) string {
	return octal.ReplaceAllStringFunc(path, func(s string) string {
		n, _ := strconv.ParseUint(s[1:], 8, 8)
		return string([]byte{byte(n)})
	})
}
