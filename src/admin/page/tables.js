// Tables of the pod: clients, routes, sources, gaps, closes and rejections.
import { $, bytes, count, duration, element, plural, rate, setText, showRows } from "./dom.js";
import { sumBy } from "./history.js";

const CLOSES = {
  client: "the client disconnected",
  drain: "the pod drains; the client continues on another pod",
  age: "the event stream reached max_age",
  slow: "the client read too slowly",
  upstream: "the source is gone, or NATS rejects it",
  cut: "still open at the deadline of a drain",
  expired: "the principal of the client expired",
  revoked: "the credentials or the client were revoked",
  kicked: "ended once by an operator or an application",
  deadline: "the deadline of a gRPC call",
  end: "the client has every event of a finite event stream",
  answered: "a long poll was answered",
};

const number = (text, tone) => ({ text, kind: "number", tone });
const wide = (text, tone) => ({ text, kind: "number wide", tone });
const value = (map, ...labels) => map.get(labels.join("\n")) ?? 0;

/** Cells of an event stream of this pod. */
export function clientCells(stream, now, find) {
  const { lag } = stream;
  const state = stream.slow ? "slow" : stream.state;
  return [
    { text: stream.client, kind: "name", action: () => find(stream.client), title: stream.subjects.join(" ") },
    { text: state, tone: stream.slow ? "warn" : "" },
    number(count(lag.events), stream.slow ? "warn" : ""),
    wide(lag.events > 0 ? duration(lag.seconds) : "–"),
    number(count(stream.gaps), stream.gaps > 0 ? "warn" : ""),
    wide(count(stream.sent.events)),
    { text: stream.route, kind: "code" },
    wide(duration(Math.max(0, now - stream.opened) / 1000)),
    { text: `${stream.remote}, ${stream.protocol}, ${stream.framing}`, kind: "wide soft" },
  ];
}

export function showClients(snapshot, find) {
  const { shown, total } = snapshot.clients;
  const all = plural(total, "event stream");
  setText($("top-caption"), total === 0 ? "No event stream is open" : total > shown.length ? `The ${shown.length} clients with the largest lag, of ${all}` : `All ${all}, largest lag first`);
  const keys = new Map();
  const keyOf = (stream) => {
    const key = `${stream.client} ${stream.route} ${stream.remote} ${stream.opened}`;
    const index = keys.get(key) ?? 0;
    keys.set(key, index + 1);
    return `${key} ${index}`;
  };
  showRows($("top-rows"), shown, keyOf, (stream) => clientCells(stream, snapshot.now, find), "no client is connected");
}

export function showTables(snapshot, history) {
  showRoutes(snapshot, history);
  showSources(snapshot, history);
  showCounters("gaps-rows", snapshot, history, "gaps", ["reason", "route"], ([reason, route], recent, total) => [
    { text: reason, kind: "name" },
    number(count(recent), recent > 0 ? "warn" : ""),
    number(count(total)),
    wide(count(value(sumBy(snapshot.missed, "reason", "route"), reason, route))),
    { text: route, kind: "code" },
  ], "no gap since the start");
  showCounters("closes-rows", snapshot, history, "closed", ["reason"], ([reason], recent, total) => [
    { text: reason, kind: "name" },
    number(count(recent), recent > 0 && ["slow", "cut", "upstream"].includes(reason) ? "warn" : ""),
    number(count(total)),
    { text: CLOSES[reason] ?? "", kind: "wide soft" },
  ], "no event stream has ended since the start");
  showCounters("rejections-rows", snapshot, history, "rejections", ["code"], ([code], recent, total) => [
    { text: code, kind: "name" },
    number(count(recent), recent > 0 ? "warn" : ""),
    number(count(total)),
  ], "nothing was rejected since the start");
}

/** Shows a counter by its labels, the largest first. */
function showCounters(id, snapshot, history, name, labels, cells, empty) {
  const totals = [...sumBy(snapshot[name], ...labels)].sort((one, other) => other[1] - one[1]);
  showRows($(id), totals, ([key]) => key, ([key, total]) => {
    const recent = history.lastMinute((each) => value(sumBy(each[name], ...labels), key));
    return cells(key.split("\n"), recent, total);
  }, empty);
}

function showRoutes(snapshot, history) {
  const by = (name) => sumBy(snapshot[name], "route");
  const [streams, lag, oldest, slow] = ["streams", "lag_events", "lag_seconds", "slow"].map(by);
  const names = new Set([...streams.keys(), ...by("delivered").keys(), ...by("opened").keys()]);
  showRows($("routes-rows"), [...names].sort(), (route) => route, (route) => [
    { text: route, kind: "code" },
    number(count(value(streams, route))),
    number(rate(history.rate((each) => value(sumBy(each.delivered, "route"), route)))),
    wide(bytes(history.rate((each) => value(sumBy(each.bytes, "route"), route)))),
    number(count(value(lag, route))),
    wide(duration(value(oldest, route))),
    number(count(value(slow, route)), value(slow, route) > 0 ? "warn" : ""),
  ], "no route has had an event stream");
}

function showSources(snapshot, history) {
  const by = (name) => sumBy(snapshot[name], "source");
  const [events, memory, feeds] = ["window_events", "window_bytes", "feeds"].map(by);
  const names = new Set([...by("received").keys(), ...events.keys(), ...memory.keys(), ...feeds.keys()]);
  showRows($("sources-rows"), [...names].sort(), (source) => source, (source) => [
    { text: source, kind: "name" },
    number(rate(history.rate((each) => value(sumBy(each.received, "source"), source)))),
    number(count(value(events, source))),
    wide(bytes(value(memory, source))),
    number(count(value(feeds, source))),
  ], "no source is read");
  const { nats } = snapshot;
  const facts = [
    ["Replays", `${count(nats.replays_running)} running, ${count(nats.replays_queued)} queued`],
    ["Consumers created", count(nats.consumers_created)],
    ["Messages dropped", count(nats.dropped)],
    ["Not decoded yet", bytes(nats.pending_bytes)],
    ["File descriptors", `${count(snapshot.files.open)} of ${count(snapshot.files.limit)}`],
  ];
  const list = $("nats-list");
  if (!list.hasChildNodes()) {
    for (const [name] of facts) list.append(element("div", {}, element("dt", { textContent: name }), element("dd")));
  }
  facts.forEach(([, text], index) => setText(list.children[index].lastElementChild, text));
}
