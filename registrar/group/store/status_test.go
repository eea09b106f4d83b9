package store

import (
	"slices"
	"testing"

	"github.com/hashicorp/consul/api"
)

func TestMissing(t *testing.T) {
	wanted := Version{Header: Header{Version: 7, Sum: "seven"}}
	runs := Report{Version: 7, Sum: "seven", State: Applied}
	old := func(state, reason string, failed uint64) *Report {
		return &Report{Version: 6, Sum: "six", State: state, Reason: reason, FailedVersion: failed}
	}
	there := func(r *Report) Member { return Member{ID: "app-1", Registered: true, Ready: true, Report: r} }
	for name, tt := range map[string]struct {
		status Status
		want   []string
	}{
		"all run it":     {Status{Wanted: wanted, Members: []Member{there(&runs)}}, nil},
		"no instance":    {Status{Service: "app", Wanted: wanted}, []string{"app has no instance"}},
		"no report":      {Status{Wanted: wanted, Members: []Member{there(nil)}}, []string{"app-1: does not report: nothing applies a configuration there"}},
		"older":          {Status{Wanted: wanted, Members: []Member{there(old(Applied, "", 0))}}, []string{"app-1: runs version 6"}},
		"waits":          {Status{Wanted: wanted, Members: []Member{there(old(Waiting, "", 0))}}, []string{"app-1: runs version 6, waits for its turn"}},
		"waits for you":  {Status{Wanted: wanted, Members: []Member{there(old(Waiting, "for a restart", 0))}}, []string{"app-1: runs version 6, waits: for a restart"}},
		"applies":        {Status{Wanted: wanted, Members: []Member{there(old(Applying, "", 0))}}, []string{"app-1: runs version 6, applies now"}},
		"failed":         {Status{Wanted: wanted, Members: []Member{there(old(Failed, "exit status 1", 7))}}, []string{"app-1: failed with version 7: exit status 1, runs version 6"}},
		"unknown state":  {Status{Wanted: wanted, Members: []Member{there(old("asleep", "", 0))}}, []string{`app-1: runs version 6, its state is "asleep"`}},
		"other text":     {Status{Wanted: wanted, Members: []Member{there(&Report{Version: 7, Sum: "hand", State: Applied})}}, []string{"app-1: runs another text of version 7"}},
		"nothing yet":    {Status{Wanted: wanted, Members: []Member{there(&Report{State: Waiting})}}, []string{"app-1: runs none yet, waits for its turn"}},
		"applies files":  {Status{Wanted: wanted, Members: []Member{there(&Report{Version: 7, Sum: "seven", State: Applying})}}, []string{"app-1: runs version 7, applies now"}},
		"not passing":    {Status{Wanted: wanted, Members: []Member{{ID: "app-1", Registered: true, Report: &runs}}}, []string{"app-1: is not passing in Consul"}},
		"not registered": {Status{Wanted: wanted, Members: []Member{{ID: "app-1", Report: &runs}}}, []string{"app-1: is not in Consul's catalog"}},
		"halted": {Status{Wanted: wanted, Roll: Roll{Halted: &Halt{Version: 7, Instance: "app-2"}}, Members: []Member{there(old(Waiting, "", 0))}},
			[]string{"app-1: runs version 6, waits: the change was stopped because version 7 failed on app-2"}},
		"halted at another version": {Status{Wanted: wanted, Roll: Roll{Halted: &Halt{Version: 5, Instance: "app-2"}}, Members: []Member{there(old(Waiting, "", 0))}},
			[]string{"app-1: runs version 6, waits for its turn"}},
		"nothing is wanted":         {Status{Members: []Member{there(nil)}}, nil},
		"nothing is wanted, no use": {Status{Members: []Member{{ID: "app-1", Registered: true}}}, []string{"app-1: is not passing in Consul"}},
		"by hand without a number":  {Status{Wanted: Version{Header: Header{Sum: "x"}}, Members: []Member{there(&Report{Sum: "x", State: Applied})}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.status.Missing(); !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestParseRoll(t *testing.T) {
	for value, want := range map[string]Roll{
		"":                                {Held: true},
		`{"holder":"app-1","of":"later"}`: {Held: true, Holder: "app-1"},
		`x`:                               {Held: true, Err: "invalid character 'x' looking for beginning of value"},
	} {
		if got := parseRoll(&api.KVPair{Value: []byte(value), Session: "s"}); got != want {
			t.Errorf("%q: %+v", value, got)
		}
	}
}
