package haproxy

import (
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"

	"berth/proxyctl"
)

// section is one section of a configuration: "backend app" and its lines, each as words.
type section struct {
	kind, name string
	lines      [][]string
}

// parse splits a configuration into its sections. It knows as much of the grammar as is needed to tell sections,
// words, quotes and comments apart, and leaves the judgement of the rest to HAProxy.
func parse(text string) []section {
	var sections []section
	for line := range strings.Lines(text) {
		w := words(line)
		if len(w) == 0 {
			continue
		}
		if sectionKinds[w[0]] {
			s := section{kind: w[0]}
			if len(w) > 1 {
				s.name = w[1]
			}
			sections = append(sections, s)
			continue
		}
		if len(sections) > 0 {
			s := &sections[len(sections)-1]
			s.lines = append(s.lines, w)
		}
	}
	return sections
}

// sectionKinds are the keywords that open a section (HAProxy configuration manual, 2.6 to 3.2).
var sectionKinds = map[string]bool{
	"global": true, "defaults": true, "frontend": true, "backend": true, "listen": true, "peers": true,
	"resolvers": true, "userlist": true, "mailers": true, "cache": true, "program": true, "http-errors": true,
	"ring": true, "log-forward": true, "log-profile": true, "fcgi-app": true, "crt-store": true, "traces": true,
	"acme": true,
}

// words splits a line as HAProxy does: blanks separate, a backslash takes the next character as it is, quotes keep
// blanks, # starts a comment.
func words(line string) []string {
	var (
		out   []string
		word  strings.Builder
		in    bool
		quote byte
	)
	end := func() {
		if in {
			out = append(out, word.String())
			word.Reset()
			in = false
		}
	}
	for i := 0; i < len(line); i++ {
		ch := line[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			in = true
		case quote != 0 && ch == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(ch)
		case ch == '"' || ch == '\'':
			quote, in = ch, true
		case ch == '#':
			end()
			return out
		case ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n':
			end()
		default:
			word.WriteByte(ch)
			in = true
		}
	}
	end()
	return out
}

// binds are the addresses that the configuration listens on, as they are written there.
func binds(sections []section) []string {
	var out []string
	for _, s := range sections {
		if s.kind != "frontend" && s.kind != "listen" {
			continue
		}
		for _, l := range s.lines {
			if l[0] == "bind" && len(l) > 1 {
				out = append(out, strings.Split(l[1], ",")...)
			}
		}
	}
	return out
}

// tcpAddress turns a bind address into host and port for net.Listen. It is false for all that cannot be tried
// that way: sockets of other families, port ranges, variables.
func tcpAddress(bind string) (host string, port int, ok bool) {
	bind = strings.TrimPrefix(strings.TrimPrefix(bind, "ipv4@"), "ipv6@")
	i := strings.LastIndexByte(bind, ':')
	if i < 0 || strings.ContainsAny(bind, "@/$") {
		return "", 0, false
	}
	port, err := strconv.Atoi(bind[i+1:])
	if err != nil || port < 1 || port > 65535 {
		return "", 0, false
	}
	host = strings.Trim(bind[:i], "[]")
	if host == "*" {
		host = ""
	}
	if host != "" && net.ParseIP(host) == nil {
		return "", 0, false
	}
	return host, port, true
}

// servers are the server lines of each backend or listen section, by name of section and server.
func servers(sections []section) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, s := range sections {
		if s.kind != "backend" && s.kind != "listen" {
			continue
		}
		lines := map[string]string{}
		for _, l := range s.lines {
			if l[0] == "server" && len(l) > 2 {
				lines[l[1]] = strings.Join(l[2:], " ")
			}
		}
		out[s.name] = lines
	}
	return out
}

// changes says for each backend whose servers differ between two configurations how they differ.
func changes(before, after []section) []proxyctl.Change {
	was, is := servers(before), servers(after)
	names := map[string]bool{}
	for name := range was {
		names[name] = true
	}
	for name := range is {
		names[name] = true
	}
	var out []proxyctl.Change
	for name := range names {
		c := proxyctl.Change{Backend: name, Before: len(was[name]), After: len(is[name])}
		for srv, line := range is[name] {
			if was[name][srv] != line {
				c.Added++
			}
		}
		for srv, line := range was[name] {
			if is[name][srv] != line {
				c.Removed++
			}
		}
		if c.Added+c.Removed > 0 {
			out = append(out, c)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Backend < out[j].Backend })
	return out
}

// newAddresses are the TCP addresses that only after listens on, leaving out those whose port before has too: HAProxy
// hands its own listening sockets over.
func newAddresses(before, after []section) []string {
	var ports []int
	for _, b := range binds(before) {
		if _, port, ok := tcpAddress(b); ok {
			ports = append(ports, port)
		}
	}
	var out []string
	for _, b := range binds(after) {
		if host, port, ok := tcpAddress(b); ok && !slices.Contains(ports, port) {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(port)))
		}
	}
	return out
}
