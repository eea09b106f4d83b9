package haproxy

import (
	"cmp"
	"regexp"
	"strings"

	"berth/proxyctl"
)

var (
	// faultPlace matches a line of a file as HAProxy names it, but also addresses like [0.0.0.0:80].
	faultPlace = regexp.MustCompile(`\[([^\]\s]*):(\d+)\]`)
	// faultName matches a backend, or the backend of a server, as HAProxy names it.
	faultName = regexp.MustCompile(`(?i:backend|proxy|listen) '([^'\s]+)'|'server ([^/'\s]+)/`)
)

// AtFault implements proxyctl.Grammar. If there are several complaints, the first counts.
func (d *driver) AtFault(text, complaint string) string {
	if line := proxyctl.FaultLine(complaint, faultPlace, d.opts.File); line > 0 {
		return sectionAt(text, line)
	}
	named := faultName.FindAllStringSubmatch(complaint, -1)
	if len(named) == 0 {
		return ""
	}
	there := map[string]bool{}
	for line := range strings.Lines(text) {
		there[proxyOpened(line)] = true
	}
	for _, m := range named {
		if name := cmp.Or(m[1], m[2]); there[name] {
			return name
		}
	}
	return ""
}

// sectionAt returns the backend or listen section that contains a line, "" if none does.
func sectionAt(text string, number int) (name string) {
	for line := range strings.Lines(text) {
		if opensSection(line) {
			name = proxyOpened(line)
		}
		if number--; number == 0 {
			return name
		}
	}
	return ""
}

// proxyOpened returns the name of the backend or listen section that a line opens, "" if it opens none.
func proxyOpened(line string) string {
	if !opensSection(line) {
		return ""
	}
	w, _ := words(line)
	if len(w) > 1 && (section{kind: w[0]}).isProxy() {
		return strings.Clone(w[1])
	}
	return ""
}
