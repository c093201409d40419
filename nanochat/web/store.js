// Conversations, kept in this browser.   in: plain objects   out: the same, from IndexedDB
// who calls: app.js, chat.js, composer.js, transfer.js
//
//   conversations  {id, title, created, updated, leaf, system}     leaf: the end of the branch shown
//   messages       {id, conversation, parent, role, content, created, model, finish, usage, times}
//   drafts         {id, text}                                      what was typed and not sent
// Every message is a row of its own, so two tabs that write to one conversation lose nothing.  Other
// tabs hear of each change.
// What the browser refuses to write, for want of room, is held until the tab closes and told by
// `onTrouble`; whoever writes is not stopped by it.
// Read next: tree.js (messages -> branches).

const NAME = "nanochat";
const VERSION = 1;
const STORES = ["conversations", "messages", "drafts"];

export class Store {
  /** A store; where the browser keeps nothing, one that lasts until the tab closes. */
  static async open(name = NAME) {
    try {
      return new Store(await openDatabase(name));
    } catch {
      return new Store(null);
    }
  }

  constructor(database) {
    this.database = database;
    this.isKept = database !== null;
    this.tables = new Map(STORES.map((name) => [name, new Map()])); // rows that are not kept
    this.tellTrouble = () => {};
    this.channel = new BroadcastChannel(NAME);
  }

  /** Call back with the id of a conversation that another tab has changed. */
  onChange(listener) {
    this.channel.addEventListener("message", ({ data }) => listener(data));
  }

  /** Call back with an error whenever something could not be kept, with null once all of it is. */
  onTrouble(listener) {
    this.tellTrouble = listener;
  }

  /** Whether there are rows that the browser had no room for. */
  get isBehind() {
    return this.isKept && [...this.tables.values()].some((rows) => rows.size > 0);
  }

  /** All conversations, the newest first. */
  async conversations() {
    return (await this.all("conversations")).sort((a, b) => b.updated - a.updated);
  }

  /** All messages of a conversation. */
  async messages(conversation) {
    const rows = await this.read("messages", (store) => store.index("conversation").getAll(conversation), []);
    return this.withHeld("messages", rows, (row) => row.conversation === conversation);
  }

  /** All rows of a table. */
  async all(table) {
    const rows = await this.read(table, (store) => store.getAll(), []);
    return this.withHeld(table, rows, () => true);
  }

  async get(table, id) {
    const row = await this.read(table, (store) => store.get(id), undefined);
    return this.tables.get(table).get(id) ?? row;
  }

  async read(table, action, nothing) {
    return this.isKept ? this.run(table, "readonly", action) : nothing;
  }

  /** Rows of the database, those that are held in place of their older state. */
  withHeld(table, rows, isWanted) {
    const held = [...this.tables.get(table).values()].filter(isWanted);
    const ids = new Set(held.map(({ id }) => id));
    return [...rows.filter(({ id }) => !ids.has(id)), ...held];
  }

  /** Write rows, all or none; `silent`: no other tab needs to know. */
  async put(table, rows, { silent = false } = {}) {
    const list = [rows].flat().map((row) => structuredClone(row));
    const held = this.tables.get(table);
    const isWritten = await this.change(table, (store) => list.map((row) => store.put(row)).at(-1));
    for (const row of list) if (isWritten) held.delete(row.id); else held.set(row.id, row);
    if (!silent) this.tell(list.map((row) => row.conversation ?? row.id));
  }

  async remove(table, id) {
    this.tables.get(table).delete(id);
    await this.change(table, (store) => store.delete(id));
  }

  /** Whether the database has done it; who listens is told if it should have. */
  async change(table, action) {
    if (!this.isKept) return false;
    try {
      await this.run(table, "readwrite", action);
      return true;
    } catch (error) {
      this.tellTrouble(error);
      return false;
    }
  }

  /** Write what was held, now that there may be room. */
  async catchUp() {
    for (const [table, held] of this.tables) {
      if (held.size > 0) await this.put(table, [...held.values()], { silent: true });
    }
    if (!this.isBehind) this.tellTrouble(null);
  }

  /** Remove a conversation with all that belongs to it. */
  async removeConversation(id) {
    for (const message of await this.messages(id)) await this.remove("messages", message.id);
    await this.remove("drafts", id);
    await this.remove("conversations", id);
    if (this.isBehind) await this.catchUp(); // there is room now
    this.tell([id]);
  }

  tell(ids) {
    for (const id of new Set(ids)) this.channel.postMessage(id);
  }

  /** The result of a request in a transaction of its own, when the transaction is complete. */
  run(table, mode, action) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(table, mode);
      const asked = action(transaction.objectStore(table));
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

function openDatabase(name) {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(name, VERSION);
    asked.onupgradeneeded = () => {
      for (const table of STORES) asked.result.createObjectStore(table, { keyPath: "id" });
      asked.transaction.objectStore("messages").createIndex("conversation", "conversation");
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
