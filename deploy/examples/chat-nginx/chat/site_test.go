package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// memory is a room without Redis.
type memory struct {
	mu     sync.Mutex
	said   []message
	broken error
	news   chan struct{}
}

func newMemory() *memory { return &memory{news: make(chan struct{})} }

func (m *memory) say(_ context.Context, said message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	said.ID = string(rune('1'+len(m.said))) + "-0"
	m.said = append(m.said, said)
	m.tell()
	return nil
}

func (m *memory) since(_ context.Context, id string) ([]message, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := slices.IndexFunc(m.said, func(said message) bool { return said.ID == id })
	return slices.Clone(m.said[after+1:]), m.broken
}

func (m *memory) next() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.news
}

// fail makes every query fail with this error; nil = none.
func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
	m.tell()
}

func (m *memory) tell() {
	close(m.news)
	m.news = make(chan struct{})
}

// browser is one user's browser at one instance.
type browser struct {
	t   *testing.T
	url string
	*http.Client
}

func open(t *testing.T, room chatRoom) *browser {
	t.Helper()
	srv := httptest.NewServer(newSite("host-1", room).handler())
	t.Cleanup(srv.Close)
	return newBrowser(t, srv.URL)
}

func newBrowser(t *testing.T, url string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, url, &http.Client{Jar: jar, Timeout: 10 * time.Second}}
}

// get returns the status and the page, after redirects.
func (b *browser) get(path string) (int, string) {
	b.t.Helper()
	return b.read(b.Get(b.url + path))
}

func (b *browser) post(path string, fields ...string) (int, string) {
	b.t.Helper()
	form := url.Values{}
	for pair := range slices.Chunk(fields, 2) {
		form.Set(pair[0], pair[1])
	}
	return b.read(b.PostForm(b.url+path, form))
}

func (b *browser) read(resp *http.Response, err error) (int, string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (b *browser) expect(status int, body string, wantStatus int, want ...string) {
	b.t.Helper()
	if status != wantStatus {
		b.t.Errorf("status %d, want %d: %s", status, wantStatus, body)
	}
	for _, w := range want {
		if !strings.Contains(body, w) {
			b.t.Errorf("the page has no %q:\n%s", w, body)
		}
	}
}

func TestPages(t *testing.T) {
	b := open(t, newMemory())

	status, body := b.get("/")
	b.expect(status, body, 200, "Hosted by host-1", `action="/login"`)
	status, body = b.get("/chat")
	b.expect(status, body, 200, `action="/login"`) // not logged in
	status, body = b.post("/messages", "text", "hello")
	b.expect(status, body, 401)
	status, body = b.get("/events")
	b.expect(status, body, 401)

	status, body = b.post("/login", "name", " Ann ")
	b.expect(status, body, 200, "Hosted by host-1", "You are Ann", `data-last=""`)
	status, body = b.post("/messages", "text", "hello")
	b.expect(status, body, 200, "<b>Ann</b> <span>hello</span> <small>through host-1</small>", `data-last="1-0"`)
	status, body = b.get("/")
	b.expect(status, body, 200, `value="Ann"`)

	status, body = b.post("/logout")
	b.expect(status, body, 200, `value=""`)
	status, body = b.get("/health")
	b.expect(status, body, 200, "ok\n")
	status, body = b.get("/static/chat.js")
	b.expect(status, body, 200, "EventSource")
	status, body = b.get("/none")
	b.expect(status, body, 404)
}

func TestTextIsEscaped(t *testing.T) {
	b := open(t, newMemory())
	b.post("/login", "name", "O'Ann")
	status, body := b.post("/messages", "text", `<script>alert("1")</script>&amp;`)
	b.expect(status, body, 200, "<b>O&#39;Ann</b>", "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;amp;")
	if strings.Contains(body, "<script>") {
		t.Errorf("the page has somebody's script:\n%s", body)
	}
	// A cookie is no more trustworthy than a form.
	here, err := url.Parse(b.url)
	if err != nil {
		t.Fatal(err)
	}
	b.Jar.SetCookies(here, []*http.Cookie{{Name: cookie, Value: url.QueryEscape("<b>"), Path: "/"}})
	status, body = b.get("/chat")
	b.expect(status, body, 200, `action="/login"`)
}

func TestWhatMayBeSaid(t *testing.T) {
	for _, c := range []struct {
		name, want string
	}{
		{"Ann", "Ann"}, {"  Ann B.  ", "Ann B."}, {"Zoë-1_x", "Zoë-1_x"}, {strings.Repeat("é", nameMost), strings.Repeat("é", nameMost)},
		{"", ""}, {"   ", ""}, {strings.Repeat("a", nameMost+1), ""}, {"<b>", ""}, {"a\nb", ""}, {"a\x00", ""}, {"a\xff", ""}, {"a\u202eb", ""},
	} {
		if got, ok := cleanName(c.name); got != c.want || ok != (c.want != "") {
			t.Errorf("cleanName(%q) = %q, %t; want %q", c.name, got, ok, c.want)
		}
	}
	for _, c := range []struct {
		text, want string
	}{
		{" hello, <world> 🙂 ", "hello, <world> 🙂"}, {strings.Repeat("é", textMost), strings.Repeat("é", textMost)},
		{"", ""}, {" \n ", ""}, {strings.Repeat("a", textMost+1), ""}, {"a\nb", ""}, {"a\xff", ""},
	} {
		if got, ok := cleanText(c.text); got != c.want || ok != (c.want != "") {
			t.Errorf("cleanText(%q) = %q, %t; want %q", c.text, got, ok, c.want)
		}
	}
	b := open(t, newMemory())
	status, body := b.post("/login", "name", "<b>")
	b.expect(status, body, 400, "A name has 1 to 32", "Hosted by host-1")
	b.post("/login", "name", "Ann")
	status, body = b.post("/messages", "text", " ")
	b.expect(status, body, 400, "A message has 1 to 500")
	status, body = b.post("/messages", "text", strings.Repeat("a", formMost))
	b.expect(status, body, 400)
}

func TestHeaders(t *testing.T) {
	b := open(t, newMemory())
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := b.PostForm(b.url+"/login", url.Values{"name": {"Ann"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, want := resp.Header.Get("Set-Cookie"), "chat-name=Ann; Path=/; HttpOnly; SameSite=Lax"; got != want {
		t.Errorf("cookie %q, want %q", got, want)
	}
	for key, want := range map[string]string{"Location": "/chat", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if got := resp.Header.Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("Content-Security-Policy: %q", csp)
	}
}

// Another site's page cannot post in a user's name.
func TestFormOfAnotherSite(t *testing.T) {
	room := newMemory()
	b := open(t, room)
	b.post("/login", "name", "Ann")
	req, err := http.NewRequest(http.MethodPost, b.url+"/messages", strings.NewReader("text=evil"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", "http://evil.example")
	status, body := b.read(b.Do(req))
	b.expect(status, body, 403)
	if said, _ := room.since(t.Context(), ""); len(said) != 0 {
		t.Errorf("it was said all the same: %v", said)
	}
}

func TestRedisIsAwayAndBack(t *testing.T) {
	room := newMemory()
	b := open(t, room)
	b.post("/login", "name", "Ann")
	room.fail(errors.New("it is away"))

	status, body := b.get("/chat")
	b.expect(status, body, 503, "The messages cannot be reached just now", "Hosted by host-1")
	status, body = b.post("/messages", "text", "lost")
	b.expect(status, body, 503)
	status, body = b.get("/events")
	b.expect(status, body, 503)
	status, body = b.get("/")
	b.expect(status, body, 200, "Hosted by host-1")
	status, body = b.get("/health")
	b.expect(status, body, 200)

	room.fail(nil)
	status, body = b.post("/messages", "text", "back")
	b.expect(status, body, 200, "back")
}

// events is one event stream.
type events struct {
	t     *testing.T
	lines *bufio.Scanner
}

func (b *browser) listen(path, last string) *events {
	b.t.Helper()
	req, err := http.NewRequest(http.MethodGet, b.url+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { resp.Body.Close() })
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
		b.t.Fatalf("%s, %v", resp.Status, resp.Header)
	}
	e := &events{b.t, bufio.NewScanner(resp.Body)}
	e.expect("retry: 1000", "event: host", "data: host-1")
	return e
}

// expect reads lines, skipping empty ones and comments.
func (e *events) expect(want ...string) {
	e.t.Helper()
	for _, w := range want {
		if got, ok := e.next(); !ok || got != w {
			e.t.Fatalf("line %q, want %q", got, w)
		}
	}
}

func (e *events) next() (line string, ok bool) {
	for e.lines.Scan() {
		if line := e.lines.Text(); line != "" && line != ":" {
			return line, true
		}
	}
	return "", false
}

func (e *events) expectEnd() {
	e.t.Helper()
	if line, ok := e.next(); ok || e.lines.Err() != nil {
		e.t.Fatalf("line %q, %v; want the end", line, e.lines.Err())
	}
}

func TestEvents(t *testing.T) {
	room := newMemory()
	b := open(t, room)
	b.post("/login", "name", "Ann")
	b.post("/messages", "text", "one")
	one := []string{"id: 1-0", `data: {"id":"1-0","name":"Ann","text":"one","host":"host-1"}`}
	two := []string{"id: 2-0", `data: {"id":"2-0","name":"Ann","text":"\u003ctwo\u003e","host":"host-1"}`}

	all, after := b.listen("/events", ""), b.listen("/events?after=1-0", "")
	all.expect(one...)
	b.post("/messages", "text", "<two>")
	all.expect(two...)
	after.expect(two...)
	again := b.listen("/events?after=1-0", "2-0") // reconnects: the last message counts, not the first URL
	b.post("/messages", "text", "three")
	again.expect("id: 3-0")
	b.listen("/events", "nonsense").expect(one...)

	all.expect("id: 3-0", `data: {"id":"3-0","name":"Ann","text":"three","host":"host-1"}`)
	room.fail(errors.New("it is away"))
	all.expectEnd()
}

// An instance that is told to stop ends its streams, answers requests in flight, and accepts no new ones.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	room := &slowRoom{memory: newMemory(), asked: make(chan struct{}), answer: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, newSite("host-1", room), slog.New(slog.DiscardHandler)) }()

	b := newBrowser(t, "http://"+l.Addr().String())
	b.post("/login", "name", "Ann")
	stream := b.listen("/events", "")
	posted := make(chan int)
	go func() {
		b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		resp, err := b.PostForm(b.url+"/messages", url.Values{"text": {"in flight"}})
		if err != nil {
			t.Error(err)
			posted <- 0
			return
		}
		resp.Body.Close()
		posted <- resp.StatusCode
	}()
	<-room.asked

	stop()
	stream.expectEnd()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it accepts a connection while it stops")
	}
	close(room.answer)
	if status := <-posted; status != http.StatusSeeOther {
		t.Errorf("what was in flight got %d, want 303", status)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// slowRoom answers say when it is told to.
type slowRoom struct {
	*memory
	asked, answer chan struct{}
}

func (r *slowRoom) say(ctx context.Context, m message) error {
	close(r.asked)
	<-r.answer
	return r.memory.say(ctx, m)
}

func TestIsID(t *testing.T) {
	for id, want := range map[string]bool{
		"1700000000000-0": true, "0-0": true, "": false, "1": false, "1-": false, "-1": false, "1-2-3": false, "a-b": false,
		"(1-0": false, "+": false, "99999999999999999999-0": false,
	} {
		if got := isID(id); got != want {
			t.Errorf("isID(%q) = %t, want %t", id, got, want)
		}
	}
}
