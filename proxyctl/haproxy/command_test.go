package haproxy

import (
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
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
		{command: "haproxy -W -S /run/other.sock,mode,660", refused: "-S /run/other.sock,mode,660 differs from haproxy-socket, which is /run/haproxy/master.sock"},
		{command: "haproxy -S -W", refused: "differs from haproxy-socket"},
		{command: "haproxy -W -f /etc/other.cfg", refused: "-f /etc/other.cfg differs from haproxy-config, which is /etc/haproxy/haproxy.cfg"},
	} {
		args := strings.Fields(tt.command)
		got, err := Command(args, file, socket)
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
	if _, err := Command([]string{"haproxy", "-W"}, file, ""); err == nil {
		t.Error("without a socket there is no error")
	}
}
