package nginx

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"berth/proxyctl/disk"
)

const frame = `events {}
http {
    upstream app {
%s        keepalive 64;
    }
    server {
        listen 8080;
        location / { proxy_pass http://app; }
    }
}
`

const luaFrame = `events {}
http {
    lua_shared_dict berth 1m;
    upstream app {
%s        balancer_by_lua_block { require("berth").balance("app") }
        keepalive 64;
    }
    server {
        listen unix:/run/nginx/berth.sock;
        server_name balancer;
        location = /servers { content_by_lua_block { require("berth").servers() } }
    }
    server { listen 8080; location / { proxy_pass http://app; } }
}
`

// text has these servers in a frame.
func text(frame string, servers ...string) string {
	var lines strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&lines, "        server %s;\n", s)
	}
	return fmt.Sprintf(frame, lines.String())
}

func mustParse(t testing.TB, text string) *config {
	t.Helper()
	c, err := parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return c
}

func TestParseText(t *testing.T) {
	for _, tt := range []struct{ text, want, wrong string }{
		{"a b;c {d e;}", `["a" "b"] ["c"]{["d" "e"]}`, ""},
		{"a 'b c' \"d;e\" f\\ g; # h {", `["a" "b c" "d;e" "f\\ g"]`, ""},
		{"a b${c}d;", `["a" "b${c}d"]`, ""},
		{"a \"x\\\"y\\n\";", `["a" "x\"y\n"]`, ""},
		{"a_by_lua_block { if x then y = { z = '}' } end -- }\n --[[ } ]] local s = [==[ } ]==] } b;", `["a_by_lua_block"]lua ["b"]`, ""},
		{"if ($a = 'b') { return 1; }", `["if" "($a" "=" "b" ")"]{["return" "1"]}`, ""},
		{"a {\n b;\n", "", "line 1: a has no }"},
		{"a;\n}", "", "line 2: a } too many"},
		{"a\nb", "", "line 1: the last directive has no ; or }"},
		{"a;\n;", "", "line 2: unexpected ';'"},
		{"a 'b;\n", "", "line 1: a quote that is not closed"},
		{"a_by_lua_block { { }", "", "line 1: a block of Lua code has no }"},
		{"a_by_lua_block { 'x\n' }", "", "line 1: a string of Lua that is not closed"},
	} {
		all, err := parseText(tt.text)
		if err != nil {
			if tt.wrong == "" || err.Error() != tt.wrong {
				t.Errorf("%q: %v, want %s", tt.text, err, tt.wrong)
			}
			continue
		}
		if got := describe(all); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.text, got, tt.want)
		}
	}
}

func describe(all []*directive) string {
	var parts []string
	for _, d := range all {
		s := fmt.Sprintf("%q", d.words)
		switch {
		case d.body != "":
			s += "lua"
		case d.isOpen:
			s += "{" + describe(d.block) + "}"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

// Whatever the text, directives lie one behind the other, each within its block.
func FuzzParseText(f *testing.F) {
	for _, s := range []string{text(frame, "10.0.0.1:80"), text(luaFrame, "10.0.0.1:80"), "a 'b", "x_by_lua_block { [[", "{}", "a\\", "#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseText(s)
		if err == nil {
			within(t, s, all, 0, len(s))
		}
	})
}

func within(t *testing.T, s string, all []*directive, from, to int) {
	t.Helper()
	for _, d := range all {
		if d.start < from || d.end > to || d.start >= d.end || len(d.words) == 0 {
			t.Fatalf("%q from %d to %d is not within %d to %d of %q", d.words, d.start, d.end, from, to, s)
		}
		last := byte(';')
		if d.isOpen {
			last = '}'
			if s[d.open] != '{' || s[d.close] != '}' || d.close != d.end-1 {
				t.Fatalf("the braces of %q are not at %d and %d of %q", d.words, d.open, d.close, s)
			}
			within(t, s, d.block, d.open+1, d.close)
		}
		if s[d.end-1] != last {
			t.Fatalf("%q does not end at %d of %q", d.words, d.end, s)
		}
		from = d.end
	}
}

func TestServers(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		live       bool
		want       string // what the balancers get
	}{
		{"stock", text(frame, "10.0.0.1:80"), false, ""},
		{"balanced", text(luaFrame, "10.0.0.1:80 weight=3 max_fails=1", "[fd00::1]:80 max_fails=1"), true, "app 10.0.0.1:80 3\napp [fd00::1]:80 1\n"},
		{"none", text(luaFrame, "127.0.0.1:1 down"), true, "app\n"},
		{"a name", text(luaFrame, "10.0.0.1:80", "db.example:80"), false, ""},
		{"a parameter that a balancer has not", text(luaFrame, "10.0.0.1:80 backup"), false, ""},
		{"parameters that do not count", text(luaFrame, "10.0.0.1:80 max_fails=1 fail_timeout=2s", "10.0.0.2:80"), true, "app 10.0.0.1:80 1\napp 10.0.0.2:80 1\n"},
		{"an address in other words", text(luaFrame, "10.0.0.1:080 weight=07", "[FD00:0::1]:80"), true, "app 10.0.0.1:80 7\napp [fd00::1]:80 1\n"},
		{"too much weight", text(luaFrame, "10.0.0.1:80 weight=65536"), false, ""},
		{"no weight", text(luaFrame, "10.0.0.1:80 weight=0"), false, ""},
		{"an odd name", strings.Replace(text(luaFrame, "10.0.0.1:80"), "upstream app", "upstream 'a p'", 1), false, ""},
		{"servers elsewhere", strings.Replace(text(luaFrame, "10.0.0.1:80"), "keepalive 64;", "include servers.conf;", 1), false, ""},
		{"of the same name for TCP", text(luaFrame, "10.0.0.1:80") + "stream { upstream app { server 10.0.0.9:80; } }\n", true, "app 10.0.0.1:80 1\n"},
		{"of the same name for TCP, before", "stream { upstream app { server 10.0.0.9:80; } }\n" + text(luaFrame, "10.0.0.1:80"), false, ""},
		{"for TCP", "stream { upstream tcp { server 10.0.0.9:80; balancer_by_lua_block { } } }\n" + text(luaFrame, "10.0.0.1:80"), true, "app 10.0.0.1:80 1\n"},
		{"nobody takes the servers", strings.Replace(text(luaFrame, "10.0.0.1:80"), "server_name balancer", "server_name other", 1), false, ""},
	} {
		c := mustParse(t, tt.text)
		if c.hasLive() != tt.live || c.servers() != tt.want {
			t.Errorf("%s: live %v, %q; want %v, %q", tt.name, c.hasLive(), c.servers(), tt.live, tt.want)
		}
	}
}

func TestShape(t *testing.T) {
	one, two := text(luaFrame, "10.0.0.1:80"), text(luaFrame, "10.0.0.2:80", "10.0.0.3:80 weight=2")
	for _, tt := range []struct {
		name, a, b string
		same       bool
	}{
		{"servers of a balancer", one, two, true},
		{"no servers of a balancer", one, text(luaFrame, "127.0.0.1:1 down"), true},
		{"servers of a stock upstream", text(frame, "10.0.0.1:80"), text(frame, "10.0.0.2:80"), false},
		{"layout", one, strings.ReplaceAll("\n\n"+one, "    ", "\t"), true},
		{"a comment, which may tell that a certificate is another", one, strings.Replace(one, "listen 8080;", "listen 8080; # sum 1\n", 1), false},
		{"another comment", "# 1\n" + one, "# 2\n" + one, false},
		{"a comment on a server of a balancer", one, strings.Replace(one, "10.0.0.1:80;", "10.0.0.1:80; # node", 1), true},
		{"a comment on a server of a stock upstream", text(frame, "a:80"), strings.Replace(text(frame, "a:80"), "a:80;", "a:80; # node", 1), false},
		{"servers for TCP of the same name", one + "stream { upstream app { server a:1; } }", one + "stream { upstream app { server b:1; } }", false},
		{"the balancer's code", one, strings.Replace(one, `balance("app")`, `balance("app", 1)`, 1), false},
		{"parameters that a balancer does not look at", one, text(luaFrame, "10.0.0.1:80 max_fails=2"), true},
		{"no servers, and parameters that it does not look at", text(luaFrame, "127.0.0.1:1 down"), text(luaFrame, "10.0.0.1:80 max_fails=1 fail_timeout=2s"), true},
		{"a directive", one, strings.Replace(one, "keepalive 64", "keepalive 65", 1), false},
		{"what is quoted", "a 'b c';", "a b c;", false},
		{"where a block ends", "a { b; } c;", "a { b; c; }", false},
	} {
		if same := mustParse(t, tt.a).shape() == mustParse(t, tt.b).shape(); same != tt.same {
			t.Errorf("%s: the same shape: %v, want %v", tt.name, same, tt.same)
		}
	}
}

func TestDifference(t *testing.T) {
	base := text(frame, "10.0.0.1:80")
	for _, tt := range []struct{ after, want string }{
		{base, ""},
		{"# x\n" + base, "comments changed"},
		{"\n" + base, ""},
		{text(frame, "10.0.0.1:80", "10.0.0.2:80"), "upstream app: 1 → 2 servers"},
		{text(frame, "10.0.0.2:80"), "upstream app: 1 server, 1 replaced or changed"},
		{strings.Replace(base, "keepalive 64", "keepalive 65", 1), "http: upstream app: keepalive changed"},
		{strings.Replace(base, "listen 8080;", "listen 8080; listen 8081;", 1), "http: server: listen in place of location"},
		{"user x;\n" + base, "user in place of events"},
		{base + "stream {}\n", "stream added"},
	} {
		if got := difference(mustParse(t, base), mustParse(t, tt.after)); got != tt.want {
			t.Errorf("%q, want %q, of\n%s", got, tt.want, tt.after)
		}
	}
}

func TestMark(t *testing.T) {
	const socket = "/run/nginx/berth.sock"
	for name, text := range map[string]string{
		"ordinary":                 text(frame, "10.0.0.1:80"),
		"with a balancer":          text(luaFrame, "10.0.0.1:80"),
		"no last line end":         "events {}\nhttp { server { listen 80; } }",
		"the brace on a full line": "events {}\nhttp {\n server { listen 80; }}\n",
		"no http":                  "events {}\nstream { server { listen 80; } }\n",
		"a comment after it":       "events {}\nhttp {\n server { listen 80; } } # http {\n",
	} {
		m, err := mark(text, socket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c := mustParse(t, m.text)
		found := 0
		for _, d := range c.top {
			for _, s := range d.block {
				if d.is("http") && s.is("server") && len(s.block) == 4 && s.block[3].words[2] == m.generation.String()+" $pid $nginx_version\n" {
					found++
				}
			}
		}
		if found != 1 {
			t.Errorf("%s: %d servers tell the generation in\n%s", name, found, m.text)
		}
		if !isMarked(m.text) || isMarked(text) {
			t.Errorf("%s: it is not to be seen who wrote it", name)
		}
		if u := unmark(m.text, socket); u.generation != m.generation || u.text != m.text {
			t.Errorf("%s: it is not known again: %v", name, u.generation)
		}
		if got := Unmarked(m.text, socket); got != strings.TrimSuffix(text, "\n")+"\n" {
			t.Errorf("%s: without the mark it is\n%s", name, got)
		}
		edited := strings.Replace(m.text, "80", "81", 1)
		if u := unmark(edited, socket); u.generation != (disk.Generation{}) || u.text != edited {
			t.Errorf("%s: an edit is not noticed", name)
		}
	}
	if _, err := mark("events {", socket); err == nil {
		t.Error("what is no configuration gets a mark")
	}
}

// Any servers make a text whose mark is found again, and texts with different servers differ in their marks.
func TestMarkProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
			s := fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(1, 200).Draw(t, "host"))
			if w := rapid.IntRange(0, 5).Draw(t, "weight"); w > 1 {
				s += fmt.Sprintf(" weight=%d", w)
			}
			return s
		}), 0, 8, rapid.ID[string])
		f := rapid.SampledFrom([]string{frame, luaFrame}).Draw(t, "frame")
		a, b := servers.Draw(t, "a"), servers.Draw(t, "b")
		ma, errA := mark(text(f, a...), "/s")
		mb, errB := mark(text(f, b...), "/s")
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if unmark(ma.text, "/s").generation != ma.generation {
			t.Fatal("the mark is not found again")
		}
		same := strings.Join(a, ",") == strings.Join(b, ",")
		if (ma.generation == mb.generation) != same {
			t.Fatalf("%v and %v: the same mark is %v", a, b, !same)
		}
		if f == luaFrame && !ma.generation.SameShape(mb.generation) {
			t.Fatalf("%v and %v: not the same shape", a, b)
		}
	})
}

func TestCheckPath(t *testing.T) {
	for path, good := range map[string]bool{"/run/nginx/berth.sock": true, "/run/my nginx/s": false, "/run/a;b": false, "/run/$x": false, "/run/a:b": false} {
		if err := CheckPath(path); (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
	}
}
