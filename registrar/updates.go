package registrar

import "sync"

// updates is a queue of updates from other goroutines to the loop.
type updates struct {
	wake chan struct{} // receives when the queue has updates

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

// drain returns the updates since the last drain, in order.
func (u *updates) drain() []any {
	u.mu.Lock()
	defer u.mu.Unlock()
	batch := u.batch
	u.batch = nil
	return batch
}
