// What went wrong, with a way on.   in: a Problem   out: a box with its words and a button
// who calls: transcript.js
//
// A server that is busy says when to come back: the box counts down and asks again by itself, three
// times at most.  One that wants a key is given it here.
// Read next: api.js (Problem).

import { setApiKey } from "./api.js";
import { button, make } from "./dom.js";

const MAX_WAIT_S = 120;
const MAX_TRIES = 3;
let tries = 0; // by itself, since the last success

/** An answer came: patience is new. */
export function forgetTries() {
  tries = 0;
}

/** A box for this problem; `retry` asks again. */
export function problemBox(problem, retry) {
  const again = button("Try again", { class: "button small" });
  const words = make("p", { text: problem.message });
  const box = make("div", { class: "problem" }, words);
  if (problem.status === 401) box.append(keyForm(retry));
  else box.append(again);
  const stop = waits(problem) ? countDown(box, again, Math.ceil(problem.retryAfter_s), retry) : () => {};
  again.addEventListener("click", () => {
    stop();
    retry();
  });
  return box;
}

function waits({ status, retryAfter_s }) {
  return (status === 429 || status === 503) && retryAfter_s !== null && retryAfter_s <= MAX_WAIT_S && tries < MAX_TRIES;
}

function countDown(box, again, wait_s, retry) {
  let left_s = Math.max(1, wait_s);
  const show = () => {
    again.textContent = `Trying again in ${left_s} s`;
  };
  show();
  const timer = setInterval(() => {
    left_s -= 1;
    if (!box.isConnected) clearInterval(timer);
    else if (left_s > 0) show();
    else {
      clearInterval(timer);
      tries += 1;
      retry();
    }
  }, 1000);
  return () => clearInterval(timer);
}

function keyForm(retry) {
  const input = make("input", { type: "password", class: "field", "aria-label": "API key", placeholder: "API key", autocomplete: "off", spellcheck: "false" });
  const form = make("form", { class: "key-form" }, input, make("button", { type: "submit", class: "button primary small", text: "Use this key" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim() === "") return;
    setApiKey(input.value.trim());
    retry();
  });
  return form;
}
