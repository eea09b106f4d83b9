package nginx

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"berth/proxyctl"
)

// The upstream at fault, according to nginx: for a line in it, or in blocks that pass requests only to it.
func TestAtFault(t *testing.T) {
	const text = `events {}
http {
    upstream shop.0a1b2c3d {
        server 10.0.0.1:80;
        bad;
    }
    upstream other { server nosuch.invalid:80; }
    bad;
    server {
        listen 80;
        bad;
        location / {
            proxy_set_header
                a b c;
            proxy_pass http://shop.0a1b2c3d/;
        }
        location /other { if ($x) { bad; } proxy_pass http://other; }
        location /fixed { proxy_pass http://10.0.0.9; bad; }
    }
    server {
        listen 81;
        location / { proxy_pass http://other; }
        bad;
    }
}
stream {
    upstream db.tcp { server 10.0.0.1:5432; }
    server { listen 5432; proxy_pass db.tcp; bad; }
}
`
	d := &driver{opts: Options{File: "/berth/nginx.conf"}}
	for line, want := range map[string]string{
		"1": "", "2": "", "3": "shop.0a1b2c3d", "5": "shop.0a1b2c3d", "6": "shop.0a1b2c3d", "7": "other", "8": "", "10": "", "11": "",
		"13": "shop.0a1b2c3d", "14": "shop.0a1b2c3d", "15": "shop.0a1b2c3d", "17": "other", "18": "", "21": "other", "23": "other",
		"27": "db.tcp", "28": "db.tcp", "30": "", "999": "", "99999999999999999999": "",
	} {
		if got := d.AtFault(text, `configuration refused by nginx: unknown directive "bad" in /etc/nginx/nginx.conf:`+line); got != want {
			t.Errorf("line %s: %q, want %q", line, got, want)
		}
	}
	for complaint, want := range map[string]string{
		`host not found in upstream "nosuch.invalid:80" in /berth/.nginx.conf.candidate:7`: "other",
		`unknown directive "bad" in /etc/nginx/conf.d/mine.conf:5`:                         "",
		"bind() to 0.0.0.0:5 failed (98: Address already in use)":                          "",
		"line 5: something else": "",
	} {
		if got := d.AtFault(text, complaint); got != want {
			t.Errorf("%s: %q, want %q", complaint, got, want)
		}
	}
	if got := d.AtFault("http {", "bad in /berth/nginx.conf:1"); got != "" {
		t.Errorf("a text that is none: %q", got)
	}
}

// A text that is refused without asking nginx names the upstream, too. The mark and everything before a line count.
func TestAtFaultOfWords(t *testing.T) {
	d := &driver{opts: Options{File: "/berth/nginx.conf", Socket: "/run/nginx.sock"}}
	for text, want := range map[string]string{
		"http {\n  upstream shop {\n    server \"10.0.0.1:80;\n  }\n}\n": "shop",
		"http {\n  upstream shop {\n    server ;;\n  }\n}\n":             "shop",
		"http {\n  server { ;; }\n}\n":                                   "",
		"}\n":                                                            "",
	} {
		_, err := d.Mark(text, nil)
		var refused *proxyctl.RefusalError
		section := ""
		if errors.As(err, &refused) {
			section = refused.Section
		}
		if section != want || !errors.Is(err, proxyctl.ErrRefused) || !strings.HasPrefix(err.Error(), "configuration refused: line ") {
			t.Errorf("%q: %q, want %q; %v", text, section, want, err)
		}
	}
}

// What nginx refuses to load is mapped as well, by the lines of the file with its mark.
func TestAtFaultOfReload(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	two := strings.Replace(newText, "keepalive 64", "keepalive 65; bogus on", 1)
	n.refuse = func(text string) {
		before, _, found := strings.Cut(text, "bogus")
		if found {
			n.logs("unknown directive \"bogus\" in " + n.file + ":" + strconv.Itoa(1+strings.Count(before, "\n")))
		}
	}
	n.unknown = nil
	_, err := n.proxy().Apply(t.Context(), onlyText(two), true)
	var refused *proxyctl.RefusalError
	if !errors.As(err, &refused) || refused.Section != "app" {
		t.Errorf("%v", err)
	}
}
