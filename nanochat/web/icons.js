// The drawings on buttons.   in: a name   out: an SVG node, a button   who calls: every view
// Read next: dom.js.

import { drawing, make } from "./dom.js";

const PATHS = {
  copy: ["M9 9h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H9a1 1 0 0 1-1-1V10a1 1 0 0 1 1-1Z",
    "M4.5 15.5V5a1 1 0 0 1 1-1H16"],
  done: ["m5 12.5 4.5 4.5L19 7"],
  edit: ["m4 20 .9-4L16.2 4.7a1.6 1.6 0 0 1 2.3 0l.8.8a1.6 1.6 0 0 1 0 2.3L8 19.1 4 20Z",
    "m14.5 6.5 3 3"],
  again: ["M20 11.5A8 8 0 1 0 18 17", "M20 5v6.5h-6.5"],
  forward: ["M5 12h13", "m12.5 6 6 6-6 6"],
  left: ["m14.5 6-6 6 6 6"],
  right: ["m9.5 6 6 6-6 6"],
  remove: ["M4.5 7h15", "M9.5 7V5a1 1 0 0 1 1-1h3a1 1 0 0 1 1 1v2", "m6.5 7 .8 12a1 1 0 0 0 1 1h7.4a1 1 0 0 0 1-1l.8-12"],
  calculator: ["M7 3.5h10a1 1 0 0 1 1 1v15a1 1 0 0 1-1 1H7a1 1 0 0 1-1-1v-15a1 1 0 0 1 1-1Z",
    "M9 7.5h6", "M9 12h.01M12 12h.01M15 12h.01M9 16h.01M12 16h.01M15 16h.01"],
  down: ["M12 5v14", "m6 13 6 6 6-6"],
};

/** The drawing of this name. */
export function icon(name) {
  return drawing(PATHS[name]);
}

/** A small button that shows a drawing and is called by its label. */
export function iconButton(name, label, onClick, extra = "") {
  const node = make(
    "button",
    { type: "button", class: `icon-button ${extra}`.trim(), "aria-label": label, title: label },
    icon(name),
  );
  node.addEventListener("click", onClick);
  return node;
}

/** Show another drawing on a button. */
export function redraw(node, name) {
  node.replaceChildren(icon(name));
}
