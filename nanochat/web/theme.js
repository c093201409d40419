// Light, dark, or as the system has it.   in: a choice   out: <html data-theme>
// who calls: app.js
// Read next: first.js (before the first frame), base.css (the colours).

import { keep, recall } from "./keep.js";
import { say } from "./status.js";

const THEMES = ["system", "light", "dark"];

/** Make the group's radio buttons choose the theme. */
export function setUpTheme(group) {
  const chosen = THEMES.includes(recall("theme")) ? recall("theme") : "system";
  for (const input of group.querySelectorAll("input")) {
    input.checked = input.value === chosen;
    input.addEventListener("change", () => choose(input.value));
  }
  window.addEventListener("storage", ({ key, newValue }) => {
    if (key === "nanochat.theme") apply(newValue ?? "system");
  });
}

function choose(theme) {
  keep("theme", theme === "system" ? null : theme);
  apply(theme);
  say(`Theme: ${theme}.`);
}

function apply(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
