// Messages with their branches.   in: messages   out: what is shown, and what else there is
// who calls: app.js
//
// A message names the one before it.  Editing or asking again adds a sibling, and nothing is lost:
// a conversation is the tree of its messages, and what one sees is the path to one of its leaves.
// Read next: store.js (where messages are kept).

export class Tree {
  #messages = new Map();
  #children = new Map([[null, []]]);

  constructor(messages = []) {
    for (const message of [...messages].sort((a, b) => a.created - b.created)) this.add(message);
  }

  /** Add a message, or put a newer state of one in its place. */
  add(message) {
    const isNew = !this.#messages.has(message.id);
    this.#messages.set(message.id, message);
    if (!this.#children.has(message.id)) this.#children.set(message.id, []);
    if (!this.#children.has(message.parent)) this.#children.set(message.parent, []);
    if (isNew) this.#children.get(message.parent).push(message.id);
  }

  /** Take back a message that has no answers. */
  remove(id) {
    const siblings = this.siblings(id);
    siblings.splice(siblings.indexOf(id), 1);
    this.#messages.delete(id);
    this.#children.delete(id);
  }

  get(id) {
    return this.#messages.get(id);
  }

  get size() {
    return this.#messages.size;
  }

  /** All messages, oldest first. */
  all() {
    return [...this.#messages.values()];
  }

  /** The ids of the messages that follow this one; null: the beginnings. */
  children(id) {
    return this.#children.get(id) ?? [];
  }

  /** The ids of all messages in this one's place, in the order they were written. */
  siblings(id) {
    return this.children(this.#messages.get(id).parent);
  }

  /** The messages from a beginning to this one; a ring or a gap in damaged data ends it. */
  path(leaf) {
    const path = [];
    const seen = new Set();
    for (let id = leaf; this.#messages.has(id) && !seen.has(id); id = this.get(id).parent) {
      seen.add(id);
      path.push(this.get(id));
    }
    return path.reverse();
  }

  /** Where the newest branch below this message ends, or a ring closes; null begins at the beginnings. */
  newestLeaf(id = null) {
    const seen = new Set();
    let leaf = id;
    for (let next = id; next !== undefined && !seen.has(next); next = this.children(leaf).at(-1)) {
      seen.add(next);
      leaf = next;
    }
    return leaf;
  }
}
