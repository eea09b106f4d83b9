//go:build e2e

package chatnginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/remote"

	"berth/deploy/testenv"
)

// Two users look at the chat in a real browser, while the instance that serves one of them goes, and then Redis.
func TestE2EChatInBrowser(t *testing.T) {
	s := startStack(t)
	s.Do("up", "-d", "--no-recreate", "--scale", "chat=2")
	s.expectHosts(2)
	browser := s.startBrowser()

	ann, ben := browser.newTab(t), browser.newTab(t)
	ann.login("Ann")
	ben.login("Ben")

	ann.say("hello Ben <i>&amp;</i>")
	ann.expectMessage("Ann hello Ben <i>&amp;</i> through ") // as it was written
	ben.expectMessage("Ann hello Ben <i>&amp;</i> through ")
	ben.say("hello Ann")
	ann.expectMessage("Ben hello Ann through ")
	ben.screenshot("chat.png")

	// The instance goes that sends Ben what is new. He gets it from the other one, and sees nothing of that but its name.
	gone := ask(ben, chromedp.Text("#live"))
	s.Docker("stop", gone)
	ben.until("he is served by another instance",
		fmt.Sprintf(`/^[0-9a-f]{12}$/.test(document.querySelector("#live").textContent) && document.querySelector("#live").textContent != %q`, gone))
	s.expectHosts(1)
	ann.say("are you still there?")
	ben.expectMessage("Ann are you still there? through ")
	for _, tab := range []*tab{ann, ben} {
		tab.expectMessages(3)
		tab.expectNotReloaded()
	}

	s.Do("stop", "redis")
	ben.until("he is told that nobody serves him", `document.querySelector("#live").textContent == "nobody just now"`)
	ben.say("can you hear me?")
	ben.until("he is told that it was not sent", `document.querySelector("#error").textContent == "Not sent. Please try again."`)
	ann.run(chromedp.Navigate("http://nginx:8080/chat"))
	ann.until("it says why", `document.body.innerText.includes("cannot be reached just now")`)
	s.Do("start", "redis")
	ann.until("it shows the messages, without being asked", `document.querySelectorAll("#messages li").length == 3`)
	ben.run(chromedp.Click("#say button"))
	ann.expectMessage("Ben can you hear me? through ")
	ben.expectMessages(4)
	ben.expectNotReloaded()
}

// browser is a Chromium in a container of the stack's network.
type browser struct{ ctx context.Context }

func (s *stack) startBrowser() *browser {
	s.Helper()
	port, name := testenv.FreePort(s), s.Project+"-chromium"
	s.Docker("run", "--detach", "--name", name, "--label", "SERVICE_IGNORE=1", "--network", s.Project+"_default",
		"--publish", "127.0.0.1:"+port+":9222", "--cap-drop", "ALL", testenv.Image(s, "IMAGE_CHROMIUM"))
	s.Cleanup(func() { s.Docker("rm", "--force", name) })
	ctx, cancel := remote.NewAllocator(context.Background(), "http://127.0.0.1:"+port)
	s.Cleanup(cancel)
	b := &browser{}
	s.Eventually(30*time.Second, "Chromium answers", func() error {
		first, cancel := chromedp.NewContext(ctx)
		if err := chromedp.Do(first); err != nil {
			cancel()
			return err
		}
		s.Cleanup(cancel)
		b.ctx = first
		return nil
	})
	return b
}

// tab is one user's.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// newTab has cookies of its own.
func (b *browser) newTab(t *testing.T) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	return &tab{t, ctx}
}

// run does something in the tab, within half a minute.
func (tab *tab) run(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	ask(tab, chromedp.Steps(actions...))
}

// ask does something in the tab, within half a minute, and returns what comes of it.
func ask[T any](tab *tab, action chromedp.Action[T]) T {
	tab.t.Helper()
	if err := chromedp.Do(tab.ctx); err != nil { // opens it, for longer than half a minute
		tab.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tab.ctx, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	if err != nil {
		shown, _ := chromedp.Run(tab.ctx, chromedp.Evaluate[string]("document.documentElement.outerHTML"))
		tab.t.Fatalf("%v\n%s", err, shown)
	}
	return result
}

// until waits until an expression of JavaScript is true, also of a page that comes next.
func (tab *tab) until(what, expression string) {
	tab.t.Helper()
	testenv.Eventually(tab.t, 30*time.Second, what, func() error {
		is, err := chromedp.Run(tab.ctx, chromedp.Evaluate[bool](expression))
		if err == nil && !is {
			var shown string
			shown, err = chromedp.Run(tab.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			err = errors.Join(err, fmt.Errorf("it is not; the page shows\n%s", shown))
		}
		return err
	})
}

// login goes from the login page to the chat, as a user does, and has a look at both.
func (tab *tab) login(name string) {
	tab.t.Helper()
	tab.run(
		chromedp.EmulateViewport(800, 600),
		chromedp.Navigate("http://nginx:8080/"),
		chromedp.WaitVisible("#name"))
	footers := []string{ask(tab, chromedp.Text("footer", chromedp.NodeVisible))}
	if name == "Ann" {
		tab.screenshot("login.png")
	}
	tab.run(
		chromedp.SendKeys("#name", name),
		chromedp.Click("form button"),
		chromedp.WaitVisible("#text"),
		chromedp.Evaluate[chromedp.Void](`window.loaded = "once"`))
	footers = append(footers, ask(tab, chromedp.Text("footer", chromedp.NodeVisible)))
	for _, footer := range footers {
		if !hostedBy.MatchString(footer) {
			tab.t.Errorf("the page's footer says %q", footer)
		}
	}
	tab.until("it hears of messages", `/^[0-9a-f]{12}$/.test(document.querySelector("#live").textContent)`)
}

func (tab *tab) say(text string) {
	tab.t.Helper()
	tab.run(chromedp.SendKeys("#text", text), chromedp.Click("#say button"))
}

func (tab *tab) expectMessage(text string) {
	tab.t.Helper()
	tab.until("see "+text, fmt.Sprintf(`document.querySelector("#messages").innerText.includes(%q)`, text))
}

func (tab *tab) expectMessages(n int) {
	tab.t.Helper()
	tab.until(fmt.Sprintf("see %d messages", n), fmt.Sprintf(`document.querySelectorAll("#messages li").length == %d`, n))
}

// expectNotReloaded checks that the page is still the one of login.
func (tab *tab) expectNotReloaded() {
	tab.t.Helper()
	if ask(tab, chromedp.Evaluate[string](`String(window.loaded)`)) != "once" {
		tab.t.Error("the page was reloaded")
	}
}

// screenshot keeps what the tab shows among the test's artifacts, and checks that it is something.
func (tab *tab) screenshot(name string) {
	tab.t.Helper()
	shot := ask(tab, chromedp.CaptureScreenshot())
	file := filepath.Join(tab.t.ArtifactDir(), name)
	if err := os.WriteFile(file, shot, 0o644); err != nil {
		tab.t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		tab.t.Fatalf("%s: %v", file, err)
	}
	colors, inked, size := map[color.Color]bool{}, 0, picture.Bounds()
	background := picture.At(size.Min.X, size.Min.Y)
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			c := picture.At(x, y)
			colors[c] = true
			if c != background {
				inked++
			}
		}
	}
	tab.t.Logf("%s: %d×%d, %d colors, %d pixels are not background", file, size.Dx(), size.Dy(), len(colors), inked)
	if size.Dx() != 800 || size.Dy() != 600 || len(colors) < 20 || inked < 2000 {
		tab.t.Errorf("%s is not a picture of the page", file)
	}
}
