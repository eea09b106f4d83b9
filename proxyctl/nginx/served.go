package nginx

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// passes are the directives that pass requests to a server.
var passes = []string{"proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass"}

// Serves implements proxyctl.Grammar: upstreams with servers, by name, and fixed addresses, by directive. In a configuration that
// berth did not write, they may be in included files.
func (d *driver) Serves(c *config) map[string]bool {
	dir := filepath.Dir(absolute(d.opts.File))
	out, targets, upstreams := map[string]bool{}, map[string]string{}, map[string]bool{}
	for name, u := range c.upstreams { // two upstreams of the same name have different keys here
		if len(u.servers) > 0 {
			out[name] = true
		}
	}
	var walk func(block []*directive, depth int)
	walk = func(block []*directive, depth int) {
		for _, d := range block {
			switch name := d.name(); {
			case d.is("upstream") && len(d.words) == 2:
				upstreams[d.words[1]] = true
				if len(newUpstream(d).servers) > 0 {
					out[d.words[1]] = true
				}
			case slices.Contains(passes, name) && len(d.words) == 2 && !strings.Contains(d.words[1], "$"):
				targets[name+" "+d.words[1]] = host(d.words[1])
			case name == "include" && len(d.words) == 2 && depth < mostIncludes:
				for _, path := range included(dir, d.words[1]) {
					text, _ := os.ReadFile(path)
					all, _ := parseText(string(text)) // nginx does not run what it refuses
					walk(all.block, depth+1)
				}
			default:
				walk(d.block, depth)
			}
		}
	}
	walk(c.all.block, 0)
	maps.DeleteFunc(targets, func(_, host string) bool { return upstreams[host] })
	for target := range targets {
		out[target] = true
	}
	return out
}

// mostIncludes limits how deeply nested includes are read.
const mostIncludes = 5

func included(dir, pattern string) []string {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(dir, pattern)
	}
	paths, _ := filepath.Glob(pattern)
	return paths
}

// host returns the host or upstream name in the target of a request.
func host(target string) string {
	if _, rest, ok := strings.Cut(target, "://"); ok {
		target = rest
	}
	target, _, _ = strings.Cut(target, "/")
	return target
}
