// Markdown -> blocks.   in: text   out: plain objects, no nodes   who calls: render.js
//
//   {type: "paragraph", text}        {type: "heading", level, text}      {type: "rule"}
//   {type: "code", language, text, isOpen}                               {type: "quote", blocks}
//   {type: "list", isOrdered, start, isTight, items: [{isDone, blocks}]}
//   {type: "table", aligns, head, rows}
// What GitHub reads, less three things: indented text is no code (models indent prose), a line of
// dashes under a text makes no heading of it (it would flicker while a list begins), and HTML is
// text.  Nothing is refused: what is no block is a paragraph.
// Read next: inline.js (what is within a text), render.js (blocks -> nodes).

const MAX_DEPTH = 12; // quotes and lists within each other; deeper is shown as text

const FENCE = /^( *)(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-+*]|\d{1,9}[.)])( +|$)/;
const TASK = /^\[([ xX])\] +/;
const TABLE_RULE = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

/** The blocks of a text; each has the number of the line it begins on. */
export function parseBlocks(text) {
  return new Parser(linesOf(text), 0).blocks();
}

/** Lines with spaces where they are indented by tabs, but for those of code. */
function linesOf(text) {
  let fence = null;
  return text.split("\n").map((raw) => {
    if (fence !== null) {
      if (isClosing(raw, fence)) fence = null;
      return raw;
    }
    const line = raw.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
    fence = FENCE.exec(line)?.[2] ?? null;
    return line;
  });
}

class Parser {
  constructor(lines, depth) {
    this.lines = lines;
    this.depth = depth;
    this.at = 0;
  }

  blocks() {
    const blocks = [];
    while (this.at < this.lines.length) {
      if (isBlank(this.lines[this.at])) this.at += 1;
      else {
        const line = this.at;
        blocks.push({ ...this.block(), line });
      }
    }
    return blocks;
  }

  block() {
    const line = this.lines[this.at];
    const isDeep = this.depth >= MAX_DEPTH;
    if (FENCE.test(line)) return this.code();
    if (HEADING.test(line)) return this.heading();
    if (RULE.test(line)) return this.rule();
    if (!isDeep && QUOTE.test(line)) return this.quote();
    if (!isDeep && MARKER.test(line)) return this.list();
    if (this.isTable()) return this.table();
    return this.paragraph();
  }

  code() {
    const [, indent, fence, info] = FENCE.exec(this.lines[this.at++]);
    const text = [];
    let isOpen = true;
    while (isOpen && this.at < this.lines.length) {
      const line = this.lines[this.at++];
      if (isClosing(line, fence)) isOpen = false;
      else text.push(line.slice(Math.min(indent.length, indentOf(line))));
    }
    return { type: "code", language: info.trim().split(/\s/)[0], text: text.join("\n"), isOpen };
  }

  heading() {
    const line = this.lines[this.at++].trim();
    const level = HEADING.exec(line)[1].length;
    const text = line.slice(level).trim();
    const end = text.length - (/#*$/.exec(text.slice(-16))?.[0].length ?? 0);
    const isClosed = end < text.length && (end === 0 || text[end - 1] === " ");
    return { type: "heading", level, text: isClosed ? text.slice(0, end).trimEnd() : text };
  }

  rule() {
    this.at += 1;
    return { type: "rule" };
  }

  quote() {
    const inner = [];
    while (this.at < this.lines.length) {
      const line = this.lines[this.at];
      if (QUOTE.test(line)) inner.push(line.replace(QUOTE, ""));
      else if (isBlank(line) || isBlank(inner.at(-1)) || this.isInterrupted()) break;
      else inner.push(line); // a paragraph that goes on without its mark
      this.at += 1;
    }
    return { type: "quote", blocks: this.within(inner) };
  }

  list() {
    const [, base, marker] = MARKER.exec(this.lines[this.at]);
    const kind = marker.at(-1);
    const items = [];
    let isTight = true;
    let isGap = false; // blank lines after the last item: they count if another follows
    while (this.at < this.lines.length) {
      const match = MARKER.exec(this.lines[this.at]);
      if (!match || match[2].at(-1) !== kind || RULE.test(this.lines[this.at])) break;
      if (match[1].length > base.length + 1 || match[1].length < base.length - 1) break;
      const { lines, hasGap } = this.item(match, base.length);
      const task = TASK.exec(lines[0]);
      if (task) lines[0] = lines[0].slice(task[0].length);
      items.push({ isDone: task ? task[1] !== " " : null, blocks: this.within(lines) });
      if (isGap || hasGap.within) isTight = false;
      isGap = hasGap.after;
    }
    const isOrdered = kind === "." || kind === ")";
    return { type: "list", isOrdered, start: isOrdered ? parseInt(marker, 10) : 1, isTight, items };
  }

  /** The lines of one item.  Models indent what is nested by two, three or four. */
  item([mark, , , space], base) {
    const width = space.length > 4 ? mark.length - space.length + 1 : mark.length;
    const lines = [this.lines[this.at++].slice(width)];
    const hasGap = { within: false, after: false };
    let fence = null;
    while (this.at < this.lines.length) {
      const line = this.lines[this.at];
      const indent = indentOf(line);
      if (isBlank(line)) {
        hasGap.after = true;
      } else {
        const isNested = indent >= width || indent >= base + 2;
        const isLazy = !hasGap.after && !this.isInterrupted() && !MARKER.test(line) && !fence;
        if (!isNested && !isLazy) break;
        if (hasGap.after && !fence) hasGap.within = true;
        hasGap.after = false;
      }
      const inner = line.slice(Math.min(indent, width));
      if (fence ? isClosing(inner, fence) : FENCE.test(inner)) {
        fence = fence ? null : FENCE.exec(inner)[2];
      }
      lines.push(inner);
      this.at += 1;
    }
    return { lines, hasGap };
  }

  isTable() {
    const [line, rule] = [this.lines[this.at], this.lines[this.at + 1]];
    if (rule === undefined || !line.includes("|") || !rule.includes("-")) return false;
    return TABLE_RULE.test(rule) && cellsOf(rule).length === cellsOf(line).length;
  }

  table() {
    const head = cellsOf(this.lines[this.at++]);
    const aligns = cellsOf(this.lines[this.at++]).map(alignOf);
    const rows = [];
    while (this.at < this.lines.length && this.lines[this.at].includes("|")) {
      if (this.isInterrupted()) break;
      const cells = cellsOf(this.lines[this.at++]);
      rows.push(head.map((_, column) => cells[column] ?? ""));
    }
    return { type: "table", aligns, head, rows };
  }

  paragraph() {
    const text = [this.lines[this.at++].trimStart()];
    while (this.at < this.lines.length && !isBlank(this.lines[this.at])) {
      if (this.isInterrupted() || this.isTable()) break;
      text.push(this.lines[this.at++].trimStart());
    }
    return { type: "paragraph", text: text.join("\n").trimEnd() };
  }

  /** Whether a block begins on this line though no blank line came before it. */
  isInterrupted() {
    const line = this.lines[this.at];
    if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
    if (this.depth >= MAX_DEPTH) return false;
    const marker = MARKER.exec(line);
    const begins = marker !== null && marker[0].length < line.length; // a lone dash is a dash
    return QUOTE.test(line) || (begins && (/^([-+*]|1[.)])$/.test(marker[2]) || this.depth > 0));
  }

  within(lines) {
    return new Parser(lines, this.depth + 1).blocks();
  }
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function isClosing(line, fence) {
  const mark = line.trim();
  return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
}

/** The cells of a row; \| is a bar within one. */
function cellsOf(line) {
  const row = line.trim().replace(/^\|/, "");
  const cells = row.split(/(?<!\\)\|/);
  if (cells.length > 1 && isBlank(cells.at(-1))) cells.pop();
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignOf(rule) {
  if (rule.endsWith(":")) return rule.startsWith(":") ? "center" : "right";
  return "left";
}
