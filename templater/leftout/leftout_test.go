package leftout

import (
	"strings"
	"testing"
)

func TestSentence(t *testing.T) {
	long := strings.Repeat("é", 300)
	for _, tt := range []struct{ service, instance, want string }{
		{"web", "", `service "web": why`},
		{"web", "host:web:80", `service "web", instance "host:web:80": why`},
		{`a": b`, "x\n\", instance \"y\": z", `service "a\": b", instance "x\n\", instance \"y\": z": why`},
		{"", "", `service "": why`},
		{"\xff\u202e", "", `service "\xff\u202e": why`},
	} {
		got := Sentence(tt.service, tt.instance, "why")
		if want := (LeftOut{tt.service, tt.instance, tt.want}); got != tt.want || Parse(got) != want {
			t.Errorf("%q is about %q", got, Parse(got))
		}
	}
	if l := Parse(Sentence(long, long, "why")); len(l.Reason) > 1000 || l.Service != long[:400] || l.Instance != long[:400] {
		t.Errorf("%q", l)
	}
}

func TestParseWhatIsNoSentence(t *testing.T) {
	for _, s := range []string{
		"", "service ", "service web: x", `service "web"`, `service "web" is bad`, `service "web", instance: x`,
		`service "web", instance "a" b`, `service "we: x`, "service `web` x", `node "n": service "x": y`, ` service "web": x`,
	} {
		if l := Parse(s); l != (LeftOut{Reason: s}) {
			t.Errorf("%q is about %q", s, l)
		}
	}
}
