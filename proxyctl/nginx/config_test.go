package nginx

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"berth/proxyctl/configfile"
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
		{text: "a b;c {d e;}", want: `["a" "b"] ["c"]{["d" "e"]}`},
		{text: "a 'b c' \"d;e\" f\\ g; # h {", want: `["a" "b c" "d;e" "f\\ g"]`},
		{text: "a b${c}d;", want: `["a" "b${c}d"]`},
		{text: "a \"x\\\"y\\n\";", want: `["a" "x\"y\n"]`},
		{text: "a_by_lua_block { if x then y = { z = '}' } end -- }\n --[[ } ]] local s = [==[ } ]==] } b;", want: `["a_by_lua_block"]lua ["b"]`},
		{text: "if ($a = 'b') { return 1; }", want: `["if" "($a" "=" "b" ")"]{["return" "1"]}`},
		{text: "a {\n b;\n", wrong: "line 1: a has no }"},
		{text: "a;\n}", wrong: "line 2: unexpected }"},
		{text: "a\nb", wrong: "line 1: the last directive has no ; or }"},
		{text: "a;\n;", wrong: "line 2: unexpected ';'"},
		{text: "a 'b;\n", wrong: "line 1: unclosed quote"},
		{text: "a_by_lua_block { { }", wrong: "line 1: a Lua block has no }"},
		{text: "a_by_lua_block { 'x\n' }", wrong: "line 1: unclosed Lua string or comment"},
	} {
		all, err := parseText(tt.text)
		if err != nil {
			if tt.wrong == "" || err.Error() != tt.wrong {
				t.Errorf("%q: %v, want %s", tt.text, err, tt.wrong)
			}
			continue
		}
		if got := describe(all.block); got != tt.want {
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
		case d.isOpen():
			s += "{" + describe(d.block) + "}"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

// Whatever the text, directives follow each other, each within its block.
func FuzzParseText(f *testing.F) {
	for _, s := range []string{text(frame, "10.0.0.1:80"), text(luaFrame, "10.0.0.1:80"), "a 'b", "x_by_lua_block { [[", "{}", "a\\", "#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseText(s)
		if err == nil {
			within(t, s, all.block, 0, len(s))
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
		if d.isOpen() {
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
		{name: "stock", text: text(frame, "10.0.0.1:80")},
		{name: "balanced", text: text(luaFrame, "10.0.0.1:80 weight=3 max_fails=1", "[fd00::1]:80 max_fails=1"), live: true, want: "app 10.0.0.1:80 3\napp [fd00::1]:80 1\n"},
		{name: "none", text: text(luaFrame, "127.0.0.1:1 down"), live: true, want: "app\n"},
		{name: "a name", text: text(luaFrame, "10.0.0.1:80", "db.example:80")},
		{name: "a parameter that a balancer has not", text: text(luaFrame, "10.0.0.1:80 backup")},
		{name: "parameters that do not count", text: text(luaFrame, "10.0.0.1:80 max_fails=1 fail_timeout=2s", "10.0.0.2:80"), live: true, want: "app 10.0.0.1:80 1\napp 10.0.0.2:80 1\n"},
		{name: "an address in other words", text: text(luaFrame, "10.0.0.1:080 weight=07", "[FD00:0::1]:80"), live: true, want: "app 10.0.0.1:80 7\napp [fd00::1]:80 1\n"},
		{name: "too much weight", text: text(luaFrame, "10.0.0.1:80 weight=65536")},
		{name: "no weight", text: text(luaFrame, "10.0.0.1:80 weight=0")},
		{name: "an odd name", text: strings.Replace(text(luaFrame, "10.0.0.1:80"), "upstream app", "upstream 'a p'", 1)},
		{name: "servers elsewhere", text: strings.Replace(text(luaFrame, "10.0.0.1:80"), "keepalive 64;", "include servers.conf;", 1)},
		{name: "of the same name for TCP", text: text(luaFrame, "10.0.0.1:80") + "stream { upstream app { server 10.0.0.9:80; } }\n", live: true, want: "app 10.0.0.1:80 1\n"},
		{name: "of the same name for TCP, before", text: "stream { upstream app { server 10.0.0.9:80; } }\n" + text(luaFrame, "10.0.0.1:80")},
		{name: "for TCP", text: "stream { upstream tcp { server 10.0.0.9:80; balancer_by_lua_block { } } }\n" + text(luaFrame, "10.0.0.1:80"), live: true, want: "app 10.0.0.1:80 1\n"},
		{name: "a hold", text: text(strings.Replace(luaFrame, "%s", "# hold 30000\n%s", 1), "10.0.0.1:80"), live: true, want: "app hold 30000\napp 10.0.0.1:80 1\n"},
		{name: "a hold and a pause, without servers", text: text(strings.Replace(luaFrame, "%s", "# paused 5000\n#hold 0\n# hold 0\n%s", 1), "127.0.0.1:1 down"), live: true, want: "app hold 0\napp paused 5000\n"},
		{name: "comments that are none", text: text(strings.Replace(luaFrame, "%s", "# hold on\n# we hold 3\n# paused\n# hold 1234567\n%s", 1), "10.0.0.1:80"), live: true, want: "app 10.0.0.1:80 1\n"},
		{name: "a hold without a balancer", text: text(strings.Replace(frame, "%s", "# hold 30000\n%s", 1), "10.0.0.1:80")},
		{name: "nobody takes the servers", text: strings.Replace(text(luaFrame, "10.0.0.1:80"), "server_name balancer", "server_name other", 1)},
	} {
		c := mustParse(t, tt.text)
		if c.live != tt.live || c.liveServers() != tt.want {
			t.Errorf("%s: live %v, %q; want %v, %q", tt.name, c.live, c.liveServers(), tt.live, tt.want)
		}
	}
}

func TestShape(t *testing.T) {
	one, two := text(luaFrame, "10.0.0.1:80"), text(luaFrame, "10.0.0.2:80", "10.0.0.3:80 weight=2")
	for _, tt := range []struct {
		name, a, b string
		same       bool
	}{
		{name: "servers of a balancer", a: one, b: two, same: true},
		{name: "no servers of a balancer", a: one, b: text(luaFrame, "127.0.0.1:1 down"), same: true},
		{name: "servers of a stock upstream", a: text(frame, "10.0.0.1:80"), b: text(frame, "10.0.0.2:80")},
		{name: "layout", a: one, b: strings.ReplaceAll("\n\n"+one, "    ", "\t"), same: true},
		{name: "a comment, which may tell that a certificate is another", a: one, b: strings.Replace(one, "listen 8080;", "listen 8080; # sum 1\n", 1)},
		{name: "another comment", a: "# 1\n" + one, b: "# 2\n" + one},
		{name: "a comment on a server of a balancer", a: one, b: strings.Replace(one, "10.0.0.1:80;", "10.0.0.1:80; # node", 1), same: true},
		{name: "a hold", a: one, b: text(strings.Replace(luaFrame, "%s", "# hold 30000\n%s", 1), "10.0.0.1:80"), same: true},
		{name: "a comment on a server of a stock upstream", a: text(frame, "a:80"), b: strings.Replace(text(frame, "a:80"), "a:80;", "a:80; # node", 1)},
		{name: "servers for TCP of the same name", a: one + "stream { upstream app { server a:1; } }", b: one + "stream { upstream app { server b:1; } }"},
		{name: "the balancer's code", a: one, b: strings.Replace(one, `balance("app")`, `balance("app", 1)`, 1)},
		{name: "parameters that a balancer does not look at", a: one, b: text(luaFrame, "10.0.0.1:80 max_fails=2"), same: true},
		{name: "no servers, and parameters that it does not look at", a: text(luaFrame, "127.0.0.1:1 down"), b: text(luaFrame, "10.0.0.1:80 max_fails=1 fail_timeout=2s"), same: true},
		{name: "a directive", a: one, b: strings.Replace(one, "keepalive 64", "keepalive 65", 1)},
		{name: "what is quoted", a: "a 'b c';", b: "a b c;"},
		{name: "where a block ends", a: "a { b; } c;", b: "a { b; c; }"},
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
		{strings.Replace(base, "listen 8080;", "listen 8080; listen 8081;", 1), "http: server: listen replaces location"},
		{"user x;\n" + base, "user replaces events"},
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
		"a log of its own":         "error_log stderr;\n" + text(frame, "10.0.0.1:80"),
		"a log, and no http":       "error_log stderr;\nevents {}\nstream { server { listen 80; } }",
		"berth's log":              "error_log stderr;\nerror_log /run/nginx/error.log emerg;\n" + text(frame, "10.0.0.1:80"),
		"a comment after it":       "events {}\nhttp {\n server { listen 80; } } # http {\n",
	} {
		m, err := mark(text, socket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c := mustParse(t, m.Text)
		found := 0
		for _, d := range c.all.block {
			for _, s := range d.block {
				if d.is("http") && s.is("server") && len(s.block) == 4 && s.block[3].words[2] == m.Generation.String()+" $pid $nginx_version\n" {
					found++
				}
			}
		}
		if found != 1 {
			t.Errorf("%s: %d servers tell the generation in\n%s", name, found, m.Text)
		}
		if !isMarked(m.Text) || isMarked(text) {
			t.Errorf("%s: it is not to be seen who wrote it", name)
		}
		if u := unmark(m.Text, socket); u.Generation != m.Generation || u.Text != m.Text {
			t.Errorf("%s: it is not known again: %v", name, u.Generation)
		}
		logs := strings.Count(m.Text, "error_log /run/nginx/error.log emerg;")
		if want := strings.Count(text, "error_log stderr"); logs != want {
			t.Errorf("%s: %d logs for berth, want %d, in\n%s", name, logs, want, m.Text)
		}
		if got := Unmarked(m.Text); got != strings.TrimSuffix(text, "\n")+"\n" {
			t.Errorf("%s: without the mark it is\n%s", name, got)
		}
		edited := strings.Replace(m.Text, "80", "81", 1)
		if u := unmark(edited, socket); u.Generation != (configfile.Generation{}) || u.Text != edited {
			t.Errorf("%s: an edit is not noticed", name)
		}
		if got := Unmarked(edited); strings.Contains(got, "By this server") {
			t.Errorf("%s: what somebody edited has the mark still:\n%s", name, got)
		}
	}
	if _, err := mark("events {", socket); err == nil {
		t.Error("what is no configuration gets a mark")
	}
}

// Any servers make a text whose mark is found again, and texts with different servers have different marks.
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
		if unmark(ma.Text, "/s").Generation != ma.Generation {
			t.Fatal("the mark is not found again")
		}
		same := strings.Join(a, ",") == strings.Join(b, ",")
		if (ma.Generation == mb.Generation) != same {
			t.Fatalf("%v and %v: the same mark is %v", a, b, !same)
		}
		if f == luaFrame && !ma.Generation.SameShape(mb.Generation) {
			t.Fatalf("%v and %v: not the same shape", a, b)
		}
	})
}

// A merged text has the servers of the other text, and otherwise its own content.
func TestMergeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("10.0.0.%d:80", rapid.IntRange(1, 200).Draw(t, "host"))
		}), 1, 5, rapid.ID[string])
		f := rapid.SampledFrom([]string{frame, luaFrame}).Draw(t, "frame")
		before, after := text(f, servers.Draw(t, "before")...), text(f, servers.Draw(t, "after")...)
		other := strings.Replace(after, "listen 8080", "listen 8081", 1) + "stream { upstream more { server 10.0.1.1:80; } }\n"
		base, errBase := parse(before)
		to, errTo := parse(other)
		if errBase != nil || errTo != nil {
			t.Fatal(errBase, errTo)
		}
		d := &driver{}
		if got := d.Merge(base, to, nil, true); got != after {
			t.Fatalf("merged by a reload:\n%s", got)
		}
		if got := d.Merge(base, to, []string{"app"}, true); got != before {
			t.Fatalf("merged, though the upstream is to be kept:\n%s", got)
		}
		want := before
		if f == luaFrame {
			want = after
		}
		if got := d.Merge(base, to, nil, false); got != want {
			t.Fatalf("merged at run time:\n%s", got)
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

func TestSameFrame(t *testing.T) {
	const before = "worker_processes 2;\nevents { worker_connections 64; }\nhttp { upstream app { server 10.0.0.1; } }\nstream { server { listen 1; } }\n"
	for _, tt := range []struct {
		name, old, new string
		same           bool
	}{
		{name: "the same", same: true},
		{name: "http", old: "upstream app { server 10.0.0.1; }", new: "server_tokens off;", same: true},
		{name: "no stream", old: "stream { server { listen 1; } }", same: true},
		{name: "layout and comments", old: "events {", new: "# berth\nevents\n{", same: true},
		{name: "a directive", old: "worker_processes 2", new: "worker_processes 3"},
		{name: "one more directive", old: "events", new: "pcre_jit on;\nevents"},
		{name: "in another block", old: "worker_connections 64", new: "worker_connections 65"},
	} {
		if got := new(driver).SameFrame(mustParse(t, before), mustParse(t, strings.Replace(before, tt.old, tt.new, 1))); got != tt.same {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
