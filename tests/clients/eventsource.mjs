// The npm package `eventsource`: node eventsource.mjs URL... [EVENT...] [--browser]; one JSON line per thing that it
// reports, `source` is the place of the URL. `--browser`: with a browser's User-Agent, as docs/clients.md advises.
import { EventSource } from "eventsource";

const given = process.argv.slice(2);
const isUrl = (text) => text.includes("://");
const names = given.filter((text) => !isUrl(text) && !text.startsWith("--"));
const agent = { "User-Agent": "Mozilla/5.0 (my-service)" };
const browser = { fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...agent } }) };
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

for (const [source, url] of given.filter(isUrl).entries()) {
  const events = new EventSource(url, given.includes("--browser") ? browser : {});
  events.onopen = () => say({ source, kind: "open" });
  events.onerror = (error) => say({ source, kind: "error", state: events.readyState, code: error.code ?? null });
  for (const name of ["message", ...names]) {
    events.addEventListener(name, (event) =>
      say({ source, kind: "event", name: event.type, data: event.data, id: event.lastEventId }));
  }
}
