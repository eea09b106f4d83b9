package haproxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// routing is a text with backends and the maps that lead to them.
type routing struct{ backends, routes, strip string }

func (r routing) text(file, bind string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
defaults http
  mode http
  timeout client 5s
  timeout connect 5s
  timeout server 5s
frontend web from http
  bind %[2]s
  http-request set-var(txn.backend) path,map_beg(%[1]s.routes.map)
  http-request set-var(txn.strip) var(txn.backend),map_str(%[1]s.strip.map)
  http-request set-path /%%[path,field(3,/,0)] if { var(txn.strip) -m found }
  use_backend %%[var(txn.backend)] if { var(txn.backend) -m found }
  default_backend none
backend none from http
  http-request return status 404 content-type text/plain string none
`, file, bind)
	for name := range strings.FieldsSeq(r.backends) {
		fmt.Fprintf(&b, "backend %s from http\n  http-request return status 200 content-type text/plain lf-string \"%[1]s %%[path]\"\n", name)
	}
	return mark(WithMaps(b.String(), map[string]string{
		file + ".routes.map": mapped(r.routes), file + ".strip.map": mapped(r.strip),
	}), nil).Text
}

// mapped parses a map from "/a=b /c=d".
func mapped(entries string) string {
	var b strings.Builder
	for entry := range strings.FieldsSeq(entries) {
		b.WriteString(strings.Replace(entry, "=", " ", 1) + "\n")
	}
	return b.String()
}

// killed are texts with the next ones.
var killed = []struct {
	name          string
	before, after routing
	asked         string
	between       string // the first answer that is neither that of before nor that of after
}{
	{"a route comes", routing{"a", "/a/=a", ""}, routing{"a b", "/a/=a /b/=b", "b=1"}, "/b/x /a/x", ""},
	{"a longer one comes", routing{"a", "/=a", ""}, routing{"a b", "/=a /b/=b", "b=1"}, "/b/x /a/x", ""},
	{"a route goes", routing{"a b", "/a/=a /b/=b", "b=1"}, routing{"a", "/a/=a", ""}, "/b/x /a/x", ""},
	{"a longer one goes", routing{"a b", "/=a /b/=b", "b=1"}, routing{"a", "/=a", ""}, "/b/x /a/x", ""},
	{"one comes, one goes", routing{"a b", "/a/=a /b/=b", "a=1 b=1"}, routing{"b c", "/b/=b /c/=c", "b=1 c=1"}, "/b/x /a/x /c/x", ""},
	{"to one that is there", routing{"a b", "/a/=a /b/=b", "a=1"}, routing{"a b c", "/a/=b /b/=a /c/=c", "a=1"}, "/b/x /a/x /c/x", ""},
	{"to one that comes", routing{"a", "/=a /b/=a", ""}, routing{"a b", "/=a /b/=b", "b=1"}, "/b/x /a/x", ""},
	{"from one that goes", routing{"a b", "/=a /b/=b", "b=1"}, routing{"a", "/=a /b/=a", ""}, "/b/x /a/x", ""},
	{"a number for a name", routing{"a 1", "/a/=a /1/=1", "a=1"}, routing{"a b", "/a/=a /b/=b", "a=1"}, "/a/x /b/x /1/x", ""},
	// No two files are replaced at once. An answer of another service would be worse.
	{"from one that goes to one that comes", routing{"a b", "/=a /b/=b", ""}, routing{"a c", "/=a /b/=c", ""}, "/b/x /a/x", "none"},
}

// states returns the contents of the files, by name, if berth is killed before, between and after the writes of a text.
func states(d *driver, before, after string) (all []map[string]string) {
	file := d.opts.File
	now := d.Beside(before)
	now[file] = before
	put := func(path, text string) {
		if now[path] != text {
			now = maps.Clone(now)
			now[path] = text
			all = append(all, now)
		}
	}
	all = append(all, now)
	between, beside := d.Between(before, after), d.Beside(after)
	for _, path := range slices.Sorted(maps.Keys(between)) {
		put(path, between[path])
	}
	put(file, after)
	for _, path := range slices.Sorted(maps.Keys(beside)) {
		put(path, beside[path])
	}
	return all
}

// Wherever berth is killed, a request is answered as before or as after.
func TestBetween(t *testing.T) {
	d := &driver{opts: Options{File: "/etc/haproxy/haproxy.cfg"}}
	for _, tt := range killed {
		all := states(d, tt.before.text(d.opts.File, ":80"), tt.after.text(d.opts.File, ":80"))
		if len(all) < 3 {
			t.Errorf("%s: there are %d states", tt.name, len(all))
		}
		for n, path := range strings.Fields(tt.asked) {
			first, last := answered(d, all[0], path), answered(d, all[len(all)-1], path)
			for i, files := range all {
				got := answered(d, files, path)
				if got != first && got != last && (n > 0 || got != tt.between || tt.between == "") {
					t.Errorf("%s: killed after %d writes, %s is answered by %q, want %q or %q", tt.name, i, path, got, first, last)
				}
			}
		}
	}
}

// answered returns what HAProxy would answer if it started with these files.
func answered(d *driver, files map[string]string, path string) string {
	longest := ""
	routes, strip := parseEntries(files[d.opts.File+".routes.map"]), parseEntries(files[d.opts.File+".strip.map"])
	for key := range routes {
		if strings.HasPrefix(path, key) && len(key) > len(longest) {
			longest = key
		}
	}
	name := routes[longest]
	if !strings.Contains(files[d.opts.File], "\nbackend "+name+" from") {
		return "none"
	}
	if strip[name] != "" {
		path = "/" + strings.SplitN(path, "/", 3)[2]
	}
	return name + " " + path
}

// A map that suits both texts in its old or new form is written only once.
func TestBetweenOnce(t *testing.T) {
	for _, tt := range []struct{ was, to, had, has, want string }{
		{"/a a\n# c\n", "/a a\n/b b\n", "a", "a b", "/a a\n# c\n"},
		{"/a a\n/b b\n", "# c\n/a a\n", "a b", "a", "# c\n/a a\n"},
		{"a 1\n", "a 2\n", "a", "a", "a 2\n"},
		{"/a a\n/b b\n", "/a a\n/c c\n", "a b", "a c", "/a a\n"},
		{"", "", "", "", ""},
	} {
		set := func(names string) map[string]bool {
			out := map[string]bool{}
			for name := range strings.FieldsSeq(names) {
				out[name] = true
			}
			return out
		}
		if got := between(tt.was, tt.to, set(tt.had), set(tt.has)); got != tt.want {
			t.Errorf("%q to %q: %q, want %q", tt.was, tt.to, got, tt.want)
		}
	}
}

// A text that had no maps gets their final contents first. Certificates belong to no backend.
func TestBetweenFirst(t *testing.T) {
	d := &driver{opts: Options{File: "/etc/haproxy/haproxy.cfg"}}
	to := routing{"a", "/a/=a", "a=1"}.text(d.opts.File, ":80")
	if got, want := d.Between("", to), d.Beside(to); !maps.Equal(got, want) {
		t.Errorf("first %q, want %q", got, want)
	}
	with := func(certificates string) string {
		return WithMaps(newText, map[string]string{d.opts.File + ".c.crt-list": certificates})
	}
	if got := d.Between(with("a.crt\nb.crt\n"), with("b.crt\n")); got[d.opts.File+".c.crt-list"] != "b.crt\n" {
		t.Errorf("certificates: %q", got)
	}
}
