package nginx

import (
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A reload is announced to the clients of an nginx that can tell them and does not keep their connections itself.
func TestClosing(t *testing.T) {
	for _, tt := range []struct {
		name, lines string // in the http block of the running text
		announced   bool
	}{
		{name: "as shipped", lines: "    # if (-f FILE)\n", announced: true},
		{name: "a template that does not look"},
		{name: "an nginx that keeps connections", lines: "    # if (-f FILE)\n    keepalive_min_timeout 10s;\n"},
		{name: "one that does not know that", lines: "    # if (-f FILE)\n    # keepalive_min_timeout 10s;\n", announced: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := startFake(t, "")
			path := ClosingFile(n.file)
			with := func(text string) string {
				return strings.Replace(text, "http {\n", "http {\n"+strings.ReplaceAll(tt.lines, "FILE", path), 1)
			}
			write(t, n.file, n.marked(with(oldText)))
			n.start()
			write(t, path, "") // left by a killed berth
			there := false
			p := n.proxy(func(o *Options) {
				o.Reload = func(ctx context.Context) error {
					_, err := os.Stat(path)
					there = err == nil
					return n.reload(ctx)
				}
			})
			defer p.Close()
			if _, err := p.Apply(t.Context(), onlyText(with(newText)), true); err != nil {
				t.Fatal(err)
			}
			if there != tt.announced {
				t.Errorf("announced as nginx is told to reload: %v", there)
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, err := os.Stat(path); os.IsNotExist(err) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the announcement does not end")
				}
			}
		})
	}
}

func TestClosingTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := New(Options{File: dir + "/nginx.conf", Socket: dir + "/s", ClosingTime: time.Hour})
		began := time.Now()
		ended := p.driver.announce(t.Context(), marked{Text: "# " + ClosingFile(p.driver.opts.File), Config: &config{all: &directive{}}})
		if took := time.Since(began); took != time.Hour {
			t.Errorf("it took %s", took)
		}
		ended()
		time.Sleep(2 * overlap)
		synctest.Wait()
		if _, err := os.Stat(ClosingFile(p.driver.opts.File)); !os.IsNotExist(err) {
			t.Errorf("the announcement has not ended: %v", err)
		}
	})
}
