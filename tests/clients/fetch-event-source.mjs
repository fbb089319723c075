// The npm package `@microsoft/fetch-event-source`: node fetch-event-source.mjs URL [two-lines]; one JSON line per thing
// that it reports. `two-lines`: with those that docs/clients.md asks for. It is written for browsers and asks for a
// window and a document; nothing else of them is used.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = (await import("@microsoft/fetch-event-source")).default;

const [url, mode] = process.argv.slice(2);
const twoLines = mode === "two-lines";
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

await fetchEventSource(url, {
  async onopen(response) {
    say({ kind: "open", status: response.status });
    if (!response.ok) throw new Error(`status ${response.status}`);
  },
  onmessage(event) {
    if (twoLines && event.event.startsWith("sidestream.")) return;
    say({ kind: "event", name: event.event || "message", data: event.data, id: event.id });
  },
  onclose() {
    say({ kind: "close" });
    if (twoLines) throw new Error("come back");
  },
  onerror(error) {
    say({ kind: "error", message: String(error) }); // returning nothing means: try again after the usual interval
  },
});
say({ kind: "done" });
