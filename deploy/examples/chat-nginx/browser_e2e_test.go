//go:build e2e

package chatnginx

import (
	"bytes"
	"fmt"
	"image/color"
	"image/png"
	"testing"

	"github.com/chromedp/chromedp"

	"berth/deploy/testenv/browser"
)

// Two users watch the chat in a real browser while the instance that serves one of them is stopped, and then Redis.
func TestE2EChatInBrowser(t *testing.T) {
	s := startStack(t)
	s.Do("up", "-d", "--no-recreate", "--scale", "chat=2")
	s.expectHosts(2)
	chromium := browser.Start(s, s.Project+"-chromium", s.Project+"_default")

	ann, ben := newTab(t, chromium), newTab(t, chromium)
	ann.login("Ann")
	ben.login("Ben")

	ann.say("hello Ben <i>&amp;</i>")
	ann.expectMessage("Ann hello Ben <i>&amp;</i> through ") // as written
	ben.expectMessage("Ann hello Ben <i>&amp;</i> through ")
	ben.say("hello Ann")
	ann.expectMessage("Ben hello Ann through ")
	ben.picture("chat.png")

	// The instance that streams to Ben is stopped. He continues at the other one and notices only its name.
	gone := browser.Ask(ben.Tab, chromedp.Text("#live"))
	s.Docker("stop", gone)
	ben.Until("he is served by another instance",
		fmt.Sprintf(`/^[0-9a-f]{12}$/.test(document.querySelector("#live").textContent) && document.querySelector("#live").textContent != %q`, gone))
	s.expectHosts(1)
	ann.say("are you still there?")
	ben.expectMessage("Ann are you still there? through ")
	for _, tab := range []*tab{ann, ben} {
		tab.expectMessages(3)
		tab.expectNotReloaded()
	}

	s.Do("stop", "redis")
	ben.Until("he is told that nobody serves him", `document.querySelector("#live").textContent == "nobody just now"`)
	ben.say("can you hear me?")
	ben.Until("he is told that it was not sent", `document.querySelector("#error").textContent == "Not sent. Please try again."`)
	ann.Run(chromedp.Navigate("http://nginx:8080/chat"))
	ann.Until("it says why", `document.body.innerText.includes("cannot be reached just now")`)
	s.Do("start", "redis")
	ann.Until("it shows the messages, without being asked", `document.querySelectorAll("#messages li").length == 3`)
	ben.Run(chromedp.Click("#say button"))
	ann.expectMessage("Ben can you hear me? through ")
	ben.expectMessages(4)
	ben.expectNotReloaded()
}

// tab is one user's tab.
type tab struct{ *browser.Tab }

func newTab(t *testing.T, b *browser.Browser) *tab {
	t.Helper()
	return &tab{b.NewTab(t)}
}

// login goes from the login page to the chat, like a user, and checks both.
func (tab *tab) login(name string) {
	tab.T.Helper()
	tab.Run(
		chromedp.EmulateViewport(800, 600),
		chromedp.Navigate("http://nginx:8080/"),
		chromedp.WaitVisible("#name"))
	footers := []string{browser.Ask(tab.Tab, chromedp.Text("footer", chromedp.NodeVisible))}
	if name == "Ann" {
		tab.picture("login.png")
	}
	tab.Run(
		chromedp.SendKeys("#name", name),
		chromedp.Click("form button"),
		chromedp.WaitVisible("#text"),
		chromedp.Evaluate[chromedp.Void](`window.loaded = "once"`))
	footers = append(footers, browser.Ask(tab.Tab, chromedp.Text("footer", chromedp.NodeVisible)))
	for _, footer := range footers {
		if !hostedBy.MatchString(footer) {
			tab.T.Errorf("the page's footer says %q", footer)
		}
	}
	tab.Until("it hears of messages", `/^[0-9a-f]{12}$/.test(document.querySelector("#live").textContent)`)
}

func (tab *tab) say(text string) {
	tab.T.Helper()
	tab.Run(chromedp.SendKeys("#text", text), chromedp.Click("#say button"))
}

func (tab *tab) expectMessage(text string) {
	tab.T.Helper()
	tab.Until("see "+text, fmt.Sprintf(`document.querySelector("#messages").innerText.includes(%q)`, text))
}

func (tab *tab) expectMessages(n int) {
	tab.T.Helper()
	tab.Until(fmt.Sprintf("see %d messages", n), fmt.Sprintf(`document.querySelectorAll("#messages li").length == %d`, n))
}

// expectNotReloaded checks that the page was not reloaded since login.
func (tab *tab) expectNotReloaded() {
	tab.T.Helper()
	if browser.Ask(tab.Tab, chromedp.Evaluate[string](`String(window.loaded)`)) != "once" {
		tab.T.Error("the page was reloaded")
	}
}

// picture saves the tab's content as a test artifact, and checks that it is not blank.
func (tab *tab) picture(name string) {
	tab.T.Helper()
	picture, err := png.Decode(bytes.NewReader(tab.Screenshot(name)))
	if err != nil {
		tab.T.Fatalf("%s: %v", name, err)
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
	tab.T.Logf("%s: %d×%d, %d colors, %d pixels are not background", name, size.Dx(), size.Dy(), len(colors), inked)
	if size.Dx() != 800 || size.Dy() != 600 || len(colors) < 20 || inked < 2000 {
		tab.T.Errorf("%s is not a picture of the page", name)
	}
}
