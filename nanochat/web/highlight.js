// Code -> coloured pieces.   in: text, the name of a language   out: [kind, text] pairs
// who calls: codeblock.js
//
// One regular expression a language, read from left to right; it needs no grammar to be useful.
// What it does not know it leaves alone.

const NUMBER = String.raw`\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][-+]?\d+)?)\w*\b`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;
const DOUBLE = String.raw`"(?:[^"\\\n]|\\[\s\S])*"?`;
const SINGLE = String.raw`'(?:[^'\\\n]|\\[\s\S])*'?`;
const HASH = String.raw`#[^\n]*`;
const SLASHES = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const TRIPLE = String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)`;

function words(text) {
  return new Set(text.split(" "));
}

const PYTHON = words(
  "and as assert async await break class continue def del elif else except finally for from global if import in is " +
    "lambda match nonlocal not or pass raise return try while with yield case",
);
const SCRIPT = words(
  "as async await break case catch class const continue debugger default delete do else enum export extends finally for from " +
    "function get if implements import in instanceof interface let new of private protected public readonly return set static " +
    "super switch this throw try type typeof var void while with yield",
);
const C_LIKE = words(
  "abstract as async auto await bool boolean break case catch char class const constexpr continue crate default defer do double " +
    "dyn else enum extends extern final float fn for foreach func fun go goto if impl implements import in inline int interface " +
    "let long loop map match mod move mut namespace new operator override package private protected pub public range ref return " +
    "self short signed sizeof static struct super switch template this throw throws trait try type typedef typename union " +
    "unsafe unsigned use using val var virtual void volatile when where while with yield",
);
const SHELL = words(
  "if then else elif fi for while until do done case esac in function return exit export local set unset source alias cd echo " +
    "sudo read shift trap eval exec test",
);
const SQL = words(
  "add all alter and as asc between by case create cross delete desc distinct drop else end exists foreign from full group " +
    "having if in index inner insert into is join key left like limit not null offset on or order outer primary references " +
    "right select set table then union unique update using values view when where with",
);
const CONSTANTS = words(
  "True False None true false null undefined NaN Infinity nil nullptr self cls NULL yes no on off",
);

function language(patterns, keywords = new Set(), options = {}) {
  const groups = Object.entries({ ...patterns, word: patterns.word ?? WORD, rest: String.raw`\s+|[\s\S]` });
  const source = groups.map(([name, pattern]) => `(?<${name}>${pattern})`).join("|");
  return { pattern: new RegExp(source, "y"), keywords, ...options };
}

const MARKUP = language({
  comment: String.raw`<!--[\s\S]*?(?:-->|$)|<!\w[^>]*>?`,
  keyword: String.raw`<\/?[A-Za-z][\w:.-]*|\/?>`,
  string: String.raw`(?<==)(?:"[^"]*"?|'[^']*'?)`,
  name: String.raw`[\w:@.-]+(?==)`,
  constant: String.raw`&#?\w+;`,
});

const LANGUAGES = {
  python: language({ comment: HASH, string: `[rbfuRBFU]{0,2}(?:${TRIPLE}|${DOUBLE}|${SINGLE})`, name: String.raw`@[\w.]+`, number: NUMBER }, PYTHON),
  javascript: language(
    { comment: SLASHES, string: `${DOUBLE}|${SINGLE}|` + "`(?:[^`\\\\]|\\\\[\\s\\S])*(?:`|$)", number: NUMBER },
    SCRIPT,
  ),
  c: language({ comment: `${SLASHES}|^#\\w+`, string: `${DOUBLE}|'(?:[^'\\\\\\n]|\\\\.)'`, number: NUMBER }, C_LIKE),
  json: language({ name: String.raw`"(?:[^"\\\n]|\\.)*"(?=\s*:)`, string: DOUBLE, number: `-?${NUMBER}` }),
  bash: language(
    { comment: String.raw`(?<![\w$])#[^\n]*`, string: `"(?:[^"\\\\]|\\\\[\\s\\S])*(?:"|$)|'[^']*(?:'|$)`, name: String.raw`\$\{[^}\n]*\}?|\$\w+|(?<=\s)--?[A-Za-z][\w-]*`, number: NUMBER, word: String.raw`[A-Za-z_][\w-]*` },
    SHELL,
  ),
  html: MARKUP,
  css: language({
    comment: String.raw`\/\*[\s\S]*?(?:\*\/|$)`,
    string: `${DOUBLE}|${SINGLE}`,
    keyword: String.raw`@[\w-]+|!important`,
    name: String.raw`--?[A-Za-z][\w-]*|[A-Za-z][\w-]*(?=\s*:)`,
    number: String.raw`#[\da-fA-F]{3,8}\b|-?\d+(?:\.\d+)?(?:%|\w*)`,
  }),
  sql: language({ comment: String.raw`--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`, string: SINGLE, number: NUMBER }, SQL, { isCaseless: true }),
  yaml: language({ comment: HASH, name: String.raw`[\w.-]+(?=\s*[:=](?:\s|$))|^\[[^\]\n]*\]`, string: `${TRIPLE}|${DOUBLE}|${SINGLE}`, number: NUMBER }),
  diff: language({ string: String.raw`(?<=^|\n)\+[^\n]*`, removed: String.raw`(?<=^|\n)-[^\n]*`, keyword: String.raw`(?<=^|\n)@@[^\n]*`, comment: String.raw`(?<=^|\n)(?:diff|index) [^\n]*` }),
};

const ALIASES = {
  py: "python", python3: "python", js: "javascript", jsx: "javascript", mjs: "javascript", node: "javascript", ts: "javascript",
  tsx: "javascript", typescript: "javascript", jsonc: "json", json5: "json", sh: "bash", shell: "bash", zsh: "bash",
  console: "bash", xml: "html", svg: "html", vue: "html", scss: "css", less: "css", "c++": "c", cpp: "c", cc: "c", h: "c",
  "c#": "c", cs: "c", csharp: "c", java: "c", rust: "c", rs: "c", go: "c", golang: "c", kotlin: "c", kt: "c", swift: "c",
  zig: "c", php: "c", dart: "c", scala: "c", yml: "yaml", toml: "yaml", ini: "yaml", conf: "yaml", patch: "diff",
  sqlite: "sql", postgresql: "sql", mysql: "sql", postgres: "sql",
};

/** The rules of the language of this name, or null. */
export function languageOf(name) {
  const known = name.toLowerCase();
  const key = Object.hasOwn(ALIASES, known) ? ALIASES[known] : known;
  return Object.hasOwn(LANGUAGES, key) ? LANGUAGES[key] : null;
}

/**
 * The pieces of `code` from `start` on: [kind, text]; kind is "" for what has no colour.
 * A piece that does not touch the end stays what it is when more text comes.
 */
export function* pieces(code, rules, start = 0) {
  const { pattern } = rules;
  let at = start;
  let plain = "";
  while (at < code.length) {
    pattern.lastIndex = at;
    const match = pattern.exec(code);
    const kind = kindOf(match, rules, code);
    at += match[0].length;
    if (kind === "") plain += match[0];
    else {
      if (plain !== "") yield ["", plain];
      plain = "";
      yield [kind, match[0]];
    }
  }
  if (plain !== "") yield ["", plain];
}

function kindOf(match, rules, code) {
  const { word, rest, ...others } = match.groups;
  if (rest !== undefined) return "";
  if (word === undefined) return Object.keys(others).find((name) => others[name] !== undefined);
  if (rules.keywords.has(rules.isCaseless ? word.toLowerCase() : word)) return "keyword";
  if (CONSTANTS.has(word)) return "constant";
  return code[match.index + word.length] === "(" ? "call" : "";
}
