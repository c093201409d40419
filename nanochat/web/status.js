// What has happened -> screen readers.   in: a sentence   out: the page's status line
// who calls: every view
//
// The transcript itself is not announced: it would be read out token by token.

import { byId } from "./dom.js";

export function say(text) {
  byId("status").textContent = text;
}
