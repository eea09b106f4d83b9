// Package census answers over HTTP which groups there are, who belongs to them, and what the instances here run: read-only,
// in JSON.
//
//	/census                  every service in Consul's catalog, with its instances and its leader
//	/services                the services that have an instance here
//	/services/NAME           one of them: its instances here, and the version that is wanted
//	/services/NAME/config    its configuration: as it was applied, and merged where berth merges it
//	/services/NAME/health    200 if its instances here are passing or warning, else 503
package census

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/group/store"
	"berth/registrar/retry"
)

const (
	patience = 5 * time.Second // for an answer
	deadline = 4 * time.Second // for what is read for it
	fresh    = time.Second     // how long others get an answer, too
	maxBody  = 4 << 20         // bytes of an answer
)

// Local is an instance that this berth looks after.
type Local struct {
	Service string // in Consul
	ID      string // service ID
}

// Options say what to answer from. All but Merged and ShowSecrets are required.
type Options struct {
	Consul *api.Client // of the agent that the instances are registered at
	Store  *store.Store
	// Local returns the instances here. Merged returns the merged configuration of a service that has one here, a table as
	// package format makes them; nil = nothing is merged here. Both are called from any goroutine, and must not block. What
	// they return is not changed afterwards, by either side.
	Local       func() []Local
	Merged      func(service string) (map[string]any, bool)
	ShowSecrets bool // what looks like a secret is not masked
	Log         *slog.Logger
}

type handler struct {
	Options
	reads chan struct{} // has an element for each read from Consul that is under way

	mu      sync.Mutex
	answers map[string]*answer        // by path: those that are being made, and the fresh ones
	failing map[string]*retry.Lasting // by path: what could not be answered last time
}

// answer is made once for all who ask for it at the time.
type answer struct {
	done chan struct{} // closed when there are code and body
	code int
	body []byte
}

// failure is the body of an answer that says why there is no other.
type failure struct {
	Error string `json:"error"`
}

// New returns the handler of /census, /services and what is below that. It answers within five seconds, whatever Consul does,
// and calls nobody before the first request.
func New(o Options) http.Handler {
	return &handler{Options: o, reads: make(chan struct{}, maxReads), answers: map[string]*answer{}, failing: map[string]*retry.Lasting{}}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		reply(w, r, http.StatusMethodNotAllowed, encode(failure{"this is read-only: use GET or HEAD"}))
		return
	}
	view := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	service, ids := "", []string(nil)
	if len(view) > 1 && view[0] == "services" {
		service, ids = h.find(view[1])
		if len(ids) == 0 {
			reply(w, r, http.StatusNotFound, encode(failure{clip(view[1]) + " has no instance here"}))
			return
		}
		view[1] = service
	}
	path := strings.Join(view, "/")
	switch path {
	case "census":
		h.share(w, r, path, h.census)
	case "services":
		reply(w, r, http.StatusOK, encode(h.services()))
	case "services/" + service:
		h.share(w, r, path, func(ctx context.Context, r *reading) (int, any, error) { return h.service(ctx, r, service, ids) })
	case "services/" + service + "/config":
		h.share(w, r, path, func(ctx context.Context, r *reading) (int, any, error) { return h.config(ctx, r, service) })
	case "services/" + service + "/health":
		h.share(w, r, path, func(ctx context.Context, r *reading) (int, any, error) { return h.health(ctx, r, service, ids) })
	default:
		reply(w, r, http.StatusNotFound, encode(failure{"use /census, /services, /services/NAME, /services/NAME/config and /services/NAME/health"}))
	}
}

// find returns the service that a name means, and the IDs of its instances here. A service whose name has a dot is itself
// before it is a group.
func (h *handler) find(name string) (service string, ids []string) {
	parsed, err := store.ParseService(name)
	for _, service := range []string{name, parsed} {
		for _, l := range h.Local() {
			if l.Service == service {
				ids = append(ids, l.ID)
			}
		}
		if len(ids) > 0 || err != nil {
			slices.Sort(ids)
			return service, slices.Compact(ids)
		}
	}
	return "", nil
}

// maker makes an answer: its code and a value for its body, or why there is none.
type maker func(context.Context, *reading) (code int, value any, err error)

// share answers with what m makes, or made for somebody else a moment ago. However many ask, it runs once at a time for a
// path, and goes on if who asked first has gone.
func (h *handler) share(w http.ResponseWriter, r *http.Request, path string, m maker) {
	h.mu.Lock()
	a := h.answers[path]
	if a == nil {
		a = &answer{done: make(chan struct{})}
		h.answers[path] = a
		go h.run(a, path, m)
	}
	h.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-a.done:
		reply(w, r, a.code, a.body)
	case <-late.C:
		reply(w, r, http.StatusGatewayTimeout, encode(failure{"the answer takes too long"}))
	case <-r.Context().Done():
	}
}

func (h *handler) run(a *answer, path string, m maker) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	code, value, err := m(ctx, &reading{})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code, value = http.StatusGatewayTimeout, failure{clip(err.Error())}
	case err != nil:
		code, value = http.StatusServiceUnavailable, failure{clip(err.Error())}
	}
	a.code, a.body = code, encode(value)
	if len(a.body) > maxBody {
		a.code, a.body = http.StatusInsufficientStorage, encode(failure{fmt.Sprintf("the answer has %d bytes, and at most %d are sent", len(a.body), maxBody)})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log(path, err)
	close(a.done)
	time.AfterFunc(fresh, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.answers, path)
	})
}

// log tells of what cannot be answered, and when it can again. It is called with h.mu held.
func (h *handler) log(path string, err error) {
	lasting := h.failing[path]
	switch {
	case err != nil:
		if lasting == nil {
			lasting = new(retry.Lasting)
			h.failing[path] = lasting
		}
		if tell, lasts := lasting.Tell(err.Error(), time.Now()); tell {
			h.Log.Warn("cannot answer /"+path, append(retry.For(lasts), "err", err)...)
		}
	case lasting != nil:
		delete(h.failing, path)
		h.Log.Info("answers /" + path + " again")
	}
}

// encode returns a value in JSON. The encoder replaces what is not UTF-8.
func encode(value any) []byte {
	body, err := json.Marshal(value)
	if err != nil {
		body, _ = json.Marshal(failure{"it cannot be shown: " + clip(err.Error())}) // such as a year beyond 9999
	}
	return append(body, '\n')
}

func reply(w http.ResponseWriter, r *http.Request, code int, body []byte) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

const maxText = 1000

// clip bounds a text of somebody else, where no longer one makes sense.
func clip(text string) string {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
