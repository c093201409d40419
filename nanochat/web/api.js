// The server, as the page sees it.   in: messages and settings   out: pieces of an answer, problems
// who calls: answer.js, models.js, problem.js, settings.js, app.js
//
// The page is a client of this server's public API and of nothing else.
// Read next: sse.js, answer.js.

import { serverSentEvents } from "./sse.js";

const KEY = "nanochat.key";
const UNREACHABLE = "The server cannot be reached. Is it still running?";
const BROKEN = "The connection broke before the answer was complete.";

/** What went wrong, in words for people; the server's own where it gave any. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, retryAfter_s = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter_s = retryAfter_s;
  }
}

/** The key to the server; it is forgotten with this tab. */
export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setApiKey(key) {
  if (key === "") sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

/** The models that can be asked: [{id, contextLen}]. */
export async function getModels() {
  const { data } = await (await request("/v1/models")).json();
  return data.map((model) => ({ id: model.id, contextLen: lengthIn(model) }));
}

/** What the server does where a request says nothing: {contextLen, defaults}, as far as it tells. */
export async function getStats() {
  const stats = await (await request("/stats")).json();
  return { contextLen: lengthIn(stats), defaults: stats.defaults ?? stats.sampling ?? {} };
}

function lengthIn(body) {
  return body.context_len ?? body.max_model_len ?? body.context_length ?? null;
}

/**
 * Yields {text}, {finishReason} and {usage} as the server sends them; `body` as for OpenAI's chat
 * completions.  The calculator's work is told between marks in the text: tools.js.
 * Throws: Problem; what `signal` was aborted with.
 */
export async function* streamChat(body, signal) {
  const more = { tools: [{ type: "calculator" }], stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, ...more }),
    signal,
  });
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const frame = JSON.parse(data);
      if (frame.error) throw problemOf(frame, response);
      const [choice] = frame.choices;
      const text = choice?.delta?.content;
      if (text) yield { text };
      if (choice?.finish_reason) yield { finishReason: choice.finish_reason };
      if (frame.usage) yield { usage: frame.usage };
    }
  } catch (error) {
    if (error instanceof Problem || signal.aborted) throw error;
    throw new Problem(BROKEN);
  }
  throw new Problem(BROKEN);
}

/** The same for an answer that goes on after `text`. */
export function streamOn({ messages, ...body }, text, signal) {
  const begun = [...messages, { role: "assistant", content: text }];
  return streamChat({ ...body, messages: begun, continue_final_message: true }, signal);
}

async function request(path, { headers = {}, ...options } = {}) {
  const key = apiKey();
  let response;
  try {
    response = await fetch(path, {
      cache: "no-store",
      credentials: "same-origin",
      ...options,
      headers: {
        ...(options.body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(key === "" ? {} : { Authorization: `Bearer ${key}` }),
        ...headers,
      },
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(UNREACHABLE);
  }
  if (!response.ok) throw problemOf(await response.json().catch(() => null), response);
  return response;
}

function problemOf(body, response) {
  const wait_s = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Problem(body?.error?.message ?? `The server answered with status ${response.status}.`, {
    status: response.status,
    code: body?.error?.code ?? null,
    retryAfter_s: Number.isFinite(wait_s) ? wait_s : null,
  });
}
