package nginx

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// What a foreign configuration passes requests to counts, also in included files.
func TestServes(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "own.conf"), "upstream own { server 10.0.0.4:80; }\n")
	write(t, filepath.Join(dir, "conf.d/a.conf"), "upstream included { server 10.0.0.1:80; }\nserver { location / { proxy_pass http://included; } }\n")
	write(t, filepath.Join(dir, "conf.d/b.conf"), "server { location / { proxy_pass http://10.0.0.2:80/x; } location /php { fastcgi_pass unix:/run/php.sock; } }\n")
	write(t, filepath.Join(dir, "conf.d/c.conf"), "include c.conf;\nserver {")
	d := &driver{opts: Options{File: filepath.Join(dir, "nginx.conf")}}
	const own = "upstream own { server 10.0.0.3:80; }\nupstream off { server 10.0.0.3:80 down; }\nserver { location / { proxy_pass http://own; } location /v { proxy_pass http://$host; } }\n"
	http := func(text string) *config {
		c, err := parse("events {}\nhttp {\n" + text + "}\n")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	all := []string{"fastcgi_pass unix:/run/php.sock", "included", "proxy_pass http://10.0.0.2:80/x"}
	for _, tt := range []struct {
		name          string
		before, after *config
		lost          []string // served before, but not after
	}{
		{"an upstream", http(own), http("server {}\n"), []string{"own"}},
		{"an upstream that is empty", http(own), http("upstream own { server 10.0.0.3:80 down; }\n"), []string{"own"}},
		{"other servers", http(own), http("upstream own { server 10.0.0.9:80; }\n"), nil},
		{"included files", http("include conf.d/*.conf;\n" + own), http(own), all},
		{"included by an absolute path", http("include " + dir + "/conf.d/*.conf;\n" + own), http(own), all},
		{"an upstream that is in an included file by now", http(own), http("include own.conf;\n"), nil},
		{"included in both", http("include conf.d/*.conf;\n" + own), http("include conf.d/*.conf;\n" + own), nil},
	} {
		lost, after := d.Serves(tt.before), d.Serves(tt.after)
		maps.DeleteFunc(lost, func(name string, _ bool) bool { return after[name] })
		if got := slices.Sorted(maps.Keys(lost)); !slices.Equal(got, tt.lost) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.lost)
		}
	}
}
