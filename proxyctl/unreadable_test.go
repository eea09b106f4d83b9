package proxyctl

import (
	"fmt"
	"io/fs"
	"os"
	"testing"
)

// A refusal for want of a key says which file berth cannot read, if there is one.
func TestUnreadable(t *testing.T) {
	const haproxy = "'crt-list' : error processing line 1 in file '/k/list' : No Private Key found in '/k/a.crt.key'.  unable to load SSL private key into SSL Context '/k/a.crt': passed a null parameter."
	const nginx = `cannot load certificate key "/k/a.key": BIO_new_file() failed`
	for _, tt := range []struct {
		complaint, secret, want string
	}{
		{haproxy, "/k/a.key", "/k/a.key"},
		{haproxy, "/k/a.crt", "/k/a.crt"},
		{haproxy, "/k/b.key", ""},
		{nginx, "/k/a.key", "/k/a.key"},
		{"unknown keyword 'x' in section 'global'", "x", ""},
	} {
		open := func(path string) (*os.File, error) {
			if path == tt.secret {
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
			}
			return nil, fs.ErrNotExist
		}
		want := ""
		if tt.want != "" {
			want = fmt.Sprintf("berth's user %d may not read %s: the proxy has to, so give the file to the proxy's user", os.Getuid(), tt.want)
		}
		if got := unreadable(tt.complaint, open); got != want {
			t.Errorf("%s, %s: %q, want %q", tt.complaint, tt.secret, got, want)
		}
	}
}
