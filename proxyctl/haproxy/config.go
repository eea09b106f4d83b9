package haproxy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"berth/proxyctl"
)

// config is what berth understands of a configuration text: its sections, and their servers. It parses only enough of the grammar
// to tell them apart, and leaves the rest to HAProxy.
type config struct {
	preamble     string             // everything before the first section
	maps         map[string]entries // by path
	sections     []section
	backends     map[string]*backend // backends and listen sections
	bare         map[string]bare     // the backends that may come and go at run time
	reloadReason string              // why no server can be changed at run time, "" if servers can
}

// backend is the servers of a section. It never changes once it is read, so the same pointer in two configurations means the same
// servers. It shares no memory with the text that it was read from: names and lines are copies.
type backend struct {
	servers map[string]server
	order   []string // server names, in the order of the text
	lines   map[serverLine]namedServer
	opaque  []string // words of the servers that cannot be changed at run time; they may refer to other servers
	off     bool     // it is disabled
}

// serverLine is a line and the default-server words that apply to it. A line that was read before need not be read again, which
// saves most of the cost of a text.
type serverLine struct{ inherited, text string }

type namedServer struct {
	name, line string
	server
}

// withServers returns the backend with other servers of the same text.
func (b *backend) withServers(servers map[string]server) *backend {
	out := *b
	out.servers = servers
	return &out
}

// section is one section of a configuration without its server lines. All strings except text are copies.
type section struct {
	kind, name   string
	head         string     // its first line, without extra blanks and comments
	from         string     // the defaults section named in head
	bare         bool       // whether it is in config.bare
	lines        [][]string // words of the other lines
	raw          []string   // the same lines as written, without extra blanks and comments
	text         string     // the whole section with its servers, as a part of the newest text
	inherited    string     // default-server words that apply at its start
	inherit      string     // default-server words that apply at its end
	reloadReason string     // why its servers cannot be changed at run time
	backend      *backend   // its servers, if it is a backend or listen section
}

func (s section) String() string { return strings.TrimSpace(s.kind + " " + s.name) }

// sectionKinds are the keywords that open a section (HAProxy configuration manual, 2.6 to 3.4).
var sectionKinds = map[string]bool{
	"global": true, "defaults": true, "frontend": true, "backend": true, "listen": true, "peers": true,
	"resolvers": true, "userlist": true, "mailers": true, "cache": true, "program": true, "http-errors": true,
	"ring": true, "log-forward": true, "log-profile": true, "fcgi-app": true, "crt-store": true, "traces": true,
	"acme": true, "healthcheck": true,
}

// parser is the state of reading one text.
type parser struct {
	config
	before   map[string]section // the sections of the previous text, by head
	text     string             // all of it
	at       int                // where the next line starts
	defaults map[string]string  // default-server words by the name of a defaults section; "" is the last one
	inherit  string             // default-server words that apply to the next server line
}

// parse parses a configuration. before is a similar one, or nil: unchanged parts are taken from it.
func parse(text string, before *config) *config {
	p := parser{
		config: config{backends: map[string]*backend{}}, before: map[string]section{},
		text: text, defaults: map[string]string{},
	}
	if before != nil {
		for _, s := range before.sections {
			p.before[s.head] = s
		}
	}
	begin := 0 // of the current section
	for p.at < len(text) {
		start := p.at
		line := p.line()
		if !opensSection(line) {
			p.read(line)
			continue
		}
		p.end(text[begin:start])
		begin = start
		p.begin(start)
	}
	p.end(text[begin:])
	p.maps = readMaps(p.preamble, before)
	p.findBare()
	return &p.config
}

// line reads the next line.
func (p *parser) line() string {
	rest := p.text[p.at:]
	if end := strings.IndexByte(rest, '\n'); end >= 0 {
		rest = rest[:end+1]
	}
	p.at += len(rest)
	return rest
}

// opensSection reports whether a line opens a section.
func opensSection(line string) bool {
	first, _, _ := strings.Cut(strings.TrimLeft(line, " \t\r\n"), " ")
	if first = strings.TrimRight(first, "\r\n"); !sectionKinds[first] && !strings.ContainsAny(first, "\t\\\"'#") {
		return false
	}
	w, _ := words(line)
	return len(w) > 0 && sectionKinds[w[0]]
}

// begin opens a section whose head starts at start. A section that is unchanged from the previous text is not read again.
func (p *parser) begin(start int) {
	w, head := words(strings.Clone(p.text[start:p.at]))
	s := section{kind: w[0], head: head}
	if len(w) > 1 {
		s.name = w[1]
	}
	p.inherit = ""
	if from := slices.Index(w, "from"); from >= 0 && from+1 < len(w) {
		s.from = w[from+1]
		p.inherit = p.defaults[s.from]
	} else if s.kind != "defaults" {
		p.inherit = p.defaults[""]
	}
	s.inherited = p.inherit
	if s.isProxy() && p.backends[s.name] != nil {
		p.reloadReason = cmp.Or(p.reloadReason, "it has two sections named "+s.name)
	}
	old, known := p.before[head]
	if known && old.inherited == s.inherited && strings.HasPrefix(p.text[start:], old.text) && p.beginsSection(start+len(old.text)) {
		s = old
		p.at = start + len(old.text)
		p.inherit = s.inherit
		p.reloadReason = cmp.Or(p.reloadReason, s.reloadReason)
	} else if s.isProxy() {
		n := old.backend.count()
		s.backend = &backend{servers: make(map[string]server, n), lines: make(map[serverLine]namedServer, n)}
	}
	if s.isProxy() {
		p.backends[s.name] = s.backend
	}
	p.sections = append(p.sections, s)
}

// beginsSection reports whether a section, or the end of the text, follows at this position.
func (p *parser) beginsSection(at int) bool {
	line, _, _ := strings.Cut(p.text[at:], "\n")
	return at == len(p.text) || opensSection(line)
}

// end stores the text of the section that was read, and what it passes on.
func (p *parser) end(text string) {
	if len(p.sections) == 0 {
		p.preamble = text
		return
	}
	s := &p.sections[len(p.sections)-1]
	s.text, s.inherit = text, p.inherit
	if s.kind == "defaults" {
		p.defaults[""], p.defaults[s.name] = p.inherit, p.inherit
	}
}

// read reads a line that opens no section.
func (p *parser) read(line string) {
	if first := strings.TrimLeft(line, " \t\r\n"); first == "" || first[0] == '#' {
		return
	}
	if len(p.sections) == 0 {
		p.sections = append(p.sections, section{})
	}
	s := &p.sections[len(p.sections)-1]
	if s.backend != nil {
		if known, ok := p.before[s.head].known(serverLine{p.inherit, line}); ok {
			p.add(s, known)
			return
		}
	}
	line = strings.Clone(line) // otherwise its words would keep the whole text in memory
	w, raw := words(line)
	if len(w) == 0 {
		return
	}
	if strings.HasPrefix(w[0], ".") {
		s.reloadReason = cmp.Or(s.reloadReason, "it has conditional blocks ("+w[0]+")")
		p.reloadReason = cmp.Or(p.reloadReason, s.reloadReason)
	}
	quoted := strings.ContainsAny(raw, `\\"'`) // HAProxy's quoting rules are richer than those of words
	if s.backend != nil && w[0] == "server" && len(w) > 2 {
		server := newServer(w[1], w[2], append(strings.FieldsFunc(p.inherit, isSeparator), w[3:]...))
		if quoted {
			server.fix("its line has quotes or escapes", raw)
		}
		p.add(s, namedServer{w[1], line, server})
		return
	}
	if w[0] == "default-server" && (s.backend != nil || s.kind == "defaults") {
		inherit := w[1:]
		if quoted {
			inherit = strings.Fields(raw)[1:] // with its quotes, which makes every server that inherits them unchangeable
		}
		p.inherit += separator + strings.Join(inherit, separator)
	}
	if w[0] == "disabled" {
		if s.backend != nil {
			s.backend.off = true
		} else if s.kind == "defaults" {
			s.reloadReason = cmp.Or(s.reloadReason, s.String()+" contains \"disabled\"")
			p.reloadReason = cmp.Or(p.reloadReason, s.reloadReason)
		}
	}
	s.lines = append(s.lines, w)
	s.raw = append(s.raw, raw)
}

// separator separates inherited words.
const separator = "\x00"

func isSeparator(r rune) bool { return r == 0 }

// add adds a server to a section.
func (p *parser) add(s *section, n namedServer) {
	if _, twice := s.backend.servers[n.name]; twice {
		s.reloadReason = cmp.Or(s.reloadReason, fmt.Sprintf("%s has two servers named %s", s, n.name))
		p.reloadReason = cmp.Or(p.reloadReason, s.reloadReason)
	}
	s.backend.servers[n.name] = n.server
	s.backend.order = append(s.backend.order, n.name)
	s.backend.lines[serverLine{p.inherit, n.line}] = n
	if n.reloadReason != "" {
		s.backend.opaque = append(s.backend.opaque, n.keywords)
	}
}

// has reports whether the section has a line that begins with keyword and contains these words.
func (s section) has(keyword string, words ...string) bool {
	return slices.ContainsFunc(s.lines, func(l []string) bool {
		return l[0] == keyword && !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(l, w) })
	})
}

func (s section) isProxy() bool { return s.kind == "backend" || s.kind == "listen" }

// known returns the server for a line that was read before.
func (s section) known(line serverLine) (namedServer, bool) {
	if s.backend == nil {
		return namedServer{}, false
	}
	n, ok := s.backend.lines[line]
	return n, ok
}

// words splits a line as HAProxy does: blanks separate words, a backslash takes the next character literally, quotes keep blanks,
// and # starts a comment. raw is the line as written, with one blank between words.
func words(line string) (cooked []string, raw string) {
	if !strings.ContainsAny(line, "\\\"'#") {
		cooked = strings.Fields(line)
		return cooked, strings.Join(cooked, " ")
	}
	var (
		word, all strings.Builder
		in        bool
		quote     byte
	)
	end := func() {
		if in {
			cooked = append(cooked, word.String())
			word.Reset()
			in = false
		}
	}
	put := func(written, means string) {
		if !in && len(cooked) > 0 {
			all.WriteByte(' ')
		}
		in = true
		all.WriteString(written)
		word.WriteString(means)
	}
	for i := 0; i < len(line); i++ {
		ch := line[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(line):
			i++
			put(line[i-1:i+1], line[i:i+1])
		case quote != 0 && ch == quote:
			put(line[i:i+1], "")
			quote = 0
		case quote != 0:
			put(line[i:i+1], line[i:i+1])
		case ch == '"' || ch == '\'':
			put(line[i:i+1], "")
			quote = ch
		case ch == '#':
			end()
			return cooked, all.String()
		case ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n':
			end()
		default:
			put(line[i:i+1], line[i:i+1])
		}
	}
	end()
	return cooked, all.String()
}

// refersTo reports whether a line may refer to this server: use-server, srv_is_up(app/a), track. HAProxy does not load a
// configuration that refers to a server it does not have.
func (c *config) refersTo(backend, name string) bool {
	both := backend + "/" + name
	for _, s := range c.sections {
		here := s.isProxy() && s.name == backend
		for _, lines := range [][]string{s.raw, s.backend.opaqueLines()} {
			for _, line := range lines {
				if strings.Contains(line, both) || here && containsName(line, name) {
					return true
				}
			}
		}
	}
	return false
}

// containsName reports whether a line contains a name, not just as part of another name.
func containsName(line, name string) bool {
	for {
		i := strings.Index(line, name)
		if i < 0 {
			return false
		}
		end := i + len(name)
		if (i == 0 || !inNames(rune(line[i-1]))) && (end == len(line) || !inNames(rune(line[end]))) {
			return true
		}
		line = line[i+1:]
	}
}

// inNames reports whether a server name may contain a character.
func inNames(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.:-", r)
}

// dynamicCookies reports whether HAProxy generates the cookies of a backend's servers. HAProxy 2.6 gives none to a server added
// at run time.
func (c *config) dynamicCookies(backend string) bool {
	return slices.ContainsFunc(c.sections, func(s section) bool {
		return (s.kind == "defaults" || s.isProxy() && s.name == backend) && s.has("cookie", "dynamic")
	})
}

// shape returns the configuration without its servers and bare backends. Two texts with the same shape differ at most in these.
func (c *config) shape() string {
	var b strings.Builder
	for _, s := range c.sections {
		if s.bare {
			continue
		}
		b.WriteString(s.head + "\n")
		for _, l := range s.raw {
			b.WriteString("\t" + l + "\n")
		}
	}
	return b.String()
}

// global reports whether the global section has a line that begins with keyword.
func (c *config) global(keyword string) bool {
	return slices.ContainsFunc(c.sections, func(s section) bool {
		return s.kind == "global" && s.has(keyword)
	})
}

// frame returns the sections that the catalog does not affect. Named defaults sections are included only if o has them, too.
func (c *config) frame(o *config) (frame []section) {
	for _, s := range c.sections {
		inBoth := func() bool {
			return s.name == "" || slices.ContainsFunc(o.sections, func(is section) bool { return is.kind == s.kind && is.name == s.name })
		}
		if s.kind == "global" || s.kind == "defaults" && inBoth() {
			frame = append(frame, s)
		}
	}
	return frame
}

// text returns the text that the configuration was read from.
func (c *config) text() string {
	var b strings.Builder
	b.WriteString(c.preamble)
	for _, s := range c.sections {
		b.WriteString(s.text)
	}
	return b.String()
}

// again is the prefix of the backends through which a worker replaced by a reload hands over waiting requests. Their servers are
// the next worker.
const again = "hold.again"

// Changes implements proxyctl.Grammar.
func (d *driver) Changes(before, after *config) []proxyctl.Change {
	names := map[string]bool{}
	for name := range before.backends {
		names[name] = true
	}
	for name := range after.backends {
		names[name] = true
	}
	var out []proxyctl.Change
	for name := range names {
		was, is := before.backends[name], after.backends[name]
		if was == is || strings.HasPrefix(name, again) {
			continue
		}
		c := proxyctl.Change{Backend: name, After: is.count()}
		for name, s := range was.all() {
			if s.draining {
				continue
			}
			c.Before++
			new, stays := is.get(name)
			if !stays || !new.equal(s) {
				c.Removed++
			}
			if at := s.written(); at != "" && s.usable() && !(stays && new.usable() && new.written() == at) {
				c.Out = append(c.Out, at)
			}
		}
		for name, s := range is.all() {
			old, was := was.get(name)
			if !was || old.draining || !old.equal(s) {
				c.Added++
			}
			if at := s.written(); at != "" && s.usable() && !(was && old.usable() && old.written() == at) {
				c.In = append(c.In, at)
			}
		}
		if c.Added+c.Removed > 0 {
			out = append(out, c)
		}
	}
	for i := range out {
		slices.Sort(out[i].In)
		slices.Sort(out[i].Out)
	}
	slices.SortFunc(out, func(a, b proxyctl.Change) int { return strings.Compare(a.Backend, b.Backend) })
	return out
}

// Count implements proxyctl.Grammar.
func (d *driver) Count(c *config) (backends, servers int) {
	for name, b := range c.backends {
		if n := b.count(); n > 0 && !strings.HasPrefix(name, again) {
			backends++
			servers += n
		}
	}
	return backends, servers
}

// Serves implements proxyctl.Grammar. The servers of a server-template line count, too.
func (d *driver) Serves(c *config) map[string]bool {
	out := map[string]bool{}
	for name, b := range c.backends {
		if b.count() > 0 || c.templates(name) {
			out[name] = true
		}
	}
	return out
}

// opaqueLines returns the lines of a backend that may refer to servers; nil for a nil backend.
func (b *backend) opaqueLines() []string {
	if b == nil {
		return nil
	}
	return b.opaque
}

// all returns the servers of a backend; nil for a nil backend.
func (b *backend) all() map[string]server {
	if b == nil {
		return nil
	}
	return b.servers
}

// names returns the names of a backend's servers in the order of the text; nil for a nil backend.
func (b *backend) names() []string {
	if b == nil {
		return nil
	}
	return b.order
}

func (b *backend) get(name string) (server, bool) { s, ok := b.all()[name]; return s, ok }

func (b *backend) count() int { return len(b.all()) }
