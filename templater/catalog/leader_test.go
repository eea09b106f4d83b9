package catalog

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
)

// Queries are repeated after a change of the leader, or after a time without one, and not before.
func TestFollowLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []string{`"a"`, `"a"`, `"b"`, `"b"`, `""`, `"b"`, "error", "hangs", `"b"`, `"b"`, `"c"`}
		want := []int{2, 5, 8, 10} // times with a new leader, or a leader again
		asked, anew := 0, []int(nil)
		ctx, cancel := context.WithCancel(t.Context())
		base := roundTrip(func(r *http.Request) (*http.Response, error) {
			if asked == len(answers) {
				cancel()
				return nil, r.Context().Err()
			}
			answer := answers[asked]
			asked++
			switch answer {
			case "error":
				return nil, errors.New("down")
			case "hangs":
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
		})
		client, err := api.NewClient(&api.Config{HttpClient: &http.Client{Transport: base}})
		if err != nil {
			t.Fatal(err)
		}
		followLeader(ctx, client, func() { anew = append(anew, asked-1) })
		if !slices.Equal(anew, want) {
			t.Errorf("asked anew after the answers %v, want %v", anew, want)
		}
	})
}

// A query that waits at a cut-off leader is repeated with the same index, and does not count as an error.
func TestWatchIsAskedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell := make(chan Update, 10)
		w, d := scriptedWatch(t, []query{{index: 7, data: "a"}, {takes: time.Hour}, {index: 8, data: "b"}}, tell)
		go w.Run()
		synctest.Wait()
		w.options.Consul.anew.ask()
		start := time.Now()
		<-tell
		if u := <-tell; u.Data != "b" || u.Err != nil {
			t.Errorf("told %+v", u)
		}
		if took := time.Since(start); took > anewWithin {
			t.Errorf("after %s", took)
		}
		synctest.Wait()
		if got, want := d.asking(), []string{"0 1m0s", "7 1m0s", "7 1m0s", "8 1m0s"}; !slices.Equal(got, want) {
			t.Errorf("asked with %q, want %q", got, want)
		}
		w.Stop()
	})
}
