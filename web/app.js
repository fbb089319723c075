// The demo page: one EventSource, what it tells about itself, and the events as rows.
// Plain modules of the platform, no build, nothing from elsewhere.

const ROWS_MAX = 200;
const STORY_MAX = 60;
const CELLS_MAX = 90;
const SECONDS_SHOWN = 60;
/** How long "Disconnect and resume" stays away: long enough for a couple of dozen events to pass by. */
const AWAY_MS = 5000;
/** A resume is judged when the first live event has come, or when nothing came for so long. */
const RESUME_QUIET_MS = 3000;
const RETRY_BASE_MS = 1000;
const RETRY_CAP_MS = 30_000;

const $ = (id) => document.getElementById(id);

/** Creates an element with a class and a text: payloads never become markup. */
function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const clock = (at) => {
  const time = new Date(at);
  return `${time.toLocaleTimeString("en-GB")}.${String(Math.floor(time.getMilliseconds() / 100))}`;
};
const count = (n) => n.toLocaleString("en");
const events = (n) => `${count(n)} ${n === 1 ? "event" : "events"}`;

function parse(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

// === Continuity: is anything missing, is anything twice? ===
// The demo's publisher numbers its events once per filter that a reader may have asked for. A reader of that filter must
// see the numbers rise by one.

class Continuity {
  constructor(filters) {
    this.filters = filters;
    this.restart();
  }

  /** Forgets the numbers: after a gap that was told, the next number may be any. */
  restart() {
    this.last = new Map();
    this.missing = 0;
    this.repeated = 0;
    this.unproven = 0;
  }

  /** Returns how many events are missing before this one. */
  check(body) {
    const numbers = body?.numbers ?? {};
    const known = this.filters.filter((filter) => Number.isInteger(numbers[filter]));
    if (known.length === 0) this.unproven += 1;
    let missing = 0;
    for (const filter of known) {
      const number = numbers[filter];
      const last = this.last.get(filter);
      if (last !== undefined && number <= last) this.repeated += 1;
      else if (last !== undefined) missing = Math.max(missing, number - last - 1);
      this.last.set(filter, number);
    }
    this.missing += missing;
    return missing;
  }

  /** Starts to count anew, with the numbers kept. */
  mark() {
    this.missing = 0;
    this.repeated = 0;
    this.unproven = 0;
  }
}

// === Figures: rate and latency ===

class Figures {
  constructor() {
    /** Events per second; the last entry is the running second. */
    this.seconds = [0];
    this.latencies = [];
    /** The smallest difference of the two clocks ever seen; negative when ours is behind the publisher's. */
    this.skew = 0;
    this.counters = { received: 0, replayed: 0, reconnects: 0, resumes: 0, gaps: 0, missed: 0 };
  }

  /** Takes the time of publishing and of arrival of a live event; returns its latency in milliseconds. */
  latency(published, arrived) {
    const difference = arrived - published;
    this.skew = Math.min(this.skew, difference);
    const latency = difference - this.skew;
    this.latencies.push(latency);
    if (this.latencies.length > 200) this.latencies.shift();
    return latency;
  }

  tick() {
    this.seconds.push(0);
    if (this.seconds.length > SECONDS_SHOWN + 1) this.seconds.shift();
  }

  arrived() {
    this.seconds[this.seconds.length - 1] += 1;
    this.counters.received += 1;
  }

  show() {
    for (const [name, value] of Object.entries(this.counters)) $(name).textContent = count(value);
    $("gaps-figure").classList.toggle("told", this.counters.gaps > 0);
    // The running second is not full yet.
    const full = this.seconds.slice(0, -1);
    const recent = full.slice(-5);
    $("rate").textContent = (recent.reduce((sum, n) => sum + n, 0) / Math.max(1, recent.length)).toFixed(1);
    const sorted = [...this.latencies].sort((one, other) => one - other);
    const quantile = (q) => (sorted.length ? String(Math.round(sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))])) : "–");
    $("latency").textContent = quantile(0.5);
    $("latency-p95").textContent = quantile(0.95);
    this.#spark(full);
  }

  /** The newest second at the right edge; nothing is drawn for seconds before the page was there. */
  #spark(seconds) {
    if (seconds.length < 2) return;
    const highest = Math.max(8, ...seconds);
    const x = (index) => 120 - (seconds.length - 1 - index) * (120 / (SECONDS_SHOWN - 1));
    const points = seconds.map((n, index) => `${x(index).toFixed(1)} ${(34 - (n / highest) * 30).toFixed(1)}`);
    const line = `M${points.join("L")}`;
    $("spark").querySelector(".line").setAttribute("d", line);
    $("spark").querySelector(".area").setAttribute("d", `${line}L120 36L${x(0).toFixed(1)} 36Z`);
  }
}

// === Rows: the newest events, bounded, drawn once per frame ===

class Rows {
  constructor(onFilter) {
    this.waiting = [];
    this.skipped = 0;
    this.paused = false;
    this.scheduled = false;
    this.onFilter = onFilter;
  }

  add(row) {
    this.waiting.push(row);
    // What would be pushed out by newer rows before it is drawn is not drawn.
    if (this.waiting.length > ROWS_MAX) {
      this.waiting.shift();
      this.skipped += 1;
    }
    if (this.paused) this.#label();
    else this.#schedule();
  }

  pause(paused) {
    this.paused = paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    this.#label();
    if (!paused) this.#schedule();
  }

  #label() {
    const waiting = this.waiting.length + this.skipped;
    $("pause").textContent = this.paused ? `Continue (${count(waiting)})` : "Pause list";
  }

  #schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.scheduled = false;
    if (this.paused) return;
    const fragment = document.createDocumentFragment();
    for (const row of this.waiting.reverse()) fragment.append(row.seam ? this.#seam(row) : this.#row(row));
    this.waiting = [];
    this.skipped = 0;
    $("rows").prepend(fragment);
    while ($("rows").childElementCount > ROWS_MAX) $("rows").lastElementChild.remove();
    const shown = $("rows").childElementCount;
    $("shown").textContent = shown === ROWS_MAX ? `newest first, the last ${ROWS_MAX}` : "newest first";
  }

  #seam({ seam, tone }) {
    return element("li", `seam ${tone ?? ""}`, seam);
  }

  #row({ name, id, body, text, at, latency, replayed }) {
    const kind = ["telemetry", "alert", "announcement"].includes(name) ? name : "order";
    const row = element("li", `row ${kind}${replayed ? " replayed" : ""}`);
    const time = element("time", "", clock(at));
    time.dateTime = new Date(at).toISOString();
    const data = element("div", "data");
    if (body) describe(data, body);
    else data.textContent = text;
    data.title = text;
    const told = replayed ? "replayed" : latency === undefined ? "" : `${Math.round(latency)} ms`;
    row.append(time, element("span", "name", name), this.#subject(body), data, element("span", "latency", told));
    const code = element("code", "id", id);
    code.title = id;
    row.append(code);
    return row;
  }

  /** The subject; when the page can ask for just this one's kind, as a button. */
  #subject(body) {
    const cell = element("div", "subject");
    const subject = typeof body?.subject === "string" ? body.subject : "";
    // Each narrower filter is longer than the wider one.
    const filters = Object.keys(body?.numbers ?? {}).filter((filter) => filter.startsWith("demo."));
    const narrowest = filters.sort((one, other) => one.length - other.length).at(-1);
    const inner = element(narrowest ? "button" : "span", "", subject);
    if (narrowest) {
      inner.type = "button";
      inner.title = `Show only ${narrowest}`;
      inner.addEventListener("click", () => this.onFilter(narrowest));
    }
    cell.append(inner);
    return cell;
  }
}

/** The fields of a payload that say something beside the row's other columns. */
function describe(cell, body) {
  const hidden = new Set(["subject", "numbers", "published", "state", "order", "machine"]);
  for (const [key, value] of Object.entries(body)) {
    if (hidden.has(key)) continue;
    const pair = element("span");
    if (key !== "message") pair.append(element("b", "", key));
    pair.append(typeof value === "object" ? JSON.stringify(value) : String(value));
    cell.append(pair);
  }
}

// === Resume: what happened between a break, wanted or not, and the first live event after it ===

class Resume {
  constructor(lastId, title) {
    this.lastId = lastId;
    this.replayed = 0;
    this.cells = [];
    this.gap = false;
    $("outcome").hidden = false;
    $("outcome").classList.remove("bad");
    $("outcome-title").textContent = title;
    $("outcome-text").textContent = `The last event was ${lastId}. What is published now passes by unseen.`;
    $("strip").replaceChildren();
  }

  /** The connection is open again, since `at`. */
  opening(at) {
    this.opened = at;
    $("outcome-title").textContent = "Resuming";
    $("outcome-text").textContent = `Asking for everything after ${this.lastId}.`;
  }

  /** Takes one event after the reopening. */
  took(missing, replayed) {
    for (let n = 0; n < Math.min(missing, CELLS_MAX); n += 1) this.cells.push("missing");
    this.cells.push(replayed ? "replayed" : "live");
    if (replayed) {
      this.replayed += 1;
      this.until = Date.now();
    }
    return replayed;
  }

  /** Says the result: `continuity` has counted since the disconnect. */
  finish(continuity) {
    const took = this.until ? ` in ${Math.max(1, this.until - this.opened)} ms` : "";
    const replayed = `${events(this.replayed)} replayed${took}`;
    const { missing, repeated, unproven } = continuity;
    const bad = missing > 0 || repeated > 0 || this.gap;
    let verdict = "None is missing, none came twice: their numbers rise by one across the break.";
    if (this.gap) verdict = "The server told a gap: what it no longer had is counted under Gaps.";
    else if (missing > 0) verdict = `${events(missing)} missing.`;
    else if (repeated > 0) verdict = `${events(repeated)} came twice.`;
    else if (unproven > 0) verdict = "No gap was told. (For this filter the publisher has no numbers to check.)";
    $("outcome").classList.toggle("bad", bad);
    $("outcome-title").textContent = replayed;
    $("outcome-text").textContent = `${verdict} Resumed after ${this.lastId}.`;
    const strip = this.cells.slice(-CELLS_MAX).map((kind) => element("i", kind));
    $("strip").replaceChildren(...strip);
    const short = bad ? verdict : unproven > 0 ? "no gap told" : "none missing, none twice";
    return { text: `Resumed: ${replayed}, ${short}`, tone: bad ? "bad" : "good" };
  }
}

// === Page: the connection and its state ===

class Page {
  constructor(config) {
    this.config = config;
    this.filters = [config.subject];
    this.continuity = new Continuity(this.filters);
    this.figures = new Figures();
    this.rows = new Rows((filter) => this.show(filter));
    this.lastId = "";
    this.failures = 0;
    this.timers = {};
  }

  // --- the connection

  /** Opens an EventSource; `after` is the id to resume after. Its own reconnects send Last-Event-ID, which wins. */
  open(after) {
    this.close();
    const url = new URL(this.config.route, this.config.sidecar);
    for (const filter of this.filters) url.searchParams.append("subject", filter);
    if (after) url.searchParams.set("last_event_id", after);
    this.url = url;
    this.state("connecting");
    this.openedAt = Date.now();
    const source = new EventSource(url);
    this.source = source;
    source.onopen = () => this.opened();
    source.onerror = () => this.broken(source);
    // An EventSource hears only names that are asked for.
    for (const name of ["message", ...this.config.events]) source.addEventListener(name, (event) => this.event(event));
    source.addEventListener("sidestream.position", (event) => this.remember(event.lastEventId));
    source.addEventListener("sidestream.gap", (event) => this.gap(event));
    source.addEventListener("sidestream.close", (event) => this.closing(event));
  }

  close() {
    clearTimeout(this.timers.reopen);
    clearTimeout(this.timers.quiet);
    this.source?.close();
    this.source = undefined;
  }

  opened() {
    this.failures = 0;
    if (this.current === "reconnecting") {
      this.figures.counters.reconnects += 1;
      this.openedAt = Date.now();
      this.resume?.opening(this.openedAt);
      this.tell(this.lastId ? `reconnected, resuming after ${this.lastId}` : "reconnected", "good");
    } else if (!this.resume) {
      this.tell(`live: ${this.filters.join(" ")}`, "good");
    }
    this.state("live");
    this.quiet();
  }

  broken(source) {
    if (this.lastId && !this.resume) {
      this.continuity.mark();
      this.resume = new Resume(this.lastId, "The connection broke");
    }
    if (source.readyState === EventSource.CONNECTING) {
      if (this.current !== "reconnecting") this.tell("the connection broke; the browser reconnects", "warn");
      this.state("reconnecting");
    } else {
      // Any answer but 200 ends an EventSource for good, and it does not say which. Ask once more with fetch.
      this.close();
      this.state("reconnecting");
      this.diagnose(this.url);
    }
  }

  async diagnose(url) {
    const stop = new AbortController();
    let status = 0;
    let message = "the server cannot be reached";
    try {
      const response = await fetch(url, { headers: { Accept: "text/event-stream" }, signal: stop.signal, cache: "no-store" });
      status = response.status;
      message = `the server answered ${status}`;
      if (status !== 200) {
        const { error } = await response.json();
        message = [error.message, error.hint].filter(Boolean).join(": ");
      }
    } catch {
      // No answer, no CORS header or no JSON: what is known so far has to do.
    } finally {
      stop.abort();
    }
    // Meanwhile somebody may have asked for something else.
    if (url !== this.url || this.current !== "reconnecting") return;
    if (status >= 400 && status < 500 && status !== 429) this.refuse(status, message);
    else if (status === 204) this.stop("the server asked to stop (204)");
    else this.later(message);
  }

  refuse(status, message) {
    this.state("refused");
    this.tell(`${status}: ${message}`, "bad");
    this.help(message, true);
  }

  stop(message) {
    this.state("refused");
    this.tell(message, "warn");
  }

  /** Full jitter: a random part of a delay that doubles up to its cap, so that many pages do not come back in step. */
  later(message) {
    const delay = Math.random() * Math.min(RETRY_CAP_MS, RETRY_BASE_MS * 2 ** this.failures);
    this.failures += 1;
    this.tell(`${message}; next try in ${(delay / 1000).toFixed(1)} s`, "warn");
    this.timers.reopen = setTimeout(() => {
      this.open(this.lastId);
      this.state("reconnecting");
    }, delay);
  }

  // --- what arrives

  event(event) {
    const at = Date.now();
    const body = parse(event.data);
    const published = Number.isFinite(body?.published) ? body.published : undefined;
    this.figures.arrived();
    this.remember(event.lastEventId);
    // Core NATS keeps nothing: announcements that passed while we were away are no loss of ours to count.
    const missing = event.type === "announcement" ? 0 : this.continuity.check(body);
    const replayed = published !== undefined && published + this.figures.skew < this.openedAt;
    if (replayed) this.figures.counters.replayed += 1;
    if (this.resume?.opened) {
      this.resume.took(missing, replayed);
      if (published !== undefined && !replayed) this.finish();
      this.quiet();
    } else if (missing > 0) {
      this.tell(`${events(missing)} missing before ${event.lastEventId}`, "bad");
    }
    const latency = published === undefined || replayed ? undefined : this.figures.latency(published, at);
    this.rows.add({ name: event.type, id: event.lastEventId, body, text: event.data, at, latency, replayed });
  }

  gap(event) {
    this.remember(event.lastEventId);
    const { reason = "unknown", missed = null, resume = "live" } = parse(event.data) ?? {};
    const known = Number.isInteger(missed);
    this.figures.counters.gaps += 1;
    if (known) this.figures.counters.missed += missed;
    this.continuity.restart();
    if (this.resume) this.resume.gap = true;
    const text = `gap (${reason}): ${known ? `${events(missed)} missed` : "how many were missed is not known"}, on with the ${resume === "oldest" ? "oldest kept" : "live events"}`;
    this.tell(text, "warn");
    this.rows.add({ seam: text, tone: "warn" });
  }

  closing(event) {
    this.remember(event.lastEventId);
    const { reason = "unknown", retry } = parse(event.data) ?? {};
    this.tell(`the server closes (${reason})${Number.isFinite(retry) ? `, come back in ${(retry / 1000).toFixed(1)} s` : ""}`, "warn");
  }

  remember(id) {
    if (!id) return;
    this.lastId = id;
    $("last-id").textContent = id;
  }

  // --- what the buttons do

  /** Shows other subjects: from now on, not from the old position, which would replay what nobody asked for. */
  show(text) {
    const filters = text.split(/[\s,]+/).filter(Boolean);
    $("filter").value = filters.join(" ");
    this.chips(filters);
    if (filters.length === 0) return this.help("Name at least one subject.", true);
    this.help("", false);
    this.filters = filters;
    this.continuity = new Continuity(filters);
    this.abandon();
    this.failures = 0;
    this.lastId = "";
    $("last-id").textContent = "none yet";
    this.rows.add({ seam: `Subjects: ${filters.join(" ")}` });
    this.open();
  }

  /** First press: away for a while. Second press, or when the while is over: back. */
  toggleAway() {
    if (this.current === "away") return this.back();
    this.close();
    this.continuity.mark();
    this.resume = new Resume(this.lastId, "Disconnected");
    this.state("away");
    this.tell("disconnected by the button", "");
    this.until = Date.now() + AWAY_MS;
    this.countdown();
    this.timers.away = setInterval(() => this.countdown(), 250);
  }

  countdown() {
    const left = this.until - Date.now();
    if (left <= 0) return this.back();
    $("resume").textContent = `Resume now (${Math.ceil(left / 1000)} s)`;
  }

  back() {
    clearInterval(this.timers.away);
    $("resume").textContent = "Disconnect and resume";
    this.figures.counters.resumes += 1;
    this.rows.add({ seam: "Resumed here" });
    this.open(this.lastId);
    this.resume.opening(this.openedAt);
  }

  /** Restarts the clock that ends the judgement of a resume when no live event comes. */
  quiet() {
    clearTimeout(this.timers.quiet);
    if (this.resume?.opened) this.timers.quiet = setTimeout(() => this.finish(), RESUME_QUIET_MS);
  }

  finish() {
    if (!this.resume) return;
    const { text, tone } = this.resume.finish(this.continuity);
    this.tell(text, tone);
    this.rows.add({ seam: text, tone: tone === "bad" ? "warn" : "" });
    this.resume = undefined;
    clearTimeout(this.timers.quiet);
  }

  abandon() {
    clearInterval(this.timers.away);
    this.resume = undefined;
    $("outcome").hidden = true;
    $("resume").textContent = "Disconnect and resume";
  }

  // --- what is shown

  state(state) {
    this.current = state;
    $("state").dataset.state = state;
    const text = { away: "disconnected", refused: "stopped" }[state] ?? state;
    // Written only when it changes: a status region is read aloud.
    if ($("state-text").textContent !== text) $("state-text").textContent = text;
    $("resume").disabled = state === "refused" || (state !== "away" && !this.lastId);
  }

  tell(text, tone) {
    const at = Date.now();
    const line = element("li", tone);
    const time = element("time", "", clock(at).slice(0, 8));
    time.dateTime = new Date(at).toISOString();
    line.append(time, element("span", "", text));
    $("story").prepend(line);
    while ($("story").childElementCount > STORY_MAX) $("story").lastElementChild.remove();
  }

  help(text, wrong) {
    this.usualHelp ??= $("filter-help").innerHTML;
    if (wrong) $("filter-help").textContent = text;
    else $("filter-help").innerHTML = this.usualHelp;
    $("filter-help").classList.toggle("wrong", wrong);
    $("filter").setAttribute("aria-invalid", String(wrong));
  }

  chips(filters) {
    for (const chip of $("chips").children) chip.setAttribute("aria-pressed", String(filters.length === 1 && chip.textContent === filters[0]));
  }

  start() {
    $("filter").value = this.config.subject;
    for (const subject of this.config.subjects) {
      const chip = element("button", "", subject);
      chip.type = "button";
      chip.addEventListener("click", () => this.show(subject));
      $("chips").append(chip);
    }
    this.chips(this.filters);
    $("filter-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.show($("filter").value);
    });
    $("pause").addEventListener("click", () => this.rows.pause(!this.rows.paused));
    $("resume").addEventListener("click", () => this.toggleAway());
    setInterval(() => {
      this.figures.tick();
      this.figures.show();
      $("resume").disabled = this.current === "refused" || (this.current !== "away" && !this.lastId);
    }, 1000);
    this.figures.show();
    this.open();
  }
}

async function main() {
  const response = await fetch("config.json");
  if (!response.ok) throw new Error(`config.json: ${response.status}`);
  new Page(await response.json()).start();
}

main().catch((error) => {
  $("state").dataset.state = "refused";
  $("state-text").textContent = "stopped";
  $("empty").textContent = `This page could not start: ${error.message}`;
});
