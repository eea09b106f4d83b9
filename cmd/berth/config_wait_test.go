package main

import (
	"strings"
	"testing"

	"berth/registrar/group/store"
)

// An instance is done only when it runs the version with its text, is registered and ready; else the reason is said.
func TestVerdict(t *testing.T) {
	version := order{version: 8, sum: "s8"}
	restart := order{restart: 3}
	member := func(ready bool, r store.Report) store.Member {
		return store.Member{ID: "app-1", Registered: true, Ready: ready, Report: &r}
	}
	for name, tt := range map[string]struct {
		order  order
		member store.Member
		done   bool
		text   string
	}{
		"done":          {version, member(true, store.Report{Version: 8, Sum: "s8", State: store.Applied}), true, "applied"},
		"silent":        {version, store.Member{ID: "app-1", Registered: true, Ready: true}, false, "does not report"},
		"older":         {version, member(true, store.Report{Version: 7, Sum: "s7", State: store.Applied}), false, "runs version 7"},
		"none":          {version, member(true, store.Report{State: store.Applied}), false, "runs no version"},
		"other text":    {version, member(true, store.Report{Version: 8, Sum: "s", State: store.Applied}), false, "runs version 8 with another text"},
		"not ready":     {version, member(false, store.Report{Version: 8, Sum: "s8", State: store.Applied}), false, "not ready"},
		"unregistered":  {version, store.Member{Report: &store.Report{Version: 8, Sum: "s8", State: store.Applied}}, false, "not registered"},
		"at it":         {version, member(true, store.Report{Version: 7, Sum: "s7", State: store.Applying}), false, "is applying it"},
		"waits":         {version, member(true, store.Report{Version: 7, State: store.Waiting, Reason: "waits for its turn"}), false, "waits for its turn; it runs version 7"},
		"waits though":  {version, member(true, store.Report{Version: 8, Sum: "s8", State: store.Waiting, Reason: "a file"}), false, "a file; it runs version 8"},
		"unknown state": {version, member(true, store.Report{Version: 8, Sum: "s8", State: "new\x1b"}), false, `runs version 8, and reports the state "new\x1b"`},
		"unreadable":    {version, store.Member{Registered: true, Ready: true, Err: "no JSON"}, false, "cannot be read: no JSON"},
		"failed":        {version, member(true, store.Report{Version: 7, State: store.Failed, FailedVersion: 8, Reason: "exit\x1b[31m\n1"}), false, `version 8 failed: exit\x1b[31m\n1; it runs version 7`},
		"failed before": {version, member(true, store.Report{Version: 6, State: store.Failed, FailedVersion: 7, Reason: "exit 1"}), false, "version 7 failed: exit 1; it runs version 6"},
		"restarted":     {restart, member(true, store.Report{Version: 8, State: store.Applied, Restart: 3}), true, "applied"},
		"not yet":       {restart, member(true, store.Report{Version: 8, State: store.Applied, Restart: 2}), false, "has not restarted"},
	} {
		t.Run(name, func(t *testing.T) {
			v := tt.order.of(tt.member)
			if v.done != tt.done || !strings.Contains(v.text, tt.text) {
				t.Errorf("%+v, want %t %q", v, tt.done, tt.text)
			}
		})
	}
}

// A halt explains why the others have not followed; one from before the order does not.
func TestUndone(t *testing.T) {
	report := func(id string, r store.Report) store.Member {
		return store.Member{ID: id, Registered: true, Ready: true, Report: &r}
	}
	old := store.Halt{Version: 8, Instance: "app-2", Reason: "exit 1"}
	failed := report("app-2", store.Report{Version: 7, State: store.Failed, FailedVersion: 8, Reason: "exit 1"})
	behind := report("app-3", store.Report{Version: 7, State: store.Applied})
	done := report("app-1", store.Report{Version: 8, Sum: "s8", State: store.Applied})
	o := order{version: 8, sum: "s8"}
	for name, tt := range map[string]struct {
		order   order
		halt    *store.Halt
		members []store.Member
		want    []string
	}{
		"halted":    {o, &old, []store.Member{done, failed, behind}, []string{"app-2: version 8 failed: exit 1", "app-3: runs version 7; the change was halted at app-2"}},
		"gone":      {o, &old, []store.Member{behind}, []string{"app-3: runs version 7; the change was halted at app-2", "app-2 (gone): version 8 failed: exit 1"}},
		"not yet":   {o, nil, []store.Member{done, behind}, []string{"app-3: runs version 7"}},
		"before":    {order{version: 8, sum: "s8", before: &old}, &old, []store.Member{behind}, []string{"app-3: runs version 7"}},
		"another's": {o, &store.Halt{Version: 7, Instance: "app-2"}, []store.Member{behind}, []string{"app-3: runs version 7"}},
		"nobody":    {o, nil, nil, []string{"no instance is registered"}},
		"all":       {o, nil, []store.Member{done}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, err := range tt.order.undone(store.Status{Roll: store.Roll{Halted: tt.halt}, Members: tt.members}) {
				got = append(got, err.Error())
			}
			if strings.Join(got, "|") != strings.Join(tt.want, "|") {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestVisible(t *testing.T) {
	for _, tt := range []struct{ text, keep, want string }{
		{"größer → 7 \\ \"x\" 'y'", "", "größer → 7 \\ \"x\" 'y'"},
		{"a\x1b[2Jb\u009bc", "", `a\x1b[2Jb\u009bc`},
		{"a\n\tb\r", "\n\t", "a\n\tb\\r"},
		{"a\n\tb", "", `a\n\tb`},
		{"a\xffb\u202e", "", `a\xffb\u202e`},
		{"\ufffd", "", "\ufffd"},
	} {
		if got := visible(tt.text, tt.keep); got != tt.want {
			t.Errorf("%q is shown as %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestClosest(t *testing.T) {
	for misspelt, want := range map[string]string{"ap": "app", "aap-prod": "app-prod", "apps": "app", "redis": "", "a": ""} {
		if got := strings.Join(closest(misspelt, []string{"web", "app-prod", "app"}), " "); got != want {
			t.Errorf("%s: %q, want %q", misspelt, got, want)
		}
	}
}

func TestOperator(t *testing.T) {
	t.Setenv("SUDO_USER", "nolan")
	if got := operator(); !strings.HasPrefix(got, "nolan@") || len(got) == len("nolan@") {
		t.Errorf("behind sudo: %q", got)
	}
	t.Setenv("SUDO_USER", "")
	if got := operator(); strings.HasPrefix(got, "nolan@") || strings.HasPrefix(got, "@") {
		t.Errorf("without sudo: %q", got)
	}
}
