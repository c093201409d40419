// The messages of the open conversation.   in: a Chat   out: articles, kept in step with it
// who calls: app.js
//
// What grows is drawn once a frame at most, and never for more than a quarter of the time: a slow
// machine draws less often, and stays quick to the touch.
// Read next: message.js (one of them), follow.js (scrolling), problem.js.

import { make } from "./dom.js";
import { Follower } from "./follow.js";
import { MessageView } from "./message.js";
import { problemBox } from "./problem.js";

const REST = 3; // times as long as the last drawing took

export class Transcript {
  #views = new Map();
  #isDue = false;
  #notBefore = 0;

  /** `nodes`: {scroller, list, latest}; `actions` as for MessageView. */
  constructor(nodes, actions) {
    this.list = nodes.list;
    this.actions = actions;
    this.follower = new Follower(nodes.scroller, nodes.list, nodes.latest);
  }

  /** Show the branch that is chosen. */
  show(chat) {
    this.chat = chat;
    const { path, answer } = chat;
    const views = path.map((message, at) => this.#view(message, {
      siblings: chat.tree.siblings(message.id),
      isLast: at === path.length - 1,
      isWriting: answer?.message.id === message.id,
      isBusy: answer !== undefined,
      problem: chat.problemOf(message.id),
    }));
    const nodes = views.map((view) => view.node);
    const numForgotten = path.at(-1)?.numForgotten ?? 0;
    if (numForgotten > 0) nodes.splice(numForgotten, 0, forgottenLine());
    const end = this.#end(path.at(-1));
    if (end) nodes.push(end);
    this.#arrange(nodes);
    this.#views = new Map(views.map((view) => [view.message.id, view]));
  }

  /** Show more of the answer, with the next frame. */
  showAnswer(answer) {
    if (this.#isDue) return;
    this.#isDue = true;
    const draw = () => {
      if (performance.now() < this.#notBefore) {
        requestAnimationFrame(draw);
        return;
      }
      this.#isDue = false;
      const begun = performance.now();
      const isWriting = this.chat.answer === answer;
      if (isWriting) this.#views.get(answer.message.id)?.showContent(true);
      const ended = performance.now();
      this.#notBefore = ended + REST * (ended - begun);
    };
    requestAnimationFrame(draw);
  }

  /** The view of a message that is shown. */
  viewOf(id) {
    return this.#views.get(id);
  }

  /** Edit the last question. */
  editLast() {
    [...this.#views.values()].findLast((view) => view.isUser)?.beginEdit();
  }

  #view(message, place) {
    const view = this.#views.get(message.id) ?? new MessageView(message, this.actions);
    view.show(message, place);
    return view;
  }

  /** What follows the last message: what went wrong with it, or that nothing came of it. */
  #end(last) {
    if (!last || this.chat.answer) return null;
    const problem = this.chat.problemOf(last.id);
    const retry = () => this.actions.again(last.id);
    if (problem) return problemBox(problem, retry);
    if (last.role === "assistant") return null;
    return make(
      "div",
      { class: "unanswered" },
      make("span", { text: "This was not answered." }),
      make("button", { type: "button", class: "button small", text: "Answer it", on: { click: retry } }),
    );
  }

  /** Put these nodes in this order, and move none that is in its place: focus would be lost. */
  #arrange(nodes) {
    const wanted = new Set(nodes);
    for (const node of [...this.list.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, at) => {
      if (this.list.children[at] !== node) this.list.insertBefore(node, this.list.children[at] ?? null);
    });
  }
}

function forgottenLine() {
  return make("p", { class: "forgotten", text: "What is above no longer fits and is not read" });
}
