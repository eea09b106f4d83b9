package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	nameMost = 32   // characters
	textMost = 500  // characters
	formMost = 8192 // bytes
	cookie   = "chat-name"

	// beat is the interval at which an event stream sends data, so that no proxy considers it dead.
	beat = 15 * time.Second
	// writeTimeout limits how long a browser may take to read stream data.
	writeTimeout = 10 * time.Second
)

//go:embed web
var files embed.FS

// chatRoom is the site's source. Its methods are those of room.
type chatRoom interface {
	say(ctx context.Context, m message) error
	since(ctx context.Context, id string) ([]message, error)
	next() <-chan struct{}
}

// site is the web site of one instance.
type site struct {
	host       string
	room       chatRoom
	pages      *template.Template
	stopping   chan struct{}
	endStreams func() // may be called twice
}

func newSite(host string, room chatRoom) *site {
	stopping := make(chan struct{})
	return &site{
		host:       host,
		room:       room,
		pages:      template.Must(template.ParseFS(files, "web/*.html")),
		stopping:   stopping,
		endStreams: sync.OnceFunc(func() { close(stopping) }),
	}
}

func (s *site) handler() http.Handler {
	static, err := fs.Sub(files, "web/static")
	if err != nil {
		panic(err) // compiled in
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /static/", http.StripPrefix("/static", http.FileServerFS(static)))
	mux.HandleFunc("GET /{$}", s.loginPage)
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("POST /logout", s.logout)
	mux.HandleFunc("GET /chat", s.chatPage)
	mux.HandleFunc("POST /messages", s.say)
	mux.HandleFunc("GET /events", s.events)
	return http.NewCrossOriginProtection().Handler(secure(mux))
}

// secure makes browsers load only the site's own files and store nothing.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; "+
			"connect-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, formMost)
		h.ServeHTTP(w, r)
	})
}

// page is the data of the pages.
type page struct {
	Host, Name, Error string
	Messages          []message
	Last              string // ID of the last message, or empty
	// Most characters of a name and of a message, most messages.
	NameMost, TextMost, Keep int
}

func (s *site) show(w http.ResponseWriter, status int, name string, p page) {
	p.Host, p.NameMost, p.TextMost, p.Keep = s.host, nameMost, textMost, keep
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = s.pages.ExecuteTemplate(w, name, p) // an error means that the browser has left
}

// away is the page shown while Redis does not answer. The browser retries by itself.
func (s *site) away(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "2")
	s.show(w, http.StatusServiceUnavailable, "away.html", page{})
}

func (s *site) loginPage(w http.ResponseWriter, r *http.Request) {
	s.show(w, http.StatusOK, "login.html", page{Name: userOf(r)})
}

func (s *site) login(w http.ResponseWriter, r *http.Request) {
	name, ok := cleanName(r.PostFormValue("name"))
	if !ok {
		problem := fmt.Sprintf("A name has 1 to %d letters, digits, blanks, and - _ . '", nameMost)
		s.show(w, http.StatusBadRequest, "login.html", page{Error: problem})
		return
	}
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: url.QueryEscape(name), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/chat", http.StatusSeeOther)
}

func (s *site) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *site) chatPage(w http.ResponseWriter, r *http.Request) {
	name := userOf(r)
	if name == "" {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	said, err := s.room.since(r.Context(), "")
	if err != nil {
		s.away(w)
		return
	}
	p := page{Name: name, Messages: said}
	if len(said) > 0 {
		p.Last = said[len(said)-1].ID
	}
	s.show(w, http.StatusOK, "chat.html", p)
}

func (s *site) say(w http.ResponseWriter, r *http.Request) {
	name := userOf(r)
	if name == "" {
		http.Error(w, "Log in first.", http.StatusUnauthorized)
		return
	}
	text, ok := cleanText(r.PostFormValue("text"))
	if !ok {
		http.Error(w, fmt.Sprintf("A message has 1 to %d characters, in one line.", textMost), http.StatusBadRequest)
		return
	}
	if err := s.room.say(r.Context(), message{Name: name, Text: text, Host: s.host}); err != nil {
		s.away(w)
		return
	}
	http.Redirect(w, r, "/chat", http.StatusSeeOther)
}

// events sends the messages after the browser's last one, until the browser or this instance ends. With the ID of each
// message, a browser continues at another instance. When Redis fails, the stream ends and the browser reconnects.
func (s *site) events(w http.ResponseWriter, r *http.Request) {
	if userOf(r) == "" {
		http.Error(w, "Log in first.", http.StatusUnauthorized)
		return
	}
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		last = r.URL.Query().Get("after")
	}
	out := http.NewResponseController(w)
	for first := true; ; first = false {
		next := s.room.next()
		said, err := s.room.since(r.Context(), last)
		if err != nil {
			if first {
				s.away(w)
			}
			return
		}
		if err := out.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return
		}
		if first {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("X-Accel-Buffering", "no") // makes nginx pass on each event at once
			fmt.Fprintf(w, "retry: 1000\nevent: host\ndata: %s\n\n", s.host)
		}
		for _, m := range said {
			data, err := json.Marshal(m)
			if err != nil {
				return
			}
			fmt.Fprintf(w, "id: %s\ndata: %s\n\n", m.ID, data)
			last = m.ID
		}
		if len(said) == 0 {
			fmt.Fprint(w, ":\n\n")
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-next:
		case <-time.After(beat):
		case <-r.Context().Done():
			return
		case <-s.stopping:
			return
		}
	}
}

// userOf returns the name in a request's cookie, or "".
func userOf(r *http.Request) string {
	c, err := r.Cookie(cookie)
	if err != nil {
		return ""
	}
	value, err := url.QueryUnescape(c.Value)
	if err != nil {
		return ""
	}
	name, _ := cleanName(value)
	return name
}

// cleanName trims a name; it returns "" for an invalid one.
func cleanName(s string) (name string, ok bool) {
	s = strings.TrimSpace(s)
	bad := func(r rune) bool {
		return !unicode.In(r, unicode.L, unicode.M, unicode.N) && !strings.ContainsRune(" -_.'", r)
	}
	if !hasLength(s, nameMost) || strings.ContainsFunc(s, bad) {
		return "", false
	}
	return s, true
}

// cleanText trims a message; it returns "" for an invalid one.
func cleanText(s string) (text string, ok bool) {
	s = strings.TrimSpace(s)
	if !hasLength(s, textMost) || strings.ContainsFunc(s, unicode.IsControl) {
		return "", false
	}
	return s, true
}

func hasLength(s string, most int) bool {
	n := utf8.RuneCountInString(s)
	return n >= 1 && n <= most && utf8.ValidString(s)
}
