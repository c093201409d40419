// Conversations, kept in this browser.   in: plain objects   out: the same, from IndexedDB
// who calls: app.js, answering.js, transfer.js
//
//   conversations  {id, title, created, updated, leaf, system}     leaf: the end of the branch shown
//   messages       {id, conversation, parent, role, content, created, model, finish, usage, times}
//   drafts         {id, text}                                      what was typed and not sent
// Every message is a row of its own, so two tabs that write to one conversation lose nothing.  Other
// tabs hear of each change.
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
    this.tables = new Map(STORES.map((name) => [name, new Map()])); // where nothing is kept
    this.channel = new BroadcastChannel(NAME);
  }

  /** Call back with the id of a conversation that another tab has changed. */
  onChange(listener) {
    this.channel.addEventListener("message", ({ data }) => listener(data));
  }

  /** All conversations, the newest first. */
  async conversations() {
    return (await this.all("conversations")).sort((a, b) => b.updated - a.updated);
  }

  /** All messages of a conversation. */
  messages(conversation) {
    if (!this.isKept) {
      return [...this.tables.get("messages").values()].filter((row) => row.conversation === conversation);
    }
    return this.run("messages", "readonly", (store) => store.index("conversation").getAll(conversation));
  }

  /** All rows of a table. */
  all(table) {
    if (!this.isKept) return [...this.tables.get(table).values()];
    return this.run(table, "readonly", (store) => store.getAll());
  }

  get(table, id) {
    if (!this.isKept) return this.tables.get(table).get(id);
    return this.run(table, "readonly", (store) => store.get(id));
  }

  /** Write rows, all or none; `silent`: no other tab needs to know. */
  async put(table, rows, { silent = false } = {}) {
    const list = [rows].flat().map((row) => structuredClone(row));
    if (!this.isKept) list.forEach((row) => this.tables.get(table).set(row.id, row));
    else await this.run(table, "readwrite", (store) => list.map((row) => store.put(row)).at(-1));
    if (!silent) this.tell(list.map((row) => row.conversation ?? row.id));
  }

  async remove(table, id) {
    if (!this.isKept) this.tables.get(table).delete(id);
    else await this.run(table, "readwrite", (store) => store.delete(id));
  }

  /** Remove a conversation with all that belongs to it. */
  async removeConversation(id) {
    for (const message of await this.messages(id)) await this.remove("messages", message.id);
    await this.remove("drafts", id);
    await this.remove("conversations", id);
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
