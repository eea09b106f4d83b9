//go:build e2e

package haproxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// harness is a HAProxy in a container in the host's network with the settings of the built-in template. Everything listens on its
// own address in 127.0.0.0/8, whose ports no outgoing connection takes.
type harness struct {
	testing.TB
	image   string
	version string
	dir     string
	id      string // of the container
	web     string // address of its frontend

	apps map[string]*http.Server // applications in this process, by address
}

const (
	webIP = "127.0.0.3"
	appIP = "127.0.0.2"
)

func startHarness(tb testing.TB, image string) *harness {
	dir := testenv.Dir(tb)
	r := &harness{TB: tb, image: image, dir: dir, web: testenv.FreeAddress(tb, webIP)}
	write(tb, r.file(), r.text("", group{name: "app"}))
	r.id = testenv.Run(tb, "--network", "host", "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
		"--log-opt", "max-size=10m", "--volume", dir+":"+dir, image, "haproxy", "-W", "-db", "-S", dir+"/master.sock", "-f", r.file())
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(r.messages())
		}
	})
	testenv.Eventually(r, 20*time.Second, "HAProxy answers", func() error {
		if _, err := r.info("Version"); err != nil {
			return err
		}
		_, err := master{dir + "/master.sock", time.Second}.inspect(tb.Context(), dir+"/haproxy.cfg") // it listens a moment later
		return err
	})
	r.version, _ = r.info("Version")
	return r
}

// messages returns the latest messages of HAProxy's log that are not about requests.
func (r *harness) messages() string {
	lines := strings.Split(testenv.MustDocker(r, "logs", "--tail", "20000", r.id), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "] http.in ") })
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

func (r *harness) file() string { return filepath.Join(r.dir, "haproxy.cfg") }

// options returns the options that berth itself uses for a Proxy.
func (r *harness) options() Options {
	return Options{File: r.file(), Socket: filepath.Join(r.dir, "master.sock"), Grace: -1, Log: slog.New(slog.DiscardHandler)}
}

// group is a backend, and listed is one of its servers.
type (
	group struct {
		name    string
		servers []listed
	}
	listed struct {
		name, address string
		weight        int
	}
)

// ofHolding matches the settings for waiting connections, which need files next to them.
var ofHolding = regexp.MustCompile(`(?ms)^    lua-load [^\n]*\n|^defaults tcp\.in\.defaults .*?^(# For all|defaults http)`)

// text is a configuration with the settings of the built-in template. more is for its frontend. Each backend is at the path of
// its name, and the first one gets all other requests.
func (r *harness) text(more string, backends ...group) string {
	rendered, err := os.ReadFile("../../templates/testdata/one.cfg")
	if err != nil {
		r.Fatal(err)
	}
	settings, _, _ := strings.Cut(string(rendered), "\nfrontend ")
	_, settings, ok := strings.Cut(settings, "\nglobal\n")
	if !ok {
		r.Fatal("the shipped template renders no global section before its first frontend")
	}
	settings = ofHolding.ReplaceAllString(settings, "$1")
	var b strings.Builder
	fmt.Fprintf(&b, "global\n%s\nfrontend http.in\n    bind %s\n", strings.ReplaceAll(settings, "/run/haproxy/", r.dir+"/"), r.web)
	b.WriteString("    http-request disable-l7-retry unless { method GET HEAD OPTIONS TRACE PUT DELETE }\n" + more)
	for _, g := range backends[1:] {
		fmt.Fprintf(&b, "    use_backend %s if { path -m beg /%s/ }\n", g.name, g.name)
	}
	fmt.Fprintf(&b, "    default_backend %s\n", backends[0].name)
	for _, g := range backends {
		fmt.Fprintf(&b, "\nbackend %s\n", g.name)
		for _, s := range g.servers {
			fmt.Fprintf(&b, "    server %s %s weight %d\n", s.name, s.address, s.weight)
		}
	}
	return b.String()
}

// runtime asks HAProxy's worker over the socket of the built-in template, unlike the code under test.
func (r *harness) runtime(command string) (string, error) {
	conn, err := net.Dial("unix", filepath.Join(r.dir, "admin.sock"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	return string(reply), err
}

// info returns a value of "show info".
func (r *harness) info(name string) (string, error) {
	reply, err := r.runtime("show info")
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(reply, "\n"+name+": ")
	if !ok {
		return "", fmt.Errorf("show info has no %s: %q", name, reply)
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value, nil
}

// servers returns HAProxy's servers, by backend/name: address, weight, and other details.
func (r *harness) servers() (map[string]string, error) {
	reply, err := r.runtime("show servers state")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(reply) {
		f := strings.Fields(line) // 3 name, 4 address, 5 operational state, 6 administrative state, 7 weight, 18 port
		if len(f) < 19 || f[0] == "#" {
			continue
		}
		s := fmt.Sprintf("%s:%s weight %s", f[4], f[18], f[7])
		if f[6] != "0" {
			s += " admin state " + f[6]
		}
		if f[5] != "2" {
			s += " operational state " + f[5]
		}
		out[f[1]+"/"+f[3]] = s
	}
	return out, nil
}

// expect returns nil if HAProxy has exactly these servers, and they are up.
func (r *harness) expect(backends ...group) error {
	has, err := r.servers()
	if err != nil {
		return err
	}
	return differ(has, backends...)
}

func differ(has map[string]string, backends ...group) error {
	want := map[string]string{}
	for _, g := range backends {
		for _, s := range g.servers {
			want[g.name+"/"+s.name] = fmt.Sprintf("%s weight %d", s.address, s.weight)
		}
	}
	if maps.Equal(has, want) {
		return nil
	}
	var diff []string
	for name, s := range want {
		if has[name] != s {
			diff = append(diff, fmt.Sprintf("%s is %q, want %q", name, has[name], s))
		}
	}
	for name, s := range has {
		if want[name] == "" {
			diff = append(diff, fmt.Sprintf("%s is %q, want none", name, s))
		}
	}
	slices.Sort(diff)
	return fmt.Errorf("%d servers differ: %s", len(diff), strings.Join(diff[:min(len(diff), 5)], "; "))
}

// worker returns the serving process by its PID on this machine; 0 if it is not visible.
func (r *harness) worker() (pid int) {
	main := testenv.MustDocker(r, "inspect", "--format", "{{.State.Pid}}", r.id)
	b, err := os.ReadFile("/proc/" + main + "/task/" + main + "/children")
	if err != nil {
		return 0
	}
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pid = max(pid, n)
		}
	}
	return pid
}

// memory returns a value of /proc/<pid>/status in MB, 0 if there is none.
func memory(pid int, name string) float64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if value, ok := strings.CutPrefix(in.Text(), name+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// processorTime returns the CPU time a process has used so far.
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// images returns the HAProxy images to test, from the first of these variables that is set; it may list several.
func images(tb testing.TB, variables ...string) []string {
	set := slices.IndexFunc(variables, func(v string) bool { return os.Getenv(v) != "" })
	return testenv.Images(tb, variables[max(set, 0)])
}
