// Head of the page, the drain, the figures and the health checks.
import { $, bytes, count, duration, element, plural, rate, setText, setTone } from "./dom.js";
import { draw, sum } from "./history.js";

const STATUS_TONES = { ok: "good", degraded: "warn", failing: "bad", draining: "note" };

const LOAD = {
  none: ["good", "everything is delivered"],
  thin: ["warn", "telemetry is thinned"],
  shed: ["bad", "telemetry is skipped, other events are slowed"],
  reject: ["bad", "new event streams are rejected"],
};

const PHASES = [
  ["not-ready", "readiness fails"],
  ["accepting", "load balancers notice"],
  ["listeners-closed", "listeners are closed"],
  ["goaway", "connections are announced to end"],
  ["ending", "event streams end"],
  ["lingering", "last bytes reach clients"],
  ["upstream", "NATS is closed"],
  ["done", "the process ends"],
];

const delivered = (snapshot) => sum(snapshot.delivered);
const gaps = (snapshot) => sum(snapshot.gaps);
const largest = (rows) => Math.max(0, ...rows.map((row) => row.value));

export function showHead(snapshot) {
  setText($("pod"), snapshot.pod);
  setText($("uptime"), `${snapshot.version}, up ${duration((snapshot.now - snapshot.started) / 1000)}`);
  setText($("status"), snapshot.status);
  setTone($("status"), STATUS_TONES[snapshot.status] ?? "soft");
  document.title = `${snapshot.pod}: ${snapshot.status} – Sidestream admin`;
}

export function showDrain({ drain }) {
  const isDraining = drain.number > 0;
  $("drain").hidden = !isDraining;
  if (!isDraining) return;
  const ended = Math.max(0, drain.total - drain.streams_left);
  const cut = drain.cut > 0 ? `, ${count(drain.cut)} of them cut` : "";
  const streams = drain.total > 0 ? `${count(ended)} of ${plural(drain.total, "event stream")} ended${cut}` : "no event stream was open";
  setText($("drain-text"), `${streams}; ${plural(drain.streams_left, "stream")} left.`);
  $("drain-progress").max = Math.max(1, drain.total);
  $("drain-progress").value = drain.total > 0 ? ended : 1;
  const steps = $("drain-steps");
  if (!steps.hasChildNodes()) {
    const step = ([name, text]) => element("li", {}, element("b", { textContent: name }), element("span", { textContent: text }));
    steps.append(...PHASES.map(step));
  }
  [...steps.children].forEach((step, index) => {
    const number = index + 1;
    const state = number < drain.number || drain.phase === "done" ? "past" : number === drain.number ? "now" : "next";
    step.dataset.state = state;
    if (state === "now") step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
}

export function showFigures(snapshot, history) {
  const streams = sum(snapshot.streams);
  setText($("streams"), count(streams));
  setText($("streams-aside"), `on ${plural(sum(snapshot.connections), "connection")}, about ${bytes(snapshot.connections_memory)}`);
  draw($("streams-spark"), history.series((each) => sum(each.streams)));

  setText($("rate"), rate(history.rate(delivered)));
  setText($("rate-aside"), `${bytes(history.rate((each) => sum(each.bytes)))}/s`);
  draw($("rate-spark"), history.series((now, before) => {
    const elapsed = (now.now - before.now) / 1000;
    return elapsed > 0 ? Math.max(0, delivered(now) - delivered(before)) / elapsed : 0;
  }));

  const lag = largest(snapshot.lag_events);
  setText($("lag"), count(lag));
  const oldest = largest(snapshot.lag_seconds);
  setText($("lag-aside"), lag > 0 ? `events; the oldest ${duration(oldest)}` : "events");
  setTone($("lag-figure"), oldest > 5 ? "warn" : "");

  const slow = sum(snapshot.slow);
  setText($("slow"), count(slow));
  setText($("slow-aside"), slow > 0 ? "their sockets accept nothing" : "all clients read");
  setTone($("slow-figure"), slow > 0 ? "warn" : "");

  const recent = history.lastMinute(gaps);
  setText($("gaps"), count(recent));
  setText($("gaps-aside"), `in the last minute; ${count(gaps(snapshot))} in total`);
  setTone($("gaps-figure"), recent > 0 ? "warn" : "");

  const [tone, text] = LOAD[snapshot.load] ?? ["", "not measured yet"];
  setText($("load"), snapshot.load ?? "–");
  setText($("load-aside"), text);
  setTone($("load-figure"), tone === "good" ? "" : tone);

  setText($("nats"), snapshot.nats.connected ? "connected" : "disconnected");
  setText($("nats-aside"), plural(snapshot.nats.reconnects, "reconnect"));
  setTone($("nats-figure"), snapshot.nats.connected || snapshot.drain.number >= 7 ? "" : "bad");
}

export function showChecks({ checks }) {
  const order = ["failing", "degraded", "ok"];
  const sorted = Object.entries(checks).sort(
    ([one, a], [other, b]) => order.indexOf(a.status) - order.indexOf(b.status) || one.localeCompare(other),
  );
  const list = $("checks");
  const key = JSON.stringify(sorted);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const item = ([name, { status, message }]) => {
    const mark = element("span", { className: "pill small", textContent: status });
    setTone(mark, STATUS_TONES[status] ?? "soft");
    const text = element("span", { className: "check" }, element("b", { textContent: name }));
    if (message) text.append(element("span", { className: "soft", textContent: message }));
    return element("li", {}, mark, text);
  };
  list.replaceChildren(...sorted.map(item));
}

/** Text for a screen reader: only changes of the status and of the phase. */
export function announcement(before, now) {
  const texts = [];
  if (before?.status !== now.status && now.drain.number === 0) texts.push(`The pod is ${now.status}.`);
  if (now.drain.number > 0 && before?.drain.phase !== now.drain.phase) {
    const phase = PHASES.find(([name]) => name === now.drain.phase)?.[1] ?? now.drain.phase;
    texts.push(`Drain: ${phase}, ${plural(now.drain.streams_left, "stream")} left.`);
  }
  if (before && before.nats.connected !== now.nats.connected && now.drain.number < 7) {
    texts.push(now.nats.connected ? "NATS is connected." : "NATS is disconnected.");
  }
  return texts.join(" ");
}
