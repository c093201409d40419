// One message on the page.   in: a message and where it stands   out: an article that follows it
// who calls: transcript.js
//
// A person's words are shown as they were typed; a model's are Markdown, with uses of the calculator
// folded.
// Read next: render.js (Markdown), tools.js (the calculator), transcript.js.

import { copyText } from "./clipboard.js";
import { editor } from "./editor.js";
import { make, setAttribute } from "./dom.js";
import { icon, iconButton } from "./icons.js";
import { Renderer } from "./render.js";
import { partsOf, wordsOnly } from "./tools.js";

const NOTES = {
  length: "The answer was cut here: its limit of tokens or the model\u2019s context was reached.",
  stopped: "Stopped.",
  broken: "The answer broke off here.",
};

export class MessageView {
  #parts = []; // {kind, node, renderer}: what is shown of the content
  #notes = make("div", { class: "notes" });
  #bar = make("div", { class: "actions" });

  /** `actions`: edit(id, text), again(id), goOn(id), choose(id). */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.isUser = message.role === "user";
    this.body = make("div", { class: this.isUser ? "bubble" : "prose" });
    const name = this.isUser ? "You said" : "The model said";
    this.node = make(
      "article",
      { class: `message ${this.isUser ? "user" : "assistant"}`, "aria-label": name, tabindex: "-1" },
      this.body, this.#notes, this.#bar,
    );
  }

  /** Show the message; `place`: {siblings, isLast, isWriting, isBusy, problem}. */
  show(message, place) {
    this.message = message;
    this.place = place;
    this.node.classList.toggle("last", place.isLast);
    this.showContent(place.isWriting);
    this.#showNotes();
    this.#showBar();
  }

  /** Show the content alone, as it grows. */
  showContent(isWriting) {
    this.node.classList.toggle("writing", isWriting);
    setAttribute(this.node, "aria-busy", isWriting ? "true" : null);
    if (this.isUser) {
      if (this.body.textContent !== this.message.content) this.body.textContent = this.message.content;
      return;
    }
    partsOf(this.message.content).forEach((part, at, { length }) => this.#showPart(part, at, isWriting && at === length - 1));
    while (this.#parts.length > partsOf(this.message.content).length) this.#parts.pop().node.remove();
    this.node.classList.toggle("waiting", isWriting && this.message.content === "");
  }

  #showPart(part, at, isOpen) {
    if (this.#parts[at]?.kind !== part.kind) {
      while (this.#parts.length > at) this.#parts.pop().node.remove();
      this.#parts.push(part.kind === "text" ? textPart() : callPart());
      this.body.append(this.#parts[at].node);
    }
    this.#parts[at].update(part, isOpen);
  }

  #showNotes() {
    const { finish, content } = this.message;
    const { isWriting, isLast, isBusy } = this.place;
    const notes = [];
    if (!this.isUser && !isWriting) {
      if (NOTES[finish] && !this.place.problem) notes.push(make("p", { class: "note", text: NOTES[finish] }));
      if (content === "") notes.push(make("p", { class: "note", text: "The model had nothing to say." }));
      if (isLast && !isBusy && content !== "" && finish !== "stop" && finish !== null) {
        notes.push(make("button", { type: "button", class: "button small", text: "Continue", on: { click: () => this.actions.goOn(this.message.id) } }));
      }
    }
    this.#notes.replaceChildren(...notes);
  }

  #showBar() {
    const { isWriting, isBusy, isLast } = this.place;
    const nodes = [];
    if (!isWriting) {
      nodes.push(this.#branches());
      nodes.push(iconButton("copy", "Copy", ({ currentTarget }) => copyText(wordsOnly(this.message.content), currentTarget)));
      if (!isBusy && this.isUser) nodes.push(iconButton("edit", "Edit", () => this.beginEdit()));
      if (!isBusy && !this.isUser) nodes.push(iconButton("again", "Answer again", () => this.actions.again(this.message.id)));
      if (!this.isUser) nodes.push(statistics(this.message, isLast));
    }
    this.#bar.replaceChildren(...nodes.filter((node) => node !== null));
  }

  #branches() {
    const { siblings, isBusy } = this.place;
    if (siblings.length < 2) return null;
    const at = siblings.indexOf(this.message.id);
    const step = (by, name, label) => {
      const node = iconButton(name, label, () => this.actions.choose(siblings[at + by], by));
      node.disabled = isBusy || siblings[at + by] === undefined;
      return node;
    };
    return make(
      "div",
      { class: "branches", role: "group", "aria-label": "Versions" },
      step(-1, "left", "Previous version"),
      make("span", { class: "branch", text: `${at + 1} / ${siblings.length}` }),
      step(1, "right", "Next version"),
    );
  }

  /** Put a box for new words in the place of a question. */
  beginEdit() {
    if (this.place.isBusy || this.node.classList.contains("editing")) return;
    const end = () => {
      box.remove();
      this.node.classList.remove("editing");
    };
    const box = editor(this.message.content, {
      onSend: (text) => {
        end();
        this.actions.edit(this.message.id, text);
      },
      onCancel: () => {
        end();
        this.#bar.querySelector("button[aria-label=Edit]")?.focus();
      },
    });
    this.node.classList.add("editing");
    this.node.prepend(box);
    box.querySelector("textarea").focus();
  }
}

function textPart() {
  const node = make("div", { class: "text" });
  const renderer = new Renderer(node);
  return { kind: "text", node, update: ({ text }) => renderer.update(text) };
}

function callPart() {
  const expression = make("code");
  const result = make("code");
  const short = make("span", { class: "call-short" });
  const node = make(
    "details",
    { class: "call" },
    make("summary", {}, icon("calculator"), make("span", { class: "call-name", text: "Calculator" }), short),
    make("dl", {}, make("dt", { text: "Asked" }), make("dd", {}, expression), make("dt", { text: "Result" }), make("dd", {}, result)),
  );
  return {
    kind: "call",
    node,
    update(part, isOpen) {
      expression.textContent = part.expression;
      result.textContent = part.result ?? (isOpen ? "\u2026" : "none");
      short.textContent = part.result === null ? part.expression : `${part.expression} = ${part.result}`;
    },
  };
}

/** What it took, in a few words. */
function statistics({ usage, times, model }, isLast) {
  const words = [];
  if (usage) words.push(`${usage.completion.toLocaleString("en")} ${usage.completion === 1 ? "token" : "tokens"}`);
  if (times?.tokens_per_s) words.push(`${times.tokens_per_s.toLocaleString("en")} tokens/s`);
  if (words.length === 0) return null;
  const first = times?.first_s === null || times?.first_s === undefined ? "" : `, the first after ${times.first_s} s`;
  return make("span", { class: isLast ? "statistics" : "statistics old", title: `${model}${first}`, text: words.join(" \u00b7 ") });
}
