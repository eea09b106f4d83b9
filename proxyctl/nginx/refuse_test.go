package nginx

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth/proxyctl"
)

// bogus adds something that nginx refuses to a text, outside its upstream.
func bogus(text string) string {
	return strings.Replace(text, "http {\n", "http {\n    bogus on;\n", 1)
}

// A refused part stops nothing else: servers of upstreams that exist before and after come and go, by a reload.
func TestRefusedPart(t *testing.T) {
	one, two, three := oldText, newText, text(frame, "10.0.0.3:80")
	withNew := func(text string) string {
		return strings.Replace(text, "    server {\n", "    upstream new { server 10.0.0.9:80; }\n    server {\n", 1)
	}
	const reload = proxyctl.Reload
	refused := proxyctl.ErrRefused
	for _, tt := range []struct {
		name    string
		options func(*Options)
		steps   []step // file is the text in it
	}{
		{name: "servers come and go", steps: []step{
			{text: bogus(two), err: refused, says: `unknown directive "bogus"`, action: reload, reason: "upstream app: 1 → 2 servers", file: two, loads: 2},
			{text: bogus(two), err: refused, says: `unknown directive "bogus"`, file: two, loads: 3},
			{text: bogus(three), err: refused, says: `unknown directive "bogus"`, action: reload, reason: "upstream app: 2 → 1 server", file: three, loads: 5},
			{text: three, action: proxyctl.None, file: three, loads: 5},
			{text: bogus(two), err: refused, action: reload, file: two, loads: 7},
			{text: one, action: reload, file: one, loads: 8},
		}},
		{name: "nginx's program refuses: it is not told to load that", options: program(t, knowsNoBogus), steps: []step{
			{text: bogus(two), err: refused, says: "by nginx -t", action: reload, file: two, loads: 1},
			{text: bogus(three), err: refused, says: "by nginx -t", action: reload, file: three, loads: 2},
		}},
		{name: "nothing in common but the servers, which are refused", options: program(t, `if grep -q 10.0.0.2 "$4"; then echo "nginx: [emerg] no" >&2; exit 1; fi`), steps: []step{
			{text: two, err: refused, says: "by nginx -t", file: one},
			{text: bogus(two), err: refused, says: "by nginx -t", file: one},
		}},
		{name: "a server with a name, which may be what does not resolve", steps: []step{
			{text: bogus(text(frame, "db.example:80")), err: refused, file: one, loads: 1},
		}},
		{name: "no servers: nginx takes no upstream without", steps: []step{
			{text: bogus(text(frame)), err: refused, file: one, loads: 1},
		}},
		{name: "an upstream that is new is refused with the text", steps: []step{
			{text: bogus(withNew(two)), err: refused, action: reload, file: two, loads: 2},
		}},
		{name: "an upstream that is gone stays, with its servers", steps: []step{
			{text: withNew(one), action: reload, file: withNew(one), loads: 1},
			{text: bogus(two), err: refused, action: reload, file: withNew(two), loads: 3},
		}},
		{name: "an upstream that differs in more than servers stays as it is", steps: []step{
			{text: bogus(strings.Replace(two, "keepalive 64", "keepalive 65", 1)), err: refused, file: one, loads: 1},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startFake(t, "")
			write(t, n.file, n.marked(one))
			n.start()
			if tt.options == nil {
				tt.options = func(*Options) {}
			}
			p := n.proxy(tt.options)
			for i, s := range tt.steps {
				res, err := p.Apply(t.Context(), onlyText(s.text), true)
				p.Close()
				if !errors.Is(err, s.err) || err != nil && !strings.Contains(err.Error(), s.says) {
					t.Errorf("step %d: error %v, want %v saying %q", i, err, s.err, s.says)
				}
				if res.Action != s.action || !strings.Contains(res.Reason, s.reason) || s.action == reload && len(res.Changes) != 1 {
					t.Errorf("step %d: %+v, want %s for %q", i, res, s.action, s.reason)
				}
				if d := cmp.Diff(n.marked(s.file), onDisk(t, n.file)); d != "" || n.running != n.marked(s.file) || n.loads != s.loads {
					t.Errorf("step %d: %d reloads, want %d; the file (-want +got):\n%s", i, n.loads, s.loads, d)
				}
			}
		})
	}
}

// If nginx takes long to refuse a text, the servers go first once that is known. They keep to the pace of reloads.
func TestSlowRefusal(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy(func(o *Options) { o.Timeout = 1100 * time.Millisecond })
	var order []string
	n.unknown = nil
	n.refuse = func(text string) {
		if strings.Contains(text, "bogus") {
			order = append(order, "refused")
			n.logs("bind() to 0.0.0.0:5432 failed (98: Address already in use)") // and keeps trying
			return
		}
		order = append(order, "loaded")
	}
	three := text(frame, "10.0.0.3:80")
	for _, text := range []string{newText, three} {
		if _, err := p.Apply(t.Context(), onlyText(bogus(text)), false); !errors.Is(err, proxyctl.ErrNotYet) {
			t.Errorf("no reload is allowed yet: %v", err)
		}
		if _, err := p.Apply(t.Context(), onlyText(bogus(text)), true); !errors.Is(err, proxyctl.ErrRefused) || n.running != n.marked(text) {
			t.Errorf("%v; nginx runs\n%s", err, n.running)
		}
	}
	if d := cmp.Diff([]string{"refused", "loaded", "loaded", "refused"}, order); d != "" {
		t.Errorf("the order (-want +got):\n%s", d)
	}
}

// A refusal because of an address names the port.
func TestPortRefused(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	n.refuse = func(string) {
		n.logs("bind() to [::]:5432 failed (98: Address already in use)")
		n.logs("still could not bind()")
	}
	var port int
	var reason string
	p := n.proxy(func(o *Options) { o.PortRefused = func(n int, why string) { port, reason = n, why } })
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrRefused) || port != 5432 || reason != "Address already in use" {
		t.Errorf("%v, port %d: %s", err, port, reason)
	}
}

// A first text that would empty an upstream is held back. Servers of other upstreams come and go meanwhile.
func TestHeldBack(t *testing.T) {
	n := startFake(t, "")
	with := func(text, servers string) string {
		return strings.Replace(text, "    server {\n", "    upstream other { "+servers+" }\n    server {\n", 1)
	}
	const some, none = "server 10.0.0.9:80;", "server 127.0.0.1:1 down;"
	write(t, n.file, n.marked(with(oldText, some)))
	n.start()
	p := n.proxy(func(o *Options) { o.Grace = time.Minute })
	three := text(frame, "10.0.0.3:80")
	for i, s := range []struct {
		text, runs string
		held       bool
		loads      int
	}{
		{text: with(newText, none), held: true, runs: with(newText, some), loads: 1},
		{text: with(newText, none), held: true, runs: with(newText, some), loads: 1},
		{text: with(three, none), held: true, runs: with(three, some), loads: 2},
		{text: with(three, some), runs: with(three, some), loads: 2},
		{text: with(three, none), runs: with(three, none), loads: 3}, // it is not a first text any more
	} {
		_, err := p.Apply(t.Context(), onlyText(s.text), true)
		var held *proxyctl.HoldError
		if errors.As(err, &held) != s.held || err != nil && !s.held {
			t.Errorf("step %d: %v", i, err)
		}
		if n.running != n.marked(s.runs) || n.loads != s.loads {
			t.Errorf("step %d: %d reloads, want %d; nginx runs\n%s", i, n.loads, s.loads, n.running)
		}
	}
}

// A changed fixed address is not an upstream emptied by the catalog: nothing is held back for it.
func TestFixedAddressIsNotHeldBack(t *testing.T) {
	n := startFake(t, "")
	fixed := func(address string) string {
		return strings.Replace(oldText, "    server {\n", "    server {\n        location /fixed { proxy_pass http://"+address+"; }\n", 1)
	}
	write(t, n.file, n.marked(fixed("10.0.0.9:80")))
	n.start()
	p := n.proxy(func(o *Options) { o.Grace = time.Minute })
	if _, err := p.Apply(t.Context(), onlyText(fixed("10.0.0.8:80")), true); err != nil || n.loads != 1 {
		t.Errorf("%d reloads, %v", n.loads, err)
	}
}

// A reload func that hangs, even when its context is done, delays nothing.
func TestReloadHangs(t *testing.T) {
	n := startFake(t, "")
	write(t, n.file, n.marked(oldText))
	n.start()
	p := n.proxy(soon, func(o *Options) { o.Reload = func(context.Context) error { <-n.released; return nil } })
	began := time.Now()
	if _, err := p.Apply(t.Context(), onlyText(newText), true); !errors.Is(err, proxyctl.ErrUnreachable) || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if onDisk(t, n.file) != n.marked(oldText) {
		t.Error("the file has changed")
	}
}
