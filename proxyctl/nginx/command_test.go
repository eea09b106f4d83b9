package nginx

import (
	"slices"
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
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
		{args: []string{"nginx", "-c", "/other"}, refused: "-c /other differs from nginx-config, which is /etc/nginx/nginx.conf"},
	} {
		got, err := Command(tt.args, file)
		switch {
		case tt.refused == "" && (err != nil || !slices.Equal(got, tt.want)):
			t.Errorf("%q: %q, %v, want %q", tt.args, got, err, tt.want)
		case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%q: %q, %v, want an error that says %q", tt.args, got, err, tt.refused)
		}
	}
}
