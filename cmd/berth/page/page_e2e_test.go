//go:build e2e

package page

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"berth/cmd/berth/status"
	"berth/deploy/testenv"
)

// People look at the page in a real browser.
func TestE2EPage(t *testing.T) {
	b := startBrowser(t)
	for name, test := range map[string]func(*testing.T, *chromium){
		"content":     testContent,
		"hostile":     testHostile,
		"scale":       testScale,
		"reason":      testReason,
		"stream":      testStream,
		"steady":      testSteady,
		"keyboard":    testKeyboard,
		"search":      testSearch,
		"contrast":    testContrast,
		"phone":       testPhone,
		"lost":        testLost,
		"unavailable": testUnavailable,
		"hidden":      testHidden,
		"act":         testAct,
		"screenshot":  testScreenshot,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

func testContent(t *testing.T, b *chromium) {
	doc := shop()
	doc.Proxies[0].Failure, doc.Proxies[0].AtFault = "unknown keyword 'blance' in 'backend' section", "checkout"
	doc.Berths[1].Waits = []string{"Consul has no leader"}
	doc.Incomplete = []string{"the part of docker-3 is too old"}
	f := newFake(t, doc)
	f.fill()
	tab := b.open(t, f, 1200, 750)
	tab.expect("#overall", "1 degraded of 12 services")
	tab.expect("#connection", "live")
	tab.expect("#proxies", "haproxy 3.0.11")
	tab.expect("#proxies", "configuration 7f3a2c91 since ")
	tab.expect("#proxies", "at run time")
	tab.expect("#proxies", "1 old worker")
	tab.expect("#proxies", "unknown keyword 'blance' in 'backend' section")
	tab.expect("#proxies", "The part for checkout is at fault.")
	tab.expect("#berths", "waits: Consul has no leader")
	tab.expect("#berths", "Docker /var/run/docker.sock")
	tab.expect("#incomplete", "the part of docker-3 is too old")
	tab.expect("#meant", "add the network edge to it")
	tab.expect("#containers", "2 other containers")
	tab.expect("#plot", "p50 ")
	tab.expect("#plot", "objective 50 ms")
	tab.expect("#stream", "critical in Consul")
	names := eval[[]string](tab, `[...document.querySelectorAll("#services .name")].map((n) => n.textContent)`)
	want := []string{"checkout", "stock", "account", "basket", "catalog", "images", "mail", "postgres", "recommend", "redis", "search", "web"}
	if !slices.Equal(names, want) { // the one in trouble, the one that is paused, and the others by name
		t.Errorf("the services are %q, want %q", names, want)
	}
	links := eval[[]string](tab, `[...document.querySelectorAll("#services a")].map((a) => a.getAttribute("href"))`)
	if !slices.Contains(links, "http://www.example.com/checkout") || slices.ContainsFunc(links, func(l string) bool { return strings.Contains(l, "port") }) {
		t.Errorf("the links are %q", links)
	}
	tab.expand("checkout")
	first := ".instances > li"
	tab.expect(first, "in the proxy")
	tab.expect(first, "✕ taking requests")
	tab.expect(first, "ready +840 ms")
	tab.expect(first, "live 23 ms after ready")
	tab.expect(first, "Look at the container's log.")
	tab.expect(first, "MAINT")
	tab.expect(first, "weight 100")
	if eval[int](tab, `document.querySelectorAll("#services button").length`) != 12 {
		t.Error("there is something to act with, which nobody allowed")
	}
}

// What strangers name their things is shown as it is.
func testHostile(t *testing.T, b *chromium) {
	hostile := []string{
		`<script>window.pwned = 1</script>`, `"><img src=x onerror="window.pwned=1">`, `' onclick='window.pwned=1`, `</script></style></textarea>`, `javascript:window.pwned=1`,
		"evil.example.com/\"onmouseover=alert(1)", "//evil.example.com", "evil.example.com@good.example.com", "evil.example.com\\x", `{{7*7}}${7*7}`, "__proto__", "constructor",
		"right\u202eto left\u2066", "nothing\u200b\u0000\u0007between", "שלום مرحبا", strings.Repeat("long", 50_000), strings.Repeat("e\u0301", 400),
	}
	doc := sample(0, 0)
	for i, h := range hostile {
		s := service(h, 1)
		s.State, s.Reason, s.Paused = status.Degraded, h, h
		s.Routes = []status.Route{{Route: h, Proxy: h, Backend: h, Lost: h, Holder: h, Losers: []string{h}}, {Route: h, Proxy: h}}
		s.LeftOut = []string{h}
		in := &s.Instances[0]
		in.ID, in.Node, in.Container, in.Address, in.State, in.Reached, in.Reason = h, h, h, h, status.State(h), status.Step(h), h
		in.Servers = []status.Server{{Proxy: h, Backend: h, Name: h, State: h, Check: h}}
		doc.Services = append(doc.Services, s)
		doc.Containers = append(doc.Containers, status.Container{Host: h, Name: h, ID: h, Service: h, State: status.State(h), Reached: status.Step(h), Reasons: []string{h}, Meant: i%2 == 0})
		doc.Proxies = append(doc.Proxies, status.Proxy{Name: h, Kind: h, Version: h, Running: h, By: h, Reason: h, Failure: h, AtFault: h})
		doc.Berths = append(doc.Berths, status.Berth{Role: h, Name: h, Version: h, Consul: h, Docker: h, Waits: []string{h}})
		doc.Incomplete = append(doc.Incomplete, h)
	}
	f := newFake(t, doc)
	f.set(func() {
		for _, h := range hostile {
			f.events = append(f.events, status.Event{At: time.Now(), Role: h, Berth: h, Level: h, Message: h, Service: h, Instance: h, Container: h, Backend: h, Reason: h, More: map[string]string{h: h}})
		}
	})
	tab := b.open(t, f, 1200, 750)
	tab.until("the events are shown", fmt.Sprintf(`document.querySelectorAll("#stream > li").length == %d`, len(hostile)))
	tab.run(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("#services button[aria-expanded=false], #containers button").forEach((b) => b.click())`))
	tab.until("all instances are shown", fmt.Sprintf(`document.querySelectorAll(".instances > li").length == %d`, len(hostile)))
	for _, h := range hostile[:12] {
		for _, id := range []string{"services", "proxies", "berths", "incomplete", "stream"} {
			if !eval[bool](tab, fmt.Sprintf(`document.getElementById(%q).textContent.includes(%s)`, id, quote(h))) {
				t.Errorf("%s does not show %q", id, h)
			}
		}
	}
	for what, expression := range map[string]string{
		"script runs":                      `window.pwned !== undefined || {}.pwned !== undefined`,
		"there are elements of strangers":  `document.scripts.length != 1 || document.querySelector("img, iframe, object, textarea, [onerror], [onmouseover]") != null`,
		"a link leads anywhere":            `[...document.querySelectorAll("a:not(.skip)")].some((a) => !["constructor"].includes(a.textContent) || a.protocol != "http:")`,
		"writing is turned around":         `/[\u202a-\u202e\u2066-\u2069\u200b]/.test(document.body.textContent.replace(document.scripts[0].textContent, ""))`,
		"a control character is not shown": `!document.querySelector("#services").textContent.includes("right\\u202eto left\\u2066")`,
		"a long text is not cut":           `document.querySelector("#services").textContent.length > 300000`,
		"something is wider than the page": `document.documentElement.scrollWidth > document.documentElement.clientWidth`,
	} {
		if eval[bool](tab, expression) {
			t.Error(what)
		}
	}
}

// One instance becomes five, and the page shows them in place.
func testScale(t *testing.T, b *chromium) {
	doc := shop()
	doc.Services = append(doc.Services, service("chat", 1))
	f := newFake(t, doc)
	tab := b.open(t, f, 1200, 750)
	tab.expand("chat")
	tab.run(chromedp.Evaluate[chromedp.Void](row("chat") + `.querySelector("button").focus(); window.first = document.querySelector(".instances > li")`))
	f.calm(t)
	f.change(func(doc *status.Document) { doc.Services[len(doc.Services)-1] = service("chat", 5) })
	took := tab.until("five are shown", row("chat")+`.querySelectorAll(".instances > li").length == 5`)
	t.Logf("five instances are shown %s after the change", took.Round(time.Millisecond))
	tab.until("it says 5/5", row("chat")+`.querySelector(".count").innerText.startsWith("5/5")`)
	if !eval[bool](tab, row("chat")+`.querySelector("button") === document.activeElement && first === document.querySelector(".instances > li")`) {
		t.Error("the focus or the first instance's element was lost")
	}
	f.change(func(doc *status.Document) { doc.Services = doc.Services[:len(doc.Services)-1] })
	tab.until("it is gone", row("chat")+` === undefined`)
}

func testReason(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	f.calm(t)
	f.change(func(doc *status.Document) {
		s := &doc.Services[0]
		s.State, s.Serving, s.Reason = status.Down, 0, "its HEALTHCHECK says unhealthy: connection refused"
	})
	took := tab.until("the reason is shown", `document.querySelector("#services > li").innerText.includes("its HEALTHCHECK says unhealthy: connection refused")`)
	t.Logf("the reason is shown after %s", took.Round(time.Millisecond))
	if took > time.Second {
		t.Errorf("the reason took %s", took)
	}
	tab.until("the title says so", `document.title === "1 down, 1 degraded – berth on lb-1"`)
	if text := eval[string](tab, `document.querySelector("#services > li").innerText`); !strings.Contains(text, "account") || !strings.Contains(text, "down") {
		t.Errorf("the first service is %q", text)
	}
}

func testStream(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	f.fill()
	tab := b.open(t, f, 1200, 750)
	tab.until("what comes is read out", `document.querySelector("#stream").getAttribute("aria-live") == "polite"`)
	n := eval[int](tab, `document.querySelectorAll("#stream > li").length`)
	took := time.Now()
	f.set(func() { f.tell("change", f.events[0]) }) // which the page has
	f.happen(status.Event{At: time.Now(), Level: "WARN", Message: "refused", Service: "search", Reason: "its port is taken", Berth: "docker-1", More: map[string]string{"port": "8080"}})
	tab.expect("#stream > li", "WARN refused search port 8080 on docker-1 its port is taken")
	t.Logf("a change is shown after %s", time.Since(took).Round(time.Millisecond))
	if now := eval[int](tab, `document.querySelectorAll("#stream > li").length`); now != n+1 {
		t.Errorf("there were %d changes, and are %d", n, now)
	}
	tab.run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#stream button").click()`))
	tab.until("the service of a change is shown", `document.activeElement.getAttribute("aria-expanded") == "true" && document.activeElement.innerText.includes("search")`)
	for i := range 700 {
		f.set(func() {
			f.events = append(f.events, status.Event{At: time.Now(), Level: "INFO", Message: fmt.Sprint("number ", i)})
		})
	}
	f.breakOff(true)
	f.breakOff(false)
	tab.expect("#stream > li", "number 699")
	if n := eval[int](tab, `document.querySelectorAll("#stream > li").length + known.events.length`); n != 200+500 {
		t.Errorf("%d changes are shown and kept", n)
	}
}

// Who reads, stays where he is, whatever happens above.
func testSteady(t *testing.T, b *chromium) {
	f := newFake(t, sample(120, 2))
	tab := b.open(t, f, 1200, 750)
	tab.expand("service-0060")
	tab.run(chromedp.Evaluate[chromedp.Void](`window.mine = ` + row("service-0060") + `; mine.scrollIntoView({block: "center"}); mine.querySelector("button").focus({preventScroll: true})`))
	position := `mine.getBoundingClientRect().top`
	tab.until("it is in view", position+` > 100 && `+position+` < 650`)
	before := eval[float64](tab, position)
	expectSteady := func(what string) {
		t.Helper()
		if after := eval[float64](tab, position); after-before > 3 || before-after > 3 {
			t.Errorf("%s: it was at %.0f and is at %.0f", what, before, after)
		}
		if !eval[bool](tab, `mine.isConnected && mine.querySelector("button") === document.activeElement && mine.querySelectorAll(".instances > li").length == 2`) {
			t.Errorf("%s: the row, its focus or its instances were lost", what)
		}
	}
	trouble := func(n int, state status.State) {
		f.change(func(doc *status.Document) {
			doc.Services[n].State, doc.Services[n].Reason = state, "because of the test"
			if state == status.Serving {
				doc.Services[n].Reason = ""
			}
		})
	}
	trouble(99, status.Down)
	tab.until("it has come first", row("service-0100")+` === document.querySelector("#services > li")`)
	expectSteady("another comes first")
	trouble(99, status.Serving)
	tab.until("it is back", row("service-0001")+` === document.querySelector("#services > li")`)
	expectSteady("another goes back")
	f.change(func(doc *status.Document) { doc.Services = slices.Delete(doc.Services, 3, 5) })
	tab.until("two are gone", `document.querySelectorAll("#services > li").length == 118`)
	expectSteady("others are gone")
	trouble(57, status.Down)
	tab.until("it has come first itself", `mine === document.querySelector("#services > li")`)
	if !eval[bool](tab, `mine.querySelector("button") === document.activeElement`) {
		t.Error("the focus was lost when its row moved")
	}
}

func testKeyboard(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	focus := func(what, expression string) {
		t.Helper()
		tab.until(what, `((e) => `+expression+`)(document.activeElement)`)
	}
	tab.keys(kb.Tab)
	focus("the skip link is first, and is seen", `e.className == "skip" && e.getBoundingClientRect().left >= 0`)
	tab.slash()
	focus("/ leads to the search", `e.id == "search" && e.value == ""`)
	tab.keys("pay.example")
	tab.expect("#shown", "1 of 12 services")
	tab.slash()
	focus("/ is a character there", `e.value == "pay.example/"`)
	tab.keys(kb.Escape)
	tab.expect("#shown", "12 services")
	reach := func(what, expression string) {
		t.Helper()
		for range 40 {
			tab.keys(kb.Tab)
			if !eval[bool](tab, `((e) => { const s = getComputedStyle(e); return e === document.body || s.outlineStyle != "none" && parseFloat(s.outlineWidth) >= 2; })(document.activeElement)`) {
				t.Errorf("the focus is not seen on %s", eval[string](tab, `document.activeElement.outerHTML.slice(0, 200)`))
			}
			if eval[bool](tab, `((e) => `+expression+`)(document.activeElement)`) {
				return
			}
		}
		t.Fatalf("Tab does not reach %s", what)
	}
	reach("a service", `e.matches("#services button")`)
	tab.keys(kb.Enter)
	focus("it is expanded", `e.getAttribute("aria-expanded") == "true" && !document.getElementById(e.getAttribute("aria-controls")).hidden`)
	tab.until("its instances are shown", `document.querySelectorAll(".instances > li").length == 5`)
	tab.keys(kb.Enter)
	focus("it is folded", `e.getAttribute("aria-expanded") == "false" && document.getElementById(e.getAttribute("aria-controls")).hidden`)
	reach("the other containers", `e.matches("#containers button")`)
	tab.keys(" ")
	tab.until("they are shown", `document.querySelectorAll("#others > li").length == 2`)
	reach("the changes, which scroll", `e.id == "stream"`)
	if unnamed := eval[[]string](tab, `[...document.querySelectorAll("button, input, a")].filter((e) => e.checkVisibility() && !(e.innerText || e.getAttribute("aria-label") || e.labels?.[0]?.textContent)).map((e) => e.outerHTML)`); len(unnamed) > 0 {
		t.Errorf("without a name: %q", unnamed)
	}
}

func testSearch(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	search := func(words string) {
		tab.run(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`{ const s = document.querySelector("#search"); s.value = %s; s.dispatchEvent(new Event("input")); }`, quote(words))))
	}
	f.set(func() {
		if f.full != 0 {
			t.Error("all instances were read though nobody searches")
		}
	})
	for words, want := range map[string]string{"CATALOG": "catalog", "healthz critical": "checkout", "5432": "postgres", "migration": "stock", "shop_web_4": "web"} {
		search(words)
		tab.until(words+" finds "+want, fmt.Sprintf(`[...document.querySelectorAll("#services > li:not([hidden]) .name")].map((n) => n.textContent).join() == %s`, quote(want)))
	}
	search("shop_web_4")
	tab.expect("#services", "Found: shop_web_4 web-4")
	search("consul")
	tab.until("a container that is folded away is found", `[...document.querySelectorAll("#others > li:not([hidden])")].some((li) => li.checkVisibility() && li.innerText.includes("consul"))`)
	search("nothing like that")
	tab.expect("#services", "No service matches.")
	search("")
	tab.run(chromedp.Evaluate[chromedp.Void](`[...document.querySelectorAll("#filters button")].find((b) => b.innerText.includes("degraded")).click()`))
	tab.expect("#shown", "1 of 12 services")
}

// contrast returns the texts that are shown with too little contrast, and how many there are.
const contrast = `(() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => { const l = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const behind = (e) => { const layers = []; for (; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor)); return layers.reduce((under, layer) => over(layer, under), [255, 0, 255, 1]); };
  const bad = []; let n = 0;
  const check = (e, color, text) => {
    const under = behind(e), [a, b] = [light(over(parse(color), under)), light(under)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    n++;
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + " " + color + " " + text.slice(0, 40));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.nodeValue.trim();
    if (!text || e.closest(".hush, script") || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    check(e, e.closest("svg") ? style.fill : style.color, text);
  }
  for (const e of document.querySelectorAll("input")) {
    if (!e.checkVisibility()) continue;
    check(e, getComputedStyle(e).color, "input");
    check(e, getComputedStyle(e, "::placeholder").color, "placeholder");
  }
  return {n, bad};
})()`

func testContrast(t *testing.T, b *chromium) {
	doc := shop()
	doc.Proxies[0].Failure = "unknown keyword"
	for i, s := range []status.State{status.Down, status.Unknown, status.Starting, status.Draining} {
		doc.Services[i].State, doc.Services[i].Reason = s, "a reason"
	}
	f := newFake(t, doc)
	f.fill()
	f.set(func() { f.token = "secret" })
	tab := b.open(t, f, 1200, 750)
	for _, name := range []string{"account", "checkout"} {
		tab.expand(name)
	}
	tab.run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#containers button").click(); say("Not done", true)`))
	tab.until("all is shown", `document.querySelectorAll("#others > li").length == 2 && document.querySelectorAll("#stream > li").length > 5 && document.querySelector("#plot svg") != null`)
	type result struct {
		N   int
		Bad []string
	}
	for _, dark := range []bool{false, true} {
		tab.scheme(dark)
		tab.until("the scheme is used", fmt.Sprintf(`matchMedia("(prefers-color-scheme: dark)").matches == %t`, dark))
		r := eval[result](tab, contrast)
		t.Logf("dark %t: %d texts", dark, r.N)
		if r.N < 200 || len(r.Bad) > 0 {
			t.Errorf("dark %t: %d texts, with too little contrast %q", dark, r.N, r.Bad)
		}
		// The check itself sees a gray that is too faint.
		tab.run(chromedp.Evaluate[chromedp.Void](`document.documentElement.style.setProperty("--soft", "#888")`))
		if r := eval[result](tab, contrast); len(r.Bad) == 0 && !dark {
			t.Error("the check finds nothing wrong with gray on white")
		}
		tab.run(chromedp.Evaluate[chromedp.Void](`document.documentElement.style.removeProperty("--soft")`))
	}
}

func testPhone(t *testing.T, b *chromium) {
	doc := shop()
	doc.Services[0].Name = strings.Repeat("very-long-name-", 8)
	doc.Services[1].Routes = []status.Route{{Route: strings.Repeat("long.", 40) + "example.com", Proxy: "lb-1"}}
	doc.Proxies[0].Failure = strings.Repeat("x", 900)
	f := newFake(t, doc)
	f.fill()
	f.set(func() { f.token = "secret" })
	tab := b.open(t, f, 360, 740)
	tab.expand("checkout")
	tab.run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#containers button").click()`))
	tab.until("all is shown", `document.querySelectorAll("#others > li").length == 2 && document.querySelectorAll("#stream > li").length > 5`)
	if wide := eval[[]string](tab, `document.documentElement.scrollWidth > 360 ? ["the page"] : [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest(".hush, .skip") && (e.getBoundingClientRect().right > 360.5 || e.getBoundingClientRect().left < -0.5)).map((e) => e.outerHTML.slice(0, 120))`); len(wide) > 0 {
		t.Errorf("wider than 360 pixels: %q", wide)
	}
	if small := eval[[]string](tab, `[...document.querySelectorAll("button:not(.plain), input")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML.slice(0, 120))`); len(small) > 0 {
		t.Errorf("too small for a finger: %q", small)
	}
	tab.run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#meant-panel").scrollIntoView()`))
	shot := ask(tab, chromedp.CaptureScreenshot())
	if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "phone.png"), shot, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A berth that goes and comes back: the page says so, and then shows what is.
func testLost(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	tab.expect("#connection", "live")
	f.breakOff(true)
	tab.expect("#connection", "Connection lost at ")
	f.change(func(doc *status.Document) { doc.Services = append(doc.Services, service("born-meanwhile", 1)) })
	f.set(func() {
		f.events = append(f.events, status.Event{At: time.Now(), Level: "INFO", Message: "happened meanwhile"})
	})
	f.breakOff(false)
	took := tab.expect("#connection", "live")
	t.Logf("connected again after %s", took.Round(time.Millisecond))
	tab.until("it shows what has come", row("born-meanwhile")+` !== undefined`)
	tab.expect("#stream > li", "happened meanwhile")
}

// A berth that answers, but cannot tell.
func testUnavailable(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	tab.expand("web")
	f.set(func() { f.refuse = "Consul does not answer" })
	f.change(func(*status.Document) {})
	tab.expect("#connection", "berth answers 503 Consul does not answer since ")
	tab.until("what was known is still shown", `document.querySelectorAll(".instances > li").length == 6`)
	f.set(func() { f.refuse = "" })
	tab.expect("#connection", "live")
}

// A tab that nobody sees holds no connection, and is up to date when it is seen again.
func testHidden(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	tab := b.open(t, f, 1200, 750)
	tab.expect("#connection", "live")
	listeners := func() (n int) {
		f.set(func() { n = len(f.messages) })
		return n
	}
	see := func(hidden bool) {
		tab.run(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`Object.defineProperty(document, "hidden", {configurable: true, value: %t}); document.dispatchEvent(new Event("visibilitychange"))`, hidden)))
	}
	see(true)
	testenv.Until(t, 10*time.Second, "the stream is closed", func() bool { return listeners() == 0 })
	f.change(func(doc *status.Document) { doc.Services = append(doc.Services, service("born-meanwhile", 1)) })
	see(false)
	tab.until("it shows what has come", row("born-meanwhile")+` !== undefined`)
	tab.expect("#connection", "live")
	testenv.Until(t, 10*time.Second, "there is one stream", func() bool { return listeners() == 1 })
}

func testAct(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	f.set(func() { f.token = "sesame" })
	tab := b.open(t, f, 1200, 750)
	tab.until("there is a field for the token", `document.querySelector("#token").checkVisibility()`)
	tab.expand("checkout")
	press := func(selector, name string) {
		t.Helper()
		tab.until(name+" can be pressed", fmt.Sprintf(`((b) => { b?.click(); return b !== undefined; })([...document.querySelectorAll(%s)].find((b) => b.innerText == %s))`, quote(selector), quote(name)))
	}
	acts := func() []string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Clone(f.acts)
	}
	press("#services .detail button", "Drain")
	tab.expect("#outcome", "Enter the token first.")
	tab.keys("guess")
	press("#services .detail button", "Drain")
	tab.expect("#question", "Drain checkout-5? It gets no new requests until it is undrained.")
	press("#dialog button", "Drain")
	tab.expect("#outcome", "Failed: drain checkout-5: wrong token")
	tab.run(chromedp.Evaluate[chromedp.Void](`{ const t = document.querySelector("#token"); t.value = "sesame"; t.oninput(); }`))
	press("#services .detail button", "Drain")
	tab.keys(kb.Escape)
	tab.until("Escape is no", `!document.querySelector("#dialog").open`)
	press("#services .detail button", "Pause")
	press("#dialog button", "Cancel")
	if got := acts(); len(got) > 0 {
		t.Errorf("without being confirmed: %q", got)
	}
	press("#services .detail button", "Drain")
	press("#dialog button", "Drain")
	tab.expect("#outcome", "Done: drain checkout-5.")
	f.change(func(doc *status.Document) {
		s := &doc.Services[3]
		s.Paused = "since now"
		s.Instances = slices.Clone(s.Instances)
		s.Instances[0].State = status.Draining
	})
	press("#services .detail button", "Undrain")
	press("#dialog button", "Undrain")
	press("#services .detail button", "Resume")
	press("#dialog button", "Resume")
	want := []string{"/v1/drain?instance=checkout-5", "/v1/undrain?instance=checkout-5", "/v1/resume?service=checkout"}
	testenv.Until(t, 10*time.Second, "berth was told", func() bool { return len(acts()) == len(want) })
	if got := acts(); !slices.Equal(got, want) {
		t.Errorf("berth was told %q, want %q", got, want)
	}
	if got := eval[string](tab, `sessionStorage.getItem("berth-token") + localStorage.length + document.cookie`); got != "sesame0" {
		t.Errorf("the token is kept as %q", got)
	}
}

// The picture for the documentation: UPDATE_SCREENSHOT=1 puts it there.
func testScreenshot(t *testing.T, b *chromium) {
	f := newFake(t, shop())
	f.fill()
	tab := b.open(t, f, 1200, 750)
	tab.until("all is shown", `document.querySelectorAll("#stream > li").length > 5 && document.querySelector("#plot svg") != null`)
	shot := smaller(t, ask(tab, chromedp.CaptureScreenshot()))
	picture, err := png.DecodeConfig(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the picture is %d×%d and has %d bytes", picture.Width, picture.Height, len(shot))
	if picture.Width != 1200 || picture.Height != 750 || len(shot) > 150<<10 {
		t.Error("that is not as it should be")
	}
	files := []string{filepath.Join(t.ArtifactDir(), "page.png")}
	if os.Getenv("UPDATE_SCREENSHOT") != "" {
		files = append(files, "../../../docs/operate/page.png")
	}
	for _, file := range files {
		if err := os.WriteFile(file, shot, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tab.scheme(true)
	if shot = ask(tab, chromedp.CaptureScreenshot()); os.WriteFile(filepath.Join(t.ArtifactDir(), "page-dark.png"), shot, 0o644) != nil {
		t.Error("the dark picture was not written")
	}
}

// smaller is the same picture in the 256 colors that it has most of.
func smaller(t *testing.T, shot []byte) []byte {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	size, often := picture.Bounds(), map[color.Color]int{}
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			often[picture.At(x, y)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(often), func(a, b color.Color) int { return often[b] - often[a] })
	paletted := image.NewPaletted(size, colors[:min(256, len(colors))])
	draw.Draw(paletted, size, picture, size.Min, draw.Src)
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, paletted); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// How soon the page is there with 1,000 services of 10 instances, and how soon a change is shown.
func BenchmarkE2EPage(b *testing.B) {
	f := newFake(b, sample(1000, 10))
	f.fill()
	browser := startBrowser(b)
	var first, shown, change, draw float64
	for b.Loop() {
		tab := browser.open(b, f, 1200, 750)
		tab.until("it is painted", `performance.getEntriesByName("first-contentful-paint").length == 1`) // told later than it is done
		first += eval[float64](tab, `performance.getEntriesByName("first-contentful-paint")[0].startTime`)
		shown += eval[float64](tab, `performance.getEntriesByName("services shown")[0].startTime`)
		f.calm(b)
		f.change(func(doc *status.Document) {
			doc.Services[500].State, doc.Services[500].Reason = status.Down, fmt.Sprint("change ", time.Now())
		})
		change += float64(tab.until("the change is shown", row("service-0501")+` === document.querySelector("#services > li")`).Milliseconds())
		draw += eval[float64](tab, `(() => { const t = performance.now(); drawNow(); document.body.getBoundingClientRect(); return performance.now() - t; })()`)
		f.change(func(doc *status.Document) { doc.Services[500].State, doc.Services[500].Reason = status.Serving, "" })
		tab.run(chromedp.Navigate("about:blank"), chromedp.Evaluate[chromedp.Void](`window.loaded = "once"; window.faults = []`))
	}
	n := float64(b.N)
	b.ReportMetric(first/n, "ms/first-paint")
	b.ReportMetric(shown/n, "ms/services-shown")
	b.ReportMetric(change/n, "ms/change-shown")
	b.ReportMetric(draw/n, "ms/draw")
	b.ReportMetric(0, "ns/op")
}
