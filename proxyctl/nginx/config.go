package nginx

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/proxyctl"
)

// config is a text as berth understands it.
type config struct {
	text      string
	top       []*directive
	upstreams map[string]*upstream
	live      bool     // an upstream is live
	serves    bool     // there is a server block, or an include that may have one
	comments  []string // all but the comments in live upstreams
}

// upstream is a group of servers.
type upstream struct {
	block   *directive
	servers []server // in the order of the text, without the ones marked as down
	live    bool     // its servers can be changed without a reload: a Lua balancer of the http block picks them
}

// server is a line of an upstream block.
type server struct {
	address string
	weight  int
	rest    string // further parameters
}

// parse reads a text. The error is the reason why nginx would not take it.
func parse(text string) (*config, error) {
	p := &parser{text: text}
	top, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxyctl.ErrRefused, err)
	}
	c := &config{text: text, top: top, upstreams: map[string]*upstream{}}
	controlled := false
	for _, d := range top {
		if d.name() == "include" {
			continue // modules, as a rule
		}
		for _, sub := range d.block {
			switch {
			case sub.is("upstream") && len(sub.words) == 2:
				name := sub.words[1]
				if c.upstreams[name] != nil { // one for http and one for stream may have the same
					name = d.name() + " " + name
				}
				c.upstreams[name] = newUpstream(sub)
				c.upstreams[name].live = c.upstreams[name].live && d.name() == "http" && sub.words[1] == name
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
	for _, comment := range p.comments {
		if !c.isLive(comment.at) {
			c.comments = append(c.comments, comment.text)
		}
	}
	return c, nil
}

// isLive says whether a place in the text is within a live upstream.
func (c *config) isLive(at int) bool {
	for _, u := range c.upstreams {
		if u.live && u.block.open < at && at < u.block.close {
			return true
		}
	}
	return false
}

// isBalancerControl says whether a server block takes the servers of the Lua balancers.
func isBalancerControl(d *directive) bool {
	named, private := false, false
	for _, line := range d.block {
		named = named || line.name() == "server_name" && slices.Contains(line.words, balancerName)
		private = private || line.name() == "listen" && len(line.words) > 1 && strings.HasPrefix(line.words[1], "unix:")
	}
	return named && private
}

func newUpstream(d *directive) *upstream {
	u := &upstream{block: d}
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
	return u
}

// The Lua balancer takes names of upstreams and weights of these forms.
var (
	formName   = regexp.MustCompile(`^[^\s[:cntrl:]]{1,255}$`)
	formWeight = regexp.MustCompile(`^[0-9]{1,5}$`)
)

const mostWeight = 65535

// newServer reads a server. plain says whether a Lua balancer takes it: it has nothing but an IP address, a weight, and
// parameters that mean nothing to the balancer.
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

// shape returns all of the configuration but its layout and the servers of live upstreams. Comments belong to it: a template
// may tell by a comment that another file has changed, a certificate say.
func (c *config) shape() string {
	live := map[*directive]bool{}
	for _, u := range c.upstreams {
		live[u.block] = u.live
	}
	var b strings.Builder
	writeShape(&b, c.top, live)
	for _, comment := range c.comments {
		b.WriteString("#" + comment + "\n")
	}
	return b.String()
}

// frame returns all of the configuration that no service has a part in: a stream block is there only if one needs it.
func (c *config) frame() string {
	var b strings.Builder
	writeShape(&b, slices.DeleteFunc(slices.Clone(c.top), func(d *directive) bool { return d.is("http") || d.is("stream") }), nil)
	return b.String()
}

func writeShape(b *strings.Builder, all []*directive, live map[*directive]bool) {
	for _, d := range all {
		for _, w := range d.words {
			b.WriteString(strconv.Quote(w))
		}
		b.WriteString(d.body)
		if !d.isOpen {
			b.WriteByte('\n')
			continue
		}
		block := d.block
		if live[d] {
			block = slices.DeleteFunc(slices.Clone(block), func(d *directive) bool { return d.name() == "server" })
		}
		b.WriteString("{\n")
		writeShape(b, block, live)
		b.WriteString("}\n")
	}
}

// liveServers lists the servers of live upstreams, as the balancers' control server takes and shows them.
func (c *config) liveServers() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.upstreams)) {
		u := c.upstreams[name]
		switch {
		case !u.live:
		case len(u.servers) == 0:
			fmt.Fprintf(&b, "%s\n", name)
		default:
			for _, s := range u.servers {
				fmt.Fprintf(&b, "%s %s %d\n", name, s.address, s.weight)
			}
		}
	}
	return b.String()
}

// isLessThan says whether a configuration has nothing that another one lacks, but for servers of upstreams: their IP
// addresses are no reason for nginx not to start.
func (c *config) isLessThan(other *config) bool {
	return other != nil && leavesOut(c.top, other.top, false)
}

func leavesOut(less, all []*directive, inUpstream bool) bool {
	at := 0
	for _, d := range less {
		if inUpstream && d.name() == "server" {
			continue
		}
		n := slices.IndexFunc(all[at:], func(o *directive) bool {
			return slices.Equal(d.words, o.words) && d.isOpen == o.isOpen && d.body == o.body &&
				leavesOut(d.block, o.block, d.is("upstream")) && (!d.is("upstream") || d.hasOnlyAddresses())
		})
		if n < 0 {
			return false
		}
		at += n + 1
	}
	return true
}

// hasOnlyAddresses says whether an upstream has servers, and all of them by IP address: a name may not resolve, and nginx
// takes no upstream without a server.
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

// has says whether there is a directive of this name outside of all blocks.
func (c *config) has(name string) bool {
	return slices.ContainsFunc(c.top, func(d *directive) bool { return d.name() == name })
}

// merge returns the text of base with the servers that its upstreams have in to, for the upstreams that differ in nothing
// else, may change, and are not in keep.
func merge(base, to *config, keep []string, may func(old, other *upstream) bool) string {
	names := slices.SortedFunc(maps.Keys(base.upstreams), func(a, b string) int {
		return base.upstreams[a].block.open - base.upstreams[b].block.open
	})
	var b strings.Builder
	at := 0
	for _, name := range names {
		old, other := base.upstreams[name], to.upstreams[name]
		if other == nil || slices.Contains(keep, name) || !may(old, other) || !sameButServers(old.block, other.block) {
			continue
		}
		b.WriteString(base.text[at : old.block.open+1])
		b.WriteString(to.text[other.block.open+1 : other.block.close])
		at = old.block.close
	}
	b.WriteString(base.text[at:])
	return b.String()
}

func sameButServers(a, b *directive) bool {
	shape := func(d *directive) string {
		var s strings.Builder
		writeShape(&s, []*directive{d}, map[*directive]bool{d: true})
		return s.String()
	}
	return shape(a) == shape(b)
}

// changes counts for each upstream which servers came and went.
func changes(before, after *config) []proxyctl.Change {
	var all []proxyctl.Change
	names := map[string]bool{}
	for _, c := range []*config{before, after} {
		if c != nil {
			for name := range c.upstreams {
				names[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, is := before.serversOf(name), after.serversOf(name)
		c := proxyctl.Change{Backend: name, Before: len(was), After: len(is), Added: missing(was, is), Removed: missing(is, was)}
		if c.Added+c.Removed > 0 {
			all = append(all, c)
		}
	}
	return all
}

func (c *config) serversOf(upstream string) []server {
	if c == nil || c.upstreams[upstream] == nil {
		return nil
	}
	return c.upstreams[upstream].servers
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

// difference names the first thing in which two configurations differ, "" if that is only their layout.
func difference(before, after *config) string {
	if before == nil {
		return ""
	}
	if ch := changes(before, after); len(ch) > 0 {
		return "upstream " + ch[0].String()
	}
	if d := firstDifference("", before.top, after.top); d != "" || slices.Equal(before.comments, after.comments) {
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
		case b.name() != a.name() || b.isOpen != a.isOpen || a.isOpen && !slices.Equal(b.words, a.words):
			return fmt.Sprintf("%s%s in place of %s", where, a.title(), b.title())
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
	if d.isOpen && len(d.words) == 2 && d.name() != "location" {
		return fmt.Sprintf("%s %.60s", d.name(), d.words[1])
	}
	return fmt.Sprintf("%.60s", d.name())
}
