// One answer while it is written.   in: a request, a message to fill   out: the message, filled
// who calls: chat.js
//
// The message is saved every second, so that leaving the page loses no more than that.
// Read next: api.js (where the pieces come from), chat.js (what is asked).

import { Problem, streamChat, streamOn } from "./api.js";
import { withoutOpenUse, wordsOnly } from "./tools.js";

const SAVE_MS = 1000;

export class Answer {
  #controller = new AbortController();
  #saved = 0;

  /** `save` keeps the message; `onChange` is told of each piece. */
  constructor(message, { save, onChange }) {
    this.message = message;
    this.save = save;
    this.onChange = onChange;
    this.numPieces = 0; // of this request: about the tokens so far
    this.begun = performance.now();
    this.first = null;
  }

  /** End it where it is; the server is told by the connection that closes. */
  stop() {
    this.#controller.abort();
  }

  /** Tokens a second since the first came, or null while there are too few to tell. */
  get rate() {
    const passed_s = (performance.now() - this.first) / 1000;
    return this.first === null || this.numPieces < 3 ? null : (this.numPieces - 1) / passed_s;
  }

  /** Ask, or have it go on after what there is; returns the Problem that ended it early, or null. */
  async run(body, { goesOn }) {
    const { signal } = this.#controller;
    let problem = null;
    try {
      if (goesOn) this.message.content = withoutOpenUse(this.message.content);
      const pieces = goesOn
        ? streamOn(body, wordsOnly(this.message.content), signal)
        : streamChat(body, signal);
      for await (const piece of pieces) this.#take(piece);
      this.message.finish ??= "stop";
    } catch (error) {
      if (this.#controller.signal.aborted) this.message.finish = "stopped";
      else {
        this.message.finish = "broken";
        problem = error instanceof Problem ? error : new Problem(`Something broke: ${error.message}`);
      }
    }
    this.message.times = { first_s: seconds(this.first - this.begun), tokens_per_s: this.#finalRate() };
    this.message.updated = Date.now();
    return problem;
  }

  #take({ text, finishReason, usage }) {
    const { message } = this;
    if (text !== undefined) {
      this.first ??= performance.now();
      this.last = performance.now();
      this.numPieces += 1;
      message.content += text;
    }
    if (finishReason !== undefined) message.finish = finishReason === "length" ? "length" : "stop";
    if (usage !== undefined) message.usage = { prompt: usage.prompt_tokens, completion: usage.completion_tokens };
    if (performance.now() - this.#saved > SAVE_MS) {
      this.#saved = performance.now();
      message.updated = Date.now();
      this.save(message);
    }
    this.onChange(this);
  }

  #finalRate() {
    const tokens = this.message.usage?.completion ?? this.numPieces;
    const passed_s = (this.last - this.first) / 1000;
    return tokens > 1 && passed_s > 0 ? Math.round(((tokens - 1) / passed_s) * 10) / 10 : null;
  }
}

function seconds(ms) {
  return Number.isFinite(ms) && ms >= 0 ? Math.round(ms) / 1000 : null;
}
