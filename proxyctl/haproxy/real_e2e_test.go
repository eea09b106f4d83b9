//go:build e2e

package haproxy

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/deploy/testenv"
	"berth/proxyctl"
)

// The tests read the state of a real HAProxy with the code below, not with the code under test.

// release is a HAProxy release to test.
type release struct {
	version, image string
	index, of      int // its index among how many
}

var releases = sync.OnceValues(func() ([]release, error) {
	var out []release
	images := strings.Split(os.Getenv("IMAGES_HAPROXY"), ",")
	for _, image := range images {
		said, err := exec.Command("docker", "run", "--rm", "--network", "none", image, "haproxy", "-v").CombinedOutput()
		version := regexp.MustCompile(`version ([0-9]+\.[0-9]+)`).FindSubmatch(said)
		if err != nil || version == nil {
			return nil, fmt.Errorf("haproxy -v in the image %q of IMAGES_HAPROXY: %w: %s", image, err, said)
		}
		out = append(out, release{string(version[1]), image, len(out), len(images)})
	}
	return out, nil
})

// eachRelease runs a test with every HAProxy that has an image.
func eachRelease(t *testing.T, test func(*testing.T, release)) {
	t.Parallel()
	list, err := releases()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		t.Run(r.version, func(t *testing.T) {
			t.Parallel()
			test(t, r)
		})
	}
}

// since reports whether the release is this version or later.
func (r release) since(version string) bool {
	number := func(s string) int {
		major, minor, _ := strings.Cut(s, ".")
		a, _ := strconv.Atoi(major)
		b, _ := strconv.Atoi(minor)
		return a*1000 + b
	}
	return number(r.version) >= number(version)
}

// ask sends a line to a master socket and returns the reply.
func ask(socket, line string) (string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	return string(reply), err
}

// says sends commands to the worker.
func (h *realHAProxy) says(commands ...string) string {
	h.t.Helper()
	reply, err := ask(h.dir+"/master.sock", "@1 "+strings.Join(commands, "; @1 "))
	if err != nil {
		h.t.Fatal(err)
	}
	return reply
}

// seen is what HAProxy reports about its servers: by backend/server, everything that a server line can set and that can be read.
type seen map[string]string

// see reads the servers of the HAProxy behind a socket.
func see(t testing.TB, socket string) seen {
	t.Helper()
	state, err := ask(socket, "@1 show servers state")
	if err != nil {
		t.Fatal(err)
	}
	out := seen{}
	var column map[string]int
	for line := range strings.Lines(state) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "#" {
			column = map[string]int{}
			for i, name := range f[1:] {
				column[name] = i
			}
			continue
		}
		if len(f) < 2 {
			continue
		}
		at := func(name string) string { return f[column[name]] }
		what := net.JoinHostPort(at("srv_addr"), at("srv_port")) + " weight " + at("srv_uweight")
		// According to the manual, 1 and 8 are set by commands, 1 and 4 by "disabled"; a command can then clear 1.
		if admin, err := strconv.Atoi(at("srv_admin_state")); err != nil {
			t.Fatalf("%q: %v", line, err)
		} else if admin&(1|8) != 0 {
			what += " out"
		}
		for _, name := range []string{"srv_fqdn", "srv_use_ssl", "srv_check_port", "srv_check_addr", "srv_agent_addr", "srv_agent_port"} {
			if v := at(name); v != "-" && v != "0" && v != "-1" { // -1: no-ssl
				what += " " + strings.TrimPrefix(name, "srv_") + " " + v
			}
		}
		out[at("be_name")+"/"+at("srv_name")] = what
	}
	stat, err := ask(socket, "@1 show stat")
	if err != nil {
		t.Fatal(err)
	}
	rows := csv.NewReader(strings.NewReader(strings.TrimSpace(stat)))
	rows.LazyQuotes, rows.FieldsPerRecord = true, -1
	all, err := rows.ReadAll()
	if err != nil || len(all) == 0 {
		t.Fatalf("show stat: %v", err)
	}
	for _, row := range all[1:] {
		at := func(name string) string {
			if i := slices.Index(all[0], name); i < len(row) {
				return row[i]
			}
			return ""
		}
		name := row[0] + "/" + row[1]
		if _, is := out[name]; !is {
			continue
		}
		columns := []string{"slim", "qlimit", "cookie", "bck"}
		if at("check_status") != "" && !strings.Contains(out[name], " out") { // the checks of a disabled one are suspended
			columns = append(columns, "check_rise", "check_fall")
		}
		for _, column := range columns {
			if v := at(column); v != "" && v != "0" {
				out[name] += " " + column + " " + v
			}
		}
	}
	return out
}

func (h *realHAProxy) see() seen {
	h.t.Helper()
	return see(h.t, h.dir+"/master.sock")
}

// loader is a second HAProxy of the same version. It shows which servers HAProxy makes of a text that it loads.
type loader struct {
	realHAProxy
	loaded map[string]seen // by text
}

// startLoader starts a loader for the texts of h.
func (h *realHAProxy) startLoader(image string) *loader {
	h.t.Helper()
	l := &loader{realHAProxy{t: h.t, dir: testenv.Dir(h.t), port: testenv.FreePort(h.t)}, map[string]seen{}}
	write(l.t, l.dir+"/haproxy.cfg", l.text("first", ""))
	l.run(image, "haproxy.cfg", "master.sock")
	return l
}

// load returns the servers of a text meant for h, as HAProxy loads them from a file.
func (l *loader) load(h *realHAProxy, text string) seen {
	l.t.Helper()
	if s, is := l.loaded[text]; is {
		return s
	}
	own := strings.ReplaceAll(text, "127.0.0.1:"+h.port, "127.0.0.1:"+l.port)
	const mark = "LOADER"
	stamp := fmt.Sprint(time.Now().UnixNano())
	write(l.t, l.dir+"/haproxy.cfg", own+"\nglobal\n  setenv "+mark+" "+stamp+"\n")
	// 2.6 answers nothing, and closes its socket for a moment.
	l.eventually("the loader reloads", func() bool { _, err := ask(l.dir+"/master.sock", "reload"); return err == nil })
	l.eventually("the loader runs the text", func() bool {
		reply, err := ask(l.dir+"/master.sock", "@1 show env "+mark)
		return err == nil && strings.Contains(reply, mark+"="+stamp)
	})
	l.loaded[text] = l.see()
	return l.loaded[text]
}

// loads returns nil if HAProxy starts with the file of h.
func (l *loader) loads(h *realHAProxy) error {
	l.t.Helper()
	h.Close()
	write(l.t, l.dir+"/candidate.cfg", onDisk(l.t, h.driver.opts.File))
	out, err := exec.Command("docker", "exec", l.id, "haproxy", "-c", "-f", l.dir+"/candidate.cfg").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// apply applies a text, which must succeed.
func (h *realHAProxy) apply(text string) proxyctl.Result {
	h.t.Helper()
	res, err := h.Apply(h.t.Context(), onlyText(text), true)
	if err != nil {
		h.t.Fatalf("Apply: %v", err)
	}
	return res
}

// tend does all remaining work after an Apply.
func (h *realHAProxy) tend() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	for {
		wait := h.driver.Tend(ctx)
		if wait == 0 {
			return
		}
		select {
		case <-ctx.Done():
			h.t.Fatalf("not within 20s: nothing is left to tend to")
		case <-time.After(wait):
		}
	}
}

// same compares HAProxy's servers with the wanted ones.
func (h *realHAProxy) same(what string, want seen) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.see()); diff != "" {
		h.t.Errorf("%s: HAProxy's servers are not those that were wanted (-want +got):\n%s", what, diff)
	}
}

// restart kills HAProxy and restarts it.
func (h *realHAProxy) restart() {
	h.t.Helper()
	testenv.MustDocker(h.t, "restart", "--time", "0", h.id)
	h.up("master.sock")
}

// steady checks that applying the same text again does nothing.
func (h *realHAProxy) steady(what, text string) {
	h.t.Helper()
	if res, err := h.Apply(h.t.Context(), onlyText(text), true); err != nil || res.Action != proxyctl.None {
		h.t.Errorf("%s: the same text again: %+v, %v; want nothing to do", what, res, err)
	}
}
