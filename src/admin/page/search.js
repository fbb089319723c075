// Search for the event streams of one client: on this pod, or on all pods through presence.
import { $, count, duration, element, plural, setText, showRows } from "./dom.js";
import { clientCells } from "./tables.js";

const REFRESH_MS = 5000;
const LIMIT = 100;

const HEADS = {
  pod: ["Client", "State", "Lag:number", "Oldest:number wide", "Gaps:number", "Sent:number wide", "Route", "Open for:number wide", "Connection:wide"],
  cluster: ["Client", "State", "Pod", "Route", "Since:number", "Subjects:wide", "Last event id:wide"],
};

let timer;
let current = 0;

export function startSearch() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    find($("client").value.trim(), $("scope").value);
  });
  $("clear").addEventListener("click", () => {
    clear();
    $("client").focus();
  });
}

/** Enables the search on all pods. */
export function showScope(hasPresence) {
  $("scope-cluster").disabled = !hasPresence;
  $("scope-help").hidden = hasPresence;
}

/** Shows the event streams of a client. */
export function findClient(client) {
  $("client").value = client;
  find(client, $("scope").value);
}

function clear() {
  clearTimeout(timer);
  current += 1;
  $("client").value = "";
  $("found").hidden = true;
  $("top").hidden = false;
  $("clear").hidden = true;
  setText($("search-problem"), "");
}

async function find(client, scope) {
  clearTimeout(timer);
  current += 1;
  const mine = current;
  if (client === "") return clear();
  const query = new URLSearchParams({ client, limit: LIMIT });
  if (scope === "cluster") query.set("scope", "cluster");
  let body;
  try {
    const response = await fetch(`/connections?${query}`, { cache: "no-store" });
    body = await response.json();
  } catch {
    body = { error: { message: "the sidecar cannot be reached", hint: "" } };
  }
  if (mine !== current) return;
  $("clear").hidden = false;
  if (body.error) {
    const { message, hint } = body.error;
    setText($("search-problem"), [message, hint].filter(Boolean).join(": "));
  } else {
    setText($("search-problem"), "");
    show(client, scope, body);
  }
  // The bucket of all pods is read only when an operator asks.
  if (scope === "pod") timer = setTimeout(() => find(client, scope), REFRESH_MS);
}

function show(client, scope, { connections, total, complete = true }) {
  $("found").hidden = false;
  $("top").hidden = true;
  const where = scope === "cluster" ? "on all pods" : "on this pod";
  const more = total > connections.length || !complete ? `, ${count(connections.length)} shown` : "";
  setText($("found-caption"), `${plural(total, "event stream")} of ${client} ${where}${more}`);
  const head = $("found-head");
  if (head.dataset.scope !== scope) {
    head.dataset.scope = scope;
    const cells = HEADS[scope].map((text) => {
      const [textContent, className = ""] = text.split(":");
      return element("th", { scope: "col", textContent, className });
    });
    head.replaceChildren(element("tr", {}, ...cells));
    $("found-rows").replaceChildren();
  }
  const now = Date.now();
  const cells = scope === "cluster" ? clusterCells : (stream) => clientCells(stream, now, findClient);
  let index = 0;
  showRows($("found-rows"), connections, (stream) => `${stream.connection ?? stream.remote} ${index++}`, cells, "no event stream of this client");
}

function clusterCells(entry) {
  const reason = entry.reason ? ` (${entry.reason})` : "";
  const further = entry.subjects_total - entry.subjects.length;
  const subjects = entry.subjects.join(" ") + (further > 0 ? ` and ${further} more` : "");
  return [
    { text: entry.client, kind: "name" },
    `${entry.state}${reason}`,
    { text: entry.pod, kind: "code" },
    { text: entry.route, kind: "code" },
    { text: duration(Math.max(0, Date.now() - entry.since) / 1000), kind: "number" },
    { text: subjects, kind: "code wide" },
    { text: entry.last_event_id, kind: "code wide" },
  ];
}
