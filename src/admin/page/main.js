// Connection of the page: one event stream with a snapshot per second, and what shows it.
import { $, setText, setTone } from "./dom.js";
import { History } from "./history.js";
import { announcement, showChecks, showDrain, showFigures, showHead } from "./overview.js";
import { findClient, showScope, startSearch } from "./search.js";
import { showClients, showTables } from "./tables.js";
import { loadRoutes, startTap } from "./tap.js";

const EVENTS = "/page/events";
const RETRY_MS = 3000;
// A snapshot arrives every second.
const QUIET_MS = 5000;
const ROUTES_EVERY = 30;

// A tab that is not looked at leaves its place to others.
const HIDDEN_MS = 300_000;

const history = new History();
let source;
let hidden;
let last;
let received = 0;
let quiet;

function open() {
  source = new EventSource(EVENTS);
  source.addEventListener("snapshot", (event) => show(JSON.parse(event.data)));
  source.onopen = () => link("live", "good");
  source.onerror = () => {
    link("disconnected", "bad");
    lost();
    if (source.readyState !== EventSource.CLOSED) return;
    // Any status but 200 ends an EventSource, and it does not know which.
    diagnose().then(() => setTimeout(open, RETRY_MS));
  };
}

function pause() {
  source.close();
  clearTimeout(quiet);
  link("paused", "soft");
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.hidden) hidden = setTimeout(pause, HIDDEN_MS);
  else if ($("link").textContent === "paused") open();
});

async function diagnose() {
  const abort = new AbortController();
  try {
    const response = await fetch(EVENTS, { signal: abort.signal, cache: "no-store" });
    if (response.status === 401 || response.status === 403) return location.reload();
    if (!response.ok) {
      const { error } = await response.json();
      notice(`${error.message}. This page tries again.`);
    }
  } catch {
    // The process has ended, or the port is no longer forwarded.
  } finally {
    abort.abort();
  }
}

function lost() {
  clearTimeout(quiet);
  if (!last) return;
  document.body.classList.add("stale");
  const time = new Date(last.now).toTimeString().slice(0, 8);
  const why = last.drain.phase === "done" || last.drain.number >= 7 ? "The drain is complete and the sidecar has ended" : "The sidecar cannot be reached";
  notice(`${why}. These are the figures of ${time}.`);
}

function show(snapshot) {
  history.add(snapshot);
  document.body.classList.remove("stale");
  $("notice").hidden = true;
  link("live", "good");
  showHead(snapshot);
  showDrain(snapshot);
  showFigures(snapshot, history);
  showChecks(snapshot);
  showScope(snapshot.has_presence);
  showClients(snapshot, findClient);
  showTables(snapshot, history);
  const text = announcement(last, snapshot);
  if (text) setText($("announce"), text);
  last = snapshot;
  received += 1;
  if (received % ROUTES_EVERY === 0) loadRoutes();
  clearTimeout(quiet);
  quiet = setTimeout(() => { link("no data", "warn"); lost(); }, QUIET_MS);
}

function link(text, tone) {
  setText($("link"), text);
  setTone($("link"), tone);
}

function notice(text) {
  setText($("notice"), text);
  $("notice").hidden = false;
  setText($("announce"), text);
}

startSearch();
startTap();
open();
