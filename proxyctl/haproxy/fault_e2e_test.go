//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// The complaints of real HAProxies and their program about a text lead to the section at fault, with maps before it and other
// servers in it.
func TestE2EAtFault(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		before := mapsBegin + h.driver.opts.File + ".routes.map\n" + mapsEntry + "/a app\n" + mapsEntry + "/b shop\n"
		text := func(servers int, shop string) string {
			return before + h.text("ok", "backend app\n"+manyServers(servers)+"backend shop\n  server x 127.0.0.1:9001"+shop+"\nbackend last\n  server l 127.0.0.1:9002\n")
		}
		program := func(o *Options) {
			o.Binary = o.File + ".check"
			write(t, o.Binary, fmt.Sprintf("#!/bin/sh\nexec docker exec %s haproxy \"$@\"\n", h.id))
			if err := os.Chmod(o.Binary, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for way, set := range map[string][]func(*Options){"its master": nil, "its program": {program}} {
			h.berth(set...)
			h.apply(text(2, ""))
			for what, shop := range map[string]string{
				"a keyword of a server":     " chek",
				"a keyword of a section":    "\n  blance source",
				"no such file":              " ssl verify required ca-file /nonexistent",
				"a name":                    "\n  server n nosuch.invalid:80",
				"a server that is tracked":  " track nosuch/x",
				"an id that is given twice": " id 7\n  server y 127.0.0.1:9003 id 7",
			} {
				for _, servers := range []int{3, 20} { // the second refusal comes from memory if the first was a reload
					_, err := h.Apply(t.Context(), onlyText(text(servers, shop)), true)
					var refused *proxyctl.RefusalError
					section := ""
					if errors.As(err, &refused) {
						section = refused.Section
					}
					want := "shop"
					if way == "its master" && !r.since("3.0") {
						want = "" // it does not give a reason
					}
					if !errors.Is(err, proxyctl.ErrRefused) || section != want {
						t.Errorf("%s, %s, %d servers: %q, want %q; %v", way, what, servers, section, want, err)
					}
				}
			}
			h.Close()
		}
	})
}

// A server that its checks find down reports why.
func TestE2EChecks(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		h.apply(h.text("ok", "backend app\n  default-server inter 100ms fall 2\n  server a 127.0.0.1:1 check weight 7\n  server b 127.0.0.1:1\n  server c 127.0.0.1:1 check disabled\n"))
		testenv.Eventually(t, 10*time.Second, "a server is down", func() error {
			servers, err := h.Servers(t.Context())
			var got []string
			for _, s := range servers {
				check := strings.Replace(s.Check, "ECONNREFUSED returned by OS (Connection refused)", "Connection refused", 1) // 3.4
				got = append(got, fmt.Sprint(s.Name, " ", s.State, " ", s.Weight, " ", check))
			}
			if want := "a DOWN 7 L4CON: Connection refused, b no check 1 , c MAINT 1 "; err == nil && strings.Join(got, ", ") != want {
				err = fmt.Errorf("%q", got)
			}
			return err
		})
	})
}
