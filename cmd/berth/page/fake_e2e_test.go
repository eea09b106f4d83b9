//go:build e2e

package page

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"berth/cmd/berth/status"
	"berth/deploy/testenv"
)

// fake is a berth as the page sees it: the page and the endpoints that it asks.
type fake struct {
	server *httptest.Server

	mu       sync.Mutex
	doc      status.Document
	version  int
	events   []status.Event
	live     []live
	token    string // "" = no actions
	acts     []string
	down     bool      // no request is answered
	refuse   string    // why the status cannot be told
	asked    time.Time // when the status of all services was read last
	full     int       // times that all instances were read
	messages map[chan string]bool
}

// live is how long an instance took from ready to live.
type live struct {
	At       time.Time `json:"at"`
	Service  string    `json:"service"`
	Instance string    `json:"instance"`
	Seconds  float64   `json:"seconds"`
}

// newFake listens on all addresses, so that a browser in a container reaches it.
func newFake(t testing.TB, doc status.Document) *fake {
	f := &fake{doc: doc, messages: map[chan string]bool{}}
	mux := http.NewServeMux()
	mux.Handle("/", Handler(Options{Name: "lb-1"}))
	mux.HandleFunc("GET /v1/status", f.status)
	mux.HandleFunc("GET /v1/events", f.listen)
	mux.HandleFunc("GET /v1/live", func(w http.ResponseWriter, _ *http.Request) { f.reply(w, func() any { return f.live }) })
	mux.HandleFunc("GET /v1/actions", func(w http.ResponseWriter, _ *http.Request) {
		f.reply(w, func() any { return map[string]bool{"actions": f.token != ""} })
	})
	mux.HandleFunc("POST /v1/{verb}", f.act)
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	f.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		down := f.down
		f.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		mux.ServeHTTP(w, r)
	})}}
	f.server.Start()
	t.Cleanup(func() {
		f.server.CloseClientConnections() // streams do not end by themselves
		f.server.Close()
	})
	return f
}

func (f *fake) reply(w http.ResponseWriter, value func() any) {
	f.mu.Lock()
	text, err := json.Marshal(value())
	f.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

func (f *fake) status(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	doc, refuse := f.doc, f.refuse
	etag := fmt.Sprintf(`"%d"`, f.version)
	service, all := r.FormValue("service"), r.FormValue("instances") != "no"
	switch {
	case service == "" && !all:
		f.asked = time.Now()
	case service == "":
		f.full++
	}
	f.mu.Unlock()
	if refuse != "" {
		http.Error(w, refuse, http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	switch {
	case service != "":
		doc.Containers = nil
		doc.Services = slices.DeleteFunc(slices.Clone(doc.Services), func(s status.Service) bool { return s.Name != service })
	case !all:
		doc.Services = slices.Clone(doc.Services)
		for i := range doc.Services {
			doc.Services[i].Instances = nil
		}
	}
	f.reply(w, func() any { return doc })
}

func (f *fake) listen(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") != "text/event-stream" {
		f.reply(w, func() any { return f.events[max(0, len(f.events)-500):] })
		return
	}
	messages := make(chan string, 100)
	f.mu.Lock()
	f.messages[messages] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.messages, messages)
		f.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, ": hello\n\n")
	for {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case m := <-messages:
			fmt.Fprint(w, m)
		}
	}
}

func (f *fake) act(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token == "" || r.Header.Get("Authorization") != "Bearer "+f.token {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	f.acts = append(f.acts, r.URL.RequestURI())
}

// tell sends a message to all who listen; f.mu is held.
func (f *fake) tell(event string, data any) {
	text, _ := json.Marshal(data)
	for m := range f.messages {
		m <- fmt.Sprintf("event: %s\ndata: %s\n\n", event, text)
	}
}

// change changes what is, and says so.
func (f *fake) change(change func(*status.Document)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doc.Services = slices.Clone(f.doc.Services) // the old ones may be on their way
	change(&f.doc)
	f.version++
	f.tell("status", struct{}{})
}

// happen adds an event, and says so.
func (f *fake) happen(e status.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	f.tell("change", e)
}

// set changes something else under the lock.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// breakOff ends all connections, and answers none until it is mended.
func (f *fake) breakOff(down bool) {
	f.set(func() { f.down = down })
	if down {
		f.server.CloseClientConnections()
	}
}

// calm waits until the page may ask again at once: it does so once a second.
func (f *fake) calm(t testing.TB) {
	testenv.Until(t, 10*time.Second, "the page has asked, and not for a second", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.asked.IsZero() && len(f.messages) > 0 && time.Since(f.asked) > 1100*time.Millisecond
	})
}
