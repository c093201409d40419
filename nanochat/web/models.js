// Which model is asked.   in: the server's list   out: a choice   who calls: app.js

import { getModels, getStats } from "./api.js";
import { make } from "./dom.js";
import { keep, recall } from "./keep.js";

export class Models {
  #models = [];
  #contextLen = null;

  constructor(select) {
    this.select = select;
    select.addEventListener("change", () => keep("model", select.value));
  }

  get name() {
    return this.select.value;
  }

  /** Tokens the chosen model can read and write, or null where the server does not say. */
  get contextLen() {
    return this.#models.find(({ id }) => id === this.name)?.contextLen ?? this.#contextLen;
  }

  /** Ask the server; returns its sampling defaults.  Throws: Problem. */
  async load() {
    const [models, stats] = await Promise.all([getModels(), getStats().catch(unlessUnknown)]);
    this.#models = models;
    this.#contextLen = stats.contextLen;
    const chosen = models.some(({ id }) => id === recall("model")) ? recall("model") : models[0]?.id;
    this.select.replaceChildren(...models.map(({ id }) => make("option", { text: id, value: id })));
    this.select.value = chosen ?? "";
    this.select.disabled = models.length < 2;
    return stats.defaults;
  }
}

/** Another server of this API may have no /stats: then the defaults are its secret. */
function unlessUnknown(problem) {
  if (problem.status !== 404) throw problem;
  return { contextLen: null, defaults: {} };
}
