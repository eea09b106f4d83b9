"use strict";

const messages = document.getElementById("messages");
const live = document.getElementById("live");
const error = document.getElementById("error");
const say = document.getElementById("say");
let last = messages.dataset.last;

function element(tag, text) {
	const e = document.createElement(tag);
	e.textContent = text;
	return e;
}

function show(m) {
	const item = document.createElement("li");
	item.append(element("b", m.name), " ", element("span", m.text), " ", element("small", "through " + m.host));
	messages.append(item);
	while (messages.children.length > messages.dataset.keep) {
		messages.firstElementChild.remove();
	}
	item.scrollIntoView();
}

// A browser opens a stream that has ended again by itself, but gives up when the answer is an error: then it is done here.
function listen() {
	const source = new EventSource("/events?after=" + encodeURIComponent(last));
	source.addEventListener("host", (e) => { live.textContent = e.data; });
	source.onmessage = (e) => {
		last = e.lastEventId;
		show(JSON.parse(e.data));
	};
	source.onerror = () => {
		live.textContent = "nobody just now";
		if (source.readyState === EventSource.CLOSED) {
			setTimeout(listen, 1000);
		}
	};
}

say.addEventListener("submit", async (e) => {
	e.preventDefault();
	let problem = "";
	try {
		const answer = await fetch(say.action, { method: "POST", body: new URLSearchParams(new FormData(say)), redirect: "manual" });
		if (answer.type !== "opaqueredirect") { // which is the way back to the page
			problem = answer.status < 500 ? await answer.text() : "Not sent. Please try again.";
		}
	} catch {
		problem = "Not sent. Please try again.";
	}
	error.textContent = problem;
	if (!problem) {
		say.reset();
	}
});

messages.lastElementChild?.scrollIntoView();
listen();
