package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/cmd/berth/page"
	"berth/cmd/berth/status"
)

// The paths of a berth's status API.
const (
	statusPath  = "/v1/status"
	eventsPath  = "/v1/events"
	livePath    = "/v1/live"
	actionsPath = "/v1/actions"
)

const (
	pingEvery  = 15 * time.Second // keeps intermediaries from closing a stream of events
	mostStream = 64               // streams at the same time
)

// statusAnswers serves the status API.
type statusAnswers struct {
	hub     *status.Hub
	live    *liveTimes
	name    string // of the host, for the page's title
	streams chan struct{}
	actions *actions // nil = none are allowed
}

// handle adds the paths to mux.
func (s *statusAnswers) handle(mux *http.ServeMux) {
	s.streams = make(chan struct{}, mostStream)
	mux.HandleFunc("GET "+statusPath, s.status)
	mux.HandleFunc("GET "+eventsPath, s.events)
	mux.HandleFunc("GET "+livePath, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, s.live.last()) })
	mux.HandleFunc("GET "+actionsPath, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, map[string]bool{"actions": s.actions != nil})
	})
	if s.actions != nil {
		s.actions.handle(mux)
	}
	mux.Handle("GET /{$}", page.Handler(page.Options{Name: s.name}))
}

// answerJSON answers with a value as JSON.
func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the client has gone away
}

// status serves the document, or the part that the query selects.
func (s *statusAnswers) status(w http.ResponseWriter, r *http.Request) {
	snapshot, err := s.hub.Document(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache")
	if service := r.URL.Query().Get("service"); service != "" {
		one, there := snapshot.Only(service)
		if !there {
			http.Error(w, "no such service", http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(one)
		return
	}
	brief := r.URL.Query().Get("instances") == "no"
	tag := `"` + snapshot.Tag + `"`
	if brief {
		tag = `"` + snapshot.Tag + `-b"`
	}
	h.Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(snapshot.JSON(brief))
}

// events serves the last events, or a stream of new ones.
func (s *statusAnswers) events(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		_, _ = s.hub.Document(r.Context()) // it adds the events of the other berths
		list, _ := s.hub.Events.After(0)
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b status.Numbered) int { return a.At.Compare(b.At) })
		if list == nil {
			list = []status.Numbered{}
		}
		answerJSON(w, list)
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		http.Error(w, "too many clients follow the events already", http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	last, err := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	if err != nil { // a new client has asked for the list before, or wants none
		list, _ := s.hub.Events.After(0)
		if n := len(list); n > 0 {
			last = list[n-1].ID
		}
	}
	s.stream(r.Context(), w, http.NewResponseController(w), last)
}

// stream sends events until ctx is done or the client is gone.
func (s *statusAnswers) stream(ctx context.Context, w http.ResponseWriter, c *http.ResponseController, last int) {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	var tag string
	var look <-chan time.Time
	fmt.Fprint(w, ": changes as they happen\n\n")
	for {
		list, more := s.hub.Events.After(last)
		for _, ev := range list {
			data, err := json.Marshal(ev)
			if err != nil {
				return
			}
			last = ev.ID
			fmt.Fprintf(w, "id: %d\nevent: change\ndata: %s\n\n", ev.ID, data)
		}
		changed := s.hub.Watch()
		if look == nil {
			look = time.After(max(200*time.Millisecond, s.hub.Next()))
		}
		_ = c.SetWriteDeadline(time.Now().Add(2 * pingEvery))
		if c.Flush() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
			continue
		case <-changed:
			look = time.After(max(50*time.Millisecond, s.hub.Next()))
			select { // a burst is one change
			case <-ctx.Done():
				return
			case <-look:
			}
		case <-look:
		case <-ping.C:
			fmt.Fprint(w, ": \n\n")
			continue
		}
		look = nil
		snapshot, err := s.hub.Document(ctx)
		if err == nil && snapshot.Tag != tag {
			tag = snapshot.Tag
			fmt.Fprint(w, "event: status\ndata: {}\n\n")
		}
	}
}

// actions are what an operator may do from the page, with a token.
type actions struct {
	tokenFile string
	drain     func(ctx context.Context, instance string, on bool) error
	pause     func(ctx context.Context, service string, on bool) error
}

// readToken returns the token that an action needs. The file is read each time: it may be renewed.
func (a *actions) readToken() (string, error) {
	content, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(content))
	if len(token) < 16 {
		return "", fmt.Errorf("%s: the token must have at least 16 characters", a.tokenFile)
	}
	return token, nil
}

func (a *actions) handle(mux *http.ServeMux) {
	for path, act := range map[string]func(context.Context, *http.Request) error{
		"/v1/drain": func(ctx context.Context, r *http.Request) error {
			return a.drain(ctx, r.URL.Query().Get("instance"), true)
		},
		"/v1/undrain": func(ctx context.Context, r *http.Request) error {
			return a.drain(ctx, r.URL.Query().Get("instance"), false)
		},
		"/v1/pause": func(ctx context.Context, r *http.Request) error {
			return a.pause(ctx, r.URL.Query().Get("service"), true)
		},
		"/v1/resume": func(ctx context.Context, r *http.Request) error {
			return a.pause(ctx, r.URL.Query().Get("service"), false)
		},
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := a.allowed(r); err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), statusTime)
			defer cancel()
			if err := act(ctx, r); err != nil {
				http.Error(w, oneLine(err), http.StatusBadGateway)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
}

// allowed checks the token of a request. Both sides are hashed, so that the comparison takes the same time for all.
func (a *actions) allowed(r *http.Request) error {
	want, err := a.readToken()
	if err != nil {
		return errors.New("the token of this berth cannot be read: see listen-admin-token-file")
	}
	given, is := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	x, y := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	if !is || subtle.ConstantTimeCompare(x[:], y[:]) != 1 {
		return errors.New("wrong token")
	}
	return nil
}
