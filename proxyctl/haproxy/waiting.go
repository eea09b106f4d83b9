package haproxy

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/proxyctl"
)

// A text that lets requests wait counts them in two tables, by backend and in total under everyBackend: requests that began to
// wait, and requests that no longer wait. Both count a request until it ends.
const (
	waitingTable  = "hold.waiting"
	releasedTable = "hold.released"
	everyBackend  = "*" // not a backend's name
)

// How often the tables are read.
const (
	waitingPause = time.Second
	busyPause    = 250 * time.Millisecond // while requests wait
)

// pausedMap is the name of the map of paused backends.
const pausedMap = "paused.map"

// waitCounter reports the requests that wait in the serving worker. It runs in its own goroutine, and no change of HAProxy waits
// for it.
type waitCounter struct {
	master *master
	opts   Options

	mu     sync.Mutex
	knows  bool // whether it is known which text HAProxy runs
	counts bool // whether that text has the tables
	paused entries
}

// set records which text HAProxy runs.
func (c *waitCounter) set(is *config) {
	sections := map[string]bool{}
	for _, s := range is.sections {
		if s.isProxy() {
			sections[s.name] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.knows, c.counts = true, sections[waitingTable] && sections[releasedTable]
	_, c.paused = is.mapNamed(pausedMap)
}

// run reads the tables until ctx is done.
func (c *waitCounter) run(ctx context.Context) {
	for c.opts.Waiting != nil && pause(ctx, c.look(ctx)) {
	}
}

// look reads the tables once, and returns when to do so again. If HAProxy does not answer, nothing is reported.
func (c *waitCounter) look(ctx context.Context) time.Duration {
	c.mu.Lock()
	knows, counts, paused := c.knows, c.counts, c.paused
	c.mu.Unlock()
	if !knows { // the tables may have counted since long before this berth: the first Observe must be of their contents
		return waitingPause
	}
	if !counts {
		c.opts.Waiting.Observe(nil)
		return waitingPause
	}
	reply, err := c.master.worker(ctx, "show table "+waitingTable, "show table "+releasedTable)
	if err != nil {
		c.opts.Log.Debug("cannot read how many requests wait in HAProxy", "err", err)
		return waitingPause
	}
	tables := parseTables(reply)
	if tables[waitingTable] == nil || tables[releasedTable] == nil { // it was reloaded meanwhile
		return waitingPause
	}
	next, waiting := waitingPause, countWaiting(tables)
	for backend, w := range waiting {
		_, w.Paused = paused[backend]
		waiting[backend] = w
		if w.Now > 0 {
			next = busyPause
		}
	}
	c.opts.Waiting.Observe(waiting)
	return next
}

// tracked is an entry of a table.
type tracked struct{ total, now int }

// parseTables parses one or more replies to "show table", by table and key.
func parseTables(reply string) map[string]map[string]tracked {
	out := map[string]map[string]tracked{}
	var table map[string]tracked
	for line := range strings.Lines(reply) {
		if name, is := strings.CutPrefix(line, "# table: "); is {
			name, _, _ = strings.Cut(name, ",")
			table = map[string]tracked{}
			out[strings.Clone(name)] = table
			continue
		}
		var (
			key string
			t   tracked
		)
		for f := range strings.FieldsSeq(line) {
			name, value, _ := strings.Cut(f, "=")
			switch name {
			case "key":
				key = strings.Clone(value)
			case "conn_cnt":
				t.total, _ = strconv.Atoi(value)
			case "conn_cur":
				t.now, _ = strconv.Atoi(value)
			}
		}
		if key != "" && table != nil {
			table[key] = t
		}
	}
	return out
}

// countWaiting returns how many requests wait, by backend. HAProxy before 2.8 does not record the backend of requests that no
// longer wait. With several backends, each may then seem to have as many waiting requests as there are in total.
func countWaiting(tables map[string]map[string]tracked) map[string]proxyctl.WaitingCount {
	began, over := tables[waitingTable], tables[releasedTable]
	all := max(began[everyBackend].now-over[everyBackend].now, 0)
	out := map[string]proxyctl.WaitingCount{}
	for backend, t := range began {
		if backend == everyBackend {
			continue
		}
		now := t.now - over[backend].now
		if _, whole := began[everyBackend]; whole {
			now = min(now, all)
		}
		out[backend] = proxyctl.WaitingCount{Now: max(now, 0), Total: t.total}
	}
	return out
}
