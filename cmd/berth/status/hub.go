package status

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"berth/registrar/retry"
	"berth/templater/catalog"
)

// Gather reads the input of a document from Consul alone. The error says that Consul does not answer at all.
func Gather(ctx context.Context, consul *api.Client) (Input, error) {
	in := Input{At: time.Now()}
	var (
		wait                      sync.WaitGroup
		partsErr, listErr, hidden error
	)
	wait.Go(func() { in.Parts, _, partsErr = ReadParts(ctx, consul, nil, nil) })
	wait.Go(func() { in.Catalog, listErr = ReadCatalog(ctx, consul) })
	wait.Go(func() { in.Paused, hidden = readPaused(ctx, consul) })
	wait.Wait()
	if partsErr != nil && in.Catalog == nil {
		return in, cmp.Or(listErr, partsErr)
	}
	for _, err := range []error{partsErr, listErr, hidden} {
		if err != nil {
			in.Incomplete = append(in.Incomplete, err.Error())
		}
	}
	return in, nil
}

// readPaused returns the descriptions of the paused services, by name.
func readPaused(ctx context.Context, consul *api.Client) (map[string]string, error) {
	pairs, _, err := consul.KV().List(catalog.PausedPrefix, new(api.QueryOptions).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read the paused services: %w", err)
	}
	out := map[string]string{}
	for _, pair := range pairs {
		if p, err := catalog.ParsePause(pair); err == nil {
			out[p.Service] = fmt.Sprintf("paused since %s by %s: %s", p.Since.Format(time.RFC3339), bounded(p.By), bounded(p.Reason))
		}
	}
	return out, nil
}

const (
	// rests is how long a document is reused, in multiples of the time to make it: so documents cost less than a hundredth of a
	// core, including sending them.
	rests = 200
	// soonest is how long a document is good, at least.
	soonest = 200 * time.Millisecond
	// unheard is how long a document is good if nothing tells that the catalog has changed.
	unheard = time.Second
	// quick is how long Consul may take for data that is optional or known from before.
	quick = time.Second
	// interest is how long after a request the Hub listens to the other berths.
	interest = time.Minute
	// watchTime is how long Consul may wait for a change.
	watchTime = time.Minute
)

// Snapshot is a document that was put together at one time, ready to be sent.
type Snapshot struct {
	Document
	Tag string // changes with what it says

	full, brief func() []byte
}

// JSON returns the whole document, or with brief one without instances.
func (s *Snapshot) JSON(brief bool) []byte {
	if brief {
		return s.brief()
	}
	return s.full()
}

// Hub makes the document for the clients of one berth. Without clients it does nothing.
type Hub struct {
	Consul  *api.Client
	Events  *Events
	Own     func(context.Context) []Part // of this berth, as it is now
	Servers func() []PartServer          // all that its proxy has; nil = it has none
	Catalog func() (Catalog, bool)       // as the templater has it; false if it does not watch all of it; nil = there is none
	Live    func() map[string]time.Time  // by address; nil = none
	IsOwn   func(role, name string) bool // whether a part is this berth's

	mu      sync.Mutex
	asked   time.Time
	wake    chan struct{}
	others  []Part            // as the watch has them
	heard   error             // of the watch
	paused  map[string]string // as last read
	watched bool              // others is up to date
	dirty   bool              // something has changed since the last document
	last    *Snapshot
	built   time.Time
	cost    time.Duration
	changed chan struct{} // closed and replaced when something changes
	making  sync.Mutex    // one document at a time
}

// NewHub returns a Hub; set its fields before use. Run listens to other berths.
func NewHub() *Hub {
	return &Hub{IsOwn: func(string, string) bool { return false }, wake: make(chan struct{}, 1), changed: make(chan struct{}), dirty: true}
}

// Changed notes that the results of Own, Servers, Catalog or Live may have changed. It does not block.
func (h *Hub) Changed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dirty = true
	close(h.changed)
	h.changed = make(chan struct{})
}

// Watch returns a channel that is closed when something changes.
func (h *Hub) Watch() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.touch()
	return h.changed
}

func (h *Hub) touch() {
	h.asked = time.Now()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Run listens to the other berths while there are clients, until ctx is done.
func (h *Hub) Run(ctx context.Context) {
	var index uint64
	delays := retry.Delays()
	for {
		h.mu.Lock()
		idle := time.Since(h.asked) > interest
		if idle {
			h.watched, index = false, 0
		}
		h.mu.Unlock()
		if idle {
			select {
			case <-ctx.Done():
				return
			case <-h.wake:
				continue
			}
		}
		limited, cancel := context.WithTimeout(ctx, watchTime+watchTime/16+callTime)
		parts, next, err := ReadParts(limited, h.Consul, &api.QueryOptions{WaitIndex: index, WaitTime: watchTime}, h.IsOwn)
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.mu.Lock()
		h.heard = err
		h.mu.Unlock()
		if err != nil {
			index = 0
			retry.Pause(ctx, delays.NextBackOff())
			continue
		}
		delays.Reset()
		same := next == index
		if index = next; next < index {
			index = 0
		}
		if !same {
			h.hear(parts)
		}
		retry.Pause(ctx, soonest) // of many berths that change at once
	}
}

// hear reads the parts of all berths.
func (h *Hub) hear(parts []Part) {
	h.merge(parts)
	h.mu.Lock()
	h.others, h.watched = parts, true
	h.mu.Unlock()
	h.Changed()
}

// merge adds the events of other berths.
func (h *Hub) merge(parts []Part) {
	for _, p := range parts {
		h.Events.Merge(p.Events)
	}
}

// Document returns the newest document, or a slightly older one if a new one is expensive.
func (h *Hub) Document(ctx context.Context) (*Snapshot, error) {
	h.mu.Lock()
	h.touch()
	h.mu.Unlock()
	h.making.Lock()
	defer h.making.Unlock()
	if s := h.good(); s != nil {
		return s, nil
	}
	h.mu.Lock()
	h.dirty = false
	h.mu.Unlock()
	in, read, err := h.input(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	s := newSnapshot(Build(in))
	cost := read + time.Since(began)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last != nil && h.last.Tag == s.Tag {
		s = h.last
	}
	h.last, h.built, h.cost = s, time.Now(), cost
	return s, nil
}

// good returns the last document if it is recent enough.
func (h *Hub) good() *Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	age := time.Since(h.built)
	least := max(soonest, rests*h.cost)
	if !h.tellsAll() {
		least = max(unheard, least)
	} else if !h.dirty {
		least = max(least, 10*unheard) // for pauses and other changes without notification
	}
	if h.last != nil && age < least {
		return h.last
	}
	return nil
}

// Next returns how long the last document stays valid.
func (h *Hub) Next() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	least := max(soonest, rests*h.cost)
	if !h.tellsAll() {
		least = max(unheard, least)
	}
	return max(0, least-time.Since(h.built))
}

// tellsAll reports whether the Hub learns of all changes of the catalog.
func (h *Hub) tellsAll() bool {
	if h.Catalog == nil {
		return false
	}
	_, all := h.Catalog()
	return all
}

// input gathers the input of a document. It returns how long the catalog took to read, which costs work here; waiting for an answer
// does not.
func (h *Hub) input(ctx context.Context) (Input, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	in := Input{At: time.Now()}
	own := h.Own(ctx)
	if h.Servers != nil {
		in.Servers = h.Servers()
	}
	if h.Live != nil {
		in.Live = h.Live()
	}
	note := func(err error) {
		if err != nil {
			in.Incomplete = append(in.Incomplete, err.Error())
		}
	}
	all := false
	if h.Catalog != nil {
		in.Catalog, all = h.Catalog()
	}
	var read time.Duration
	if !all {
		var err error
		began := time.Now()
		in.Catalog, err = ReadCatalog(ctx, h.Consul)
		read = time.Since(began)
		note(err)
	}
	soon, done := context.WithTimeout(ctx, quick) // a hanging Consul must not block clients
	defer done()
	var err error
	in.Paused, err = readPaused(soon, h.Consul)
	note(err)
	h.mu.Lock()
	if err == nil {
		h.paused = in.Paused
	} else {
		in.Paused = h.paused
	}
	others, watched, heard := h.others, h.watched, h.heard
	h.mu.Unlock()
	if !watched {
		if others, _, err = ReadParts(soon, h.Consul, nil, h.IsOwn); err != nil {
			note(err)
		} else {
			h.merge(others)
		}
	}
	if watched {
		note(heard)
	}
	in.Parts = append(own, others...) // its own are newer than what Consul has of them
	return in, read, nil
}

var seed = maphash.MakeSeed()

func newSnapshot(d Document) *Snapshot {
	s := &Snapshot{Document: d}
	s.full = sync.OnceValue(func() []byte { return encode(d) })
	untimed := d.Brief()
	untimed.At = time.Time{}
	brief := encode(untimed)
	s.brief = func() []byte {
		return bytes.Replace(brief, encodeTime(time.Time{}), encodeTime(d.At), 1)
	}
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.Write(brief)
	for _, service := range d.Services {
		for _, in := range service.Instances {
			_, _ = h.WriteString(in.ID + string(in.State) + string(in.Reached) + in.Reason + in.Address)
		}
	}
	s.Tag = strconv.FormatUint(h.Sum64(), 36)
	return s
}

// encodeTime returns the beginning of a document in JSON.
func encodeTime(at time.Time) []byte {
	return bytes.TrimSuffix(encode(map[string]time.Time{"at": at}), []byte("}\n"))
}

func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // nothing in it can fail
	}
	return append(out, '\n')
}

// mostNamed is how many containers of a service Brief names.
const mostNamed = 20

// Brief returns the document without the instances of services.
func (d Document) Brief() Document {
	d.Services = slices.Clone(d.Services)
	for i := range d.Services {
		s := &d.Services[i]
		for _, in := range s.Instances[:min(len(s.Instances), mostNamed)] {
			if in.Container != "" {
				s.Containers = append(s.Containers, in.Container)
			}
		}
		s.Instances = nil
	}
	return d
}

// Only returns the document reduced to one service; false if there is no such service.
func (d Document) Only(service string) (Document, bool) {
	i, there := slices.BinarySearchFunc(d.Services, service, func(s Service, name string) int { return cmp.Compare(s.Name, name) })
	if !there {
		return d, false
	}
	d.Services = d.Services[i : i+1]
	d.Containers = slices.DeleteFunc(slices.Clone(d.Containers), func(c Container) bool { return !strings.EqualFold(c.Service, service) })
	return d, true
}
