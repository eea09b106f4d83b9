//go:build e2e

package haproxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/proxyctl"
)

// turn is a text that follows the previous one.
type turn struct {
	name    string
	edit    func(lines)       // of the servers
	shape   string            // replaces everything before the backends, if not ""
	want    []proxyctl.Action // any of these
	reason  string            // what Result.Reason must contain
	refused bool              // this version cannot do it
}

// lines are the lines of each backend.
type lines map[string][]string

func (l lines) add(backend string, list ...string) { l[backend] = append(l[backend], list...) }

// replace replaces or removes the line of a server.
func (l lines) replace(backend, server, by string) {
	i := slices.IndexFunc(l[backend], func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 1 && f[0] == "server" && f[1] == server
	})
	if i < 0 {
		panic("no server " + server + " in " + backend)
	}
	if by == "" {
		l[backend] = slices.Delete(l[backend], i, i+1)
		return
	}
	l[backend][i] = by
}

// transcript is a series of texts. No server's address is served: only HAProxy's view counts.
func transcript(r release) []turn {
	runtime, reload := []proxyctl.Action{proxyctl.Runtime}, []proxyctl.Action{proxyctl.Reload}
	cookie, state := runtime, runtime
	if !r.since("3.0") {
		cookie = reload // it accepts no cookie at run time
	}
	if !r.since("3.2") {
		state = nil
	}
	edit := func(backend, server, by string) func(lines) {
		return func(l lines) { l.replace(backend, server, by) }
	}
	add := func(backend string, list ...string) func(lines) {
		return func(l lines) { l.add(backend, list...) }
	}
	const checked = "defaults checks\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n" +
		"  default-server maxconn 7 inter 300ms rise 3 check\n  default-server fall 4\n" +
		"defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n"
	return []turn{
		{name: "first", shape: checked, want: reload, reason: "first configuration by berth", edit: func(l lines) {
			l.add("app", "balance roundrobin", "server a 127.0.0.1:9001", "server b 127.0.0.1:9002 weight 5")
			l.add("checked from checks", "default-server weight 20 maxqueue 3", "server c1 127.0.0.1:9001", "default-server no-check")
			l.add("sticky", "cookie SRV insert indirect nocache", "server s1 127.0.0.1:9001 cookie s1")
			l.add("plain", "cookie SRV insert", "server p1 127.0.0.1:9001")
			l.add("static", "balance static-rr", "server t1 127.0.0.1:9001", "server t2 127.0.0.1:9002")
			l.add("source", "balance source", "server u1 127.0.0.1:9001")
			l.add("empty", "balance leastconn")
			l.add("dynamic", "cookie SRV insert indirect nocache dynamic", "dynamic-cookie-key secret", "server d1 127.0.0.1:9001")
		}},
		{name: "comments, blank lines, order", want: []proxyctl.Action{proxyctl.None}, edit: func(l lines) {
			l["app"] = []string{"# a comment", "", "balance   roundrobin # why", "\tserver b   127.0.0.1:9002 weight 5", "server a 127.0.0.1:9001 # the first"}
		}},
		{name: "add one", want: runtime, edit: add("app", "server c 127.0.0.1:9003 weight 7"), reason: "add app/c"},
		{name: "add many", want: runtime, reason: "and 149 more", edit: func(l lines) {
			for i := range 150 {
				l.add("app", fmt.Sprintf("server m%d 127.0.0.1:%d weight %d maxconn %d", i, 10000+i, i, i+1))
			}
		}},
		{name: "remove one", want: runtime, edit: edit("app", "m0", ""), reason: "remove app/m0"},
		{name: "remove many", want: runtime, edit: func(l lines) {
			for i := 1; i < 150; i++ {
				l.replace("app", fmt.Sprintf("m%d", i), "")
			}
		}},
		{name: "weight", want: runtime, edit: edit("app", "b", "server b 127.0.0.1:9002 weight 200"), reason: "set weight of app/b to 200"},
		{name: "weight 0", want: runtime, edit: edit("app", "b", "server b 127.0.0.1:9002 weight 0")},
		{name: "weight back to the default", want: runtime, edit: edit("app", "b", "server b 127.0.0.1:9002")},
		{name: "port", want: runtime, edit: edit("app", "b", "server b 127.0.0.1:9102"), reason: "move app/b to 127.0.0.1:9102"},
		{name: "address and port", want: runtime, edit: edit("app", "b", "server b 127.0.0.2:9202 weight 3")},
		{name: "two change places", want: runtime, edit: func(l lines) {
			l.replace("app", "a", "server a 127.0.0.2:9202")
			l.replace("app", "b", "server b 127.0.0.1:9001 weight 3")
		}},
		{name: "to IPv6", want: runtime, edit: edit("app", "a", "server a [::1]:9001")},
		{name: "from IPv6, and another with it", want: runtime, edit: func(l lines) {
			l.replace("app", "a", "server a 127.0.0.1:9001")
			l.add("app", "server v6 [2001:db8::1]:9001 weight 2")
		}},
		{name: "disabled", want: runtime, edit: edit("app", "a", "server a 127.0.0.1:9001 disabled")},
		{name: "disabled and moved", want: runtime, edit: edit("app", "a", "server a 127.0.0.1:9009 weight 9 disabled")},
		{name: "enabled again", want: runtime, edit: edit("app", "a", "server a 127.0.0.1:9009 weight 9")},
		{name: "one that is disabled comes", want: runtime, edit: add("app", "server off 127.0.0.1:9004 disabled weight 3")},
		{name: "and is enabled", want: runtime, edit: edit("app", "off", "server off 127.0.0.1:9004 weight 3")},
		{name: "one that is checked and disabled comes", want: runtime, edit: add("checked from checks", "server coff 127.0.0.1:9004 disabled")},
		{name: "and is enabled", want: runtime, edit: edit("checked from checks", "coff", "server coff 127.0.0.1:9004")},
		{name: "what default-server lines say holds for one that comes", want: runtime, edit: func(l lines) {
			l["checked from checks"] = slices.Insert(l["checked from checks"], 1, "server c2 127.0.0.1:9002",
				"server c3 127.0.0.1:9003 no-check weight 6", "server c4 127.0.0.1:9004 maxconn 8 rise 1 port 9999 addr 127.0.0.3")
			l.add("checked from checks", "server c5 127.0.0.1:9005", "server c6 127.0.0.1:9006 check backup")
		}},
		{name: "more of them", want: runtime, edit: func(l lines) {
			l["checked from checks"] = slices.Insert(l["checked from checks"], 2, "server c7 127.0.0.1:9007", "server c8 127.0.0.1:9008 no-check backup")
			l.add("checked from checks", "server c9 127.0.0.1:9009", "server c10 127.0.0.1:9010 check weight 0 slowstart 1s")
		}},
		{name: "a checked one moves", want: runtime, edit: edit("checked from checks", "c7", "server c7 127.0.0.2:9107 weight 1")},
		{name: "keywords", want: reload, edit: edit("checked from checks", "c7", "server c7 127.0.0.2:9107 weight 1 maxconn 77"), reason: "maxconn"},
		{name: "a server with a cookie", want: cookie, edit: add("sticky", "server s2 127.0.0.1:9002 cookie s2")},
		{name: "another", want: cookie, edit: add("sticky", "server s3 127.0.0.1:9003 cookie s3")},
		{name: "a cookie goes", want: runtime, edit: edit("sticky", "s2", "")},
		{name: "one without a cookie", want: []proxyctl.Action{proxyctl.Runtime, proxyctl.Reload}, edit: add("plain", "server p2 127.0.0.1:9002")},
		{name: "one with a computed cookie", want: reload, edit: add("dynamic", "server d2 127.0.0.1:9002")},
		{name: "which moves", want: []proxyctl.Action{proxyctl.Runtime, proxyctl.Reload}, edit: edit("dynamic", "d2", "server d2 127.0.0.1:9003")},
		{name: "static-rr", want: reload, edit: add("static", "server t3 127.0.0.1:9003"), reason: "dynamic load balancing"},
		{name: "static-rr again", want: reload, edit: add("static", "server t4 127.0.0.1:9004"), reason: "earlier"},
		{name: "static-rr, one replaced", want: reload, edit: edit("static", "t1", "server t5 127.0.0.1:9005"), reason: "earlier"},
		{name: "static-rr, weight", want: reload, edit: edit("static", "t2", "server t2 127.0.0.1:9002 weight 2")},
		{name: "static-rr, one goes", want: runtime, edit: edit("static", "t3", "")},
		{name: "hashed by map", want: reload, edit: add("source", "server u2 127.0.0.1:9002"), reason: "dynamic load balancing"},
		{name: "in an empty backend", want: runtime, edit: add("empty", "server e1 127.0.0.1:9001 check")},
		{name: "which is empty again", want: runtime, edit: edit("empty", "e1", "")},
		{name: "a host name", want: reload, edit: add("app", "server host localhost:9001"), reason: "not ip:port"},
		{name: "all at once", want: runtime, edit: func(l lines) {
			l.replace("app", "off", "")
			l.replace("app", "c", "server c 127.0.0.1:9003 weight 8 disabled")
			l.replace("app", "b", "server b 127.0.0.9:9001 weight 4")
			l.add("app", "server d 127.0.0.1:9010", "server e 127.0.0.1:9011 check inter 1s")
			l.add("empty", "server e1 127.0.0.1:9001")
		}},
		{name: "many backends", shape: checked + manyBackends(400, 9000), want: reload, edit: func(lines) {}},
		{name: "a server in each of many", shape: checked + manyBackends(400, 9001), want: runtime, edit: func(lines) {}},
		{name: "init-state", want: state, refused: state == nil, edit: add("empty", "server e2 127.0.0.1:9002 check init-state down")},
		{name: "after all", want: runtime, edit: add("empty", "server e3 127.0.0.1:9003")},
		{name: "a section goes", shape: checked, want: reload, edit: func(l lines) { delete(l, "source") }, reason: "removed"},
	}
}

func manyBackends(n, port int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "backend many-with-a-rather-long-name-%d\n  server s 127.0.0.1:%d\n", i, port)
	}
	return b.String()
}

// text returns the whole text; backends are sorted by name.
func (l lines) text(h *realHAProxy, shape string) string {
	var b strings.Builder
	b.WriteString(h.text("ok", shape))
	for _, name := range sortedNames(l) {
		fmt.Fprintf(&b, "backend %s\n  mode http\n", name)
		for _, line := range l[name] {
			b.WriteString("  " + line + "\n")
		}
	}
	return b.String()
}

func sortedNames(l lines) []string {
	var out []string
	for name := range l {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (l lines) clone() lines {
	out := lines{}
	for name, list := range l {
		out[name] = slices.Clone(list)
	}
	return out
}

// A series of texts: each ends with the servers that HAProxy has when it loads the text from a file, with no more than was
// needed. After every third text, HAProxy is restarted without telling berth; each release after different ones.
func TestE2ETranscript(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h := startHAProxy(t, r.image)
		l := h.startLoader(r.image)
		now, shape, want := lines{}, "", seen{}
		for i, s := range transcript(r) {
			name := fmt.Sprintf("%d %s", i, s.name)
			was := now.clone()
			s.edit(now)
			if s.shape != "" {
				shape = s.shape
			}
			text := now.text(h, shape)
			if s.refused {
				if _, err := h.Apply(t.Context(), onlyText(text), true); !errors.Is(err, proxyctl.ErrRefused) {
					t.Errorf("%s: error %v, want a refusal", name, err)
				}
				now = was
				h.tend()
				h.same(name+", refused", want)
				continue
			}
			want = l.load(h, text)
			res, err := h.Apply(t.Context(), onlyText(text), true)
			switch {
			case err != nil:
				t.Errorf("%s: %v", name, err)
			case !slices.Contains(s.want, res.Action):
				t.Errorf("%s: %s for %q, want one of %s", name, res.Action, res.Reason, s.want)
			case !strings.Contains(res.Reason, s.reason):
				t.Errorf("%s: reason %q, want one with %q", name, res.Reason, s.reason)
			}
			h.tend()
			h.same(name, want)
			h.steady(name, text)
			h.Close()
			if got := onDisk(t, h.driver.opts.File); !strings.HasPrefix(got, text) {
				t.Errorf("%s: the file is not the text:\n%s", name, got)
			}
			if i%r.of == r.index {
				h.restart()
				h.same(name+", restarted", want)
			}
		}
		h.restart()
		h.same("restarted", want)
	})
}

// Any texts in any order, with requests on some of the leaving servers.
func TestE2ERandomTexts(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		h, a := startHAProxy(t, r.image), startApp(t)
		l := h.startLoader(r.image)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0))
		var ports []string // all of them lead to the same application
		for range 3 {
			ports = append(ports, a.also())
		}
		var last string
		for step := range 25 {
			var list []string
			for i := range 8 {
				if rnd.IntN(3) == 0 {
					continue
				}
				// A name implies its keywords, so that some changes need no reload.
				line := fmt.Sprintf("s%d 127.0.0.1:%s weight %d maxconn %d", i, ports[rnd.IntN(len(ports))], rnd.IntN(4), 10+i)
				if i%2 == 0 {
					line += " check inter 1s"
				}
				if rnd.IntN(4) == 0 {
					line += " disabled"
				}
				list = append(list, line)
			}
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			list = append(list, "always "+a.addr)
			text := h.servers(list...)
			what := fmt.Sprintf("step %d, from\n%s\nto\n%s", step, last, strings.Join(list, "\n"))
			last = strings.Join(list, "\n")
			res, err := h.Apply(t.Context(), onlyText(text), true)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if step > 0 && res.Action == proxyctl.Reload {
				t.Errorf("%s: reloaded for %q", what, res.Reason)
			}
			_, replies := h.hold(a, 2)
			if rnd.IntN(2) == 0 {
				h.driver.Tend(t.Context())
				h.steady(what, text)
			}
			var next []string
			for _, line := range list {
				if rnd.IntN(3) > 0 {
					next = append(next, line)
				}
			}
			h.apply(h.servers(append(next, "rest "+a.addr)...))
			h.apply(text) // some come back while they leave
			a.let()
			for range 2 {
				if r := receive(t, "the replies", replies); r.err != nil || r.status != 200 {
					t.Errorf("%s: %+v", what, r)
				}
			}
			h.tend()
			h.same(what, l.load(h, text))
			h.steady(what, text)
		}
		h.Close()
		want := h.see()
		h.restart()
		h.same("restarted", want)
	})
}
