// Code with its language, its colours and a button to copy it.   in: text   out: a figure
// who calls: render.js
//
// While code is being written only its end is looked at again: pieces before the last line break
// stand, so a long listing costs no more by the line than a short one.
// Read next: highlight.js.

import { copyText } from "./clipboard.js";
import { make } from "./dom.js";
import { icon } from "./icons.js";
import { languageOf, pieces } from "./highlight.js";

const NUM_LOOSE = 3; // characters at the end that more text may still turn into something else

export class CodeBlock {
  #rules;
  #code = make("code");
  #text = "";
  #numKept = 0; // characters whose nodes stand
  #numNodes = 0;

  constructor(language) {
    this.language = language;
    this.#rules = languageOf(language);
    const copy = make("button", { type: "button", class: "copy-code" }, icon("copy"), make("span", { text: "Copy" }));
    copy.addEventListener("click", () => copyText(this.#text, copy));
    this.node = make(
      "figure",
      { class: "code" },
      make("figcaption", {}, make("span", { class: "code-language", text: language || "text" }), copy),
      make("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${language || "text"}` }, this.#code),
    );
  }

  /** Show this text, which goes on from the one shown before. */
  update(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text.slice(0, this.#numKept))) this.#numKept = this.#numNodes = 0;
    this.#text = text;
    while (this.#code.childNodes.length > this.#numNodes) this.#code.lastChild.remove();
    if (this.#rules === null) this.#code.textContent = text;
    else this.#colour();
  }

  #colour() {
    let at = this.#numKept;
    const fragment = document.createDocumentFragment();
    for (const [kind, text] of pieces(this.#text, this.#rules, this.#numKept)) {
      for (const part of kind === "" ? text.split(/(?<=\n)/) : [text]) {
        fragment.append(kind === "" ? part : make("span", { class: `hl-${kind}`, text: part }));
        at += part.length;
        if (at < this.#text.length - NUM_LOOSE && part.endsWith("\n")) {
          this.#numKept = at;
          this.#numNodes = this.#code.childNodes.length + fragment.childNodes.length;
        }
      }
    }
    this.#code.append(fragment);
  }
}
