//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"berth/proxyctl"
)

// hostile are lines for a backend with the servers keep and other, which replace {} in its text. They must have the same result
// as when HAProxy loads them.
func hostile() []string {
	long := strings.Repeat("n", 300)
	return []string{
		// commands
		`server a;shutdown sessions server app/keep 127.0.0.1:9001`,
		`server "a;shutdown sessions server app/keep" 127.0.0.1:9001`,
		`server a\;set\ server\ app/keep\ state\ maint 127.0.0.1:9001`,
		`server "a 127.0.0.1:1;set server app/keep state maint;" 127.0.0.1:9001`,
		`server a "127.0.0.1:9001;set server app/keep state maint"`,
		`server a "127.0.0.1:9001 disabled"`,
		`server a 127.0.0.1:9001 cookie "x;set server app/keep state maint"`,
		`server a 127.0.0.1:9001 cookie "x disabled"`,
		`server a 127.0.0.1:9001 cookie x\;del\ server\ app/other`,
		`server a 127.0.0.1:9001 cookie x\ disabled`,
		`server a 127.0.0.1:9001 cookie x\\`,
		`server a 127.0.0.1:9001 cookie 'x"y'`,
		`server a 127.0.0.1:9001 cookie "x<<"`,
		`server a<< 127.0.0.1:9001`,
		`server a 127.0.0.1:9001 check <<`,
		`server a 127.0.0.1:9001 # ; set server app/keep state maint`,
		`server a 127.0.0.1:9001 #; del server app/other`,
		`server a#b 127.0.0.1:9001`,
		`server a\#b 127.0.0.1:9001`,
		`server @1 127.0.0.1:9001`,
		`server a 127.0.0.1:9001 sni str(;) ssl verify none`,
		`server a 127.0.0.1:9001 ssl verify none sni "str(a b)"`,
		`server a 127.0.0.1:9001 ssl verify none sni str(a)`,
		`server a 127.0.0.1:9001 ssl verify none sni req.hdr(host) alpn h2,http/1.1`,
		`server a 127.0.0.1:9001 ssl verify required ca-file @system-ca`,
		`server a 127.0.0.1:9001 ssl`,
		`default-server cookie "x disabled"` + "\n  server a 127.0.0.1:9001",
		`default-server sni "str(a) backup" ssl verify none` + "\n  server a 127.0.0.1:9001",
		// quotes and escapes
		"server a 127.0.0.1:9001 cookie \"x\ny\"",
		"server a 127.0.0.1:9001 cookie 'x",
		`server a 127.0.0.1:9001 cookie x\`,
		"server a 127.0.0.1:9001 weight 5\\",
		`server "a" '127.0.0.1:9001' "weight" "3"`,
		`server a"b"c 127.0.0.1:"9001"`,
		`server a\x41 127.0.0.1:9001`,
		`server a\q 127.0.0.1:9001`,
		`server a\n 127.0.0.1:9001`,
		`server a 127.0.0.1:900\x31`,
		`server a 127.0.0.1:9001 weight \x35`,
		`server a 127.0.0.1:9001 weight "\x35"`,
		`server a 127.0.0.1:9001 cookie "\x35"`,
		`server a 127.0.0.1:9001 cookie '\x35'`,
		`server a 127.0.0.1:9001 cookie "a\q"`,
		`server a 127.0.0.1:9001 cookie a\"b`,
		`server "" 127.0.0.1:9001`,
		`server a ""`,
		`server a 127.0.0.1:9001 cookie ""`,
		`server a 127.0.0.1:9001 "" weight 3`,
		"\tserver\ta\t127.0.0.1:9001\tweight\t3\r",
		// variables
		`server ${HOME} 127.0.0.1:9001`,
		`server "${LANDING}" 127.0.0.1:9001`,
		`server a "${LANDING}"`,
		`server a 127.0.0.1:"${LANDING-9001}"`,
		`server "a${LANDING-b}" 127.0.0.1:9001`,
		`server a 127.0.0.1:9001 cookie "$HOME"`,
		`server a 127.0.0.1:9001 "${LANDING[*]}"`,
		`server a 127.0.0.1:9001 cookie $HOME`,
		// names
		"server " + long + " 127.0.0.1:9001",
		"server a/b 127.0.0.1:9001",
		"server app/keep 127.0.0.1:9001",
		"server keep 127.0.0.1:9001",
		"server ä 127.0.0.1:9001",
		"server a,b 127.0.0.1:9001",
		"server -a:.b_ 127.0.0.1:9001",
		"server a 127.0.0.1:9001\n  server a 127.0.0.1:9002",
		"Server a 127.0.0.1:9001",
		"server a",
		"server",
		// addresses
		"server a 127.0.0.1:0", "server a 127.0.0.1", "server a 127.0.0.1:99999", "server a 127.0.0.1:-1", "server a 127.0.0.1:+1", "server a 127.0.0.1:9001-9003",
		"server a 127.0.0.1:09001", "server a 127.0.0.1:abc", "server a 127.1:9001", "server a 127.0.0.01:9001", "server a 999.1.1.1:9001", "server a :9001", "server a *:9001",
		"server a 0.0.0.0:9001", "server a [::]:9001", "server a ::1:9001", "server a [::1]:9001", "server a [::ffff:127.0.0.1]:9001", "server a [fe80::1%lo]:9001",
		"server a ipv4@127.0.0.1:9001", "server a localhost:9001", "server a nosuch.invalid:9001", "server a nosuch.invalid:9001 init-addr none", "server a unix@/tmp/x.sock", "server a /tmp/x.sock",
		// values
		"server a 127.0.0.1:9001 weight abc", "server a 127.0.0.1:9001 weight 257", "server a 127.0.0.1:9001 weight -1", "server a 127.0.0.1:9001 weight", "server a 127.0.0.1:9001 weight 1x",
		"server a 127.0.0.1:9001 weight 007", "server a 127.0.0.1:9001 weight 3 weight 4", "server a 127.0.0.1:9001 weight 256", "server a 127.0.0.1:9001 weight check",
		"server a 127.0.0.1:9001 maxconn", "server a 127.0.0.1:9001 maxconn abc", "server a 127.0.0.1:9001 maxconn 999999999", "server a 127.0.0.1:9001 maxconn 9999999999", "server a 127.0.0.1:9001 maxconn -1", "server a 127.0.0.1:9001 minconn 10 maxconn 5",
		"server a 127.0.0.1:9001 id 0", "server a 127.0.0.1:9001 id 1", "server a 127.0.0.1:9001 id 999999999", "server a 127.0.0.1:9001 id abc", "server a 127.0.0.1:9001 id 3\n  server b 127.0.0.1:9002",
		"server a 127.0.0.1:9001 check inter 0", "server a 127.0.0.1:9001 check inter 1x", "server a 127.0.0.1:9001 check inter 999999999d", "server a 127.0.0.1:9001 check port 99999", "server a 127.0.0.1:9001 check port 0",
		"server a 127.0.0.1:9001 check addr nosuch.invalid", "server a 127.0.0.1:9001 check addr 127.0.0.2 port 7", "server a 127.0.0.1:9001 check rise 0", "server a 127.0.0.1:9001 fall 0 check", "server a 127.0.0.1:9001 rise 3",
		"server a 127.0.0.1:9001 check observe layer7 on-error nonsense", "server a 127.0.0.1:9001 observe layer4 error-limit 3 on-error mark-down", "server a 127.0.0.1:9001 slowstart 999999999h", "server a 127.0.0.1:9001 slowstart 5s",
		"server a 127.0.0.1:9001 proto nonsense", "server a 127.0.0.1:9001 proto h2", "server a 127.0.0.1:9001 ws h2", "server a 127.0.0.1:9001 check-proto h1 check", "server a 127.0.0.1:9001 verify maybe", "server a 127.0.0.1:9001 send-proxy send-proxy-v2 check-send-proxy check",
		"server a 127.0.0.1:9001 backup disabled", "server a 127.0.0.1:9001 disabled enabled", "server a 127.0.0.1:9001 check no-check", "server a 127.0.0.1:9001 no-check check", "server a 127.0.0.1:9001 no-backup backup no-backup",
		"server a 127.0.0.1:9001 check check check", "server a 127.0.0.1:9001 guid a-guid", "server a 127.0.0.1:9001 hash-key addr-port", "server a 127.0.0.1:9001 hash-key nonsense", "server a 127.0.0.1:9001 tfo", "server a 127.0.0.1:9001 crt /nonexistent",
		"server a 127.0.0.1:9001 pool-max-conn -1", "server a 127.0.0.1:9001 pool-max-conn 0 pool-low-conn 3 pool-purge-delay 1ms", "server a 127.0.0.1:9001 bogus", "server a 127.0.0.1:9001 check-ssl verify none check", "server a 127.0.0.1:9001 ssl-min-ver TLSv9 ssl verify none",
		"server a 127.0.0.1:9001 on-marked-down shutdown-sessions", "server a 127.0.0.1:9001 on-marked-up nonsense", "server a 127.0.0.1:9001 proxy-v2-options crc32c send-proxy-v2", "server a 127.0.0.1:9001 proxy-v2-options nonsense", "server a 127.0.0.1:9001 track keep",
		"server a 127.0.0.1:9001 source 127.0.0.2", "server a 127.0.0.1:9001 redir http://x", "server a 127.0.0.1:9001 no-ssl ssl verify none no-ssl", "server a 127.0.0.1:9001 force-tlsv12 force-tlsv13 ssl verify none",
		"server a 127.0.0.1:9001 " + strings.Repeat("check ", 60), "server a 127.0.0.1:9001 " + strings.Repeat("check ", 63), "server a 127.0.0.1:9001 cookie " + long,
		// references to servers
		"use-server keep if TRUE", "use-server a if TRUE\n  server a 127.0.0.1:9001", "use-server a if TRUE", "default-server bogus", "default-server weight 300", "default-server disabled\n  server a 127.0.0.1:9001", "default-server id 5\n  server a 127.0.0.1:9001",
		"default-server backup\n  server a 127.0.0.1:9001 no-backup", "server-template t 3 127.0.0.1:9001", "server-template keep 3 127.0.0.1:9001", ".if 1\n  server a 127.0.0.1:9001\n  .endif", ".notice x",
	}
}

// Whatever a server line says, it cannot become a command. HAProxy either has exactly what the line means, or it is refused and
// everything stays as before.
func TestE2EHostile(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a := startHAProxy(t, r.image), startApp(t)
		l := h.startLoader(r.image)
		text := func(line string) string {
			return h.servers("keep "+a.addr+" weight 7", "other 127.0.0.1:9009 weight 0") + "  " + line + "\n" + "backend after\n  server last 127.0.0.1:9001\n"
		}
		plain := text("")
		list := hostile()
		h.apply(plain)
		h.Close()
		want := l.load(h, plain)
		file := onDisk(t, h.driver.opts.File)
		on, replies := h.hold(a, 1)
		if on["keep"] != 1 {
			t.Fatalf("held by %v", on)
		}
		actions := map[proxyctl.Action]int{}
		for i, line := range list {
			if i%r.of != r.index {
				continue // another release does it
			}
			next := text(line)
			h.berth() // a new berth does not know yet what HAProxy refuses
			res, err := h.Apply(t.Context(), onlyText(next), true)
			h.tend()
			actions[res.Action]++
			switch {
			case errors.Is(err, proxyctl.ErrRefused):
				actions["refused"]++
				h.same(fmt.Sprintf("%q refused", line), want)
				h.Close()
				if got := onDisk(t, h.driver.opts.File); got != file {
					t.Errorf("%q is refused, and the file is another:\n%s", line, got)
				}
			case err != nil:
				t.Errorf("%q: %v", line, err)
			default:
				if res.Action == proxyctl.Runtime { // otherwise it was loaded
					if err := l.loads(h); err != nil {
						t.Errorf("%q is taken (%s), and HAProxy does not start with it: %v", line, res.Action, err)
						break
					}
				}
				h.same(fmt.Sprintf("%q taken (%s)", line, res.Action), l.load(h, next))
				h.steady(fmt.Sprintf("%q taken (%s)", line, res.Action), next)
			}
			if _, err := h.Apply(t.Context(), onlyText(plain), true); err != nil {
				t.Errorf("after %q: %v", line, err)
			}
			h.tend()
			h.same(fmt.Sprintf("after %q", line), want)
			h.Close()
			if got := onDisk(t, h.driver.opts.File); got != file {
				t.Fatalf("after %q the file is another:\n%s", line, got)
			}
			select {
			case r := <-replies:
				t.Fatalf("%q: the request in flight ended: %+v", line, r)
			default:
			}
		}
		t.Logf("%d lines: %v", len(list), actions)
		a.let()
		if r := receive(t, "the reply", replies); r.err != nil || r.status != http.StatusOK {
			t.Errorf("the request in flight: %+v", r)
		}
	})
}

// A server cannot be removed while something else in the text names it, because HAProxy would no longer start with that text.
func TestE2EReferred(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		for _, refer := range []string{
			"backend app\n  use-server a if { path /a }\n  {}server b 127.0.0.1:9002\n",
			"backend app\n  {}server b 127.0.0.1:9002\nbackend other\n  server t 127.0.0.1:9003 track app/a\n",
			"backend app\n  acl up srv_is_up(app/a)\n  http-request deny if !up\n  {}server b 127.0.0.1:9002\n",
		} {
			with := h.text("ok", strings.Replace(refer, "{}", "server a 127.0.0.1:9001 check\n  ", 1))
			h.apply(with)
			want := l.load(h, with)
			what := strings.Join(strings.Fields(refer), " ")
			h.refused(what, h.text("ok", strings.Replace(refer, "{}", "", 1)), with, want)
			if err := l.loads(h); err != nil {
				t.Errorf("%s: HAProxy does not start with the file: %v", what, err)
			}
			h.apply(with)
			h.tend()
			h.same(what+", again", want)
		}
	})
}
