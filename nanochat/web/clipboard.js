// Text -> the clipboard.   in: text, the button that was pressed   out: the button says so
// who calls: codeblock.js, message.js
//
// navigator.clipboard is there on https and on this machine alone; elsewhere the old way still
// works.

import { say } from "./status.js";
import { icon } from "./icons.js";

const SHOWN_MS = 1600;

export async function copyText(text, button) {
  const before = [...button.childNodes].map((node) => node.cloneNode(true));
  try {
    await write(text);
  } catch {
    say("Nothing was copied: this browser does not allow it here.");
    return;
  }
  say("Copied.");
  if (button.classList.contains("is-done")) return;
  button.classList.add("is-done");
  button.querySelector("svg")?.replaceWith(icon("done"));
  const words = button.querySelector("span");
  if (words) words.textContent = "Copied";
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("is-done");
  }, SHOWN_MS);
}

async function write(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  if (!isDone) throw new Error("not allowed");
}
