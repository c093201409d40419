// How full the context is.   in: tokens   out: a ring with its numbers   who calls: app.js

import { setAttribute } from "./dom.js";

const NEARLY_FULL = 0.85;

export class Meter {
  constructor(node) {
    this.node = node;
    this.words = node.querySelector(".meter-words");
    this.ring = node.querySelector(".meter-ring");
  }

  /** `used` of `contextLen` tokens, and tokens a second if an answer is being written. */
  show(used, contextLen, rate = null) {
    this.node.hidden = used === 0 && rate === null;
    const share = contextLen === null ? 0 : Math.min(1, used / contextLen);
    const whole = contextLen === null ? "" : ` of ${contextLen.toLocaleString("en")}`;
    const speed = rate === null ? "" : ` \u00b7 ${rate.toFixed(1)} tokens/s`;
    this.words.textContent = `${used.toLocaleString("en")}${whole} tokens${speed}`;
    this.ring.style.setProperty("--share", share.toFixed(3));
    this.node.classList.toggle("full", share >= NEARLY_FULL);
    setAttribute(this.node, "aria-valuenow", Math.round(share * 100));
    setAttribute(this.node, "aria-valuetext", `${used}${whole} tokens of the context are used`);
  }
}
