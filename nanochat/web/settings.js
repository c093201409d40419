// How answers are sampled, and the words before them.   in: a panel's fields   out: request fields
// who calls: app.js
//
// An empty field sends nothing: the server decides, and its value stands in the field in grey.  The
// API key is kept for this tab alone.
// Read next: keep.js, api.js (getStats).

import { apiKey, setApiKey } from "./api.js";
import { make, setAttribute } from "./dom.js";
import { keep, recall, recallObject } from "./keep.js";

export const FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token; higher is more varied", min: 0, max: 2, step: 0.05 },
  { name: "top_p", label: "Top p", hint: "Only the likeliest tokens that together have this probability", min: 0, max: 1, step: 0.01 },
  { name: "min_p", label: "Min p", hint: "Only tokens at least this many times as likely as the likeliest", min: 0, max: 1, step: 0.01 },
  { name: "top_k", label: "Top k", hint: "Only this many of the likeliest tokens; 0 is all", min: 0, step: 1 },
  { name: "max_tokens", label: "Most tokens", hint: "Where an answer is cut", min: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "Equal seeds give equal answers", min: 0, step: 1 },
  { name: "presence_penalty", label: "Presence penalty", hint: "Against any token that was said already", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "The same, for each time it was said", min: -2, max: 2, step: 0.1 },
];
const MAX_STOPS = 4;

export class Settings {
  #values = recallObject("sampling");
  #inputs = new Map();

  /** `nodes`: {fields, stop, key, system, reset}; `onSystem(text)` is told of new words to begin with. */
  constructor(nodes, { onSystem }) {
    Object.assign(this, { nodes, onSystem });
    for (const field of FIELDS) nodes.fields.append(this.#row(field));
    nodes.stop.value = (this.#values.stop ?? []).join("\n");
    nodes.stop.addEventListener("input", () => this.#setStop(nodes.stop.value));
    nodes.key.addEventListener("change", () => setApiKey(nodes.key.value.trim()));
    nodes.system.addEventListener("input", () => this.#setSystem(nodes.system.value));
    nodes.reset.addEventListener("click", () => this.reset());
  }

  /** The fields of a request that were chosen. */
  get sampling() {
    return { ...this.#values };
  }

  /** The words before a new conversation. */
  get system() {
    return recall("system") ?? "";
  }

  /** What the server takes where nothing is sent. */
  showDefaults(defaults) {
    for (const [name, { number, slider }] of this.#inputs) {
      const value = defaults[name];
      number.placeholder = value === undefined || value === null ? "automatic" : String(value);
      slider.dataset.default = typeof value === "number" ? value : "";
      this.#showSlider(name);
    }
  }

  /** Bring the panel in step; `conversation`: the open one, or null. */
  show(conversation) {
    this.conversation = conversation;
    this.nodes.system.value = conversation === null ? this.system : (conversation.system ?? "");
    this.nodes.key.value = apiKey();
  }

  /** Leave everything but the words and the key to the server. */
  reset() {
    this.#values = {};
    keep("sampling", null);
    this.nodes.stop.value = "";
    for (const [name, { number }] of this.#inputs) {
      number.value = "";
      this.#check(name);
      this.#showSlider(name);
    }
  }

  #row(field) {
    const id = `setting-${field.name}`;
    const limits = { min: field.min, max: field.max ?? null, step: field.step };
    const number = make("input", { type: "number", id, class: "field number", inputmode: "decimal", placeholder: "automatic", "aria-describedby": `${id}-hint`, ...limits, step: field.step < 1 ? "any" : 1 });
    const slider = make("input", { type: "range", class: "slider", "aria-label": `${field.label}, slider`, ...limits });
    number.value = this.#values[field.name] ?? "";
    number.addEventListener("input", () => this.#set(field.name, number.value));
    slider.addEventListener("input", () => {
      number.value = slider.value;
      this.#set(field.name, slider.value);
    });
    this.#inputs.set(field.name, { field, number, slider });
    this.#showSlider(field.name);
    return make(
      "div",
      { class: "setting" },
      make("label", { for: id, text: field.label }),
      number,
      field.max === undefined ? null : slider,
      make("p", { class: "hint", id: `${id}-hint`, text: field.hint }),
    );
  }

  #set(name, text) {
    const value = Number(text);
    if (text.trim() === "" || !this.#check(name)) delete this.#values[name];
    else this.#values[name] = value;
    keep("sampling", this.#values);
    this.#showSlider(name);
  }

  /** Whether a field's value can be sent; one that cannot is marked and not sent. */
  #check(name) {
    const { number } = this.#inputs.get(name);
    const isValid = number.checkValidity();
    setAttribute(number, "aria-invalid", isValid ? null : "true");
    return isValid;
  }

  #showSlider(name) {
    const { field, number, slider } = this.#inputs.get(name);
    const shown = number.value !== "" ? number.value : slider.dataset.default || String(field.min);
    slider.value = shown;
    slider.classList.toggle("unset", number.value === "");
  }

  #setStop(text) {
    const stops = text.split("\n").filter((line) => line !== "").slice(0, MAX_STOPS);
    if (stops.length === 0) delete this.#values.stop;
    else this.#values.stop = stops;
    keep("sampling", this.#values);
  }

  #setSystem(text) {
    keep("system", text === "" ? null : text); // the next conversation begins with it too
    this.onSystem(text);
  }
}
