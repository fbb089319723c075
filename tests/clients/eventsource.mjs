// The npm package `eventsource`: node eventsource.mjs URL [EVENT...]; one JSON line per thing that it reports.
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const source = new EventSource(url);
source.onopen = () => say({ kind: "open" });
source.onerror = (error) => say({ kind: "error", state: source.readyState, code: error.code ?? null });
for (const name of ["message", ...names]) {
  source.addEventListener(name, (event) =>
    say({ kind: "event", name: event.type, data: event.data, id: event.lastEventId }));
}
