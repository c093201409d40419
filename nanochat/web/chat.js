// The open conversation and what can be done with it.   in: what a person asks for
// out: messages in the store, changes for the page to show   who calls: app.js
//
// Answers go on being written when another conversation is opened; each conversation has at most
// one at a time.  The oldest turns are left unread when a conversation outgrows the model's context.
// Read next: tree.js (branches), answer.js (one answer), transcript.js (what is shown).

import { Answer } from "./answer.js";
import { wordsOnly } from "./tools.js";
import { Tree } from "./tree.js";

const READ_SHARE = 0.75; // more of the context than this is not filled with what was said
const STALE_MS = 5000; // an answer not saved for so long is not being written any more
const MAX_TITLE = 60;

export class Chat {
  #answers = new Map(); // conversation id -> Answer that is being written
  #problems = new Map(); // message id -> Problem that left it without an answer, or cut it
  #tokensPerCharacter = 0.3; // measured from each answer

  /** `settings()`: {model, contextLen, system, sampling}; `show()` and `showAnswer(answer)`: the page. */
  constructor(store, { settings, show, showAnswer, say, onDone }) {
    Object.assign(this, { store, settings, show, showAnswer, say, onDone });
    this.begin();
  }

  /** An empty conversation, which is kept once something is said in it. */
  begin() {
    this.conversation = null;
    this.tree = new Tree();
  }

  get id() {
    return this.conversation?.id ?? null;
  }

  /** The messages on the branch that is shown. */
  get path() {
    return this.tree.path(this.conversation?.leaf ?? null);
  }

  /** The answer that is being written here, or undefined. */
  get answer() {
    return this.#answers.get(this.id);
  }

  isWriting(id) {
    return this.#answers.has(id);
  }

  problemOf(id) {
    return this.#problems.get(id);
  }

  /** Open a conversation; false if it is not there any more. */
  async open(id) {
    const [conversation, messages] = await Promise.all([this.store.get("conversations", id), this.store.messages(id)]);
    if (!conversation) return false;
    this.conversation = conversation;
    this.tree = new Tree(messages.map(settled));
    if (this.answer) this.tree.add(this.answer.message);
    if (!this.tree.get(conversation.leaf)) conversation.leaf = this.tree.newestLeaf();
    return true;
  }

  /** Take over what another tab has written here; false if it has removed the conversation. */
  async refresh() {
    const { id, conversation } = this;
    const [kept, messages] = await Promise.all([this.store.get("conversations", id), this.store.messages(id)]);
    if (this.id !== id) return true;
    if (!kept) return false;
    conversation.title = kept.title;
    conversation.updated = Math.max(conversation.updated, kept.updated);
    for (const message of messages) if (message.id !== this.answer?.message.id) this.tree.add(message);
    return true;
  }

  /** Say something, and have it answered. */
  async send(text) {
    if (this.answer) return;
    this.#beConversation(text);
    const last = this.tree.get(this.conversation.leaf);
    // What was never answered stays as a branch: a model reads questions and answers in turns.
    await this.#say(text, last?.role === "user" ? last.parent : (last?.id ?? null));
  }

  /** Say something else in place of a message; what was there stays as a branch. */
  async edit(id, text) {
    if (!this.answer) await this.#say(text, this.tree.get(id).parent);
  }

  /** Have a question answered anew, given it or an answer to it. */
  async again(id) {
    if (this.answer) return;
    const message = this.tree.get(id);
    await this.#write(message.role === "user" ? id : message.parent, null);
  }

  /** Have an answer that was cut go on. */
  async goOn(id) {
    if (!this.answer) await this.#write(this.tree.get(id).parent, this.tree.get(id));
  }

  stop() {
    this.answer?.stop();
  }

  /** Show the branch through a message. */
  async choose(id) {
    this.conversation.leaf = this.tree.newestLeaf(id);
    await this.#keep();
    this.show();
  }

  /** Give the conversation its own words for the model to begin with. */
  async setSystem(system) {
    this.conversation.system = system;
    await this.#keep();
  }

  /** End what is being written in a conversation, and forget all of it. */
  async remove(id) {
    this.#answers.get(id)?.stop();
    this.#answers.delete(id);
    await this.store.removeConversation(id);
    if (this.id === id) this.begin();
  }

  #beConversation(text) {
    if (this.conversation !== null) return;
    const now = Date.now();
    this.conversation = { id: newId(), title: titleOf(text), created: now, updated: now, leaf: null, system: this.settings().system };
    this.tree = new Tree();
  }

  async #say(text, parent) {
    const message = newMessage("user", parent, text, this.id);
    this.tree.add(message);
    this.conversation.leaf = message.id;
    await Promise.all([this.store.put("messages", message), this.#write(message.id, null)]);
  }

  /** Have the question `parent` answered; `cut`: the answer that goes on, or null for a new one. */
  async #write(parent, cut) {
    const { conversation, tree } = this;
    const message = cut ?? newMessage("assistant", parent, "", conversation.id);
    const numBefore = cut?.usage?.completion ?? 0; // its tokens are of the prompt now, and stay its own
    Object.assign(message, { model: this.settings().model, finish: null, usage: null });
    this.#problems.delete(parent);
    this.#problems.delete(message.id);
    tree.add(message);
    conversation.leaf = message.id;
    const answer = new Answer(message, {
      save: (row) => this.#answers.get(conversation.id) === answer && this.store.put("messages", row),
      onChange: () => this.id === conversation.id && this.showAnswer(answer),
    });
    this.#answers.set(conversation.id, answer);
    conversation.updated = Date.now();
    this.show();
    this.say("The model is answering.");
    await this.#keep(conversation);
    const problem = await this.#ask(answer, tree.path(parent), cut);
    if (this.#answers.get(conversation.id) !== answer) return; // removed meanwhile
    this.#answers.delete(conversation.id);
    if (message.usage && cut) {
      message.usage.prompt -= numBefore;
      message.usage.completion += numBefore;
    }
    await this.#settle(message, problem, { conversation, tree, parent });
  }

  async #ask(answer, path, cut) {
    let numForgotten = this.#numForgotten(path);
    for (;;) {
      answer.message.numForgotten = numForgotten;
      const read = path.slice(numForgotten);
      const problem = await answer.run(this.#body(read), { goesOn: cut !== null });
      if (answer.message.usage && !cut) {
        this.#tokensPerCharacter = answer.message.usage.prompt / Math.max(1, lengthOf(read));
      }
      if (problem?.code !== "context_length_exceeded" || read.length < 3) return problem;
      numForgotten += 2;
    }
  }

  async #settle(message, problem, { conversation, tree, parent }) {
    const isEmpty = message.content === "" && message.finish !== "stop" && message.finish !== "length";
    if (isEmpty) {
      tree.remove(message.id);
      if (conversation.leaf === message.id) conversation.leaf = parent;
      await this.store.remove("messages", message.id);
    } else await this.store.put("messages", message);
    if (problem) this.#problems.set(isEmpty ? parent : message.id, problem);
    await this.#keep(conversation);
    this.onDone(conversation.id, { message, problem });
  }

  #body(path) {
    const { model, sampling } = this.settings();
    const { system } = this.conversation ?? {};
    const messages = path.map(({ role, content }) => ({ role, content: role === "assistant" ? wordsOnly(content) : content }));
    if (system) messages.unshift({ role: "system", content: system });
    return { model, messages, ...sampling };
  }

  /** How many of the oldest messages do not fit, by what a character has cost so far. */
  #numForgotten(path) {
    const { contextLen } = this.settings();
    const room = contextLen === null ? Infinity : (READ_SHARE * contextLen) / this.#tokensPerCharacter;
    let num = 0;
    while (path.length - num > 2 && lengthOf(path.slice(num)) > room) num += 2;
    return num;
  }

  async #keep(conversation = this.conversation) {
    await this.store.put("conversations", conversation);
  }
}

function newMessage(role, parent, content, conversation) {
  return { id: newId(), conversation, parent, role, content, created: Date.now(), updated: Date.now(), finish: null, usage: null };
}

/** As it was left: an answer that nobody writes any more was broken off. */
function settled(message) {
  const isLeft = message.role === "assistant" && message.finish === null && Date.now() - message.updated > STALE_MS;
  return isLeft ? { ...message, finish: "broken" } : message;
}

function lengthOf(messages) {
  return messages.reduce((sum, { content }) => sum + content.length, 0);
}

/** What a conversation is called until it is renamed. */
function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE - 1).trimEnd()}\u2026` : line;
}

/** randomUUID is there on https and on this machine alone. */
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
