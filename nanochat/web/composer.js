// Where one writes.   in: keys, drafts   out: text that is sent   who calls: app.js
//
// What was typed and not sent is kept for each conversation, so that neither a reload nor a look at
// another conversation loses it.
// Read next: editor.js (which keys send).

import { fit, isSend } from "./editor.js";

const SAVE_MS = 300;

export class Composer {
  #isWriting = false;
  #isChanged = false;
  #timer = null;
  #owner = "new"; // whose draft is in the box

  /** `nodes`: {form, area, send, stop}; `actions`: send(text), stop(), editLast(). */
  constructor(nodes, store, actions) {
    Object.assign(this, { nodes, store, actions });
    nodes.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    nodes.stop.addEventListener("click", () => {
      actions.stop();
      nodes.area.focus();
    });
    nodes.area.addEventListener("input", () => this.#changed());
    nodes.area.addEventListener("keydown", (event) => this.#onKey(event));
    window.addEventListener("pagehide", () => this.#saveNow());
  }

  focus() {
    this.nodes.area.focus({ preventScroll: true });
  }

  /** Put words in the box. */
  write(text) {
    this.nodes.area.value = text;
    this.#changed();
    this.focus();
  }

  /** Whether an answer is being written: then there is stop in the place of send. */
  showWriting(isWriting) {
    const hadFocus = document.activeElement === this.nodes.stop || document.activeElement === this.nodes.send;
    this.#isWriting = isWriting;
    this.nodes.stop.hidden = !isWriting;
    this.nodes.send.hidden = isWriting;
    this.nodes.send.disabled = this.nodes.area.value.trim() === "";
    if (hadFocus) this.focus();
  }

  /** Bring out the draft of a conversation, and put the present one away. */
  async change(conversation) {
    const owner = conversation ?? "new";
    if (owner === this.#owner) return;
    this.#saveNow();
    this.#owner = owner;
    this.nodes.area.value = "";
    const draft = await this.store.get("drafts", owner);
    if (this.#owner === owner && this.nodes.area.value === "") this.nodes.area.value = draft?.text ?? "";
    this.#show();
  }

  /** The draft of a conversation that has just begun is its own. */
  async adopt(conversation) {
    if (this.#owner === "new") this.#owner = conversation;
  }

  /** The draft that the last visit left. */
  async restore() {
    const draft = await this.store.get("drafts", this.#owner);
    if (draft && this.nodes.area.value === "") this.nodes.area.value = draft.text;
    this.#show();
  }

  #send() {
    const text = this.nodes.area.value.trim();
    if (text === "" || this.#isWriting) return;
    this.nodes.area.value = "";
    this.#changed();
    this.#saveNow();
    this.actions.send(text);
  }

  #onKey(event) {
    if (isSend(event)) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && this.nodes.area.value === "" && !event.isComposing) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #changed() {
    this.#isChanged = true;
    this.#show();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#saveNow(), SAVE_MS);
  }

  #saveNow() {
    clearTimeout(this.#timer);
    if (!this.#isChanged) return;
    this.#isChanged = false;
    const { value } = this.nodes.area;
    if (value === "") this.store.remove("drafts", this.#owner);
    else this.store.put("drafts", { id: this.#owner, text: value }, { silent: true });
  }

  #show() {
    fit(this.nodes.area);
    this.nodes.send.disabled = this.nodes.area.value.trim() === "";
  }
}
