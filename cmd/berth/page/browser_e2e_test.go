//go:build e2e

package page

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"berth/deploy/testenv"
	"berth/deploy/testenv/browser"
)

// chromium is a browser that reaches the test at the address of Docker's bridge.
type chromium struct {
	*browser.Browser
	host string
}

func startBrowser(t testing.TB) *chromium {
	t.Helper()
	name := testenv.Name(t) + "-chromium"
	b := browser.Start(t, name, "bridge")
	return &chromium{b, testenv.MustDocker(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", name)}
}

// tab is a tab of the browser.
type tab struct {
	*browser.Tab
	t testing.TB
}

// watch notes what a page must not do, from its first moment.
const watch = `window.faults = [];
addEventListener("securitypolicyviolation", (e) => faults.push("policy: " + e.violatedDirective + " " + e.blockedURI + " " + e.sample));
addEventListener("error", (e) => faults.push("error: " + e.message));
addEventListener("unhandledrejection", (e) => faults.push("rejection: " + e.reason));`

// open shows a berth's page in a new tab, with the services that it has. At the end of the test it must not have done anything
// that its policy forbids, nor have had an error, nor have been loaded again.
func (b *chromium) open(t testing.TB, f *fake, width, height int64) *tab {
	t.Helper()
	tab := b.blank(t)
	_, port, err := net.SplitHostPort(f.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tab.run(chromedp.EmulateViewport(width, height), chromedp.Navigate("http://"+net.JoinHostPort(b.host, port)+"/"))
	tab.until("the services are shown", `performance.getEntriesByName("services shown").length == 1`)
	tab.run(chromedp.Evaluate[chromedp.Void](`window.loaded = "once"`))
	t.Cleanup(func() {
		if faults := eval[[]string](tab, `[...window.faults, ...(window.loaded == "once" ? [] : ["it was loaded again"])]`); len(faults) > 0 {
			t.Errorf("the page: %q", faults)
		}
	})
	return tab
}

func (b *chromium) blank(t testing.TB) *tab {
	t.Helper()
	tab := &tab{b.NewTab(t), t}
	tab.run(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch})
		return err
	}))
	return tab
}

// scheme has the page be seen by somebody who likes it dark, or light.
func (tab *tab) scheme(dark bool) {
	tab.t.Helper()
	value := "light"
	if dark {
		value = "dark"
	}
	tab.Scheme(value)
}

// run does something in the tab, within half a minute.
func (tab *tab) run(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	ask(tab, chromedp.Steps(actions...))
}

// keys presses them one after the other.
func (tab *tab) keys(keys string) {
	tab.t.Helper()
	tab.run(chromedp.KeyEvent(keys))
}

// slash presses / as a keyboard does: a character comes of it only if the page lets it.
func (tab *tab) slash() {
	tab.t.Helper()
	tab.run(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		for _, e := range []input.DispatchKeyEventParams{
			{Type: input.DispatchKeyEventTypeKeyDown, Key: "/", Code: "Slash", WindowsVirtualKeyCode: 191, Text: "/", UnmodifiedText: "/"},
			{Type: input.DispatchKeyEventTypeKeyUp, Key: "/", Code: "Slash", WindowsVirtualKeyCode: 191},
		} {
			if _, err := cdp.Call(ctx, target, input.DispatchKeyEvent, e); err != nil {
				return err
			}
		}
		return nil
	}))
}

func ask[T any](tab *tab, action chromedp.Action[T]) T {
	tab.t.Helper()
	return browser.Ask(tab.Tab, action)
}

// eval returns what an expression of JavaScript is.
func eval[T any](tab *tab, expression string) T {
	tab.t.Helper()
	return ask(tab, chromedp.Evaluate[T](expression))
}

// until waits until an expression of JavaScript is true, and says how long that took.
func (tab *tab) until(what, expression string) time.Duration {
	tab.t.Helper()
	return tab.Until(what, expression)
}

// expect waits until the text of an element has another text in it.
func (tab *tab) expect(selector, text string) time.Duration {
	tab.t.Helper()
	return tab.until(selector+" shows "+text, fmt.Sprintf(`(document.querySelector(%s)?.innerText ?? "").replace(/\s+/g, " ").includes(%s)`, quote(selector), quote(text)))
}

// row is an expression for the row of a service.
func row(service string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#services > li")].find((li) => li.querySelector(".name")?.textContent === %s)`, quote(service))
}

// expand clicks on a service, and waits for its instances.
func (tab *tab) expand(service string) {
	tab.t.Helper()
	tab.run(chromedp.Evaluate[chromedp.Void](row(service) + `.querySelector("button").click()`))
	tab.until("the instances of "+service+" are shown", row(service)+`.querySelectorAll(".instances > li").length > 0`)
}

// quote writes a text as JavaScript does.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		fmt.Fprintf(&b, `\u{%x}`, r)
	}
	b.WriteByte('"')
	return b.String()
}
