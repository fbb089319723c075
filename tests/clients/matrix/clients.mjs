// One JavaScript client library, used as its README says: node clients.mjs LIBRARY URL.
//
// All that the library passes to its user is one line of JSON: {"kind":"event","name","data","id"} for an event,
// {"kind":"error","message"} for an error after which it goes on, {"kind":"over","message"} when it has stopped for good.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const [, , library, url] = process.argv;
const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const text = (error) => String(error?.message ?? error?.type ?? error).slice(0, 160);

/** Prints an event; the event `END` ends the program. */
function event(name, data, id) {
  print({ kind: "event", name: name || "message", data, id });
  if (data === "END") process.stdout.write("", () => process.exit(0));
}
const failed = (error) => print({ kind: "error", message: text(error) });
const over = (why) => print({ kind: "over", message: text(why) });
for (const uncaught of ["uncaughtException", "unhandledRejection"]) process.on(uncaught, over);

// A library that has stopped may leave nothing to wait for; the program ends when it is killed.
setInterval(() => {}, 1000);

// What an application listens to. `sidestream.position` is among them only where a library needs that.
const NAMES = ["message", "sidestream.gap", "sidestream.close", "sidestream.end"];

/** Everything with the interface of an EventSource. */
function listen(source, names = NAMES) {
  for (const name of names) source.addEventListener(name, (given) => event(name, given.data, given.lastEventId));
  source.addEventListener("error", (error) => (source.readyState === 2 ? over("closed") : failed(error)));
}

/** `fetch` with the User-Agent of a browser. */
const asBrowser = (input, init) =>
  fetch(input, { ...init, headers: { ...init?.headers, "User-Agent": "Mozilla/5.0 (service)" } });

/** `@microsoft/fetch-event-source` asks for a window and a document and uses nothing else of them. */
async function fetchEventSource(more) {
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource: follow } = require("@microsoft/fetch-event-source");
  const onmessage = (given) => event(given.event, given.data, given.id);
  await follow(url, { openWhenHidden: true, onmessage, onerror: failed, ...more }).then(() => over("resolved"), over);
}

const libraries = {
  "eventsource-1": async () => listen(new (require("es1"))(url)),
  "eventsource-2": async () => listen(new (require("es2"))(url)),
  "eventsource-3": async () => listen(new (await import("es3")).EventSource(url)),
  "eventsource-4": async () => listen(new (await import("es4")).EventSource(url)),
  "eventsource-4-browser": async () => listen(new (await import("es4")).EventSource(url, { fetch: asBrowser })),
  undici: async () => listen(new (require("undici").EventSource)(url)),
  polyfill: async () => listen(new (require("event-source-polyfill").EventSourcePolyfill)(url)),
  reconnecting: async () => {
    const { default: ReconnectingEventSource } = require("reconnecting-eventsource");
    const eventSourceClass = (await import("es4")).EventSource;
    const source = new ReconnectingEventSource(url, { eventSourceClass, max_retry_time: 3000 });
    // Its position is that of the last event to which somebody listens.
    listen(source, [...NAMES, "sidestream.position"]);
  },
  "fetch-event-source": () => fetchEventSource({}),
  "fetch-event-source-two-lines": () =>
    fetchEventSource({
      onmessage(given) {
        if (given.event.startsWith("sidestream.") && !NAMES.includes(given.event)) return;
        event(given.event, given.data, given.id);
      },
      onclose() {
        throw new Error("come back");
      },
    }),
  "eventsource-client": async () => {
    const { createEventSource } = await import("eventsource-client");
    const onMessage = (given) => event(given.event, given.data, given.id);
    createEventSource({ url, onMessage, onDisconnect: () => failed("disconnected") });
  },
  launchdarkly: async () => {
    const { EventSource } = require("launchdarkly-eventsource");
    listen(new EventSource(url, { errorFilter: () => true, initialRetryDelayMillis: 500 }));
  },
  plus: async () => {
    const { EventSourcePlus } = await import("event-source-plus");
    new EventSourcePlus(url).listen({
      onMessage: (given) => event(given.event, given.data, given.id),
      onRequestError: ({ error }) => failed(error),
      onResponseError: ({ response }) => failed(`status ${response.status}`),
    });
  },
  extended: async () => listen(new (await import("extended-eventsource")).EventSource(url, { retry: 500 })),
  parser: async () => {
    const { EventSourceParserStream } = await import("eventsource-parser/stream");
    let last = "";
    for (;;) {
      try {
        const response = await fetch(url, { headers: last ? { "Last-Event-ID": last } : {} });
        if (response.status !== 200) throw new Error(`status ${response.status}`);
        const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
        for await (const given of events) {
          last = given.id || last;
          event(given.event, given.data, given.id);
        }
      } catch (error) {
        failed(error);
      }
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
  },
  source: async () => listen(new (await import("../../../clients/js/dist/index.js")).SidestreamSource(url)),
  follow: async () => {
    const { follow } = await import("../../../clients/js/dist/index.js");
    await follow(url, {
      onEvent: (given) => event(given.event, given.data, given.id),
      onGap: (gap) => event("sidestream.gap", JSON.stringify(gap), ""),
    }).then(() => over("resolved"), over);
  },
};
libraries[library]().catch(over);
