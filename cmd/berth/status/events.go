package status

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// MostEvents is how many changes are kept.
const MostEvents = 500

// Events keeps the last events of this berth and of others. All methods may be called from any goroutine.
type Events struct {
	mu      sync.Mutex
	own     []Numbered // oldest first
	next    int
	seen    map[string]bool // of others, by what tells two apart
	changed chan struct{}   // closed and replaced with each event
	added   func()
}

// Numbered is an event with its position in this berth's sequence of events.
type Numbered struct {
	ID int `json:"id"`
	Event
}

// NewEvents returns an empty Events.
func NewEvents() *Events {
	return &Events{next: 1, seen: map[string]bool{}, changed: make(chan struct{})}
}

// Add adds an event of this berth.
func (e *Events) Add(ev Event) {
	e.mu.Lock()
	e.add(ev)
	added := e.added
	e.mu.Unlock()
	if added != nil {
		added()
	}
}

// Added sets a function to call after each event of this berth; it must not block.
func (e *Events) Added(do func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.added = do
}

func (e *Events) add(ev Event) {
	e.own = append(e.own, Numbered{e.next, ev})
	e.next++
	if n := len(e.own) - MostEvents; n > 0 {
		for _, gone := range e.own[:n] {
			delete(e.seen, gone.key())
		}
		e.own = slices.Delete(e.own, 0, n)
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// Merge adds the events of another berth that are new here.
func (e *Events) Merge(events []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range events {
		key := Numbered{Event: ev}.key()
		if e.seen[key] || len(e.own) == MostEvents && ev.At.Before(e.own[0].At) {
			continue
		}
		e.seen[key] = true
		e.add(ev)
	}
}

func (n Numbered) key() string {
	return n.Role + "\x00" + n.Berth + "\x00" + n.At.Format(time.RFC3339Nano) + "\x00" + n.Message
}

// After returns the events with an ID above id, oldest first, and a channel that is closed when there are more. An ID that was never
// given counts as 0.
func (e *Events) After(id int) ([]Numbered, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id >= e.next { // it is from before a restart
		id = 0
	}
	i := slices.IndexFunc(e.own, func(n Numbered) bool { return n.ID > id })
	if i < 0 {
		return nil, e.changed
	}
	return slices.Clone(e.own[i:]), e.changed
}

// Last returns the last n events of this berth itself, oldest first.
func (e *Events) Last(n int) (out []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(e.own) - 1; i >= 0 && len(out) < n; i-- {
		if e.own[i].Berth == "" {
			out = append(out, e.own[i].Event)
		}
	}
	slices.Reverse(out)
	return out
}

// Handler returns a slog.Handler that passes records on to another one and keeps those of the level Info and above as events,
// whatever level the other one writes.
func (e *Events) Handler(to slog.Handler) slog.Handler { return &handler{to: to, events: e} }

type handler struct {
	to     slog.Handler
	events *Events
	attrs  []slog.Attr
	group  string
}

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.to.Enabled(ctx, level)
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		h.events.Add(h.event(r))
	}
	if !h.to.Enabled(ctx, r.Level) {
		return nil
	}
	return h.to.Handle(ctx, r)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.to.WithAttrs(attrs), h.events, append(slices.Clip(h.attrs), h.prefixed(attrs)...), h.group}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.to.WithGroup(name), h.events, h.attrs, h.group + name + "."}
}

func (h *handler) prefixed(attrs []slog.Attr) []slog.Attr {
	if h.group == "" {
		return attrs
	}
	out := slices.Clone(attrs)
	for i := range out {
		out[i].Key = h.group + out[i].Key
	}
	return out
}

// event returns a record as an event.
func (h *handler) event(r slog.Record) Event {
	out := Event{At: r.Time, Level: r.Level.String(), Message: bounded(r.Message)}
	take := func(a slog.Attr) bool {
		value := a.Value.Resolve()
		text := value.String()
		if value.Kind() == slog.KindDuration {
			text = value.Duration().String()
		}
		text = bounded(text)
		switch a.Key {
		case "service":
			out.Service = text
		case "instance":
			out.Instance = text
		case "container":
			out.Container = text
		case "backend":
			out.Backend = text
		case "reason", "err":
			out.Reason = strings.TrimPrefix(out.Reason+"; "+text, "; ")
		default:
			if out.More == nil {
				out.More = map[string]string{}
			}
			if len(out.More) < 8 {
				out.More[a.Key] = text
			}
		}
		return true
	}
	for _, a := range h.attrs {
		take(a)
	}
	r.Attrs(func(a slog.Attr) bool { return take(h.prefixed([]slog.Attr{a})[0]) })
	return out
}

// bounded limits a text of an event to the length of a line, and removes control characters.
func bounded(s string) string {
	const most = 400
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// String returns the event as a line, without its time.
func (e Event) String() string {
	var about []string
	for _, kv := range [][2]string{{"service", e.Service}, {"instance", e.Instance}, {"container", e.Container}, {"reason", e.Reason}} {
		if kv[1] != "" && !strings.Contains(e.Message, kv[1]) {
			about = append(about, fmt.Sprintf("%s=%s", kv[0], kv[1]))
		}
	}
	return strings.Join(append([]string{e.Message}, about...), "  ")
}
