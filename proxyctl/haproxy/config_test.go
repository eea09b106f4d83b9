package haproxy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		if d := cmp.Diff(want, words(line)); d != "" {
			t.Errorf("%q (-want +got):\n%s", line, d)
		}
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

func TestNewAddresses(t *testing.T) {
	after := strings.Replace(sample, "bind :8080", "bind :8080\n bind 10.0.0.9:8404\n bind :443 ssl crt /x\n bind ipv4@127.0.0.1:444\n bind ${IP}:445", 1)
	got := newAddresses(parse(sample), parse(after))
	want := []string{":443", "127.0.0.1:444"} // 8404 is HAProxy's own already
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if n := len(newAddresses(nil, parse(sample))); n != 4 {
		t.Errorf("%d new addresses in all, want 4: %v", n, newAddresses(nil, parse(sample)))
	}
}

func TestChanges(t *testing.T) {
	after := strings.NewReplacer(
		"    server b 10.0.0.2:80 check\n", "    server c 10.0.0.3:80 check\n    server d 10.0.0.4:80 check\n",
		"server a 10.0.0.1:80 check", "server  a  10.0.0.1:80   check # same",
		"backend empty\n", "backend new\n  server n 10.0.0.5:80\n",
	).Replace(sample)
	want := []proxyctl.Change{
		{Backend: "app", Before: 2, After: 3, Added: 2, Removed: 1},
		{Backend: "new", Before: 0, After: 1, Added: 1},
	}
	if d := cmp.Diff(want, changes(parse(sample), parse(after))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := changes(parse(sample), parse(sample)); got != nil {
		t.Errorf("no change is %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("bind\nfrontend\nbind\nbackend\nserver\nserver x\n\\")
	f.Fuzz(func(t *testing.T, text string) {
		s := parse(text)
		if c := changes(s, parse(text)); c != nil {
			t.Errorf("a text differs from itself: %v", c)
		}
		if a := newAddresses(s, s); a != nil {
			t.Errorf("a text has new addresses against itself: %v", a)
		}
	})
}
