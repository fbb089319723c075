// `follow` of clients/js with bearer tokens: node follow.mjs URL ISSUER SECONDS; one JSON line per thing that it
// reports. ISSUER is one of tests/issuer; its tokens live for SECONDS.
import { follow } from "../../clients/js/dist/index.js";
import { accessToken } from "../issuer/token.mjs";

const [url, issuer, seconds] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

await follow(url, {
  headers: async () => ({ Authorization: `Bearer ${await accessToken(issuer, seconds)}` }),
  onEvent: ({ id, event, data }) => say({ kind: "event", name: event, data, id }),
  onGap: (gap) => say({ kind: "event", name: "sidestream.gap", data: JSON.stringify(gap) }),
  onClose: (close) => say({ kind: "event", name: "sidestream.close", data: JSON.stringify(close) }),
  onRenew: (renewal) => say({ kind: "event", name: "sidestream.renew", data: JSON.stringify(renewal) }),
  onState: ({ state, cause }) => say({ kind: state, cause: cause && String(cause) }),
});
say({ kind: "done" });
