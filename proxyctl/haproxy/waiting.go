package haproxy

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/proxyctl"
)

// A text that lets requests wait counts them in two tables, by backend and under the key everyBackend: those that began to wait, and
// of these the ones that go on. Both count a request until it ends.
const (
	waitingTable  = "hold.waiting"
	releasedTable = "hold.released"
	everyBackend  = "*" // which no backend is called
)

// How often the tables are read.
const (
	waitingPause = time.Second
	busyPause    = 250 * time.Millisecond // while requests wait
)

// pausedMap is the name of the map of the backends that somebody has paused.
const pausedMap = "paused.map"

// waitCounter tells of the requests that wait in the worker that serves, in a goroutine of its own: no change of HAProxy waits for it.
type waitCounter struct {
	master *master
	opts   Options

	mu     sync.Mutex
	knows  bool // which text HAProxy runs
	counts bool // that has the tables
	paused entries
}

// set notes which text HAProxy runs.
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

// run looks at the tables until ctx is done.
func (c *waitCounter) run(ctx context.Context) {
	for c.opts.Waiting != nil && pause(ctx, c.look(ctx)) {
	}
}

// look reads the tables once, and returns in what time to do so again. A HAProxy that does not answer has told nothing.
func (c *waitCounter) look(ctx context.Context) time.Duration {
	c.mu.Lock()
	knows, counts, paused := c.knows, c.counts, c.paused
	c.mu.Unlock()
	if !knows { // the tables may count since long before this berth: their first look is to be the first one
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
	if tables[waitingTable] == nil || tables[releasedTable] == nil { // it was loaded anew meanwhile
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

// parseTables reads what "show table" says, once or several times in a row, by table and key.
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

// countWaiting returns how many requests wait, by backend. HAProxy before 2.8 does not know of which backend those are that go
// on: of several backends then each may seem to have as many as wait in all.
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
