// Small things to remember: settings, the theme, the last model.   in: a name, JSON   out: the same
// who calls: settings.js, theme.js, models.js, sidebar.js
//
// A browser may refuse to keep anything; then it is remembered until the page is left.

const PREFIX = "nanochat.";
const untilLeft = new Map();

export function keep(name, value) {
  untilLeft.set(name, value);
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, typeof value === "string" ? value : JSON.stringify(value));
  } catch {
    // untilLeft has it
  }
}

/** What was kept as text, or null. */
export function recall(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return untilLeft.get(name) ?? null;
  }
}

/** What was kept as an object; {} where there is none. */
export function recallObject(name) {
  try {
    const value = JSON.parse(recall(name) ?? "{}");
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}
