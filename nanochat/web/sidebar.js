// The list of conversations.   in: conversations   out: a list to open, search, rename, delete
// who calls: app.js
//
// On a narrow page it is a drawer over the conversation, which cannot be reached meanwhile.

import { make, setAttribute } from "./dom.js";
import { iconButton } from "./icons.js";
import { keep, recall } from "./keep.js";
import { say } from "./status.js";

const WIDE = window.matchMedia("(min-width: 56rem)");
const DAY_MS = 24 * 3600 * 1000;

export class Sidebar {
  #conversations = [];
  #open = null;
  #isWriting = () => false;
  #words = new Map(); // conversation id -> all its text in lower case, for the search

  /** `nodes`: {app, sidebar, main, list, search, toggle, close, backdrop};
   *  `actions`: open(id), rename(id, title), remove(id), textOf(id). */
  constructor(nodes, actions) {
    Object.assign(this, { nodes, actions });
    nodes.search.addEventListener("input", () => this.#search());
    nodes.search.addEventListener("keydown", (event) => this.#onSearchKey(event));
    nodes.toggle.addEventListener("click", () => this.toggle());
    nodes.close.addEventListener("click", () => this.toggle(false));
    nodes.backdrop.addEventListener("click", () => this.toggle(false));
    nodes.sidebar.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !WIDE.matches && !event.defaultPrevented) this.toggle(false);
    });
    WIDE.addEventListener("change", () => this.#show(WIDE.matches && recall("sidebar") !== "closed"));
    this.#show(WIDE.matches && recall("sidebar") !== "closed");
  }

  /** Open or close it. */
  toggle(isShown = !this.isShown) {
    if (WIDE.matches) keep("sidebar", isShown ? null : "closed");
    this.#show(isShown);
    if (isShown && !WIDE.matches) this.nodes.close.focus();
    else if (!isShown) this.nodes.toggle.focus();
  }

  /** Close the drawer once something was chosen in it. */
  chosen() {
    if (!WIDE.matches && this.isShown) this.#show(false);
  }

  /** Go to the search. */
  search() {
    this.#show(true);
    this.nodes.search.focus();
    this.nodes.search.select();
  }

  /** Show these; `open`: the id of the one that is open. */
  show(conversations, open, isWriting) {
    for (const { id, updated } of conversations) if (this.#words.get(id)?.updated !== updated) this.#words.delete(id);
    this.#conversations = conversations;
    this.#open = open;
    this.#isWriting = isWriting;
    if (this.nodes.list.querySelector("input") === null) this.#draw(); // none is being renamed
  }

  #show(isShown) {
    this.isShown = isShown;
    this.nodes.app.classList.toggle("has-sidebar", isShown);
    this.nodes.sidebar.hidden = !isShown;
    const isDrawer = isShown && !WIDE.matches;
    this.nodes.backdrop.hidden = !isDrawer;
    this.nodes.main.inert = isDrawer;
    setAttribute(this.nodes.toggle, "aria-expanded", isShown ? "true" : "false");
  }

  async #search() {
    const query = this.nodes.search.value.trim();
    if (query !== "") await Promise.all(this.#conversations.map((conversation) => this.#read(conversation)));
    this.#draw();
    const num = this.nodes.list.querySelectorAll(".conversation").length;
    if (query !== "") say(num === 1 ? "1 conversation found." : `${num} conversations found.`);
  }

  async #read({ id, updated }) {
    if (!this.#words.has(id)) this.#words.set(id, { updated, text: (await this.actions.textOf(id)).toLowerCase() });
  }

  #onSearchKey(event) {
    if (event.key === "Escape" && this.nodes.search.value !== "") {
      event.preventDefault();
      this.nodes.search.value = "";
      this.#draw();
    } else if (event.key === "Enter" && !event.isComposing) {
      this.#openFirst();
    }
  }

  /** Once it is found: what was typed last may still be looked for. */
  async #openFirst() {
    await this.#search();
    this.nodes.list.querySelector(".open-conversation")?.click();
  }

  #found() {
    const words = this.nodes.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return this.#conversations.filter(({ id, title }) => {
      const text = `${title.toLowerCase()} ${this.#words.get(id)?.text ?? ""}`;
      return words.every((word) => text.includes(word));
    });
  }

  #draw() {
    const groups = new Map();
    for (const conversation of this.#found()) {
      const name = ageOf(conversation.updated);
      groups.set(name, [...(groups.get(name) ?? []), conversation]);
    }
    const nodes = [...groups].map(([name, list], at) => make(
      "section",
      { class: "group", "aria-labelledby": `group-${at}` },
      make("h2", { class: "group-name", id: `group-${at}`, text: name }),
      make("ul", {}, ...list.map((conversation) => this.#item(conversation))),
    ));
    if (nodes.length === 0) {
      const isSearch = this.nodes.search.value.trim() !== "";
      nodes.push(make("p", { class: "nothing", text: isSearch ? "Nothing found." : "Conversations will be kept here, in this browser." }));
    }
    const focused = document.activeElement?.closest?.(".conversation")?.dataset.id;
    this.nodes.list.replaceChildren(...nodes);
    if (focused) this.nodes.list.querySelector(`[data-id="${focused}"] .open-conversation`)?.focus();
  }

  #item({ id, title }) {
    const isOpen = id === this.#open;
    const open = make("button", { type: "button", class: "open-conversation", title, "aria-current": isOpen ? "page" : null, on: { click: () => this.actions.open(id) } }, make("span", { class: "conversation-title", text: title }));
    if (this.#isWriting(id)) open.append(make("span", { class: "pulse", role: "img", "aria-label": "is being answered" }));
    const item = make(
      "li",
      { class: isOpen ? "conversation is-open" : "conversation", "data-id": id },
      open,
      iconButton("edit", `Rename ${title}`, () => this.#rename(item, id, title), "on-row"),
      iconButton("remove", `Delete ${title}`, () => this.actions.remove(id, title), "on-row"),
    );
    return item;
  }

  #rename(item, id, title) {
    const input = make("input", { type: "text", class: "field rename", "aria-label": "New name", maxlength: 200 });
    input.value = title;
    let isOver = false;
    const end = (isKept) => {
      if (isOver) return;
      isOver = true;
      input.remove();
      if (isKept && input.value.trim() !== "" && input.value.trim() !== title) this.actions.rename(id, input.value.trim());
      this.#draw();
      this.nodes.list.querySelector(`[data-id="${id}"] .open-conversation`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        end(event.key === "Enter");
      }
    });
    input.addEventListener("blur", () => end(true));
    item.replaceChildren(input);
    input.focus();
    input.select();
  }
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY_MS) return "Yesterday";
  if (time >= midnight - 7 * DAY_MS) return "The last seven days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
