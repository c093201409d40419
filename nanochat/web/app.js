// The chat page.   in: the document   out: everything at work   who calls: index.html
//
// Each module has one subject and knows nothing of the others; here they are introduced.
//   chat.js        the open conversation: branches, answers, what is asked of the server
//   transcript.js  its messages          composer.js  where one writes
//   sidebar.js     all conversations     settings.js  sampling, words before, key
//   store.js       what this browser keeps
// Read next: chat.js.

import { Problem } from "./api.js";
import { Chat } from "./chat.js";
import { copyText } from "./clipboard.js";
import { Composer } from "./composer.js";
import { confirmed, openDialog } from "./dialogs.js";
import { byId } from "./dom.js";
import { helpList, setUpKeys } from "./keys.js";
import { Meter } from "./meter.js";
import { Models } from "./models.js";
import { forgetTries, problemBox } from "./problem.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { say } from "./status.js";
import { Store } from "./store.js";
import { setUpTheme } from "./theme.js";
import { wordsOnly } from "./tools.js";
import { download, exported, takeIn } from "./transfer.js";
import { Transcript } from "./transcript.js";

const FULL = "This browser has no room to keep more: what is new is lost when this tab closes. Delete conversations, then try again.";

const store = await Store.open();
const models = new Models(byId("model"));
const meter = new Meter(byId("meter"));

const settings = new Settings(
  { fields: byId("fields"), stop: byId("stop-texts"), key: byId("api-key"), system: byId("system"), reset: byId("reset") },
  { onSystem: (text) => chat.conversation && chat.setSystem(text) },
);

const chat = new Chat(store, {
  settings: () => ({ model: models.name, contextLen: models.contextLen, system: settings.system, sampling: settings.sampling }),
  show,
  showAnswer,
  say,
  onDone,
});

const transcript = new Transcript(
  { scroller: byId("scroller"), list: byId("transcript"), latest: byId("latest") },
  {
    edit: (id, text) => start(() => chat.edit(id, text)),
    again: (id) => start(() => chat.again(id)),
    goOn: (id) => start(() => chat.goOn(id)),
    choose: async (id, by) => {
      await chat.choose(id);
      const label = by < 0 ? "Previous version" : "Next version";
      transcript.viewOf(id)?.node.querySelector(`button[aria-label="${label}"]`)?.focus();
    },
  },
);

const composer = new Composer(
  { form: byId("composer"), area: byId("question"), send: byId("send"), stop: byId("stop") },
  store,
  { send: (text) => start(() => chat.send(text)), stop: () => chat.stop(), editLast: () => transcript.editLast() },
);

const sidebar = new Sidebar(
  {
    app: byId("app"), sidebar: byId("sidebar"), main: byId("main"), list: byId("conversations"), search: byId("search"),
    toggle: byId("toggle-sidebar"), close: byId("close-sidebar"), backdrop: byId("backdrop"),
  },
  { open, rename, remove, textOf: async (id) => (await store.messages(id)).map(({ content }) => wordsOnly(content)).join(" ") },
);

// ------------------------------------------------------------------------------------- what happens

/** Ask for something that the server answers; the model is looked for if it was not there before. */
async function start(ask) {
  byId("notice").replaceChildren();
  try {
    if (models.name === "") settings.showDefaults(await models.load());
  } catch {
    // asking tells what is wrong, with a way to try again
  }
  const done = ask();
  transcript.follower.toEnd();
  composer.adopt(chat.id);
  await done;
}

async function open(id) {
  sidebar.chosen();
  if (id !== chat.id && (await chat.open(id))) {
    await composer.change(id);
    show();
    transcript.follower.toEnd();
  }
  if (window.matchMedia("(pointer: fine)").matches) composer.focus();
}

async function newChat() {
  sidebar.chosen();
  chat.begin();
  await composer.change(null);
  show();
  say("A new chat.");
  composer.focus();
}

async function rename(id, title) {
  const row = id === chat.id ? chat.conversation : await store.get("conversations", id);
  row.title = title;
  await store.put("conversations", row);
  show();
}

async function remove(id, title) {
  const isSure = await confirmed(byId("confirm"), "Delete this conversation?", `\u201c${title}\u201d and all its answers will be gone from this browser.`, "Delete");
  if (!isSure) return;
  const wasOpen = id === chat.id;
  await chat.remove(id);
  if (wasOpen) await newChat();
  else await showList();
  say("The conversation is deleted.");
}

function onDone(id, { message, problem }) {
  if (problem === null) forgetTries();
  if (id === chat.id) show();
  else showList();
  if (problem) say(problem.message);
  else say(`${message.finish === "stopped" ? "Stopped." : "The answer is complete."}${store.isBehind ? " It is not kept." : ""}`);
}

// ------------------------------------------------------------------------------------ what is shown

function show() {
  const { path, answer } = chat;
  byId("welcome").hidden = path.length > 0;
  byId("title").hidden = path.length === 0;
  byId("title").textContent = chat.conversation?.title ?? "";
  const place = chat.id === null ? "/" : `#${chat.id}`;
  if (location.hash !== place.replace("/", "")) history.replaceState(null, "", place); // a reload opens it again
  document.title = chat.conversation ? `${chat.conversation.title} \u00b7 nanochat` : "nanochat";
  transcript.show(chat);
  composer.showWriting(answer !== undefined);
  settings.show(chat.conversation);
  if (answer) showMeter(answer);
  else showMeter(null);
  showList();
}

async function showList() {
  sidebar.show(await store.conversations(), chat.id, (id) => chat.isWriting(id));
}

function showAnswer(answer) {
  transcript.showAnswer(answer);
  showMeter(answer);
}

let usedBefore = 0; // tokens up to the last answer that was counted
let isMeterDue = false;

function showMeter(answer) {
  if (answer && isMeterDue) return;
  const draw = () => {
    isMeterDue = false;
    const usage = chat.path.findLast((message) => message.usage)?.usage;
    usedBefore = usage ? usage.prompt + usage.completion : 0;
    const isHere = answer !== null && chat.answer === answer;
    meter.show(usedBefore + (isHere ? answer.numPieces : 0), models.contextLen, isHere ? answer.rate : null);
  };
  if (answer === null) draw();
  else {
    isMeterDue = true;
    setTimeout(draw, 200);
  }
}

function notice(problem, retry) {
  byId("notice").replaceChildren(...(problem === null ? [] : [problemBox(problem, retry)]));
  if (problem) say(problem.message);
}

/** The browser has no room, or has it again. */
function onTrouble(error) {
  if (error === null) notice(null);
  else if (byId("notice").childElementCount === 0) notice(new Problem(FULL), () => store.catchUp());
}

async function findModels() {
  notice(null);
  try {
    settings.showDefaults(await models.load());
  } catch (problem) {
    notice(problem, findModels);
  }
  showMeter(null);
}

// --------------------------------------------------------------------------------- buttons and keys

function copyLast() {
  const last = chat.path.findLast(({ role }) => role === "assistant");
  const node = last && transcript.viewOf(last.id)?.node.querySelector("button[aria-label=Copy]");
  if (node) copyText(wordsOnly(last.content), node);
}

function again() {
  const last = chat.path.at(-1);
  if (last) start(() => chat.again(last.id));
}

async function importFile() {
  const [file] = byId("import-file").files;
  byId("import-file").value = "";
  if (!file) return;
  try {
    const num = await takeIn(store, file);
    say(num === 1 ? "1 conversation was read." : `${num} conversations were read.`);
    byId("transfer-words").textContent = `${num} read from ${file.name}.`;
    if (chat.id !== null) await chat.refresh(); // it may have been joined with what was read
  } catch (error) {
    byId("transfer-words").textContent = `Nothing was read: ${error.message}.`;
    say(`Nothing was read: ${error.message}.`);
  }
  show();
}

const showSettings = () => openDialog(byId("settings"));
const showHelp = () => openDialog(byId("help"));

byId("key-form").addEventListener("submit", (event) => event.preventDefault());
setUpTheme(byId("theme"));
setUpKeys({
  newChat, again, copyLast, help: showHelp, settings: showSettings,
  search: () => sidebar.search(),
  sidebar: () => sidebar.toggle(),
  focus: () => composer.focus(),
  stop: () => chat.stop(),
});
byId("shortcuts").append(...helpList());
byId("new-chat").addEventListener("click", newChat);
byId("new-chat-bar").addEventListener("click", newChat);
byId("open-settings").addEventListener("click", showSettings);
byId("open-help").addEventListener("click", showHelp);
byId("settings").addEventListener("close", () => models.name === "" && findModels());
byId("export").addEventListener("click", async () => {
  download(await exported(store), `nanochat-${new Date().toISOString().slice(0, 10)}.json`);
  say("All conversations are in the file.");
});
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", importFile);
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => start(() => chat.send(idea.dataset.text)));
}
store.onChange(async (id) => {
  if (id === chat.id && !(await chat.refresh())) await newChat();
  else show();
});

store.onTrouble(onTrouble);
if (!store.isKept) byId("not-kept").hidden = false;
const wanted = location.hash.slice(1);
if (wanted !== "" && (await chat.open(wanted))) await composer.change(wanted);
else await composer.restore();
show();
transcript.follower.toEnd();
if (window.matchMedia("(pointer: fine)").matches) composer.focus();
document.documentElement.dataset.ready = "";
await findModels();
