package main

import (
	"slices"
	"strings"
	"testing"
)

func TestHAProxyCommand(t *testing.T) {
	const file, socket = "/etc/haproxy/haproxy.cfg", "/run/haproxy/master.sock"
	for _, tt := range []struct{ command, want, refused string }{
		{command: "haproxy -W -db", want: "haproxy -W -db -S unix@/run/haproxy/master.sock,mode,660 -f /etc/haproxy/haproxy.cfg"},
		{command: "haproxy -Ws", want: "haproxy -Ws -db -S unix@/run/haproxy/master.sock,mode,660 -f /etc/haproxy/haproxy.cfg"},
		{command: "setpriv --reuid 99 haproxy -W", want: "setpriv --reuid 99 haproxy -W -db -S unix@/run/haproxy/master.sock,mode,660 -f /etc/haproxy/haproxy.cfg"},
		{command: "haproxy -W -db -S /run/haproxy/master.sock -f /etc/haproxy/haproxy.cfg", want: "haproxy -W -db -S /run/haproxy/master.sock -f /etc/haproxy/haproxy.cfg"},
		{command: "haproxy -W -db -S unix@/run/haproxy/master.sock,mode,600 -f /etc/haproxy/../haproxy/haproxy.cfg",
			want: "haproxy -W -db -S unix@/run/haproxy/master.sock,mode,600 -f /etc/haproxy/../haproxy/haproxy.cfg"},
		{command: "haproxy -f /etc/haproxy -W -db", want: "haproxy -f /etc/haproxy -W -db -S unix@/run/haproxy/master.sock,mode,660"},
		{command: "haproxy -f /etc/global.cfg -f /etc/haproxy/haproxy.cfg -W -db",
			want: "haproxy -f /etc/global.cfg -f /etc/haproxy/haproxy.cfg -W -db -S unix@/run/haproxy/master.sock,mode,660"},

		{command: "haproxy -db", refused: "haproxy needs -W (or -Ws)"},
		{command: "haproxy", refused: "haproxy needs -W (or -Ws)"},
		{command: "haproxy -W -D", refused: "haproxy must not have -D"},
		{command: "haproxy -W -S /run/other.sock,mode,660", refused: "-S /run/other.sock,mode,660 is not haproxy-socket, which is /run/haproxy/master.sock"},
		{command: "haproxy -S -W", refused: "is not haproxy-socket"},
		{command: "haproxy -W -f /etc/other.cfg", refused: "-f /etc/other.cfg is not haproxy-config, which is /etc/haproxy/haproxy.cfg"},
	} {
		args := strings.Fields(tt.command)
		got, err := haproxyCommand(args, file, socket)
		switch {
		case tt.refused == "" && (err != nil || strings.Join(got, " ") != tt.want):
			t.Errorf("%s: %q, %v, want %q", tt.command, got, err, tt.want)
		case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%s: %q, %v, want an error that says %q", tt.command, got, err, tt.refused)
		}
		if strings.Join(args, " ") != tt.command {
			t.Errorf("%s: the arguments became %q", tt.command, args)
		}
	}
	if _, err := haproxyCommand([]string{"haproxy", "-W"}, file, ""); err == nil {
		t.Error("without a socket there is no error")
	}
}

func TestNginxCommand(t *testing.T) {
	const file = "/etc/nginx/nginx.conf"
	for _, tt := range []struct {
		args, want []string
		refused    string
	}{
		{args: []string{"nginx"}, want: []string{"nginx", "-g", "daemon off;", "-c", file}},
		{args: []string{"nginx", "-g", "daemon off; pid /tmp/x;"}, want: []string{"nginx", "-g", "daemon off; pid /tmp/x;", "-c", file}},
		{args: []string{"nginx", "-c", "/etc/nginx/./nginx.conf"}, want: []string{"nginx", "-c", "/etc/nginx/./nginx.conf", "-g", "daemon off;"}},
		{args: []string{"setpriv", "--reuid", "101", "nginx"}, want: []string{"setpriv", "--reuid", "101", "nginx", "-g", "daemon off;", "-c", file}},
		{args: []string{"nginx", "-g", "user www-data;"}, want: []string{"nginx", "-g", "user www-data; daemon off;", "-c", file}},
		{args: []string{"nginx", "-g", "daemon  on;"}, refused: "must not have daemon on"},
		{args: []string{"nginx", "-c", "/other"}, refused: "-c /other is not nginx-config, which is /etc/nginx/nginx.conf"},
	} {
		got, err := nginxCommand(tt.args, file, "")
		switch {
		case tt.refused == "" && (err != nil || !slices.Equal(got, tt.want)):
			t.Errorf("%q: %q, %v, want %q", tt.args, got, err, tt.want)
		case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%q: %q, %v, want an error that says %q", tt.args, got, err, tt.refused)
		}
	}
}

func TestProgramIn(t *testing.T) {
	for command, want := range map[string]string{
		"/opt/haproxy/sbin/haproxy -W":  "/opt/haproxy/sbin/haproxy",
		"setpriv --reuid 99 haproxy -W": "haproxy",
		"hapee-lb -W":                   "",
	} {
		if got, found := programIn(strings.Fields(command), "haproxy"); got != want || found != (want != "") {
			t.Errorf("%s: %s, %v", command, got, found)
		}
	}
}

func TestChildEnvironment(t *testing.T) {
	env := []string{"PATH=/bin", "CONSUL_HTTP_TOKEN=secret", "CONSUL_HTTP_AUTH=me:secret", "CONSUL_HTTP_ADDR=consul:8500"}
	if got := childEnvironment(slices.Clone(env)); !slices.Equal(got, []string{"PATH=/bin", "CONSUL_HTTP_ADDR=consul:8500"}) {
		t.Errorf("the child gets %q", got)
	}
}
