// Keyboard shortcuts.   in: key presses   out: actions, a table for the help   who calls: app.js
//
// Alt+Shift+letter is taken by no browser for what we use (a list of what browsers do take is in the
// tests); by place on the keyboard, so that they work in every alphabet.  On a Mac these keys write
// characters: in a text box they do so, and the shortcut wants Control held as well.

import { make } from "./dom.js";

const ACCENTED = /^(?=\p{Script=Latin})[^a-z]$/iu; // no plain key of these letters writes one
const IS_MAC = /Mac|iPhone|iPad/.test(navigator.platform);

export const SHORTCUTS = [
  { code: "KeyN", action: "newChat", what: "New chat" },
  { code: "KeyK", action: "search", what: "Search the conversations" },
  { code: "KeyS", action: "settings", what: "Settings" },
  { code: "KeyX", action: "sidebar", what: "Show or hide the conversations" },
  { code: "KeyR", action: "again", what: "Answer the last question again" },
  { code: "KeyC", action: "copyLast", what: "Copy the last answer" },
  { code: "KeyM", action: "focus", what: "Go to the message box" },
  { code: "KeyH", action: "help", what: "This list" },
];

const IN_THE_BOX = [
  [["Enter"], "Send; on a touch screen, a new line"],
  [["Shift", "Enter"], "A new line"],
  [["Ctrl", "Enter"], "Send, on any device"],
  [["\u2191"], "In an empty box: edit the last message"],
  [["Esc"], "Stop the answer; close what is open"],
];

/** Listen; `actions` has a function for each shortcut, and stop. */
export function setUpKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    if (event.key === "Escape" && document.querySelector("dialog[open]") === null) actions.stop();
    if (!event.altKey || !event.shiftKey || (event.ctrlKey && !IS_MAC) || event.metaKey) return;
    const shortcut = SHORTCUTS.find(({ code }) => code === event.code);
    if (!shortcut || writes(event)) return;
    event.preventDefault();
    actions[shortcut.action]();
  });
}

/** Whether the keys write a character where one writes: Option+Shift+S a Polish \u015a, an American \u00cd. */
function writes({ target, key, code, ctrlKey }) {
  const isText = target.isContentEditable || target.matches?.("textarea, input:not([type=range])");
  const isPlain = key.length !== 1 || key.toLowerCase() === code.slice(3).toLowerCase();
  return isText && !isPlain && !ctrlKey && (IS_MAC || ACCENTED.test(key));
}

/** The list for the help dialog. */
export function helpList() {
  const rows = [
    ...IN_THE_BOX,
    ...(IS_MAC ? [[["Control", "Option", "Shift", "\u2026"], "Any of these, from a text box"]] : []),
    ...SHORTCUTS.map(({ code, what }) => [[IS_MAC ? "Option" : "Alt", "Shift", code.slice(3)], what]),
  ];
  return rows.map(([keys, what]) => make(
    "div",
    { class: "shortcut" },
    make("dt", { text: what }),
    make("dd", {}, ...keys.map((key) => make("kbd", { text: IS_MAC && key === "Ctrl" ? "\u2318" : key }))),
  ));
}
