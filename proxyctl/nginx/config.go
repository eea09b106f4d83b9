package nginx

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/proxyctl"
)

// config is what berth understands of a text.
type config struct {
	text      string
	all       *directive
	upstreams map[string]*upstream
	live      bool // an upstream is live
	serves    bool // there is a server block, or an include that may contain one
}

// upstream is a group of servers.
type upstream struct {
	*directive
	servers []server // in the order of the text, without servers marked as down
	posted  []string // what else its Lua balancer is told: comments like "hold 30000", in order
}

// server is a line of an upstream block.
type server struct {
	address string
	weight  int
	rest    string // further parameters
}

// parse parses a text. The error is the reason why nginx would refuse it.
func parse(text string) (*config, error) {
	all, err := parseText(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxyctl.ErrRefused, err)
	}
	c := &config{text: text, all: all, upstreams: map[string]*upstream{}}
	controlled := false
	for _, d := range all.block {
		for _, sub := range d.block {
			switch {
			case sub.is("upstream") && len(sub.words) == 2:
				name, u := sub.words[1], newUpstream(sub)
				u.live = u.live && d.name() == "http" && c.upstreams[name] == nil
				if c.upstreams[name] != nil { // http and stream may each have one of this name
					name = d.name() + " " + name
				}
				c.upstreams[name] = u
			case sub.is("server") && isBalancerControl(sub):
				controlled = true
			case sub.is("server"), sub.name() == "include" && slices.Contains([]string{"http", "stream", "mail"}, d.name()):
				c.serves = true
			}
		}
	}
	for _, u := range c.upstreams {
		u.live = u.live && controlled
		c.live = c.live || u.live
	}
	return c, nil
}

// isBalancerControl reports whether a server block accepts the servers for the Lua balancers.
func isBalancerControl(d *directive) bool {
	named, private := false, false
	for _, line := range d.block {
		named = named || line.name() == "server_name" && slices.Contains(line.words, balancerName)
		private = private || line.name() == "listen" && len(line.words) > 1 && strings.HasPrefix(line.words[1], "unix:")
	}
	return named && private
}

func newUpstream(d *directive) *upstream {
	u := &upstream{directive: d}
	changeable := formName.MatchString(d.words[1])
	for _, line := range d.block {
		switch name := line.name(); {
		case name == "server" && len(line.words) > 1 && !slices.Contains(line.words, "down"):
			s, plain := newServer(line.words[1:])
			u.servers = append(u.servers, s)
			changeable = changeable && plain
		case name == "include":
			changeable = false
		case strings.HasPrefix(name, "balancer_by_lua"):
			u.live = true
		}
	}
	u.live = u.live && changeable
	for _, comment := range d.comments {
		if formPosted.MatchString(comment) {
			u.posted = append(u.posted, comment)
		}
	}
	slices.Sort(u.posted)
	u.posted = slices.Compact(u.posted)
	return u
}

// isPaused reports whether requests wait although there are servers.
func (u *upstream) isPaused() bool {
	return slices.ContainsFunc(u.posted, func(line string) bool { return strings.HasPrefix(line, "paused ") })
}

// The upstream names and weights that the Lua balancer accepts.
var (
	formName   = regexp.MustCompile(`^[^\s[:cntrl:]]{1,255}$`)
	formWeight = regexp.MustCompile(`^[0-9]{1,5}$`)
	formPosted = regexp.MustCompile(`^(hold|paused) [0-9]{1,6}$`)
)

const mostWeight = 65535

// newServer parses a server. plain reports whether a Lua balancer accepts it: it has only an IP address, a weight, and parameters
// that mean nothing to the balancer.
func newServer(words []string) (s server, plain bool) {
	s = server{address: words[0], weight: 1}
	address, err := netip.ParseAddrPort(s.address)
	plain = err == nil && address.Port() != 0 && address.Addr().Zone() == ""
	if plain {
		s.address = address.String()
	}
	var rest []string
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch {
		case name == "weight" && formWeight.MatchString(value):
			s.weight, _ = strconv.Atoi(value)
			plain = plain && s.weight > 0 && s.weight <= mostWeight
		case name == "max_fails", name == "fail_timeout":
			rest = append(rest, w)
		default:
			rest = append(rest, w)
			plain = false
		}
	}
	slices.Sort(rest)
	s.rest = strings.Join(rest, " ")
	return s, plain
}

// shape returns the configuration without its layout and the servers of live upstreams. It includes comments, because a template
// may use one to signal that another file has changed, such as a certificate.
func (c *config) shape() string {
	var b strings.Builder
	c.all.writeShape(&b)
	return b.String()
}

func (d *directive) writeShape(b *strings.Builder) {
	block, comments := d.block, d.comments
	if d.live {
		block, comments = d.without("server"), nil
	}
	for _, sub := range block {
		for _, w := range sub.words {
			b.WriteString(strconv.Quote(w))
		}
		b.WriteString(sub.body)
		if !sub.isOpen() {
			b.WriteByte('\n')
			continue
		}
		b.WriteString("{\n")
		sub.writeShape(b)
		b.WriteString("}\n")
	}
	for _, comment := range comments {
		b.WriteString("#" + comment + "\n")
	}
}

// liveServers lists the servers of live upstreams, and what else is posted for these, as the balancers' control server accepts
// and shows them.
func (c *config) liveServers() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.upstreams)) {
		u := c.upstreams[name]
		if !u.live {
			continue
		}
		if len(u.posted)+len(u.servers) == 0 {
			fmt.Fprintf(&b, "%s\n", name)
		}
		for _, line := range u.posted {
			fmt.Fprintf(&b, "%s %s\n", name, line)
		}
		for _, s := range u.servers {
			fmt.Fprintf(&b, "%s %s %d\n", name, s.address, s.weight)
		}
	}
	return b.String()
}

// isLessThan reports whether everything in a configuration is also in another one, except servers of upstreams: their IP
// addresses cannot keep nginx from starting.
func (c *config) isLessThan(other *config) bool { return other != nil && c.all.isLessThan(other.all) }

func (d *directive) isLessThan(other *directive) bool {
	if !slices.Equal(d.words, other.words) || d.isOpen() != other.isOpen() || d.body != other.body {
		return false
	}
	block, at := d.block, 0
	if d.is("upstream") {
		if !d.hasOnlyAddresses() {
			return false
		}
		block = d.without("server")
	}
	for _, sub := range block {
		n := slices.IndexFunc(other.block[at:], sub.isLessThan)
		if n < 0 {
			return false
		}
		at += n + 1
	}
	return true
}

// hasOnlyAddresses reports whether an upstream has servers, all with IP addresses. A name may not resolve, and nginx refuses an
// upstream without servers.
func (d *directive) hasOnlyAddresses() bool {
	servers := 0
	for _, line := range d.block {
		if line.name() != "server" || len(line.words) < 2 {
			continue
		}
		if _, err := netip.ParseAddrPort(line.words[1]); err != nil {
			return false
		}
		servers++
	}
	return servers > 0
}

// merge returns the text of base with the servers that its upstreams have in to, for upstreams that differ in nothing else, that
// may change, and that are not in keep.
func merge(base, to *config, keep []string, may func(old, other *upstream) bool) string {
	names := slices.SortedFunc(maps.Keys(base.upstreams), func(a, b string) int {
		return base.upstreams[a].open - base.upstreams[b].open
	})
	var b strings.Builder
	at := 0
	for _, name := range names {
		old, other := base.upstreams[name], to.upstreams[name]
		if other == nil || slices.Contains(keep, name) || !may(old, other) ||
			firstDifference("", old.without("server"), other.without("server")) != "" {
			continue
		}
		b.WriteString(base.text[at : old.open+1])
		b.WriteString(to.text[other.open+1 : other.close])
		at = old.close
	}
	b.WriteString(base.text[at:])
	return b.String()
}

// Count implements proxyctl.Grammar.
func (d *driver) Count(c *config) (backends, servers int) {
	for _, u := range c.upstreams {
		if n := len(u.servers); n > 0 {
			backends++
			servers += n
		}
	}
	return backends, servers
}

// changes counts which servers came and went in each upstream.
func changes(before, after *config) (all []proxyctl.Change) {
	before, after = cmp.Or(before, &config{}), cmp.Or(after, &config{})
	names := map[string]*upstream{}
	maps.Copy(names, before.upstreams)
	maps.Copy(names, after.upstreams)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, is := before.serversOf(name), after.serversOf(name)
		c := proxyctl.Change{Backend: name, Before: len(was), After: len(is), Added: missing(was, is), Removed: missing(is, was),
			In: missingAddresses(was, is), Out: missingAddresses(is, was)}
		if c.Added+c.Removed > 0 {
			all = append(all, c)
		}
	}
	return all
}

func (c *config) serversOf(upstream string) []server {
	if u := c.upstreams[upstream]; u != nil {
		return u.servers
	}
	return nil
}

// missingAddresses returns the addresses of is that are not in was, sorted.
func missingAddresses(was, is []server) (out []string) {
	there := map[string]bool{}
	for _, s := range was {
		there[s.address] = true
	}
	for _, s := range is {
		if !there[s.address] {
			there[s.address] = true
			out = append(out, s.address)
		}
	}
	slices.Sort(out)
	return out
}

// missing counts the servers of is that are not in was.
func missing(was, is []server) (n int) {
	count := map[server]int{}
	for _, s := range was {
		count[s]++
	}
	for _, s := range is {
		if count[s]--; count[s] < 0 {
			n++
		}
	}
	return n
}

// difference describes the first difference between two configurations, "" if they differ only in layout.
func difference(before, after *config) string {
	if before == nil {
		return ""
	}
	if ch := changes(before, after); len(ch) > 0 {
		return "upstream " + ch[0].String()
	}
	if d := firstDifference("", before.all.block, after.all.block); d != "" || before.shape() == after.shape() {
		return d
	}
	return "comments changed"
}

func firstDifference(where string, before, after []*directive) string {
	for i := 0; i < len(before) || i < len(after); i++ {
		switch {
		case i == len(before):
			return fmt.Sprintf("%s%s added", where, after[i].title())
		case i == len(after):
			return fmt.Sprintf("%s%s removed", where, before[i].title())
		}
		b, a := before[i], after[i]
		switch {
		case b.name() != a.name() || b.isOpen() != a.isOpen() || a.isOpen() && !slices.Equal(b.words, a.words):
			return fmt.Sprintf("%s%s replaces %s", where, a.title(), b.title())
		case !slices.Equal(b.words, a.words) || b.body != a.body:
			return fmt.Sprintf("%s%s changed", where, a.title())
		}
		if d := firstDifference(where+a.title()+": ", b.block, a.block); d != "" {
			return d
		}
	}
	return ""
}

// title names a directive in a reason.
func (d *directive) title() string {
	if d.isOpen() && len(d.words) == 2 && d.name() != "location" {
		return fmt.Sprintf("%s %.60s", d.name(), d.words[1])
	}
	return fmt.Sprintf("%.60s", d.name())
}
