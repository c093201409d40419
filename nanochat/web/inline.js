// A line's Markdown -> pieces.   in: text   out: plain objects, no nodes   who calls: render.js
//
//   {type: "text", text}    {type: "code", text}    {type: "break"}
//   {type: "strong" | "em" | "strike", children}
//   {type: "link", href, title, children}           {type: "image", href, title, text}
// Emphasis by CommonMark's rules (0.31, appendix "phase 2").  Every loop goes forward and every
// search is bounded, so no text takes more than a few milliseconds for each thousand characters.
// Read next: render.js (pieces -> nodes), link.js (which addresses become links).

const MAX_DEPTH = 24; // emphasis within emphasis
const MAX_ADDRESS = 2048;
const MAX_WAITING = 64; // marks that may still be closed

const PLAIN = /[^\\`*_~[\]!<&\n]+/y;
const BARE_ADDRESS = /(?<![\w/])(?:https?:\/\/|mailto:)[^\s<>`"[\]]+/g;
const ANGLE_ADDRESS = /<((?:https?:|mailto:)[^\s<>]{1,2048})>/y;
const LINE_BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w{2,8}));/y;
const ENTITIES = new Map(
  Object.entries({
    amp: "&", apos: "'", copy: "\u00a9", gt: ">", hellip: "\u2026", lt: "<",
    mdash: "\u2014", nbsp: "\u00a0", ndash: "\u2013", quot: '"',
  }),
);
const ESCAPED = /[!-/:-@[-`{-~]/;
const SPACE = /\s/;
const PUNCTUATION = /[\p{P}\p{S}]/u;

/** The pieces of a text. */
export function parseInline(text) {
  return new Inline(text).parse();
}

/** The words of pieces, without what they look like. */
export function wordsOf(pieces) {
  return pieces.map((piece) => piece.text ?? (piece.children ? wordsOf(piece.children) : " ")).join("");
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.out = [];
    this.marks = []; // runs of * _ ~ that may open or close, as indices into out
    this.brackets = [];
    this.ticks = ticksOf(text);
    this.addresses = text.matchAll(BARE_ADDRESS);
    this.nextAddress();
  }

  parse() {
    while (this.at < this.text.length) {
      while (this.address && this.address.index < this.at) this.nextAddress();
      if (this.address?.index === this.at) this.bareAddress();
      else if (!this.plain()) this.special(this.text[this.at]);
    }
    this.emphasize(0);
    return joined(this.out);
  }

  nextAddress() {
    this.address = this.addresses.next().value;
  }

  add(text) {
    this.out.push({ type: "text", text });
  }

  plain() {
    PLAIN.lastIndex = this.at;
    const match = PLAIN.exec(this.text)?.[0];
    if (match === undefined) return false;
    const end = Math.min(this.at + match.length, this.address?.index ?? Infinity);
    this.add(this.text.slice(this.at, end));
    this.at = end;
    return true;
  }

  special(char) {
    if (char === "\\") this.escape();
    else if (char === "`") this.codeSpan();
    else if (char === "*" || char === "_" || char === "~") this.mark(char);
    else if (char === "[") this.open("[");
    else if (char === "!" && this.text[this.at + 1] === "[") this.open("![");
    else if (char === "]") this.close();
    else if (char === "<") this.angle();
    else if (char === "&") this.entity();
    else if (char === "\n") this.lineBreak(1);
    else this.literal(1);
  }

  literal(length) {
    this.add(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") this.lineBreak(2);
    else if (ESCAPED.test(next)) {
      this.add(next);
      this.at += 2;
    } else this.literal(1);
  }

  /** Chats break lines where the writer did. */
  lineBreak(length) {
    const before = this.out.at(-1);
    if (before?.type === "text") before.text = before.text.trimEnd();
    this.out.push({ type: "break" });
    this.at += length;
  }

  codeSpan() {
    const length = runLength(this.text, this.at);
    const starts = this.ticks.get(length) ?? []; // none where a backslash split a run
    while (starts.length > 0 && starts[0] <= this.at) starts.shift();
    if (starts.length === 0) {
      this.literal(length);
      return;
    }
    const inner = this.text.slice(this.at + length, starts[0]).replaceAll("\n", " ");
    const isPadded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
    this.out.push({ type: "code", text: isPadded ? inner.slice(1, -1) : inner });
    this.at = starts[0] + length;
  }

  angle() {
    ANGLE_ADDRESS.lastIndex = LINE_BREAK.lastIndex = this.at;
    const address = ANGLE_ADDRESS.exec(this.text);
    if (address) {
      this.link(address[1], "", [{ type: "text", text: address[1] }]);
      this.at += address[0].length;
      return;
    }
    const lineBreak = LINE_BREAK.exec(this.text);
    if (lineBreak) this.lineBreak(lineBreak[0].length);
    else this.literal(1);
  }

  entity() {
    ENTITY.lastIndex = this.at;
    const match = ENTITY.exec(this.text);
    const code = match && (match[1] ? Number(match[1]) : parseInt(match[2] ?? "", 16));
    const isCode = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
    const char = isCode ? String.fromCodePoint(code) : ENTITIES.get(match?.[3]);
    if (char === undefined) {
      this.literal(1);
      return;
    }
    this.add(char);
    this.at += match[0].length;
  }

  // ------------------------------------------------------------------------------- links

  bareAddress() {
    let address = this.address[0].slice(0, MAX_ADDRESS).replace(/[*_~]+$/, "");
    let end = address.length;
    for (;;) {
      const last = address[end - 1];
      if (".,;:!?'*_~]".includes(last)) end -= 1;
      else if (last === ")" && !isBalanced(address.slice(0, end))) end -= 1;
      else break;
    }
    address = address.slice(0, end);
    this.link(address, "", [{ type: "text", text: address }]);
    this.at += address.length;
  }

  link(href, title, children) {
    this.out.push({ type: "link", href, title, children });
  }

  open(mark) {
    const isImage = mark === "![";
    this.brackets.push({ at: this.out.length, marks: this.marks.length, isImage, isActive: true });
    this.literal(mark.length);
  }

  close() {
    const bracket = this.brackets.pop();
    const target = bracket?.isActive ? targetAt(this.text, this.at + 1) : null;
    if (target === null) {
      this.literal(1);
      return;
    }
    this.emphasize(bracket.marks);
    const children = joined(this.out.splice(bracket.at).slice(1));
    if (bracket.isImage) {
      this.out.push({ type: "image", href: target.href, title: target.title, text: wordsOf(children) });
    } else {
      this.link(target.href, target.title, children);
      for (const outer of this.brackets) if (!outer.isImage) outer.isActive = false;
    }
    this.at = target.end;
  }

  // ---------------------------------------------------------------------------- emphasis

  mark(char) {
    const length = runLength(this.text, this.at);
    const before = charBefore(this.text, this.at) || " ";
    const after = charAt(this.text, this.at + length) || " ";
    const isLeft = flanks(after, before);
    const isRight = flanks(before, after);
    const isWithin = char === "_" && isLeft && isRight;
    this.marks.push({
      at: this.out.length,
      char,
      left: length,
      length,
      canOpen: isLeft && (!isWithin || PUNCTUATION.test(before)),
      canClose: isRight && (!isWithin || PUNCTUATION.test(after)),
    });
    this.literal(length);
  }

  /** Turn the marks from this one on into emphasis, innermost first, and forget them. */
  emphasize(bottom) {
    const stack = []; // openers that still wait
    for (const closer of this.marks.splice(bottom)) {
      while (closer.canClose && closer.left > 0) {
        const place = stack.findLastIndex((opener) => matches(opener, closer));
        if (place < 0) break;
        stack.splice(place + 1);
        const opener = stack[place];
        if (!this.wrap(opener, closer)) break;
        if (opener.left === 0) stack.pop();
      }
      if (closer.canOpen && closer.left > 0) stack.push(closer);
      if (stack.length > MAX_WAITING) stack.shift();
    }
  }

  wrap(opener, closer) {
    const inner = joined(this.out.slice(opener.at + 1, closer.at));
    const depth = 1 + Math.max(0, ...inner.map((piece) => piece.depth ?? 0));
    if (depth > MAX_DEPTH) return false;
    const width = Math.min(opener.left, closer.left, 2);
    const type = opener.char === "~" ? "strike" : width === 2 ? "strong" : "em";
    this.out.fill(null, opener.at + 1, closer.at);
    this.out[opener.at + 1] = { type, children: inner, depth };
    for (const mark of [opener, closer]) {
      mark.left -= width;
      this.out[mark.at] = { type: "text", text: mark.char.repeat(mark.left) };
    }
    return true;
  }
}

function matches(opener, closer) {
  if (opener.char !== closer.char) return false;
  if (closer.char === "~") return opener.left === 2 && closer.left === 2;
  const isOdd = (closer.canOpen || opener.canClose) && closer.length % 3 !== 0;
  return !(isOdd && (opener.length + closer.length) % 3 === 0);
}

/** Whether a run next to `near` and away from `far` leans towards `near`. */
function flanks(near, far) {
  if (SPACE.test(near)) return false;
  return !PUNCTUATION.test(near) || SPACE.test(far) || PUNCTUATION.test(far);
}

function charBefore(text, at) {
  return [...text.slice(Math.max(0, at - 2), at)].at(-1);
}

function charAt(text, at) {
  return [...text.slice(at, at + 2)][0];
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Where runs of backticks of each length begin. */
function ticksOf(text) {
  const starts = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!starts.has(run.length)) starts.set(run.length, []);
    starts.get(run.length).push(index);
  }
  return starts;
}

function isBalanced(address) {
  return address.split("(").length >= address.split(")").length;
}

const TARGET = /\(\s{0,9}(?:<([^<>\n]{0,2048})>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.){0,256}\)){0,2048}))(?:\s{1,9}(?:"([^"]{0,512})"|'([^']{0,512})'))?\s{0,9}\)/y;

/** (address "title") at this place: {href, title, end}, or null. */
function targetAt(text, at) {
  if (text[at] !== "(") return null;
  TARGET.lastIndex = at;
  const match = TARGET.exec(text.length - at > 4096 ? text.slice(0, at + 4096) : text);
  if (!match) return null;
  const href = (match[1] ?? match[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
  return { href, title: match[3] ?? match[4] ?? "", end: at + match[0].length };
}

/** Neighbouring texts as one; what is empty is left out. */
function joined(pieces) {
  const out = [];
  for (const piece of pieces) {
    if (piece === null || (piece.type === "text" && piece.text === "")) continue;
    const last = out.at(-1);
    if (piece.type === "text" && last?.type === "text") {
      out[out.length - 1] = { type: "text", text: last.text + piece.text };
    } else out.push(piece);
  }
  return out;
}
