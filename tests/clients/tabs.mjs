// Tabs of Chromium with `SidestreamSource` of clients/js: node tabs.mjs PORT PROFILE URL OPTIONS STEP...
//
// Serves the page on PORT and opens tabs over the DevTools protocol. Prints one JSON line per thing that a tab reports,
// with its number in `tab`, and `{"kind":"done","step","index"}` after each step. Steps:
//   open      opens one more tab
//   crash:N   kills the renderer process of a tab
//   reload:N  reloads a tab
//   freeze:N  suspends a tab, as a browser does with background tabs; thaw:N continues it
//   back:N    leaves the page and goes back, from the back/forward cache
//   events:N  waits until every tab, but a frozen one, has received N more events
//   end       waits until every tab has received the event END, and prints what each has received:
//             `{"tab","kind":"log","events":[...]}`, from sessionStorage, because a report can be lost in a reload
//   finish    reloads every tab once a second until a page finds that its event stream is over: its source ends without an
//             event. Prints what each has received, as `end` does, with `loads`: the number of pages until then
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import http from "node:http";

const [port, profile, url, options, ...steps] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const page = `<!doctype html><meta charset="utf-8"><title>tab</title><script type="module">
import { SidestreamSource } from "/client.js";
const say = (line) => report(JSON.stringify(line));
addEventListener("pageshow", ({ persisted }) => {
  const [entry] = performance.getEntriesByType("navigation");
  say({ kind: "pageshow", persisted, reasons: entry.notRestoredReasons ?? null });
});
const source = new SidestreamSource(${JSON.stringify(url)}, ${options});
source.onopen = () => say({ kind: "open" });
source.onerror = ({ cause }) => say({ kind: "error", state: source.readyState, cause: cause && String(cause) });
for (const name of ["message", "sidestream.gap", "sidestream.end"])
  source.addEventListener(name, ({ type, data, lastEventId }) => {
    sessionStorage.log = (sessionStorage.log ?? "") + (type === "message" ? data : type) + " ";
    say({ kind: "event", name: type, data, id: lastEventId });
  });
</script>`;
const files = {
  "/": ["text/html", page],
  "/away": ["text/html", "<!doctype html><title>away</title>"],
  "/client.js": ["text/javascript", readFileSync(new URL("../../clients/js/dist/index.js", import.meta.url))],
};
const server = http.createServer(({ url }, response) => {
  const [type, body] = files[url] ?? ["text/plain", ""];
  response.writeHead(body ? 200 : 404, { "Content-Type": type }).end(body);
});
await new Promise((resolve) => server.listen(+port, "127.0.0.1", resolve));

const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
  "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
  "--disable-sync", "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank"];
const chromium = spawn(process.env.CHROMIUM ?? "chromium", flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const [, , , commands, answers] = chromium.stdio;
chromium.once("exit", () => process.exit());
// Without its pipe Chromium ends as well, in case this process is killed.
process.on("SIGTERM", () => chromium.kill("SIGTERM"));

/** Requests of the DevTools protocol that wait for their answer, by id. */
const waiting = new Map();
/** Tabs, by the session of the protocol. */
const sessions = new Map();
const tabs = [];
let lastId = 0;

function send(method, params = {}, sessionId = undefined) {
  const id = (lastId += 1);
  commands.write(JSON.stringify({ id, method, params, ...(sessionId && { sessionId }) }) + "\0");
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject, method }));
}

let rest = "";
answers.setEncoding("utf8").on("data", (text) => {
  const messages = (rest + text).split("\0");
  rest = messages.pop();
  messages.map(JSON.parse).forEach(received);
});

function received({ id, result, error, method, params, sessionId }) {
  if (id) {
    const request = waiting.get(id);
    waiting.delete(id);
    if (error) request.reject(new Error(`${request.method}: ${error.message}`));
    else request.resolve(result);
  } else if (method === "Runtime.bindingCalled") {
    const tab = sessions.get(sessionId);
    const line = JSON.parse(params.payload);
    if (line.name === "message") tab.events += 1;
    if (line.data === "END") tab.hasEnded = true;
    if (line.kind === "pageshow") tab.shown += 1;
    if (line.kind === "pageshow") Object.assign(tab, { isOpen: false, isOver: false, hasEnd: false });
    if (line.kind === "open") tab.isOpen = true;
    if (line.name === "sidestream.end") tab.hasEnd = true;
    if (line.kind === "error" && line.state === 2) tab.isOver = true;
    say({ tab: tab.number, ...line });
  } else if (method === "Runtime.exceptionThrown") {
    say({ tab: sessions.get(sessionId).number, kind: "exception", text: JSON.stringify(params.exceptionDetails) });
  }
}

/** Acts, and waits until the page of the tab is shown once more. */
async function showing(tab, act) {
  const before = tab.shown;
  await act();
  while (tab.shown === before) await pause(20);
}

/** Prints what a tab has received in all its pages. */
async function log({ number, sessionId }, more = {}) {
  const { result } = await send("Runtime.evaluate", { expression: "sessionStorage.log" }, sessionId);
  say({ tab: number, kind: "log", events: result.value.trim().split(" "), ...more });
}

const actions = {
  async open() {
    const { targetId } = await send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
    const tab = { number: tabs.length, sessionId, events: 0, shown: 0, isAlive: true };
    tabs.push(tab);
    sessions.set(sessionId, tab);
    await send("Page.enable", {}, sessionId);
    await send("Runtime.enable", {}, sessionId);
    await send("Runtime.addBinding", { name: "report" }, sessionId);
    await showing(tab, () => send("Page.navigate", { url: `http://127.0.0.1:${port}/` }, sessionId));
  },
  async crash(tab) {
    tab.isAlive = false;
    // Not answered: the process is gone.
    send("Page.crash", {}, tab.sessionId).catch(() => {});
  },
  async reload(tab) {
    await showing(tab, () => send("Page.reload", {}, tab.sessionId));
  },
  async back(tab) {
    await send("Page.navigate", { url: `http://127.0.0.1:${port}/away` }, tab.sessionId);
    await pause(1000);
    const { entries, currentIndex } = await send("Page.getNavigationHistory", {}, tab.sessionId);
    const entryId = entries[currentIndex - 1].id;
    await showing(tab, () => send("Page.navigateToHistoryEntry", { entryId }, tab.sessionId));
  },
  async freeze(tab) {
    tab.isFrozen = true;
    await send("Page.setWebLifecycleState", { state: "frozen" }, tab.sessionId);
  },
  async thaw(tab) {
    tab.isFrozen = false;
    await send("Page.setWebLifecycleState", { state: "active" }, tab.sessionId);
  },
  async events(count) {
    const goals = tabs.filter(({ isAlive, isFrozen }) => isAlive && !isFrozen).map((tab) => [tab, tab.events + count]);
    while (goals.some(([tab, goal]) => tab.events < goal)) await pause(20);
  },
  async end() {
    const alive = tabs.filter(({ isAlive }) => isAlive);
    while (alive.some(({ hasEnded }) => !hasEnded)) await pause(20);
    for (const tab of alive) await log(tab);
  },
  async finish() {
    const finish = async (tab) => {
      let loads = 1;
      for (; ; loads += 1) {
        // The tabs reload at different times. A page whose request is not answered is not reloaded.
        const period = pause(900 + 50 * tab.number);
        while (!tab.isOpen && !tab.isOver) await pause(20);
        await period;
        if (tab.isOver && !tab.hasEnd) break;
        await actions.reload(tab);
      }
      await log(tab, { loads });
    };
    await Promise.all(tabs.map(finish));
  },
};
for (const [index, step] of steps.entries()) {
  const [name, number] = step.split(":");
  await actions[name](name === "events" ? +number : tabs[number]);
  say({ kind: "done", step, index });
}
