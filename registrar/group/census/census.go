// Package census serves the groups, their members, and what the instances here run over HTTP: read-only, in JSON.
//
//	/census                  every service in Consul's catalog, with its instances and its leader
//	/services                the services that have an instance here
//	/services/NAME           one of them: its instances here, and the wanted version
//	/services/NAME/config    its configuration: as applied, and merged where berth merges it
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
	deadline = 4 * time.Second // for the reads of an answer
	fresh    = time.Second     // how long an answer is shared
	maxBody  = 4 << 20         // bytes of an answer
)

// Local is an instance managed by this berth.
type Local struct {
	Service string // in Consul
	ID      string // service ID
}

// Options say where answers come from. All are required except Merged and ShowSecrets.
type Options struct {
	Consul *api.Client // of the agent that holds the instances
	Store  *store.Store
	// Local returns the instances here. Merged returns the merged configuration of a service with an instance here, as a
	// table of package format; nil = nothing is merged here. Both are called from any goroutine, and must not block. Neither
	// side changes the returned values afterwards.
	Local       func() []Local
	Merged      func(service string) (map[string]any, bool)
	ShowSecrets bool // do not mask secrets
	Log         *slog.Logger
}

type handler struct {
	Options
	reads chan struct{} // holds an element per running read from Consul

	mu      sync.Mutex
	answers map[string]*answer        // by path: running and fresh ones
	failing map[string]*retry.Lasting // by path: what could not be answered last time
}

// answer is made once for everyone who asks for it at the time.
type answer struct {
	done chan struct{} // closed when code and body are set
	code int
	body []byte
}

// failure is the body of an answer that says why there is no data.
type failure struct {
	Error string `json:"error"`
}

// New returns the handler of /census, /services and the paths below. It answers within five seconds, whatever Consul does,
// and makes no calls before the first request.
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

// find returns the service that a name means, and the IDs of its instances here. A name with a dot means a service of that
// name before it means a group.
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

// maker makes an answer: its code and the value of its body, or an error.
type maker func(context.Context, *reading) (code int, value any, err error)

// share answers with what m makes, or with what it made for another request a moment ago. It runs once at a time per path,
// however many ask, and continues when the first client has gone.
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

// log logs what cannot be answered, and when it can again. The caller holds h.mu.
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

// encode returns a value as JSON. The encoder replaces invalid UTF-8.
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

// clip limits the length of foreign text where longer text makes no sense.
func clip(text string) string {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
