// The chat: sends the conversation, shows thoughts and answer as they come, and can be stopped.

import { streamChat } from "./api.js";
import { askForKey, requestFields, systemMessage } from "./settings.js";

const [messages, input, send, stop] = ["messages", "input", "send", "stop"].map((id) => document.getElementById(id));
let conversation = []; // what the server is sent: roles and contents
let running = null; // the AbortController of the answer that is coming

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// The shown answer. Its text is added as text, never as HTML.
class Answer {
  constructor() {
    this.began = performance.now();
    this.root = element("article", "assistant");
    this.thoughts = element("details", "thoughts");
    this.thoughts.append(element("summary", "", "Thinking…"), element("div", "text"));
    this.thoughts.hidden = this.thoughts.open = true;
    this.text = element("div", "text");
    this.facts = element("p", "facts");
    this.root.append(this.thoughts, this.text, this.facts);
    messages.append(this.root);
    [this.content, this.reasoning, this.usage, this.reason] = ["", "", null, null];
  }

  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    for (const { delta, finish_reason: reason } of chunk.choices) {
      if (delta.reasoning_content) this.think(delta.reasoning_content);
      if (delta.content) this.say(delta.content);
      this.reason = reason ?? this.reason;
    }
  }

  think(text) {
    this.started ??= performance.now();
    this.thoughts.hidden = false;
    this.reasoning += text;
    this.thoughts.lastChild.append(text);
  }

  say(text) {
    this.started ??= performance.now();
    if (!this.content) this.endThoughts();
    this.content += text;
    this.text.append(text);
  }

  endThoughts() {
    this.thoughts.firstChild.textContent = `Thoughts (${((performance.now() - this.began) / 1000).toFixed(1)} s)`;
  }

  end(how) {
    if (!this.content) this.endThoughts();
    const facts = [how ?? `finished by ${this.reason}`];
    if (this.usage) facts.push(`${this.usage.prompt_tokens} prompt tokens`, `${this.usage.completion_tokens} generated`);
    if (this.started) facts.push(`first after ${((this.started - this.began) / 1000).toFixed(2)} s`);
    const seconds = (performance.now() - this.started) / 1000;
    if (this.usage && seconds > 0) facts.push(`${(this.usage.completion_tokens / seconds).toFixed(1)} tokens/s`);
    this.facts.textContent = facts.join(" · ");
  }

  fail(message) {
    if (!this.content) this.endThoughts();
    this.root.append(element("p", "error", message));
  }
}

async function answer(question) {
  document.getElementById("hint")?.remove();
  messages.append(element("article", "user text", question));
  const asked = { role: "user", content: question };
  const shown = new Answer();
  const chat = conversation; // a new chat may begin meanwhile
  setRunning(new AbortController());
  try {
    const system = systemMessage() ? [{ role: "system", content: systemMessage() }] : [];
    const body = { messages: [...system, ...chat, asked], ...requestFields() };
    body.stream_options = { include_usage: true };
    for await (const chunk of streamChat(body, running.signal)) {
      follow(() => shown.take(chunk));
    }
    shown.end();
  } catch (error) {
    if (error.name === "AbortError") shown.end("stopped");
    else follow(() => shown.fail(error.message));
    if (error.status === 401) askForKey();
  } finally {
    setRunning(null);
    if (shown.content || shown.reasoning) chat.push(asked, said(shown));
    else if (chat === conversation && !input.value) input.value = question; // nothing came: the user may try again
  }
}

function said(shown) {
  const message = { role: "assistant", content: shown.content };
  return shown.reasoning ? { ...message, reasoning_content: shown.reasoning } : message;
}

function setRunning(controller) {
  running = controller;
  const hadFocus = [send, stop].includes(document.activeElement); // hiding the button would lose the keyboard's place
  stop.hidden = !(send.hidden = controller !== null);
  if (hadFocus) (running ? stop : input).focus();
}

// Keeps the end in sight while something is added, unless the user has scrolled up.
function follow(add) {
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 40;
  add();
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

function submit() {
  const question = input.value.trim();
  if (!question || running) return;
  input.value = "";
  answer(question);
  messages.scrollTop = messages.scrollHeight;
}

document.getElementById("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
stop.addEventListener("click", () => running?.abort());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
document.getElementById("new").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  messages.replaceChildren();
  input.focus();
});
