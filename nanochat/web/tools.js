// An answer's text -> words and uses of the calculator.   in: text   out: parts
// who calls: message.js, answer.js, chat.js, app.js
//
//   ...words <|python_start|>12*7<|python_end|><|output_start|>84<|output_end|> words...
// A part that is still being written has no end yet; half a mark at the end is not shown.

const MARKS = /<\|(python|output)_(start|end)\|>/g;
const WHOLE = ["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"];

/** [{kind: "text", text} | {kind: "call", expression, result}], in order; result null: none yet. */
export function partsOf(text) {
  const parts = [];
  let kind = "text";
  let from = 0;
  const take = (to) => {
    const piece = text.slice(from, to);
    const last = parts.at(-1);
    if (kind === "python") parts.push({ kind: "call", expression: piece, result: null });
    else if (kind === "output" && last?.kind === "call") last.result = piece;
    else if (kind === "output") parts.push({ kind: "call", expression: "", result: piece });
    else if (piece !== "") parts.push({ kind: "text", text: piece });
  };
  for (const { 0: mark, 1: what, 2: edge, index } of text.matchAll(MARKS)) {
    if (edge === "end" && what !== kind) continue; // an end without a beginning is text
    take(index);
    from = index + mark.length;
    kind = edge === "start" ? what : "text";
  }
  take(text.length - halfMark(text));
  return parts;
}

/** The words alone, as one would copy them. */
export function wordsOnly(text) {
  return partsOf(text).map((part) => part.text ?? "").join("");
}

/** The same without a use that was cut before its end: the model is to begin it anew. */
export function withoutOpenUse(text) {
  const whole = text.slice(0, text.length - halfMark(text));
  const last = [...whole.matchAll(MARKS)].at(-1);
  if (last?.[2] !== "start") return whole;
  const from = whole.lastIndexOf("<|python_start|>", last.index);
  return whole.slice(0, from < 0 ? last.index : from);
}

/** How many characters at the end may be the beginning of a mark. */
function halfMark(text) {
  const at = text.lastIndexOf("<", text.length);
  if (at < 0 || text.length - at > 16) return 0;
  const end = text.slice(at);
  return end.length > 1 && WHOLE.some((mark) => mark !== end && mark.startsWith(end)) ? end.length : 0;
}
