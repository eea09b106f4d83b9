package proxyctl

import (
	"testing"
)

// reloadingDriver is a proxy for which each change of servers is a reload. It vouches for texts if it is told to.
type reloadingDriver struct {
	*fakeDriver
	vouches bool
}

func (d *reloadingDriver) Plan(to Marked[fakeConfig], alike *fakeConfig) Plan {
	plan := d.fakeDriver.Plan(to, alike)
	if len(plan.Ops) > 0 {
		return Plan{Reload: plan.Ops[0].String()}
	}
	return plan
}

func (d *reloadingDriver) Merge(base, _ *fakeConfig, _ []string) string { return base.text() }

func (d *reloadingDriver) MergeByReload(base, to *fakeConfig, keep []string) string {
	return d.fakeDriver.Merge(base, to, keep)
}

func (d *reloadingDriver) StartsWith(_, _ *fakeConfig) bool { return d.vouches }

// What a refused text has in common with the running one is done by a reload, where nothing less would do.
func TestReloadMerger(t *testing.T) {
	r := newRig(t)
	r.write(r.file, markFake(one))
	r.run(markFake(one))
	r.engine = NewEngine(&reloadingDriver{fakeDriver: r.fakeDriver}, r.opts)
	const worse = "bind\nbogus\napp: a b c\nweb: x\n"
	r.walk([]step{
		{text: one, file: one, live: "app: a; web: x"},
		{text: bad, err: ErrRefused, file: one, loads: 1},
		{text: "bind\nbogus\napp: a b\nweb: x\n", err: ErrRefused, action: Reload, reason: "add app/b", file: two, live: "app: a b; web: x", loads: 2},
		{text: worse, waits: true, err: ErrNotYet, file: two, live: "app: a b; web: x", loads: 2},
		{text: worse, err: ErrRefused, action: Reload, reason: "add app/c", file: "bind\napp: a b c\nweb: x\n", live: "app: a b c; web: x", loads: 4},
		{text: one, action: Reload, file: one, live: "app: a; web: x", loads: 5},
	})
}

// What nobody has judged replaces the file of a proxy that is down, if the driver vouches for it.
func TestSafeStarter(t *testing.T) {
	for _, vouches := range []bool{false, true} {
		r := newRig(t)
		r.write(r.file, markFake(one))
		r.engine = NewEngine(&reloadingDriver{r.fakeDriver, vouches}, r.opts)
		unreachable(r)
		want := one
		if vouches {
			want = two
		}
		r.walk([]step{{text: two, err: ErrUnreachable, file: want}})
		r.write(r.file, "theirs\n")
		r.walk([]step{{text: two, err: ErrUnreachable, file: "theirs\n"}})
	}
}
