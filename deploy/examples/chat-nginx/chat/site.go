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

	// beat is how often a stream of events sends something, so that nobody between takes it for dead.
	beat = 15 * time.Second
	// writeTimeout is how long a browser may take to read what a stream sends it.
	writeTimeout = 10 * time.Second
)

//go:embed web
var files embed.FS

// chatRoom is what the site shows. Its methods are room's.
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
		panic(err) // it is compiled in
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

// secure lets browsers load nothing but the site's own files, and keep nothing.
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

// page is what the pages show.
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
	_ = s.pages.ExecuteTemplate(w, name, p) // an error is that the browser has gone
}

// away is the page for when Redis does not answer. The browser asks again by itself.
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

// events sends what is said after the message that the browser had last, until the browser or this instance goes. With
// the ID of each, a browser goes on at another instance where it was. When Redis goes the stream ends, and the browser
// asks again.
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
			w.Header().Set("X-Accel-Buffering", "no") // nginx is to pass on each event at once
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

// userOf is the name in a request's cookie, or nothing.
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

// cleanName is a name without blanks around, or nothing if it is none.
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

// cleanText is a message without blanks around, or nothing if it is none.
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
