// All conversations <-> a file.   in: the store, JSON   out: JSON, the store   who calls: app.js
//
//   {"format": "nanochat-conversations", "version": 1, "conversations": [{..., "messages": [...]}]}
// A file may come from anywhere: every field is checked, and what is not known is left behind.  What
// is here already stays; messages of a conversation that both have are joined.
// Read next: store.js (the rows).

const FORMAT = "nanochat-conversations";
const VERSION = 1;
const MAX_BYTES = 64 << 20;
const ID = /^[\w-]{1,64}$/;
const FINISHES = new Set(["stop", "length", "stopped", "broken"]);

/** Everything as text. */
export async function exported(store) {
  const [conversations, messages] = await Promise.all([store.conversations(), store.all("messages")]);
  const whole = conversations.map((conversation) => ({
    ...conversation,
    messages: messages.filter((message) => message.conversation === conversation.id).sort((a, b) => a.created - b.created),
  }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: whole }, null, 1);
}

/** Give the browser a file to save. */
export function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Take in a file; returns how many conversations it held.  Throws: Error with what is wrong. */
export async function takeIn(store, file) {
  if (file.size > MAX_BYTES) throw new Error(`the file has ${file.size} bytes, expected at most ${MAX_BYTES}`);
  const conversations = read(await file.text());
  const present = new Set((await store.all("messages")).map(({ id }) => id));
  for (const { messages, ...conversation } of conversations) {
    const known = await store.get("conversations", conversation.id);
    const added = messages.filter(({ id }) => !present.has(id));
    if (known && added.length > 0) known.updated = Date.now(); // its words are to be read anew, by the search
    await store.put("messages", added, { silent: true });
    await store.put("conversations", known ?? conversation);
  }
  return conversations.length;
}

/** The checked conversations of a text.  Throws: Error. */
export function read(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("the file is not JSON");
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) throw new Error(`the file has no conversations: expected "format": "${FORMAT}"`);
  if (data.version !== VERSION) throw new Error(`the file's version is ${JSON.stringify(data.version)}, expected ${VERSION}`);
  return data.conversations.map(conversationOf);
}

function conversationOf(row, at) {
  const where = `conversation ${at + 1}`;
  check(isObject(row) && isId(row.id) && Array.isArray(row.messages), `${where} has no id or no messages`);
  const messages = row.messages.map((message, number) => messageOf(message, row.id, `${where}, message ${number + 1}`));
  const ids = new Set(messages.map(({ id }) => id));
  check(ids.size === messages.length, `${where} has ${messages.length} messages, but ${ids.size} ids: expected one for each`);
  for (const { parent, id } of messages) check(parent === null || ids.has(parent), `${where}: message ${id} follows one that is not there`);
  checkBeginnings(messages, where);
  return {
    id: row.id,
    title: textIn(row, "title", where).slice(0, 200) || "Untitled",
    created: timeIn(row, "created"),
    updated: timeIn(row, "updated"),
    leaf: ids.has(row.leaf) ? row.leaf : (messages.at(-1)?.id ?? null),
    system: typeof row.system === "string" ? row.system : "",
    messages,
  };
}

/** From each message a beginning is reached: none follows itself, by however long a way. */
function checkBeginnings(messages, where) {
  const parents = new Map(messages.map(({ id, parent }) => [id, parent]));
  const begun = new Set([null]); // each message is walked over once
  for (const { id } of messages) {
    const walked = new Set();
    for (let at = id; !begun.has(at); at = parents.get(at)) {
      check(!walked.has(at), `${where}: message ${at} follows ${parents.get(at)}, which comes after it: expected a way back to a first message`);
      walked.add(at);
    }
    for (const at of walked) begun.add(at);
  }
}

function messageOf(row, conversation, where) {
  check(isObject(row) && isId(row.id), `${where} has no id`);
  check(row.role === "user" || row.role === "assistant", `${where} has no role of user or assistant`);
  check(row.parent === null || isId(row.parent), `${where} has no parent`);
  return {
    id: row.id,
    conversation,
    parent: row.parent,
    role: row.role,
    content: textIn(row, "content", where),
    created: timeIn(row, "created"),
    updated: timeIn(row, "updated"),
    model: typeof row.model === "string" ? row.model : "",
    finish: FINISHES.has(row.finish) ? row.finish : row.role === "assistant" ? "stop" : null,
    usage: isObject(row.usage) ? { prompt: numberIn(row.usage, "prompt"), completion: numberIn(row.usage, "completion") } : null,
    times: isObject(row.times) ? { first_s: numberIn(row.times, "first_s"), tokens_per_s: numberIn(row.times, "tokens_per_s") } : null,
    numForgotten: 0,
  };
}

function check(isRight, words) {
  if (!isRight) throw new Error(words);
}

function isId(value) {
  return typeof value === "string" && ID.test(value);
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function textIn(row, name, where) {
  check(typeof row[name] === "string", `${where} has no ${name}`);
  return row[name];
}

function numberIn(row, name) {
  return Number.isFinite(row[name]) ? row[name] : 0;
}

function timeIn(row, name) {
  return Number.isFinite(row[name]) && row[name] > 0 ? row[name] : Date.now();
}
