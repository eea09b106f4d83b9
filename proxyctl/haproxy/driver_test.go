package haproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// masterSocket answers like a HAProxy 3.0 master (or, if silent, a 2.6 one) with one worker. It loads the file at a reload, and
// carries out the commands that change servers.
type masterSocket struct {
	path, file string
	version    string
	silent     bool              // 2.6: no reply to reload
	hang       map[string]bool   // commands that are never answered
	says       map[string]string // answers to commands with these prefixes, which are then not carried out
	refuse     func(text string) string
	elsewhere  bool              // it reads a file other than berth's
	hide       string            // a server it does not show
	oldSays    string            // what the old worker answers to any command
	first      map[string]func() // called before a command is first answered

	mu       sync.Mutex
	running  string // text of the serving worker
	servers  []fakeServer
	backends map[string]bool // published
	maps     map[string]entries
	worker   int
	failed   int
	loaded   []string
	commands []string // all commands to the worker that do more than look
	release  chan struct{}
}

type fakeServer struct {
	backend, name, addr, port string
	weight, admin, id, check  int
	busy                      bool // has connections
}

func startMaster(t *testing.T, dir string) *masterSocket {
	m := &masterSocket{
		path: filepath.Join(dir, "master.sock"), file: filepath.Join(dir, "haproxy.cfg"), version: "3.0.11",
		hang: map[string]bool{}, says: map[string]string{}, worker: 100, release: make(chan struct{}),
		refuse: func(text string) string {
			if strings.Contains(text, "bogus") {
				return "config : parsing [/etc/haproxy/haproxy.cfg:3] : unknown keyword 'bogus' in 'frontend' section"
			}
			return ""
		},
	}
	l, err := net.Listen("unix", m.path)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { m.serve(conn) })
		}
	})
	t.Cleanup(func() { close(m.release); l.Close(); conns.Wait() })
	return m
}

// run makes the worker one that has loaded text.
func (m *masterSocket) run(text string) {
	m.running, m.servers, m.maps, m.backends = text, nil, map[string]entries{}, map[string]bool{}
	contents, _ := cutMaps(text)
	for path := range contents {
		content, _ := os.ReadFile(path)
		m.maps[path] = parseEntries(string(content))
	}
	backend := ""
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "backend" {
			backend = f[1]
			m.backends[backend] = true
		}
		if len(f) < 3 || f[0] != "server" {
			continue
		}
		addr, port, _ := net.SplitHostPort(f[2])
		s := fakeServer{backend: backend, name: f[1], addr: addr, port: port, weight: 1, id: len(m.servers) + 1}
		for i, w := range f {
			if w == "weight" {
				s.weight, _ = strconv.Atoi(f[i+1])
			}
			if w == "disabled" {
				s.admin = 5
			}
			if w == "check" {
				s.check = checkConfigured | checkEnabled
			}
		}
		m.servers = append(m.servers, s)
	}
}

func (m *masterSocket) serve(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for command := range strings.SplitSeq(strings.TrimSpace(line), "; ") {
		if m.hang[command] {
			m.mu.Unlock()
			<-m.release
			m.mu.Lock()
			return
		}
		if do := m.first[command]; do != nil {
			delete(m.first, command)
			m.mu.Unlock()
			do()
			m.mu.Lock()
		}
		if worker, ok := strings.CutPrefix(command, "@1 "); ok {
			m.toWorker(conn, worker)
		} else if strings.HasPrefix(command, fmt.Sprintf("@!%d ", m.worker-1)) {
			io.WriteString(conn, m.oldSays)
		} else {
			m.toMaster(conn, command)
		}
	}
}

func (m *masterSocket) toMaster(conn io.Writer, command string) {
	switch command {
	case "show proc":
		fmt.Fprintf(conn, "#<PID>          <type>          <reloads>       <uptime>        <version>\n"+
			"1               master          5 [failed: %d]     0d00h00m05s     %[4]s\n# workers\n"+
			"%[2]d               worker          0               0d00h00m04s     %[4]s\n# old workers\n"+
			"%[3]d               worker          1               0d00h00m09s     %[4]s\n# programs\n\n", m.failed, m.worker, m.worker-1, m.version)
	case "reload":
		text, _ := os.ReadFile(m.file)
		m.loaded = append(m.loaded, string(text))
		why := m.refuse(string(text))
		if why == "" {
			m.worker++
			m.failed = 0
			if !m.elsewhere {
				m.run(string(text))
			}
		} else {
			m.failed++
		}
		switch {
		case m.silent:
		case why == "":
			fmt.Fprintf(conn, "Success=1\n--\n[NOTICE]   (1) : Loading success.\n")
		default:
			fmt.Fprintf(conn, "Success=0\n--\n[NOTICE]   (1) : haproxy version is 3.0.11\n[ALERT]    (1) : %s\n[ALERT]    (1) : config : Fatal errors found in configuration.\n[WARNING]  (1) : Loading failure!\n", why)
		}
	default:
		io.WriteString(conn, "Unknown command\n")
	}
}

const stateHead = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"

func (m *masterSocket) toWorker(conn io.Writer, command string) {
	w := strings.Fields(command)
	what := strings.Join(w[:min(2, len(w))], " ")
	if what != "show map" && what != "show stat" && what != "show env" && what != "show ssl" && what != "show info" && what != "show servers" {
		m.commands = append(m.commands, command)
	}
	for begin, says := range m.says {
		if strings.HasPrefix(command, begin) {
			io.WriteString(conn, says)
			return
		}
	}
	var at *fakeServer
	backend, name := "", ""
	if len(w) > 2 {
		backend, name, _ = strings.Cut(w[2], "/")
		if i := slices.IndexFunc(m.servers, func(s fakeServer) bool { return s.backend == backend && s.name == name }); i >= 0 {
			at = &m.servers[i]
		}
	}
	if at == nil && (what == "set server" || what == "enable server") {
		io.WriteString(conn, "No such server.\n\n")
		return
	}
	switch what {
	case "show env":
		if g := markIn(m.running); g != "" {
			fmt.Fprintf(conn, "%s=%s\n\n", markName, g)
		} else {
			io.WriteString(conn, "Variable not found\n\n")
		}
	case "show info":
		fmt.Fprintf(conn, "Name: HAProxy\nPid: %d\nUptime_sec: 1\n\n", m.worker)
	case "show servers":
		io.WriteString(conn, stateHead)
		for _, s := range m.servers {
			if len(w) == 4 && s.backend != w[3] || s.name == m.hide {
				continue
			}
			op := 2
			if s.admin != 0 {
				op = 0
			}
			fmt.Fprintf(conn, "2 %s %d %s %s %d %d %d 1 44 8 2 0 %d 0 0 0 - %s - 0 0 - - 0\n", s.backend, s.id, s.name, s.addr, op, s.admin, s.weight, s.check, s.port)
		}
		io.WriteString(conn, "\n")
	case "show stat":
		io.WriteString(conn, "# pxname,svname,status,\n")
		for name, published := range m.backends {
			if w[2] == "-1" || w[2] == name {
				fmt.Fprintf(conn, "%s,BACKEND,UP%s,\n", name, map[bool]string{false: " (UNPUB)"}[published])
			}
		}
		io.WriteString(conn, "\n")
	case "add backend":
		if _, taken := m.backends[backend]; taken {
			fmt.Fprintf(conn, "Error during backend creation : name is already used by other proxy 'backend %s'.\n\n", backend)
			return
		}
		m.backends[backend] = false
		io.WriteString(conn, "New backend registered.\n\n")
	case "publish backend", "unpublish backend":
		if _, there := m.backends[backend]; !there {
			io.WriteString(conn, "No such backend.\n\n")
			return
		}
		m.backends[backend] = w[0] == "publish"
		fmt.Fprintf(conn, "Backend %sed.\n\n", w[0])
	case "del backend":
		switch published, there := m.backends[backend]; {
		case !there:
			io.WriteString(conn, "No such backend.\n\n")
		case published:
			io.WriteString(conn, "Backend must be unpublished prior to its deletion.\n\n")
		case slices.ContainsFunc(m.servers, func(s fakeServer) bool { return s.backend == backend }):
			io.WriteString(conn, "Only a backend without server can be deleted.\n\n")
		default:
			delete(m.backends, backend)
			io.WriteString(conn, "Server x/y is going DOWN for maintenance.\nBackend deleted.\n\n")
		}
	case "add server":
		if at != nil {
			io.WriteString(conn, "Already exists a server with the same name in backend.\n\n")
			return
		}
		addr, port, _ := net.SplitHostPort(w[3])
		s := fakeServer{backend: backend, name: name, addr: addr, port: port, weight: 1, admin: 1}
		for i, word := range w {
			switch word {
			case "weight":
				s.weight, _ = strconv.Atoi(w[i+1])
			case "id":
				s.id, _ = strconv.Atoi(w[i+1])
			case "check":
				s.check = checkConfigured
			}
		}
		m.servers = append(m.servers, s)
		io.WriteString(conn, "New server registered.\n\n")
	case "del server":
		switch {
		case at == nil:
			io.WriteString(conn, "No such server.\n\n")
		case at.admin&1 == 0:
			io.WriteString(conn, "Only servers in maintenance mode can be deleted.\n\n")
		case at.busy:
			io.WriteString(conn, "Server still has connections attached to it, cannot remove it.\n\n")
		default:
			m.servers = slices.DeleteFunc(m.servers, func(s fakeServer) bool { return s == *at })
			io.WriteString(conn, "Server deleted.\n\n")
		}
	case "enable health", "disable health":
		if at == nil || at.check == 0 {
			io.WriteString(conn, "Health check was not configured on this server, cannot enable.\n\n")
			return
		}
		at.check = checkConfigured
		if w[0] == "enable" {
			at.check |= checkEnabled
		}
		io.WriteString(conn, "\n")
	case "enable server":
		at.admin = 0
		io.WriteString(conn, "\n")
	case "set server":
		switch w[3] {
		case "weight":
			at.weight, _ = strconv.Atoi(w[4])
		case "state":
			at.admin = map[string]int{"ready": 0, "drain": 8, "maint": 1}[w[4]]
		case "addr":
			at.addr, at.port = w[4], w[6]
			io.WriteString(conn, "IP changed from 'a' to 'b', port changed from '1' to '2' by 'stats socket command'\n")
		}
		io.WriteString(conn, "\n")
	case "shutdown sessions":
		_, n, _ := strings.Cut(w[3], "/")
		for i := range m.servers {
			if m.servers[i].name == n {
				m.servers[i].busy = false
			}
		}
		io.WriteString(conn, "\n")
	case "show sess":
		io.WriteString(conn, "\n")
	case "show ssl":
		io.WriteString(conn, "\n")
	case "show map":
		if len(w) == 2 {
			io.WriteString(conn, "# id (file) description\n")
			for path := range m.maps {
				fmt.Fprintf(conn, "-1 (%s) pattern loaded from file '%[1]s' used by map at file 'haproxy.cfg' line 3. curr_ver=0 next_ver=0 entry_cnt=1\n", path)
			}
		} else {
			for key, value := range m.maps[w[2]] {
				fmt.Fprintf(conn, "0x55d0c8a1b2c0 %s %s\n", key, value)
			}
		}
		io.WriteString(conn, "\n")
	case "set map", "del map":
		if _, there := m.maps[w[2]][w[3]]; !there {
			io.WriteString(conn, "Key not found.\n\n")
			return
		}
		if delete(m.maps[w[2]], w[3]); w[0] == "set" {
			m.maps[w[2]][w[3]] = w[4]
		}
		io.WriteString(conn, "\n")
	case "add map":
		m.maps[w[2]][w[3]] = w[4]
		io.WriteString(conn, "\n")
	default:
		fmt.Fprintf(conn, "Unknown command: %q, but maybe one of the following ones is a better match:\n  help\n\n", command)
	}
}

// markIn returns the mark in a text, as HAProxy would set it.
func markIn(text string) string {
	_, after, _ := strings.Cut(text, "setenv "+markName+" ")
	value, _, _ := strings.Cut(after, "\n")
	return value
}

const (
	oldText = "frontend f\n  bind :80\n"
	newText = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n"
	badText = "frontend f\n  bind :80\n  bogus\n"
)

func newProxy(dir string) *Proxy {
	return New(Options{
		File: filepath.Join(dir, "haproxy.cfg"), Socket: filepath.Join(dir, "master.sock"),
		Timeout: 500 * time.Millisecond, Grace: -1, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

// markText returns a text as it is in the file.
func markText(text string) string { return mark(text, nil).Text }

func TestApply(t *testing.T) {
	type step struct {
		text   string
		action proxyctl.Action
		err    error  // sentinel, nil for success
		says   string // part of the error
		file   string // afterwards
		loads  int    // reloads so far
	}
	tests := []struct {
		name  string
		start string // file at the start
		good  string // kept from an earlier run
		set   func(*masterSocket)
		steps []step
	}{
		{"reload, then nothing to do", oldText, "", nil, []step{
			{newText, proxyctl.Reload, nil, "", markText(newText), 1},
			{newText, proxyctl.None, nil, "", markText(newText), 1},
		}},
		{"a restart of berth costs no reload", markText(newText), "", func(m *masterSocket) { m.run(markText(newText)) }, []step{
			{newText, proxyctl.None, nil, "", markText(newText), 0},
		}},
		{"the file is right and the worker runs another", markText(newText), "", func(m *masterSocket) { m.run(markText(oldText)) }, []step{
			{newText, proxyctl.Reload, nil, "", markText(newText), 1},
		}},
		{"no file yet", "", "", nil, []step{{newText, proxyctl.Reload, nil, "", markText(newText), 1}}},
		{"a missing last line end is added", oldText, "", nil, []step{
			{strings.TrimSuffix(newText, "\n"), proxyctl.Reload, nil, "", markText(newText), 1},
		}},
		{"refused: the old file goes back", oldText, "", nil, []step{
			{newText, proxyctl.Reload, nil, "", markText(newText), 1},
			{badText, "", proxyctl.ErrRefused, "unknown keyword 'bogus'", markText(newText), 2},
			{newText, proxyctl.None, nil, "", markText(newText), 2},
		}},
		{"refused at the first go: what was there goes back", oldText, "", nil, []step{
			{badText, "", proxyctl.ErrRefused, "unknown keyword 'bogus'", oldText, 1},
		}},
		{"refused after a crash that left a bad file: the last good one goes back", markText(badText), markText(oldText), func(m *masterSocket) { m.run(markText(oldText)) }, []step{
			{badText + "# other\n", "", proxyctl.ErrRefused, "unknown keyword", markText(oldText), 1},
		}},
		// HAProxy up to 3.0 passes the variable on to a worker whose configuration does not set it.
		{"refused, and an operator's own file was there: that goes back, not berth's last", oldText, markText(newText), func(m *masterSocket) { m.run(markText(newText)) }, []step{
			{badText, "", proxyctl.ErrRefused, "unknown keyword", oldText, 1},
		}},
		{"HAProxy reads another file", oldText, "", func(m *masterSocket) { m.elsewhere = true }, []step{
			{newText, "", nil, "HAProxy reloaded, but not from", oldText, 1},
		}},
		{"no listener", oldText, "", nil, []step{
			{"", "", proxyctl.ErrRefused, "would serve nothing", oldText, 0},
			{"backend a\n  bind :80\n", "", proxyctl.ErrRefused, "would serve nothing", oldText, 0},
		}},
		{"changed on disk behind our back", oldText, "", func(m *masterSocket) {
			n := 0
			m.refuse = func(string) string { // someone writes the file right after the first reload
				if n++; n == 1 {
					_ = os.WriteFile(m.file, []byte("edited by hand\n"), 0o644)
				}
				return ""
			}
		}, []step{
			{newText, proxyctl.Reload, nil, "", "edited by hand\n", 1},
			{newText, proxyctl.Reload, nil, "", markText(newText), 2},
		}},
		{"2.6 says nothing: success is read from the processes", oldText, "", func(m *masterSocket) { m.silent = true }, []step{
			{newText, proxyctl.Reload, nil, "", markText(newText), 1},
			{badText, "", proxyctl.ErrRefused, "see its log", markText(newText), 2},
		}},
		{"a master that hangs is reported, not waited for", oldText, "", func(m *masterSocket) { m.hang["@1 show env "+markName] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, "within 500ms", oldText, 0},
		}},
		{"a reload that hangs is taken back", oldText, "", func(m *masterSocket) { m.hang["reload"] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, `no answer to "reload" within 500ms`, oldText, 0},
		}},
		{"a worker that never answers is no success", oldText, "", func(m *masterSocket) { m.hang["@1 show info"] = true }, []step{
			{newText, "", proxyctl.ErrUnreachable, "", oldText, 1},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			if tt.set != nil {
				tt.set(m)
			}
			p := newProxy(dir)
			if tt.start != "" {
				write(t, m.file, tt.start)
			}
			if tt.good != "" {
				write(t, p.driver.opts.File+".good", tt.good)
			}
			for i, s := range tt.steps {
				res, err := p.Apply(t.Context(), onlyText(s.text), true)
				if (err != nil) != (s.err != nil || s.says != "") || (s.err != nil && !errors.Is(err, s.err)) || (err != nil && !strings.Contains(err.Error(), s.says)) {
					t.Fatalf("step %d: error %v, want %v saying %q", i, err, s.err, s.says)
				}
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("step %d: an error of several lines: %q", i, err)
				}
				if res.Action != s.action {
					t.Errorf("step %d: %s, want %s", i, res.Action, s.action)
				}
				if got := onDisk(t, m.file); got != s.file {
					t.Errorf("step %d: file is %q, want %q", i, got, s.file)
				}
				m.mu.Lock()
				if len(m.loaded) != s.loads {
					t.Errorf("step %d: %d reloads so far, want %d", i, len(m.loaded), s.loads)
				}
				m.mu.Unlock()
			}
		})
	}
}

func TestApplyReportsChanges(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	res, err := newProxy(dir).Apply(t.Context(), onlyText(newText), true)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Changes) != 1 || res.Changes[0].String() != "app: 0 → 1 server" {
		t.Errorf("changes %v", res.Changes)
	}
	if res.OldWorkers != 1 {
		t.Errorf("%d old workers, the master lists 1", res.OldWorkers)
	}
}

func TestApplyWhileDown(t *testing.T) {
	dir := t.TempDir()
	p := newProxy(dir)
	_, err := p.Apply(t.Context(), onlyText(oldText), true)
	if !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Fatalf("error %v", err)
	}
	if got := onDisk(t, p.driver.opts.File); got != markText(oldText) {
		t.Errorf("the file is %q: without one HAProxy cannot start", got)
	}
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrUnreachable) {
		t.Fatalf("error %v", err)
	}
	if got := onDisk(t, p.driver.opts.File); got != markText(oldText) {
		t.Errorf("a file that nobody validated replaced the one that was there: %q", got)
	}
	startMaster(t, dir)
	if res, err := p.Apply(t.Context(), onlyText(newText), true); err != nil || res.Action != proxyctl.Reload {
		t.Errorf("once HAProxy is up: %v, %v", res, err)
	}
}

// The commands sent to HAProxy for a change of servers, its answers, and the result.
func TestRuntime(t *testing.T) {
	const frame = "frontend f\n  bind :80\nbackend app\n"
	const two = "  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n"
	type want struct {
		action   proxyctl.Action
		reason   string
		commands []string
		draining int
	}
	tests := []struct {
		name          string
		before, after string // servers of the backend
		set           func(*masterSocket)
		want          want
	}{
		{"add", two, two + "  server c 10.0.0.3:80 check inter 1s\n", nil, want{proxyctl.Runtime, "add app/c", []string{
			"add server app/c 10.0.0.3:80 id 3 check inter 1s", "enable health app/c", "enable server app/c"}, 0}},
		{"add without a check, with a weight", two, two + "  server c [fd00::3]:80 weight 7\n", nil, want{proxyctl.Runtime, "add app/c", []string{
			"add server app/c [fd00::3]:80 weight 7 id 3", "enable server app/c"}, 0}},
		{"add one that is disabled", two, two + "  server c 10.0.0.3:80 disabled\n", nil, want{proxyctl.Runtime, "add app/c", []string{
			"add server app/c 10.0.0.3:80 id 3"}, 0}},
		{"remove", two, "  server b 10.0.0.2:80\n", nil, want{proxyctl.Runtime, "remove app/a", []string{
			"set server app/a state maint", "del server app/a"}, 0}},
		{"remove one that has connections", two, "  server b 10.0.0.2:80\n", func(m *masterSocket) { m.servers[0].busy = true }, want{proxyctl.Runtime, "remove app/a", []string{
			"set server app/a state maint", "del server app/a"}, 1}},
		{"remove one that the configuration refers to", two, "  server b 10.0.0.2:80\n", func(m *masterSocket) { m.says["del server"] = saidReferenced + "\n\n" }, want{proxyctl.Reload, "This server cannot be removed at runtime", nil, 0}},
		{"remove one that is gone", two, "  server b 10.0.0.2:80\n", func(m *masterSocket) {
			m.servers = m.servers[1:]
		}, want{proxyctl.Reload, `unexpected answer to one of 2 commands: "No such server."`, nil, 0}},
		{"move, weigh, take out, put back", "  server a 10.0.0.1:80 check\n  server b 10.0.0.2:80\n  server c 10.0.0.3:80\n  server d 10.0.0.4:80 disabled\n",
			"  server a 10.0.0.9:90 check\n  server b 10.0.0.2:80 weight 0\n  server c 10.0.0.3:80 disabled\n  server d 10.0.0.4:80\n", nil, want{proxyctl.Runtime, "move app/a to 10.0.0.9:90, and 3 more", []string{
				"set server app/a addr 10.0.0.9 port 90", "set server app/a health up", "set server app/b weight 0", "set server app/d state ready", "set server app/c state maint"}, 0}},
		{"order and comments", two, "# x\n  server b 10.0.0.2:80\n\n  server a 10.0.0.1:80\n", nil, want{proxyctl.None, "", nil, 0}},
		{"refused", two, two + "  server c 10.0.0.3:80\n", func(m *masterSocket) {
			m.says["add server"] = "Backend must use a dynamic load balancing to support dynamic servers.\n\n"
		}, want{proxyctl.Reload, "HAProxy refuses to add app/c: Backend must use a dynamic load balancing", nil, 0}},
		{"an error after the last command", two, "  server a 10.0.0.1:80\n  server b 10.0.0.2:80 weight 2\n", func(m *masterSocket) {
			m.says["set server"] = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.\n\n"
		}, want{proxyctl.Reload, "static LB", nil, 0}},
		{"said to be done, and not done", two, "  server a 10.0.0.1:80\n  server b 10.0.0.2:80 weight 2\n", func(m *masterSocket) {
			m.says["set server"] = "\n"
		}, want{proxyctl.Reload, "but this change is still missing: set weight of app/b to 2", nil, 0}},
		{"an address that is not taken", two, "  server a 10.0.0.9:80\n  server b 10.0.0.2:80\n", func(m *masterSocket) {
			m.says["set server"] = "Invalid addr '10.0.0.9'\n\n"
		}, want{proxyctl.Reload, "Invalid addr", nil, 0}},
		{"an unknown command", two, two + "  server c 10.0.0.3:80\n", func(m *masterSocket) {
			m.says["enable server"] = "Unknown command: 'enable server'\n  help\n\n"
		}, want{proxyctl.Reload, "Unknown command", nil, 0}},
		{"no reply at all", two, two + "  server c 10.0.0.3:80\n", func(m *masterSocket) {
			m.says["add server"], m.says["enable server"], m.says["show servers"] = "", "", ""
		}, want{proxyctl.Reload, `unexpected answer to "add server app/c`, nil, 0}},
		{"HAProxy was started anew with something else meanwhile", two, two + "  server c 10.0.0.3:80\n", func(m *masterSocket) { m.run("") }, want{proxyctl.Reload, "HAProxy runs another configuration: Variable not found", nil, 0}},
		{"more than is worth it", "", manyServers(800), nil, want{proxyctl.Reload, "800 servers added and 0 removed at once: a reload is faster", nil, 0}},
		{"as many as are worth it", "", manyServers(mostAdded), nil, want{proxyctl.Runtime, "add app/s0, and 249 more", nil, 0}},
		{"keywords that no command may hold", two, two + "  server c 10.0.0.3:80 cookie a;quit\n", nil, want{proxyctl.Reload, "backend app: server c: the value of cookie cannot be given at run time", nil, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			p := newProxy(dir)
			defer p.Close()
			if _, err := p.Apply(t.Context(), onlyText(frame+tt.before), true); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			if tt.set != nil {
				tt.set(m)
			}
			m.commands = nil
			m.mu.Unlock()
			res, err := p.Apply(t.Context(), onlyText(frame+tt.after), true)
			if err != nil {
				t.Fatal(err)
			}
			if res.Action != tt.want.action || !strings.Contains(res.Reason, tt.want.reason) || res.Leaving != tt.want.draining {
				t.Errorf("%s because of %q, %d draining; want %s because of %q, %d draining", res.Action, res.Reason, res.Leaving, tt.want.action, tt.want.reason, tt.want.draining)
			}
			if d := cmp.Diff(tt.want.commands, m.commands); d != "" && res.Action != proxyctl.Reload && len(m.commands) < mostAdded {
				t.Errorf("commands (-want +got):\n%s", d)
			}
			p.Close()
			if got := onDisk(t, m.file); got != markText(frame+tt.after) {
				t.Errorf("the file is not in step:\n%s", got)
			}
			if want := 1; len(m.loaded) != want && res.Action != proxyctl.Reload {
				t.Errorf("%d reloads", len(m.loaded)-want)
			}
		})
	}
}

func manyServers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  server s%d 10.0.%d.%d:80\n", i, i/250, 1+i%250)
	}
	return b.String()
}

// What HAProxy refused once is not tried again and again in that backend. Other changes go on, and a new shape is a new try.
func TestRefusalIsRemembered(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	m.says["add server app/"] = "Backend must use a dynamic load balancing to support dynamic servers.\n\n"
	text := func(more string, app, other int) string {
		return "frontend f\n  bind :80\n" + more + "backend app\n" + manyServers(app) + "backend other\n" + manyServers(other)
	}
	for i, step := range []struct {
		text     string
		action   proxyctl.Action
		reason   string
		commands int
	}{
		{text("", 1, 1), proxyctl.Reload, "", 0},
		{text("", 2, 1), proxyctl.Reload, "refuses to add app/", 2},
		{text("", 3, 1), proxyctl.Reload, "earlier: HAProxy refuses to add app/s1", 0},
		{text("", 3, 2), proxyctl.Runtime, "add other/s1", 2},
		{text("", 2, 2), proxyctl.Runtime, "remove app/s2", 2},
		{text("  mode http\n", 2, 2), proxyctl.Reload, "mode line added", 0},
		{text("  mode http\n", 3, 2), proxyctl.Reload, "refuses to add app/", 2},
	} {
		m.commands = nil
		res, err := p.Apply(t.Context(), onlyText(step.text), true)
		if err != nil || res.Action != step.action || !strings.Contains(res.Reason, step.reason) || len(m.commands) != step.commands {
			t.Errorf("step %d: %s because of %q after %q, %v; want %s because of %q after %d commands", i, res.Action, res.Reason, m.commands, err, step.action, step.reason, step.commands)
		}
	}
}

// If someone changed HAProxy, inspecting it repairs only that.
func TestDrift(t *testing.T) {
	const text = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80 weight 5\n  server c 10.0.0.3:80 disabled\n"
	tests := []struct {
		name   string
		do     func(*masterSocket)
		action proxyctl.Action
		reason string
	}{
		{"nothing", func(*masterSocket) {}, proxyctl.None, ""},
		{"maintenance", func(m *masterSocket) { m.servers[0].admin = 1 }, proxyctl.Runtime, "put back app/a"},
		{"drain", func(m *masterSocket) { m.servers[0].admin = 8 }, proxyctl.Runtime, "put back app/a"},
		{"enabled", func(m *masterSocket) { m.servers[2].admin = 0 }, proxyctl.Runtime, "take out app/c"},
		{"weight", func(m *masterSocket) { m.servers[1].weight = 1 }, proxyctl.Runtime, "set weight of app/b to 5"},
		{"address", func(m *masterSocket) { m.servers[1].addr = "10.9.9.9" }, proxyctl.Runtime, "move app/b to 10.0.0.2:80"},
		{"deleted", func(m *masterSocket) { m.servers = m.servers[1:] }, proxyctl.Runtime, "add app/a"},
		{"added", func(m *masterSocket) {
			m.servers = append(m.servers, fakeServer{backend: "app", name: "x", addr: "10.0.0.7", port: "80", id: 9})
		}, proxyctl.Runtime, "remove app/x"},
		{"replaced by one of that name", func(m *masterSocket) {
			m.servers[0].name, m.servers[1].name = "b", "a"
		}, proxyctl.Runtime, "move app/a to 10.0.0.1:80"},
		{"another configuration loaded", func(m *masterSocket) { m.run("frontend f\n") }, proxyctl.Reload, "does not run the configuration in its file"},
		{"the file edited", func(m *masterSocket) {
			text := strings.Replace(onDiskQuiet(m.file), ":80", ":81", 1)
			_ = os.WriteFile(m.file, []byte(text), 0o644)
		}, proxyctl.Reload, "not as berth wrote it"},
		{"the file edited and loaded", func(m *masterSocket) {
			text := strings.Replace(onDiskQuiet(m.file), ":80", ":81", 1)
			_ = os.WriteFile(m.file, []byte(text), 0o644)
			m.run(text)
		}, proxyctl.Reload, "not as berth wrote it"},
		{"restarted", func(m *masterSocket) { m.worker += 9; m.run(onDiskQuiet(m.file)) }, proxyctl.None, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			p := newProxy(dir)
			defer p.Close()
			if _, err := p.Apply(t.Context(), onlyText(text), true); err != nil {
				t.Fatal(err)
			}
			p.Close()
			tt.do(m)
			res, err := p.Apply(t.Context(), onlyText(text), true)
			if err != nil || res.Action != tt.action || !strings.Contains(res.Reason, tt.reason) {
				t.Fatalf("%s because of %q, %v; want %s because of %q", res.Action, res.Reason, err, tt.action, tt.reason)
			}
			p.Close()
			if got := onDisk(t, m.file); got != markText(text) {
				t.Errorf("the file is\n%s", got)
			}
			if res, err := p.Apply(t.Context(), onlyText(text), true); err != nil || res.Action != proxyctl.None {
				t.Errorf("and again: %s because of %q, %v", res.Action, res.Reason, err)
			}
		})
	}
}

func onDiskQuiet(path string) string { b, _ := os.ReadFile(path); return string(b) }

// Where HAProxy shows other servers than the text (a disabled section, .if blocks), berth neither reloads again and again nor
// sends commands there.
func TestOddBackends(t *testing.T) {
	for name, text := range map[string]string{
		"conditional": "frontend f\n  bind :80\nbackend app\n.if defined(X)\n  server hidden 10.0.0.1:80\n.endif\n  server b 10.0.0.2:80\n",
		"disabled":    "frontend f\n  bind :80\nbackend app\n  disabled\n  server hidden 10.0.0.1:80\n  server b 10.0.0.2:80\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := startMaster(t, dir)
			m.hide = "hidden"
			m.says["add server app/hidden"] = "No such backend.\n\n"
			p := newProxy(dir)
			defer p.Close()
			for i, step := range []struct {
				text   string
				action proxyctl.Action
			}{
				{text, proxyctl.Reload},
				{text, proxyctl.None},
				{text, proxyctl.None},
				{text + "  server c 10.0.0.3:80\n", proxyctl.Reload},
				{text + "  server c 10.0.0.3:80\n", proxyctl.None},
				{text + "  server c 10.0.0.3:80\nbackend other\n", proxyctl.Reload},
				{text + "  server c 10.0.0.3:80\nbackend other\n", proxyctl.None},
			} {
				res, err := p.Apply(t.Context(), onlyText(step.text), true)
				if err != nil || res.Action != step.action {
					t.Errorf("step %d: %s because of %q, %v; want %s", i, res.Action, res.Reason, err, step.action)
				}
			}
		})
	}
}

// A new berth process learns what the old one knew from HAProxy and from the file, including draining servers.
func TestTakeOver(t *testing.T) {
	const one = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n"
	const two = "frontend f\n  bind :80\nbackend app\n  server b 10.0.0.2:80\n  server c 10.0.0.3:80\n"
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	for _, text := range []string{one, two} {
		if _, err := p.Apply(t.Context(), onlyText(text), true); err != nil {
			t.Fatal(err)
		}
		if text == one {
			m.servers[0].busy = true
		}
	}
	write(t, m.file, markText(one)) // the old process was killed before it updated the file
	q := newProxy(dir)
	defer q.Close()
	p.Close()
	write(t, m.file, markText(one))
	res, err := q.Apply(t.Context(), onlyText(two), true)
	// The keywords of a server that is in no file are unknown, so it is not taken for the right one.
	if err != nil || res.Action != proxyctl.Reload || !strings.Contains(res.Reason, "server c: HAProxy has a server of that name that is not berth's") {
		t.Errorf("%s because of %q, %v", res.Action, res.Reason, err)
	}
	m.mu.Lock()
	m.servers = append(m.servers, fakeServer{backend: "app", name: "a", addr: "10.0.0.1", port: "80", admin: 1, id: 1})
	m.mu.Unlock()
	r := newProxy(dir)
	defer r.Close()
	if res, err := r.Apply(t.Context(), onlyText(two), true); err != nil || res.Action != proxyctl.None || res.Leaving != 1 {
		t.Errorf("with a server that was draining: %+v, %v", res, err)
	}
}

// Servers that have left are deleted when they have finished, or when their time is over.
func TestTend(t *testing.T) {
	const two = "frontend f\n  bind :80\nbackend app\n  server a 10.0.0.1:80\n  server b 10.0.0.2:80\n"
	const one = "frontend f\n  bind :80\nbackend app\n  server b 10.0.0.2:80\n"
	start := func(t *testing.T) (*masterSocket, *Proxy) {
		dir := t.TempDir()
		m := startMaster(t, dir)
		p := newProxy(dir)
		t.Cleanup(p.Close)
		if _, err := p.Apply(t.Context(), onlyText(two), true); err != nil {
			t.Fatal(err)
		}
		m.servers[0].busy = true
		if res, err := p.Apply(t.Context(), onlyText(one), true); err != nil || res.Leaving != 1 {
			t.Fatal(res, err)
		}
		m.commands = nil
		return m, p
	}
	due := func(p *Proxy) {
		for _, l := range p.driver.drains.list {
			l.next = time.Now()
		}
	}
	app := serverName{"app", "a"}

	t.Run("finished", func(t *testing.T) {
		m, p := start(t)
		for range 3 {
			due(p)
			if again := p.driver.Tend(t.Context()); again <= 0 || again > lastTry {
				t.Errorf("again in %v", again)
			}
		}
		m.servers[0].busy = false
		due(p)
		if again := p.driver.Tend(t.Context()); again != 0 || len(m.servers) != 1 || len(p.driver.drains.list) != 0 {
			t.Errorf("again in %v, HAProxy has %v", again, m.servers)
		}
	})
	t.Run("not before it is due", func(t *testing.T) {
		m, p := start(t)
		if again := p.driver.Tend(t.Context()); again <= 0 || again > firstTry || len(m.commands) != 0 {
			t.Errorf("again in %v, after %v", again, m.commands)
		}
	})
	t.Run("its time is over", func(t *testing.T) {
		m, p := start(t)
		p.driver.drains.list[app].since = time.Now().Add(-p.driver.opts.DrainTimeout)
		due(p)
		if again := p.driver.Tend(t.Context()); again != 0 || !slices.Contains(m.commands, "shutdown sessions server app/a") || len(m.servers) != 1 {
			t.Errorf("again in %v, after %v", again, m.commands)
		}
	})
	t.Run("a tunnel has longer", func(t *testing.T) {
		m, p := start(t)
		m.says["show sess"] = "0x1: proto=tcpv4 src=127.0.0.1:1 fe=f be=app srv=a ts=00 epoch=0 age=2s calls=3 rate=1 cpu=0 lat=0 rq[f=848001h,i=0,an=00h,ax=] rp[f=80048001h,i=0,an=00h,ax=] scf=[8,1000h,fd=14,rex=59m59s,wex=] exp=1m\n\n"
		p.driver.drains.list[app].since = time.Now().Add(-p.driver.opts.DrainTimeout)
		due(p)
		if again := p.driver.Tend(t.Context()); again == 0 || slices.Contains(m.commands, "shutdown sessions server app/a") {
			t.Errorf("again in %v, after %v", again, m.commands)
		}
		p.driver.drains.list[app].since = time.Now().Add(-p.driver.opts.TunnelTimeout)
		due(p)
		if again := p.driver.Tend(t.Context()); again != 0 || !slices.Contains(m.commands, "shutdown sessions server app/a") {
			t.Errorf("again in %v, after %v", again, m.commands)
		}
	})
	t.Run("comes back", func(t *testing.T) {
		m, p := start(t)
		res, err := p.Apply(t.Context(), onlyText(strings.Replace(two, "10.0.0.1:80", "10.0.0.5:80", 1)), true)
		if d := cmp.Diff([]string{"set server app/a addr 10.0.0.5 port 80", "set server app/a state ready"}, m.commands); err != nil || res.Action != proxyctl.Runtime || res.Leaving != 0 || d != "" {
			t.Errorf("%+v, %v; commands (-want +got):\n%s", res, err, d)
		}
		if again := p.driver.Tend(t.Context()); again != 0 {
			t.Errorf("again in %v", again)
		}
	})
	t.Run("comes back with other keywords", func(t *testing.T) {
		_, p := start(t)
		if res, err := p.Apply(t.Context(), onlyText(strings.Replace(two, "10.0.0.1:80", "10.0.0.1:80 maxconn 3", 1)), true); err != nil || res.Action != proxyctl.Reload {
			t.Errorf("%+v, %v", res, err)
		}
	})
	t.Run("enabled by hand", func(t *testing.T) {
		m, p := start(t)
		m.servers[0].admin = 0
		if res, err := p.Apply(t.Context(), onlyText(one), true); err != nil || res.Action != proxyctl.Runtime || res.Reason != "remove app/a" || m.servers[0].admin != 1 {
			t.Errorf("%+v, %v", res, err)
		}
	})
	t.Run("after a change that got lost", func(t *testing.T) {
		m, p := start(t)
		path := p.driver.master.path
		p.driver.master.path += ".gone"
		if _, err := p.Apply(t.Context(), onlyText(one+"  server c 10.0.0.3:80\n"), true); !errors.Is(err, proxyctl.ErrUnreachable) {
			t.Fatal(err)
		}
		p.driver.master.path = path
		due(p)
		if again := p.driver.Tend(t.Context()); again == 0 || !slices.Equal(m.commands, []string{"del server app/a"}) {
			t.Errorf("again in %v, after %v", again, m.commands) // draining servers do not wait for a change
		}
		if res, err := p.Apply(t.Context(), onlyText(one+"  server c 10.0.0.3:80\n"), true); err != nil || res.Action != proxyctl.Runtime || res.Leaving != 1 {
			t.Errorf("%+v, %v", res, err)
		}
	})
	t.Run("HAProxy is gone", func(t *testing.T) {
		m, p := start(t)
		p.driver.master.path += ".gone"
		due(p)
		if again := p.driver.Tend(t.Context()); again <= 0 || len(p.driver.drains.list) != 1 {
			t.Errorf("again in %v", again)
		}
		_ = m
	})
}

func TestTunnels(t *testing.T) {
	const http = "0x7f6dd7103800: proto=tcpv4 src=127.0.0.1:42166 fe=f be=app srv=s1 ts=00 epoch=0x1 age=2s calls=3 rate=1 cpu=0 lat=0 rq[f=840000h,i=0,an=8000h,ax=] rp[f=80000000h,i=0,an=1400000h,ax=] scf=[8,400h,fd=19,rex=57s,wex=] scb=[8,401h,fd=21,rex=,wex=] exp=57s rc=0 c_exp=\n"
	const tunnel = "0x7f6dd7103c00: proto=tcpv4 src=127.0.0.1:42132 fe=f be=app srv=s2 ts=00 epoch=0x1 age=2s calls=4 rate=1 cpu=0 lat=0 rq[f=848001h,i=0,an=00h,ax=] rp[f=80048001h,i=0,an=00h,ax=] scf=[8,1000h,fd=14,rex=59m59s,wex=] scb=[8,1011h,fd=20,rex=59m59s,wex=] exp=59m58s rc=0 c_exp=\n"
	if got := tunnels(http + tunnel + "\n"); len(got) != 1 || !got[serverName{"app", "s2"}] {
		t.Errorf("got %v", got)
	}
}

// The caller sets the pace of reloads. Changes of servers do not wait for it.
func TestNotYet(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	if _, err := p.Apply(t.Context(), onlyText(newText), false); !errors.Is(err, proxyctl.ErrNotYet) || len(m.loaded) != 0 {
		t.Errorf("error %v, %d reloads", err, len(m.loaded))
	}
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Fatal(err)
	}
	if res, err := p.Apply(t.Context(), onlyText(newText+"  server b 10.0.0.2:80\n"), false); err != nil || res.Action != proxyctl.Runtime {
		t.Errorf("%+v, %v", res, err)
	}
}

// A failed reload restores the file with all changes since the last reload.
func TestFailedReloadAfterChangesAtRunTime(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	more := newText + "  server b 10.0.0.2:80\n"
	for _, text := range []string{newText, more} {
		if _, err := p.Apply(t.Context(), onlyText(text), true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Apply(t.Context(), onlyText(more+"  bogus\n"), true); !errors.Is(err, proxyctl.ErrRefused) {
		t.Errorf("error %v", err)
	}
	if got := onDisk(t, m.file); got != markText(more) {
		t.Errorf("the file is\n%s", got)
	}
	if res, err := p.Apply(t.Context(), onlyText(newText), true); err != nil || res.Action != proxyctl.Runtime {
		t.Errorf("%+v, %v", res, err)
	}
}

// A change that gets stuck halfway at run time, and whose reload is then refused, is undone.
func TestUndo(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	two := newText + "  server b 10.0.0.2:80 weight 5\n"
	if _, err := p.Apply(t.Context(), onlyText(two), true); err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(m.servers)
	m.says["del server app/b"] = saidReferenced + "\n\n"
	m.refuse = func(string) string { return "unable to find server 'b' in backend 'app'" }
	if _, err := p.Apply(t.Context(), onlyText(strings.Replace(newText, "10.0.0.1", "10.0.0.9", 1)), true); !errors.Is(err, proxyctl.ErrRefused) {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff(want, m.servers, cmp.AllowUnexported(fakeServer{})); d != "" || onDisk(t, m.file) != markText(two) {
		t.Errorf("the file is\n%s\nHAProxy's servers (-want +got):\n%s", onDisk(t, m.file), d)
	}
}

// What the program refuses is never left for a restart to load, even if HAProxy already has the servers.
func TestFileInStepIsValidated(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	defer p.Close()
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Fatal(err)
	}
	p.driver.opts.Binary = program(t, `echo "[ALERT]    (7) : config : no, thanks" >&2; exit 1`)
	more := newText + "  server b 10.0.0.2:80\n"
	if res, err := p.Apply(t.Context(), onlyText(more), true); err != nil || res.Action != proxyctl.Runtime {
		t.Fatalf("%+v, %v", res, err)
	}
	p.Close()
	if got := onDisk(t, m.file); got != markText(newText) {
		t.Errorf("the file is\n%s", got)
	}
	if _, err := p.Apply(t.Context(), onlyText(more), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "a restart would bring back earlier ones") || !strings.Contains(err.Error(), "no, thanks") {
		t.Errorf("error %v", err)
	}
	p.Close()
	p.driver.opts.Binary = program(t, "exit 0")
	if _, err := p.Apply(t.Context(), onlyText(more), true); err == nil { // it is tried again, and known the next time
		t.Error("the problem is forgotten before it is solved")
	}
	p.Close()
	if res, err := p.Apply(t.Context(), onlyText(more), true); err != nil || res.Action != proxyctl.None || onDisk(t, m.file) != markText(more) {
		t.Errorf("%+v, %v", res, err)
	}
}

// Without a socket, nothing can be read back: the reload's own error counts.
func TestWithoutSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "haproxy.cfg")
	write(t, file, oldText)
	var (
		reloads int
		fail    error
	)
	p := New(Options{File: file, Grace: -1, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Reload: func(context.Context) error { reloads++; return fail }})
	defer p.Close()
	for i, step := range []struct {
		text    string
		fail    error
		action  proxyctl.Action
		reloads int
		file    string
	}{
		{newText, nil, proxyctl.Reload, 1, markText(newText)},
		{newText, nil, proxyctl.None, 1, markText(newText)},
		{oldText, errors.New("exit status 1"), "", 2, markText(newText)},
		{oldText, nil, proxyctl.Reload, 3, markText(oldText)},
		{"", nil, "", 3, markText(oldText)},
	} {
		fail = step.fail
		res, err := p.Apply(t.Context(), onlyText(step.text), true)
		if (err == nil) != (step.action != "") || res.Action != step.action || reloads != step.reloads || onDisk(t, file) != step.file {
			t.Errorf("step %d: %+v, %v, %d reloads, file %q", i, res, err, reloads, onDisk(t, file))
		}
	}
}

// program writes a stand-in for the haproxy binary that refuses texts containing "bogus".
func program(t *testing.T, script string) string {
	path := filepath.Join(t.TempDir(), "haproxy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	p := newProxy(dir)
	p.driver.opts.Binary = program(t, `if grep -q bogus "$3"; then echo "[ALERT]    (7) : config : unknown keyword 'bogus'" >&2; exit 1; fi`)
	if _, err := p.Apply(t.Context(), onlyText(badText), true); !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "by haproxy -c (exit status 1): config : unknown keyword 'bogus'") {
		t.Errorf("error %v", err)
	}
	if len(m.loaded) != 0 || onDisk(t, m.file) != oldText {
		t.Errorf("what validation refused reached HAProxy or its file")
	}
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Error(err)
	}
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if strings.Contains(f.Name(), "candidate") {
			t.Errorf("%s is left behind", f.Name())
		}
	}
	p.driver.opts.Binary = program(t, "exec sleep 60")
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); err == nil || !strings.Contains(err.Error(), "did not finish within") {
		t.Errorf("error %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = newProxy(dir).Apply(t.Context(), onlyText(fmt.Sprintf("frontend f\n  bind :80\n  bind %s\n", l.Addr())), true)
	if !errors.Is(err, proxyctl.ErrRefused) || !strings.Contains(err.Error(), "another program listens there") {
		t.Errorf("error %v", err)
	}
	if len(m.loaded) != 0 {
		t.Errorf("HAProxy was reloaded, which would have closed its listeners for two seconds")
	}
}

func TestParseProcesses(t *testing.T) {
	tests := []struct {
		name, reply string
		want        processes
	}{
		{"3.0", "#<PID> <type> <reloads> <uptime> <version>\n1 master 2 [failed: 0] 0d00h00m05s 3.0.11-1+deb13u5\n# workers\n9 worker 0 0d 3.0\n# old workers\n7 worker 1 0d 3.0\n8 worker 1 0d 3.0\n# programs\n\n", processes{9, "3.0.11", 0, []int{7, 8}}},
		{"2.6 after failures", "#<PID> <type>\n27823 master 5 [failed: 3] 0d 2.6.12\n# workers\n27983 worker 3 0d 2.6.12\n# programs\n", processes{27983, "2.6.12", 3, nil}},
		{"3.2 after a failure lists the serving worker as old", "#<PID> <type>\n12229 master 3 [failed: 1] 0d 3.2\n# workers\n# old workers\n4344 worker 1 0d 3.2\n", processes{4344, "3.2", 1, nil}},
		{"a reload under way", "#<PID> <type>\n1 master 3 [failed: 0] 0d 3.2\n# workers\n# old workers\n", processes{version: "3.2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := parseProcesses(tt.reply)
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestForeignConfigurationIsKept(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	p := newProxy(dir)
	write(t, m.file, oldText)
	if err := os.Chmod(m.file, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{newText, oldText, newText} {
		if _, err := p.Apply(t.Context(), onlyText(text), true); err != nil {
			t.Fatal(err)
		}
	}
	if got := onDisk(t, p.driver.opts.File+".before-berth"); got != oldText {
		t.Errorf("what was there before berth is kept as %q", got)
	}
	for _, file := range []string{m.file, p.driver.opts.File + ".before-berth"} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s has mode %v, %v; the configuration may hold secrets and had 0640", file, info.Mode(), err)
		}
	}
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	startMaster(t, dir)
	p := New(Options{File: filepath.Join(dir, "nosuch", "haproxy.cfg"), Socket: filepath.Join(dir, "master.sock"), Log: slog.New(slog.DiscardHandler)})
	_, first := p.Apply(t.Context(), onlyText(newText), true)
	_, second := p.Apply(t.Context(), onlyText(newText), true)
	if first == nil || second == nil || first.Error() != second.Error() || !strings.Contains(first.Error(), p.driver.opts.File) {
		t.Errorf("errors that are to be logged once: %v; %v", first, second)
	}
}

func TestCancelledWhileHAProxyHangs(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	m.hang["@1 show env "+markName] = true
	p := newProxy(dir)
	p.driver.master.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := p.Apply(ctx, onlyText(newText), true); done <- err }()
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Apply waits for a HAProxy that hangs, though it was cancelled")
	}
}

func TestMark(t *testing.T) {
	const a = "frontend f\n bind :80\nbackend b\n server s 10.0.0.1:80\n"
	one, servers, lines := mark(a, nil), mark(strings.Replace(a, "10.0.0.1", "10.0.0.2", 1), nil), mark(strings.Replace(a, ":80", ":81", 1), nil)
	if g := one.Generation; !g.SameShape(servers.Generation) || g == servers.Generation || g.SameShape(lines.Generation) || g.SameShape(configfile.Generation{}) || (configfile.Generation{}).SameShape(configfile.Generation{}) {
		t.Errorf("marks %v, with another server %v, with another line %v", one.Generation, servers.Generation, lines.Generation)
	}
	if markText(strings.TrimSuffix(a, "\n")) != one.Text {
		t.Error("a missing line end makes another text")
	}
	if got := unmark(one.Text, nil); got.Generation != one.Generation || got.Text != one.Text || got.Config.shape() != one.Config.shape() {
		t.Errorf("read from the file: %v, want %v", got.Generation, one.Generation)
	}
	for what, text := range map[string]string{
		"no mark": a, "edited above the mark": strings.Replace(one.Text, ":80", ":81", 1), "edited below it": one.Text + "# x\n", "none": "",
	} {
		if got := unmark(text, nil); got.Generation != (configfile.Generation{}) || got.Text != text {
			t.Errorf("%s: %v", what, got.Generation)
		}
	}
}

// A text that was rendered for another version is not loaded if the right one is on its way.
func TestVersionIsReported(t *testing.T) {
	dir := t.TempDir()
	m := startMaster(t, dir)
	write(t, m.file, oldText)
	var reported []string
	p := New(Options{
		File: filepath.Join(dir, "haproxy.cfg"), Socket: filepath.Join(dir, "master.sock"),
		Timeout: 500 * time.Millisecond, Grace: -1, Log: slog.New(slog.DiscardHandler),
		Version: func(version string) bool { reported = append(reported, version); return true },
	})
	defer p.Close()
	if _, err := p.Apply(t.Context(), onlyText(oldText), true); !errors.Is(err, proxyctl.ErrUnreachable) || !strings.Contains(err.Error(), "rendered for its version (3.0.11)") {
		t.Errorf("the first text: %v", err)
	}
	if _, err := p.Apply(t.Context(), onlyText(newText), true); err != nil {
		t.Errorf("the text for the version: %v", err)
	}
	if !slices.Equal(reported, []string{"3.0.11"}) {
		t.Errorf("reported %q", reported)
	}
	if len(m.loaded) != 1 || !strings.HasPrefix(m.loaded[0], newText) {
		t.Errorf("loaded: %q", m.loaded)
	}
}
