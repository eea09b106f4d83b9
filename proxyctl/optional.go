package proxyctl

import "context"

// SafeStarter is a Driver that may vouch for a text without a program.
type SafeStarter[C any] interface {
	// StartsWith says whether a proxy that is down starts with a text if it would with what is in the file.
	StartsWith(to, there *C) bool
}

// ReloadMerger is a Driver of a proxy for which a change of servers may take a reload.
type ReloadMerger[C any] interface {
	// MergeByReload is Merge with all servers that are safe to load, also those that the running proxy does not take.
	MergeByReload(base, to *C, keep []string) string
}

func (e *Engine[C]) startsWith(to, there Marked[C]) bool {
	d, ok := e.driver.(SafeStarter[C])
	return ok && there.Generation.Shape != "" && to.Config != nil && d.StartsWith(to.Config, there.Config)
}

// mergedByReload is merged for a proxy that can be reloaded for it. differs says whether that is another text than both.
func (e *Engine[C]) mergedByReload(base Marked[C], keep []string) (m Marked[C], differs bool) {
	d, ok := e.driver.(ReloadMerger[C])
	if !ok || base.Config == nil || e.want.Config == nil {
		return base, false
	}
	m, err := e.driver.Mark(d.MergeByReload(base.Config, e.want.Config, keep), base.Config)
	return m, err == nil && m.Text != base.Text && m.Text != e.want.Text
}

// reloadCommon has the proxy load the running text with the servers that it has in common with e.want, which was refused.
// The Result has no Action if there was nothing to do, or it could not be done.
func (e *Engine[C]) reloadCommon(ctx context.Context, snap Snapshot, mayReload bool) (Result, error) {
	to, differs := e.mergedByReload(e.has, nil)
	if !differs || !e.observe(ctx) {
		return Result{}, nil
	}
	plan := e.driver.Plan(to, nil)
	if plan.Reload == "" {
		return Result{}, nil
	}
	return e.reload(ctx, to, snap, plan.Reload, mayReload, &e.partly)
}
