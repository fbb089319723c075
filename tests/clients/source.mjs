// `SidestreamSource` of clients/js: node source.mjs URL [OPTIONS as JSON]; one JSON line per thing that it reports.
import { SidestreamSource } from "../../clients/js/dist/index.js";

const [url, options = "{}"] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const source = new SidestreamSource(url, JSON.parse(options));
source.onopen = () => say({ kind: "open" });
source.onerror = ({ cause }) => say({ kind: "error", state: source.readyState, cause: cause && String(cause) });
for (const name of ["message", "sidestream.gap"]) {
  source.addEventListener(name, ({ type, data, lastEventId }) => say({ kind: "event", name: type, data, id: lastEventId }));
}
