// An address that a model wrote -> a link, or words.   in: a URL   out: a node
// who calls: render.js
//
// Only http, https and mailto become links; the page opened knows nothing of this one and is not
// recommended to search engines.  Images are links too: nothing is loaded from elsewhere.

import { make } from "./dom.js";

const ALLOWED = new Set(["http:", "https:", "mailto:"]);

/** The address as the browser understands it, or null where it may not be a link. */
export function safeAddress(address) {
  let url;
  try {
    url = new URL(address); // without a base: what is relative would lead into this page
  } catch {
    return null;
  }
  return ALLOWED.has(url.protocol) ? url.href : null;
}

/** A link with these children; a span where the address may not be one. */
export function link(address, title, children) {
  const href = safeAddress(address);
  if (href === null) return make("span", { class: "no-link", title: address }, ...children);
  const node = make("a", { rel: "noopener noreferrer nofollow", target: "_blank", title: title || href }, ...children);
  node.href = href;
  return node;
}
