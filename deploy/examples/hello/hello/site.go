package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
)

// longest is the maximum length of a name in bytes.
const longest = 100

// site are the pages.
type site struct {
	greeting, host string
	counter        *counter
}

func (s *site) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.index)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /{name}", s.greet)
	return mux
}

func (s *site) index(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("name") {
		s.greet(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hosted by %s\n%s! What is your name? Ask for /NAME.\n", s.host, s.greeting)
}

func (s *site) greet(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // it contains user input
	name := cmp.Or(r.PathValue("name"), r.URL.Query().Get("name"))
	if name == "" || len(name) > longest {
		http.Error(w, fmt.Sprintf("a name has 1 to %d bytes", longest), http.StatusBadRequest)
		return
	}
	seen, node, err := s.counter.count(r.Context(), name, s.host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	times := "times"
	if seen == 1 {
		times = "time"
	}
	fmt.Fprintf(w, "%s %s! I have seen you %d %s! You are accessing node %d.\n", s.greeting, name, seen, times, node)
}
