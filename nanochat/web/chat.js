// The chat page: a client of this server's own /v1/chat/completions, nothing else.
// Text only ever reaches the page through textContent; the page asks no other origin for anything.

const element = (id) => document.getElementById(id);
const scroller = element("scroller");
const transcript = element("transcript");
const composer = element("composer");
const question = element("question");
const temperature = element("temperature");

const NEAR_BOTTOM_PX = 80;
// More than this share of the context is not filled with what was said: an answer needs room.
const READ_SHARE = 0.75;

/** What has been said: {role, content}. The model reads it from `firstRead` on. */
let turns = [];
let firstRead = 0;
let model = null;
/** Measured from the last answer, to know before asking what will fit. */
let tokensPerCharacter = 0.25;
/** The AbortController of the answer that is being written, or null. */
let writing = null;
/** A question that has no answer yet: its node and that of its problem. */
let unanswered = null;

// ---------------------------------------------------------------------------- talking to the server

/** An error the server explained, or one that kept us from reaching it. */
class Problem extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw problemOf(body) ?? new Problem(`The server answered ${response.status}.`);
  }
  return response;
}

function problemOf(body) {
  return body?.error ? new Problem(body.error.message, body.error.code) : null;
}

async function findModel() {
  const health = await (await request("/health")).json();
  model = { name: health.model, contextLen: health.context_len };
  element("model").textContent = model.name;
}

/** Yields {text, finishReason} as the server sends them. */
async function* answers(messages, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: model.name,
      messages,
      temperature: Number(temperature.value),
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const frame = JSON.parse(data);
    if (frame.error) throw problemOf(frame);
    if (frame.usage) tokensPerCharacter = frame.usage.prompt_tokens / charactersOf(messages);
    const [choice] = frame.choices;
    yield { text: choice?.delta.content ?? "", finishReason: choice?.finish_reason ?? null };
  }
  throw new Problem("The connection broke before the answer was complete.");
}

/** The data of each event; characters and lines may be cut anywhere between two reads. */
async function* serverSentEvents(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection broke before the answer was complete.");
    }
    rest += part.done ? decoder.decode() : decoder.decode(part.value, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
    if (part.done) return;
  }
}

// ----------------------------------------------------------------------------------- a conversation

async function ask(text) {
  if (unanswered !== null) dropUnanswered();
  element("welcome").hidden = true;
  turns.push({ role: "user", content: text });
  unanswered = { node: addTurn("user", text), problem: null };
  await answer();
}

/** Have the last question answered; what goes wrong is shown with a way to try again. */
async function answer() {
  unanswered.problem?.remove();
  const node = addTurn("assistant", "");
  const words = node.querySelector(".words");
  const conversation = turns;
  writing = new AbortController();
  showState();
  say("The model is answering.");
  scrollToEnd();
  let text = "";
  try {
    for await (const piece of piecesOfAnswer(writing.signal)) {
      text += piece.text;
      append(words, piece.text);
      if (piece.finishReason === "length") addNote(node, "The answer was cut here: no room is left.");
    }
    if (text === "") addNote(node, "The model had nothing to say.");
    finish(conversation, text, "The answer is complete.");
  } catch (error) {
    if (conversation !== turns) return; // a new chat has begun meanwhile
    if (error.name === "AbortError" && text !== "") {
      addNote(node, "Stopped.");
      finish(conversation, text, "Stopped.");
    } else {
      node.remove();
      if (error.name === "AbortError") giveBack();
      else showProblem(error instanceof Problem ? error.message : `Something broke: ${error.message}`);
    }
  } finally {
    node.classList.remove("busy");
    if (conversation === turns) {
      writing = null;
      showState();
    }
  }
}

function finish(conversation, text, status) {
  if (conversation !== turns) return;
  turns.push({ role: "assistant", content: text });
  unanswered = null;
  say(status);
}

/** The answer; if the conversation no longer fits the model's context, without its oldest turns. */
async function* piecesOfAnswer(signal) {
  if (model === null) await findModel();
  const room = (READ_SHARE * model.contextLen) / tokensPerCharacter;
  while (charactersOf(turns.slice(firstRead)) > room && forgetOldest());
  for (;;) {
    try {
      yield* answers(turns.slice(firstRead), signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || !forgetOldest()) throw error;
    }
  }
}

/** Leave the oldest question and its answer unread; false if only the last question is left. */
function forgetOldest() {
  if (turns.length - firstRead < 3) return false;
  firstRead += 2;
  showForgotten();
  return true;
}

function charactersOf(messages) {
  return messages.reduce((sum, message) => sum + message.content.length, 0);
}

/** A question stopped before its answer began returns to where it was typed. */
function giveBack() {
  const { content } = turns.at(-1);
  dropUnanswered();
  if (question.value === "") question.value = content;
  fit();
  say("Stopped.");
}

function dropUnanswered() {
  unanswered.node.remove();
  unanswered.problem?.remove();
  unanswered = null;
  turns.pop();
  element("welcome").hidden = turns.length > 0;
}

function newChat() {
  writing?.abort();
  writing = null;
  turns = [];
  firstRead = 0;
  unanswered = null;
  transcript.replaceChildren();
  element("welcome").hidden = false;
  showState();
  say("A new chat.");
  question.focus();
}

// ----------------------------------------------------------------------------------------- the page

function make(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function addTurn(role, text) {
  const node = make("article", role === "user" ? "turn user" : "turn assistant busy");
  node.append(make("span", "unseen", role === "user" ? "You said:" : "The model said:"));
  node.append(make("p", "words", text));
  transcript.append(node);
  return node;
}

function addNote(node, text) {
  node.append(make("p", "note", text));
}

function append(words, text) {
  const isFollowing = isNearEnd();
  words.append(text); // a text node: never parsed
  if (isFollowing) scrollToEnd();
  else element("latest").hidden = false;
}

function showProblem(message) {
  const node = make("div", "problem");
  const retry = make("button", "quiet", "Try again");
  retry.type = "button";
  retry.addEventListener("click", answer);
  node.append(make("p", "", message), retry);
  transcript.append(node);
  unanswered.problem = node;
  say(message);
  scrollToEnd();
}

/** A line above the first turn that the model still reads. */
function showForgotten() {
  transcript.querySelector(".forgotten")?.remove();
  const line = make("p", "forgotten", "What is above no longer fits and is not read");
  transcript.insertBefore(line, transcript.querySelectorAll(".turn")[firstRead]);
}

function showState() {
  element("stop").hidden = writing === null;
  element("send").hidden = writing !== null;
  element("send").disabled = question.value.trim() === "";
}

function say(text) {
  element("status").textContent = text;
}

function isNearEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_BOTTOM_PX;
}

function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  element("latest").hidden = true;
}

/** The text box grows with its text, up to the height its style allows. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  showState();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (text === "" || writing !== null) return;
  question.value = "";
  fit();
  ask(text);
});

question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it (229: Safari says it late).
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  composer.requestSubmit();
});

element("stop").addEventListener("click", () => {
  writing?.abort();
  question.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") writing?.abort();
});
element("new-chat").addEventListener("click", newChat);
element("latest").addEventListener("click", scrollToEnd);
scroller.addEventListener("scroll", () => {
  if (isNearEnd()) element("latest").hidden = true;
});
temperature.addEventListener("input", () => {
  element("temperature-value").textContent = Number(temperature.value).toFixed(1);
});
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => ask(idea.textContent));
}

fit();
findModel().catch((error) => say(error.message));
