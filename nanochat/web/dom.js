// Elements without HTML.   in: names, properties, children   out: nodes   who calls: every view
//
// The only place where attributes are set.  Text reaches the page as text nodes alone, so nothing
// that a model or a person writes can become an element.
// Read next: link.js (the one attribute that comes from outside), icons.js.

const SVG = "http://www.w3.org/2000/svg";
const REFUSED = /^(on|style$|src|href$|action$|formaction$|data$)/i;

/**
 * An element.  `props`: class and text, on: {event: listener}, anything else is an attribute;
 * true is an attribute without a value, false, null and undefined are none.
 */
export function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else setAttribute(node, name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An attribute that is there or not; those that could load or run something are refused. */
export function setAttribute(node, name, value) {
  if (REFUSED.test(name)) throw new TypeError(`the attribute ${name} is not set from here`);
  if (value === false || value === null || value === undefined) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}

/** A button with words on it. */
export function button(text, props = {}) {
  return make("button", { type: "button", class: "button", text, ...props });
}

/** The element of this id; the page has it, or the page is broken. */
export function byId(id) {
  const node = document.getElementById(id);
  if (node === null) throw new Error(`the page has no #${id}`);
  return node;
}

/** Lines of a drawing, 24 by 24, in the colour of the text around it. */
export function drawing(paths) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  for (const path of paths) {
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", path);
    svg.append(line);
  }
  return svg;
}
