// Markdown -> nodes, while it is being written.   in: text that grows   out: nodes in a container
// who calls: message.js
//
// Blocks that are followed by another are finished and are never looked at again; only the last one
// is read anew, once for each frame that the browser shows.  (What is on the last line may yet
// become the next row of a table, or a number the next item of a list: then these are open, too.)
// Read next: markdown.js, inline.js (text -> objects), codeblock.js, link.js.

import { CodeBlock } from "./codeblock.js";
import { make } from "./dom.js";
import { parseInline } from "./inline.js";
import { link } from "./link.js";
import { parseBlocks } from "./markdown.js";

/** Keeps a container showing a text that grows at its end. */
export class Renderer {
  #container;
  #text = "";
  #start = 0; // where in the text the open block begins
  #open = []; // its node, and that of a block before it that may go on
  #code = null; // its CodeBlock, if it is code

  constructor(container) {
    this.#container = container;
  }

  update(raw) {
    const text = raw.includes("\r") ? raw.replace(/\r\n?/g, "\n") : raw;
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) this.#clear();
    this.#text = text;
    const rest = text.slice(this.#start);
    const blocks = parseBlocks(rest);
    const offsets = offsetsOf(rest, blocks);
    const isStillCode = blocks[0]?.type === "code" && this.#code?.language === blocks[0].language;
    if (isStillCode) this.#code.update(blocks[0].text);
    else this.#dropOpen();
    const nodes = blocks.slice(isStillCode ? 1 : 0).map((block) => this.#append(block));
    if (blocks.length === 0) return;
    const numOpen = mayGoOn(blocks.at(-2)?.type, rest.slice(offsets.at(-1))) ? 2 : 1;
    if (nodes.length > 0) this.#open = nodes.slice(-numOpen);
    this.#start += offsets.at(-numOpen);
  }

  #append(block) {
    this.#code = block.type === "code" ? codeBlock(block) : null;
    const node = this.#code?.node ?? nodeOf(block);
    this.#container.append(node);
    return node;
  }

  #dropOpen() {
    for (const node of this.#open) node.remove();
    this.#open = [];
    this.#code = null;
  }

  #clear() {
    this.#container.replaceChildren();
    this.#dropOpen();
    this.#start = 0;
  }
}

/** Whether a block goes on if more comes after this text, which follows it. */
function mayGoOn(type, text) {
  return type === "list" ? /^ *\d{1,9}$/.test(text) : type === "table" && !text.includes("\n");
}

/** Where each block begins. */
function offsetsOf(text, blocks) {
  const offsets = [];
  let at = 0;
  let line = 0;
  for (const block of blocks) {
    for (; line < block.line; line += 1) at = text.indexOf("\n", at) + 1;
    offsets.push(at);
  }
  return offsets;
}

function codeBlock(block) {
  const code = new CodeBlock(block.language);
  code.update(block.text);
  return code;
}

const BUILD = {
  paragraph: (block) => make("p", {}, ...inlineNodes(block.text)),
  // The page's own headings are above: those of an answer begin at the third level.
  heading: (block) => make(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, ...inlineNodes(block.text)),
  rule: () => make("hr"),
  quote: (block) => make("blockquote", {}, ...block.blocks.map(nodeOf)),
  code: (block) => codeBlock(block).node,
  list: listNode,
  table: tableNode,
};

function nodeOf(block) {
  return BUILD[block.type](block);
}

function listNode({ isOrdered, start, isTight, items }) {
  const nodes = items.map(({ isDone, blocks }) => {
    const inner = blocks.map((block) =>
      isTight && block.type === "paragraph" ? inlineNodes(block.text) : [nodeOf(block)],
    );
    const box = isDone === null ? [] : [taskBox(isDone)];
    return make("li", { class: isDone === null ? "" : "task" }, ...box, ...inner.flat());
  });
  return make(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 ? start : null }, ...nodes);
}

function taskBox(isDone) {
  return make("span", { class: "task-box", role: "img", "aria-label": isDone ? "done" : "to do", text: isDone ? "\u2713" : "" });
}

function tableNode({ aligns, head, rows }) {
  const row = (cells, tag) =>
    make("tr", {}, ...cells.map((cell, at) => make(tag, { class: `align-${aligns[at]}` }, ...inlineNodes(cell))));
  const table = make(
    "table",
    {},
    make("thead", {}, row(head, "th")),
    make("tbody", {}, ...rows.map((cells) => row(cells, "td"))),
  );
  return make("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function inlineNodes(text) {
  return parseInline(text).map((piece) => pieceNode(piece, false));
}

function pieceNode(piece, isInLink) {
  const children = () => piece.children.map((child) => pieceNode(child, isInLink || piece.type === "link"));
  switch (piece.type) {
    case "text":
      return document.createTextNode(piece.text);
    case "code":
      return make("code", { text: piece.text });
    case "break":
      return make("br");
    case "strike":
      return make("s", {}, ...children());
    case "link":
      return isInLink ? make("span", {}, ...children()) : link(piece.href, piece.title, children());
    case "image": {
      const words = document.createTextNode(piece.text || piece.href);
      return isInLink ? words : link(piece.href, piece.title || "An image, which is not loaded", [words]);
    }
    default:
      return make(piece.type, {}, ...children());
  }
}
