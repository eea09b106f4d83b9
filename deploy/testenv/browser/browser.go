//go:build e2e

// Package browser drives a real Chromium, to see pages as users do.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/remote"

	"berth/deploy/testenv"
)

// Browser is a Chromium in a container.
type Browser struct{ ctx context.Context }

// Start starts a browser in a container with this name on a Docker network; "host" is the host's network. It is removed at
// the end of the test.
func Start(t testing.TB, name, network string) *Browser {
	t.Helper()
	port := testenv.FreePort(t)
	image := testenv.Image(t, "IMAGE_CHROMIUM")
	args := []string{"run", "--detach", "--name", name, "--label", "SERVICE_IGNORE=1", "--network", network, "--cap-drop", "ALL"}
	if network == "host" {
		inner := testenv.FreePort(t)
		args = append(args, "--entrypoint", "sh", image, "-c", fmt.Sprintf("exec chromium-headless-shell --no-sandbox --disable-dev-shm-usage --disable-gpu "+
			"--user-data-dir=/tmp/chromium --remote-debugging-port=%s about:blank", inner))
		port = inner
	} else {
		args = append(args, "--publish", "127.0.0.1:"+port+":9222", image)
	}
	if out, err := testenv.Docker(args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { _, _ = testenv.Docker("rm", "--force", name) })
	ctx, cancel := remote.NewAllocator(context.Background(), "http://127.0.0.1:"+port)
	t.Cleanup(cancel)
	b := &Browser{}
	testenv.Eventually(t, 30*time.Second, "Chromium answers", func() error {
		first, cancel := chromedp.NewContext(ctx)
		if err := chromedp.Do(first); err != nil {
			cancel()
			return err
		}
		t.Cleanup(cancel)
		b.ctx = first
		return nil
	})
	return b
}

// Tab is one user's tab.
type Tab struct {
	T   testing.TB
	ctx context.Context
}

// NewTab opens a tab with its own cookies.
func (b *Browser) NewTab(t testing.TB) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	return &Tab{t, ctx}
}

// Run performs an action in the tab, within half a minute.
func (tab *Tab) Run(actions ...chromedp.Action[chromedp.Void]) {
	tab.T.Helper()
	Ask(tab, chromedp.Steps(actions...))
}

// Ask performs an action in the tab, within half a minute, and returns its result.
func Ask[T any](tab *Tab, action chromedp.Action[T]) T {
	tab.T.Helper()
	if err := chromedp.Do(tab.ctx); err != nil { // opens the tab for longer than half a minute
		tab.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tab.ctx, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	if err != nil {
		shown, _ := chromedp.Run(tab.ctx, chromedp.Evaluate[string]("document.documentElement.outerHTML"))
		tab.T.Fatalf("%v\n%.4000s", err, shown)
	}
	return result
}

// Until waits until a JavaScript expression is true, also on a following page, and returns how long that took.
func (tab *Tab) Until(what, expression string) time.Duration {
	tab.T.Helper()
	return testenv.Eventually(tab.T, 30*time.Second, what, func() error {
		is, err := chromedp.Run(tab.ctx, chromedp.Evaluate[bool](expression))
		if err == nil && !is {
			var shown string
			shown, err = chromedp.Run(tab.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			err = errors.Join(err, fmt.Errorf("it is not; the page shows\n%.4000s", shown))
		}
		return err
	})
}

// Scheme sets the colour scheme that the user prefers: light or dark.
func (tab *Tab) Scheme(name string) {
	tab.T.Helper()
	tab.Run(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	}))
}

// Screenshot saves the tab's content as a test artifact, and returns it as a PNG.
func (tab *Tab) Screenshot(name string) []byte {
	tab.T.Helper()
	shot := Ask(tab, chromedp.CaptureScreenshot())
	if err := os.WriteFile(filepath.Join(tab.T.ArtifactDir(), name), shot, 0o644); err != nil {
		tab.T.Fatal(err)
	}
	return shot
}
