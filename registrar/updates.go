package registrar

import "sync"

// updates is what other goroutines have to tell the loop.
type updates struct {
	wake chan struct{} // receives when there is something to drain

	mu    sync.Mutex
	batch []any
}

// add adds an update and wakes the loop. It never blocks.
func (u *updates) add(update any) {
	u.mu.Lock()
	u.batch = append(u.batch, update)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// drain returns what was added since the last drain, in that order.
func (u *updates) drain() []any {
	u.mu.Lock()
	defer u.mu.Unlock()
	batch := u.batch
	u.batch = nil
	return batch
}
