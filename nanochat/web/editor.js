// A box to type in.   in: keys   out: text to send   who calls: composer.js, message.js
//
// Enter sends where there is a keyboard; on a telephone it begins a new line.  While an input method
// composes a character, Enter belongs to it (229: Safari says so late).

import { button, make } from "./dom.js";

const COARSE = window.matchMedia("(pointer: coarse)");

/** Whether this key press sends what is in the box. */
export function isSend(event) {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return false;
  if (event.ctrlKey || event.metaKey) return true;
  return !event.shiftKey && !event.altKey && !COARSE.matches;
}

/** Make a box as high as its text, up to what its style allows. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** A form with a text, to send it changed or to leave it. */
export function editor(text, { onSend, onCancel }) {
  const area = make("textarea", { class: "edit-text", "aria-label": "Edit your message", rows: "2" });
  area.value = text;
  const send = button("Send", { class: "button primary small" });
  const form = make(
    "div",
    { class: "editor" },
    area,
    make("div", { class: "row end" }, button("Cancel", { class: "button small", on: { click: onCancel } }), send),
  );
  const submit = () => area.value.trim() !== "" && onSend(area.value.trim());
  send.addEventListener("click", submit);
  area.addEventListener("input", () => fit(area));
  area.addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape" && !event.isComposing) {
      event.stopPropagation();
      onCancel();
    }
  });
  requestAnimationFrame(() => fit(area));
  return form;
}
