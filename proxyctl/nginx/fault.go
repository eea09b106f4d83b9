package nginx

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"berth/proxyctl"
)

// faultPlace matches a line of a file as nginx names it.
var faultPlace = regexp.MustCompile(`\bin (\S+):(\d+)`)

// AtFault implements proxyctl.Grammar. It returns the upstream that contains the line, or the only one that the blocks around it
// pass requests to.
func (d *driver) AtFault(text, complaint string) string {
	line := proxyctl.FaultLine(complaint, faultPlace, d.opts.File)
	if line == 0 {
		return ""
	}
	c, err := parse(text)
	if err != nil {
		return ""
	}
	around := blocksAt(c.all, text, line)
	for i := len(around) - 1; i > 0; i-- { // the first one is http or stream, which all services share
		if name := around[i].upstream(); name != "" {
			return name
		}
		switch names := c.passedTo(around[i]); len(names) {
		case 0:
		case 1:
			return names[0]
		default:
			return ""
		}
	}
	return ""
}

// blocksAt returns the blocks that contain a line of a text, the outermost first. If two blocks at the same level share the line,
// neither counts.
func blocksAt(all *directive, text string, number int) (around []*directive) {
	begin := 0
	for line := range strings.Lines(text) {
		if number--; number == 0 {
			break
		}
		begin += len(line)
	}
	end := begin + lineLength(text[begin:])
	for d := all; d != nil; {
		var at []*directive
		for _, sub := range d.block {
			if sub.start < end && sub.end > begin {
				at = append(at, sub)
			}
		}
		if d = nil; len(at) == 1 && at[0].isOpen() {
			d = at[0]
			around = append(around, d)
		}
	}
	return around
}

// passedTo returns the upstreams that a block passes requests to.
func (c *config) passedTo(d *directive) []string {
	names := map[string]bool{}
	var walk func(d *directive)
	walk = func(d *directive) {
		for _, sub := range d.block {
			if slices.Contains(passes, sub.name()) && len(sub.words) == 2 && c.upstreams[host(sub.words[1])] != nil {
				names[strings.Clone(host(sub.words[1]))] = true
			}
			walk(sub)
		}
	}
	walk(d)
	return slices.Sorted(maps.Keys(names))
}
