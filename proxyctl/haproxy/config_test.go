package haproxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"berth/proxyctl"
)

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		"  server a 10.0.0.1:80 # comment":    {"server", "a", "10.0.0.1:80"},
		`acl x path "/a b" 'c # d' e\ f g\#h`: {"acl", "x", "path", "/a b", "c # d", "e f", "g#h"},
		`use_backend x if { path "" }`:        {"use_backend", "x", "if", "{", "path", "", "}"},
		"\tbind :80,:81\tname x\r\n":          {"bind", ":80,:81", "name", "x"},
		"# all comment":                       nil,
		"":                                    nil,
		`a 'it''s' "say \"yes\""`:             {"a", "its", `say "yes"`},
		`trailing \`:                          {"trailing", `\`},
	} {
		got, raw := words(line)
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%q (-want +got):\n%s", line, d)
		}
		again, same := words(raw)
		if d := cmp.Diff(got, again, cmpopts.EquateEmpty()); d != "" || raw != same {
			t.Errorf("%q is written %q, which reads otherwise (%q):\n%s", line, raw, same, d)
		}
	}
	// Quotes decide whether HAProxy replaces a variable, so they make a difference.
	if _, a := words(`setenv X "$Y"`); a == `setenv X '$Y'` || a != `setenv X "$Y"` {
		t.Errorf("written %q", a)
	}
}

const sample = `
global
    stats socket /run/x.sock
defaults
    mode http
frontend web
    bind :8080
    bind 10.0.0.1:8081,[::1]:8082,unix@/run/y.sock,abns@z,:9000-9010
    bind /run/w.sock
listen admin
    bind *:8404
    server local 127.0.0.1:1
backend app # the app
    server a 10.0.0.1:80 check
    server b 10.0.0.2:80 check
backend empty
`

// Addresses that come and go are as in the text, of servers that get requests.
func TestChangesOfAddresses(t *testing.T) {
	const before = "backend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80 disabled\n  server c [::1]:80\n  server n old.example:80 check\n  server s /run/app.sock\n"
	for name, tt := range map[string]struct{ after, in, out string }{
		"moves":                {strings.Replace(before, "10.0.0.1", "10.0.0.9", 1), "[10.0.0.9:80]", "[10.0.0.1:80]"},
		"weighs otherwise":     {strings.Replace(before, "10.0.0.1:80", "10.0.0.1:80 weight 7", 1), "[]", "[]"},
		"weighs nothing":       {strings.Replace(before, "10.0.0.1:80", "10.0.0.1:80 weight 0", 1), "[]", "[10.0.0.1:80]"},
		"is back in service":   {strings.Replace(before, " disabled", "", 1), "[10.0.0.2:80]", "[]"},
		"a disabled one goes":  {strings.Replace(before, "  server b 10.0.0.2:80 disabled\n", "", 1), "[]", "[]"},
		"IPv6":                 {strings.Replace(before, "  server c [::1]:80\n", "", 1), "[]", "[[::1]:80]"},
		"a host name":          {strings.Replace(before, "old.example:80", "new.example:80", 1), "[new.example:80]", "[old.example:80]"},
		"a host name, quoted":  {strings.Replace(before, "old.example:80 check", `new.example:80 cookie "a b"`, 1), "[new.example:80]", "[old.example:80]"},
		"other keywords":       {strings.Replace(before, "old.example:80 check", "old.example:80", 1), "[]", "[]"},
		"what has no port":     {strings.Replace(before, "/run/app.sock", "/run/other.sock", 1), "[]", "[]"},
		"one more of a server": {before + "  server a2 10.0.0.1:81\n", "[10.0.0.1:81]", "[]"},
	} {
		changes := new(driver).Changes(parse(before, nil), parse(tt.after, nil))
		if len(changes) != 1 || fmt.Sprint(changes[0].In) != tt.in || fmt.Sprint(changes[0].Out) != tt.out {
			t.Errorf("%s: %+v, want in %s, out %s", name, changes, tt.in, tt.out)
		}
	}
}

func TestChanges(t *testing.T) {
	after := strings.NewReplacer(
		"    server b 10.0.0.2:80 check\n", "    server c 10.0.0.3:80 check\n    server d 10.0.0.4:80 check\n",
		"server a 10.0.0.1:80 check", "server  a  10.0.0.1:80   check # same",
		"backend empty\n", "backend new\n  server n 10.0.0.5:80\nbackend hold.again\n  server again unix@/run/haproxy/again.sock\n",
	).Replace(sample)
	want := []proxyctl.Change{
		{Backend: "app", Before: 2, After: 3, Added: 2, Removed: 1, In: []string{"10.0.0.3:80", "10.0.0.4:80"}, Out: []string{"10.0.0.2:80"}},
		{Backend: "new", Before: 0, After: 1, Added: 1, In: []string{"10.0.0.5:80"}},
	}
	if d := cmp.Diff(want, new(driver).Changes(parse(sample, nil), parse(after, nil))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := new(driver).Changes(parse(sample, nil), parse(sample, nil)); got != nil {
		t.Errorf("no change is %v", got)
	}
}

func TestServers(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	tests := []struct {
		name, text string
		want       server
	}{
		{"plain", "backend b\n server s 10.0.0.1:80", server{address: at("10.0.0.1:80"), weight: 1}},
		{"IPv6", "backend b\n server s [fd00::1]:80 weight 7", server{address: at("[fd00::1]:80"), weight: 7}},
		{"keywords are sorted", "backend b\n server s 10.0.0.1:80 maxconn 5 inter 1s check", server{address: at("10.0.0.1:80"), weight: 1, keywords: "check inter 1s maxconn 5", checked: true}},
		{"default-server above it counts, the one below does not", "backend b\n default-server check\n server s 10.0.0.1:80\n default-server maxconn 5", server{address: at("10.0.0.1:80"), weight: 1, keywords: "check", checked: true}},
		{"own words over inherited ones", "backend b\n default-server inter 1s weight 3\n server s 10.0.0.1:80 inter 2s weight 4", server{address: at("10.0.0.1:80"), weight: 4, keywords: "inter 2s"}},
		{"no- takes back", "backend b\n default-server check backup inter 1s\n server s 10.0.0.1:80 no-check", server{address: at("10.0.0.1:80"), weight: 1, keywords: "backup inter 1s"}},
		{"from the last defaults section", "defaults a\n default-server inter 1s\ndefaults\n default-server inter 2s\nbackend b\n server s 10.0.0.1:80", server{address: at("10.0.0.1:80"), weight: 1, keywords: "inter 2s"}},
		{"from a named one", "defaults a\n default-server inter 1s\ndefaults\n default-server inter 2s\nbackend b from a\n server s 10.0.0.1:80", server{address: at("10.0.0.1:80"), weight: 1, keywords: "inter 1s"}},
		{"a defaults section forgets the one before", "defaults\n default-server inter 1s\ndefaults\n mode http\nbackend b\n server s 10.0.0.1:80", server{address: at("10.0.0.1:80"), weight: 1}},
		{"unless it is made from it", "defaults a\n default-server inter 1s\ndefaults c from a\n default-server rise 1\nbackend b\n server s 10.0.0.1:80", server{address: at("10.0.0.1:80"), weight: 1, keywords: "inter 1s rise 1"}},
		{"disabled", "backend b\n server s 10.0.0.1:80 disabled", server{address: at("10.0.0.1:80"), weight: 1, disabled: true}},
		{"enabled again", "backend b\n default-server disabled\n server s 10.0.0.1:80 enabled", server{address: at("10.0.0.1:80"), weight: 1}},
		{"its own id", "backend b\n server s 10.0.0.1:80 id 7", server{address: at("10.0.0.1:80"), weight: 1, keywords: "id 7", ownID: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parse(tt.text, nil).backends["b"].get("s")
			if !ok || got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Words that could break out of a command, or that HAProxy would understand differently at run time, are left to a reload.
func TestFixedServers(t *testing.T) {
	for line, says := range map[string]string{
		"s app.local:80":                                "is not ip:port",
		"s 10.0.0.1":                                    "is not ip:port",
		"s 10.0.0.1:0":                                  "is not ip:port",
		"s 10.0.0.1:99999":                              "is not ip:port",
		"s 0.0.0.0:80":                                  "is not ip:port",
		"s [fe80::1%eth0]:80":                           "is not ip:port",
		"s unix@/run/x":                                 "is not ip:port",
		`s "${IP}:80"`:                                  "its line has quotes",
		"s;x 10.0.0.1:80":                               "the name",
		`s\ x 10.0.0.1:80`:                              "its line has quotes",
		`"s<<" 10.0.0.1:80`:                             "its line has quotes",
		"s 10.0.0.1:80 weight abc":                      "the value of weight",
		"s 10.0.0.1:80 weight -1":                       "the value of weight",
		"s 10.0.0.1:80 weight 257":                      "weight 257 is not",
		"s 10.0.0.1:80 maxconn":                         "the value of maxconn",
		"s 10.0.0.1:80 inter 1x":                        "the value of inter",
		"s 10.0.0.1:80 resolvers dns":                   "resolvers is not known",
		"s 10.0.0.1:80 track b/t":                       "track is not known",
		"s 10.0.0.1:80 bogus":                           "bogus is not known",
		`s 10.0.0.1:80 cookie "a;quit"`:                 "its line has quotes",
		`s 10.0.0.1:80 cookie a\;quit`:                  "its line has quotes",
		`s 10.0.0.1:80 sni "str(a) b"`:                  "its line has quotes",
		"s 10.0.0.1:80 cookie $HOME":                    "the value of cookie",
		"s 10.0.0.1:80 cookie a<<":                      "the value of cookie",
		"s 10.0.0.1:80 addr 10.0.0.2 port":              "the value of port",
		"s 10.0.0.1:80 check port 80 no-xy":             "no-xy is not known",
		"s 10.0.0.1:80" + strings.Repeat(" backup", 60): "60 keywords",
	} {
		var got server
		for _, s := range parse("backend b\n server "+line, nil).backends["b"].servers {
			got = s
		}
		if !strings.Contains(got.reloadReason, says) {
			t.Errorf("%s: reloadReason is %q, want it to say %q", line, got.reloadReason, says)
		}
	}
}

// A default-server line with quotes is left to HAProxy, and with it every server that inherits it.
func TestQuotedDefaults(t *testing.T) {
	s, _ := parse("backend b\n default-server cookie \"x disabled\"\n server s 10.0.0.1:80\n", nil).backends["b"].get("s")
	if s.disabled || s.reloadReason == "" {
		t.Errorf("%+v", s)
	}
}

// pieces are the parts of texts in the property tests.
var pieces = []string{
	"global", "defaults", "defaults d", "defaults d from d", "frontend web", "backend app", "backend other", "backend other from d", "listen app", "peers p", "ring r",
	"  default-server check", "  default-server inter 2s no-check", "  default-server disabled", "  bind :80", "  mode http", "  .if defined(X)", "  server-template t 3 10.0.0.1:80",
	"  server a 10.0.0.1:80", "  server a 10.0.0.2:80", "  server a 10.0.0.1:81 weight 3", "  server b 10.0.0.1:80 check", "  server b [::1]:80 disabled",
	"  server c 10.0.0.3:80 maxconn 3", "  server c name:80", "  server d 10.0.0.4:80 weight 0 # x", "\tserver   d 10.0.0.4:80 weight 0 ", "  server e;f 10.0.0.1:80",
	"", "# comment", `  http-request set-header x "a b"`, "  server", "  server x", "backend", "\\", "backend\tapp",
}

func texts(t *rapid.T) (a, b string) {
	lines := rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 14)
	first := append([]string{"frontend web", "  bind :80", "backend app"}, lines.Draw(t, "lines")...)
	second := append([]string{}, first...)
	for range rapid.IntRange(0, 4).Draw(t, "changes") {
		at := rapid.IntRange(0, len(second)-1).Draw(t, "at")
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 0:
			second[at] = rapid.SampledFrom(pieces).Draw(t, "piece")
		case 1:
			second = append(second[:at:at], append([]string{rapid.SampledFrom(pieces[18:28]).Draw(t, "server")}, second[at:]...)...)
		case 2:
			second = append(second[:at:at], second[at+1:]...)
		default:
			to := rapid.IntRange(0, len(second)-1).Draw(t, "to")
			second[at], second[to] = second[to], second[at]
		}
		if len(second) == 0 {
			second = []string{""}
		}
	}
	return strings.Join(first, "\n"), strings.Join(second, "\n")
}

// Reusing parts of the previous text makes no difference to the result.
func TestParseWithMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := texts(t)
		with, without := parse(b, parse(a, nil)), parse(b, nil)
		if with.text() != b || without.text() != b {
			t.Fatalf("%q after %q: put together again it is %q and %q", b, a, with.text(), without.text())
		}
		if with.shape() != without.shape() || with.reloadReason != without.reloadReason || len(with.backends) != len(without.backends) {
			t.Fatalf("%q after %q: shape\n%q, want\n%q; reloadReason %q, want %q", b, a, with.shape(), without.shape(), with.reloadReason, without.reloadReason)
		}
		for name := range without.backends {
			if d := cmp.Diff(without.backends[name].servers, with.backends[name].servers, cmp.AllowUnexported(server{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Fatalf("%q after %q: servers of %s (-want +got):\n%s", b, a, name, d)
			}
			if d := cmp.Diff(without.backends[name].order, with.backends[name].order); d != "" {
				t.Fatalf("%q after %q: order in %s (-want +got):\n%s", b, a, name, d)
			}
		}
		if d := cmp.Diff(without.binds(), with.binds(), cmp.AllowUnexported(bind{})); d != "" {
			t.Fatalf("%q after %q: binds (-want +got):\n%s", b, a, d)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(sample, sample+"\n server c 10.0.0.4:80")
	f.Add("bind\nfrontend\nbind\nbackend\nserver\nserver x\n\\", "backend b\nserver s 1.2.3.4:5 weight")
	f.Fuzz(func(t *testing.T, a, b string) {
		s := parse(a, nil)
		if p := compare(s, parse(a, s)); p.Reload != "" || len(p.Ops) > 0 {
			t.Errorf("a text differs from itself: %v", p)
		}
		if c := new(driver).Changes(s, parse(a, nil)); c != nil {
			t.Errorf("a text differs from itself: %v", c)
		}
		if a := newAddresses(s, s); a != nil {
			t.Errorf("a text has new addresses against itself: %v", a)
		}
		checkPlan(t, s, parse(b, s))
	})
}

func TestSameFrame(t *testing.T) {
	for _, tt := range []struct {
		name, old, new string
		same           bool
	}{
		{name: "the same", same: true},
		{name: "servers", old: "    server a 10.0.0.1:80 check\n", same: true},
		{name: "a backend", old: "backend app # the app\n    server a 10.0.0.1:80 check\n    server b 10.0.0.2:80 check\n", same: true},
		{name: "a frontend's lines", old: "    bind :8080\n", same: true},
		{name: "blanks and comments", old: "    mode http\n", new: "\n  mode   http # as always\n", same: true},
		{name: "a line of global", old: "stats socket", new: "stats  maxconn 10\n    stats socket"},
		{name: "no global", old: "global\n    stats socket /run/x.sock\n"},
		{name: "a line of defaults", old: "    mode http\n", new: "    mode http\n    default-server check\n"},
		{name: "another defaults", old: "frontend web\n", new: "defaults\nfrontend web\n"},
	} {
		if got := new(driver).SameFrame(parse(sample, nil), parse(strings.Replace(sample, tt.old, tt.new, 1), nil)); got != tt.same {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Servers of a server-template line count as servers.
func TestServes(t *testing.T) {
	const text = "frontend f\n  bind :80\nbackend a\n  server x 10.0.0.1:80\nbackend b\n  server-template s 1-3 _app._tcp.service.consul resolvers consul\nlisten c\n  server y 10.0.0.2:80\nbackend none\n"
	want := map[string]bool{"a": true, "b": true, "c": true}
	if d := cmp.Diff(want, newDriver(Options{}).Serves(parse(text, nil))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A file without its mark is the rendered text, whatever happened to the file.
func TestUnmarked(t *testing.T) {
	file := mark(sample, nil).Text
	edited := strings.Replace(sample, "bind :8080", "bind :8081", 1)
	for _, tt := range []struct{ name, file, want string }{
		{"as berth wrote it", file, sample},
		{"without an end of its last line", mark(strings.TrimSuffix(sample, "\n"), nil).Text, sample},
		{"edited", strings.Replace(file, "bind :8080", "bind :8081", 1), edited},
		{"of a template that is a copy of the file, mark and all", mark(file, nil).Text, file},
		{"with lines behind the mark", file + "listen more\n", file + "listen more\n"},
		{"somebody else's", sample, sample},
	} {
		if got := Unmarked(tt.file); got != tt.want {
			t.Errorf("%s: %s", tt.name, cmp.Diff(tt.want, got))
		}
	}
	if m := mark(file, nil); unmark(m.Text, nil).Generation != m.Generation {
		t.Error("the file of a template that is a copy of such a file is not known again")
	}
}
