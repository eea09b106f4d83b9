package proxyctl

import "testing"

func TestAtFault(t *testing.T) {
	haproxy := "global\n    daemon\nbackend app\n    server a 10.0.0.1:80 chek\nbackend other from http.defaults\n    server b 10.0.0.2:80\nfrontend web\n    bind :80\n"
	nginx := "http {\n  upstream shop {\n    server 10.0.0.1:80;\n    bad;\n  }\n}\n"
	for _, c := range []struct{ text, complaint, want string }{
		{haproxy, "configuration refused by haproxy: [ALERT] config : parsing [/etc/haproxy/haproxy.cfg:4] : 'server a' unknown keyword 'chek'", "app"},
		{haproxy, "configuration refused: line 6: too many words", "other"},
		{haproxy, "parsing [/etc/haproxy/haproxy.cfg:8] : bad bind", ""},
		{haproxy, "config : backend 'other' has no server", "other"},
		{haproxy, "parsing [/etc/haproxy/haproxy.cfg:999] : beyond the end", ""},
		{haproxy, "no word of whose", ""},
		{nginx, `configuration refused by nginx: unknown directive "bad" in /etc/nginx/nginx.conf:4`, "shop"},
		{nginx, "in /etc/nginx/nginx.conf:1", ""},
	} {
		if got := atFault(c.text, c.complaint); got != c.want {
			t.Errorf("%q: %q, want %q", c.complaint, got, c.want)
		}
	}
}
