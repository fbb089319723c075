// Tap: the events of one route as they arrive, newest first.
import { $, bytes, count, element, setText } from "./dom.js";

const ROWS_MAX = 200;

let routes = [];
let source;

export async function startTap() {
  $("tap-route").addEventListener("change", showVariables);
  $("tap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (source) stop("Stopped.");
    else start();
  });
  await loadRoutes();
}

/** Loads the routes again, for example after a reload of the configuration. */
export async function loadRoutes() {
  const response = await fetch("/page/routes", { cache: "no-store" }).catch(() => undefined);
  if (!response?.ok) return;
  const { tap, session, routes: loaded } = await response.json();
  $("logout").hidden = !session;
  $("tap-form").hidden = tap !== null;
  $("tap-off").hidden = tap === null;
  if (tap) setText($("tap-off"), `${tap.message}: ${tap.hint}`);
  if (JSON.stringify(loaded) === JSON.stringify(routes)) return;
  routes = loaded;
  const chosen = $("tap-route").value;
  $("tap-route").replaceChildren(...routes.map(({ route }) => element("option", { value: route, textContent: route })));
  if (routes.some(({ route }) => route === chosen)) $("tap-route").value = chosen;
  showVariables();
}

function showVariables() {
  const route = routes.find((each) => each.route === $("tap-route").value);
  const fields = (route?.variables ?? []).map((variable, index) => {
    const input = element("input", {
      id: `tap-variable-${index}`, name: variable, type: "text", placeholder: "any", autocomplete: "off", spellcheck: false,
    });
    return element("div", { className: "field" }, element("label", { htmlFor: input.id, textContent: variable }), input);
  });
  $("tap-variables").replaceChildren(...fields);
  setText($("tap-subjects"), route ? `Subjects: ${route.subjects.join("  ")}` : "");
}

function start() {
  const query = new URLSearchParams({ route: $("tap-route").value });
  for (const input of $("tap-variables").querySelectorAll("input")) {
    // Filters of a whole variable are separated by spaces, as in the demo.
    for (const value of input.value.split(/\s+/).filter(Boolean)) query.append(input.name, value);
  }
  const url = `/page/tap?${query}`;
  $("tap-events").replaceChildren();
  $("tap-events").hidden = false;
  setText($("tap-status"), "Opening.");
  setText($("tap-start"), "Stop");
  source = new EventSource(url);
  const data = (event) => JSON.parse(event.data);
  const on = (name, listener) => source.addEventListener(name, listener);
  on("subjects", (event) => setText($("tap-status"), `Reading ${data(event).join("  ")}`));
  on("message", (event) => showEvent(event.data));
  on("large", (event) => showLarge(data(event)));
  on("gap", (event) => showGap(data(event)));
  on("end", (event) => stop(`The tap has ended: ${data(event).reason}.`));
  on("status", (event) => {
    const { shown, skipped } = data(event);
    const more = skipped > 0 ? `, ${count(skipped)} skipped above 20 per second` : "";
    if (shown > 0) setText($("tap-count"), `${count(shown)} shown${more}`);
  });
  const mine = source;
  source.onerror = () => source === mine && diagnose(url);
  setText($("tap-count"), "");
}

function stop(text) {
  source?.close();
  source = undefined;
  setText($("tap-start"), "Start");
  setText($("tap-status"), text);
}

/** Shows why a tap did not open: an EventSource does not know. A tap that was open is not opened again. */
async function diagnose(url) {
  const wasOpen = $("tap-events").hasChildNodes() || $("tap-status").textContent.startsWith("Reading");
  stop("The connection has ended.");
  if (wasOpen) return;
  const abort = new AbortController();
  try {
    const response = await fetch(url, { signal: abort.signal, cache: "no-store" });
    if (!response.ok) {
      const { error } = await response.json();
      stop(`Not opened: ${error.message}: ${error.hint}.`);
    }
  } catch {
    stop("Not opened: the sidecar cannot be reached.");
  } finally {
    abort.abort();
  }
}

function add(row) {
  $("tap-events").prepend(row);
  while ($("tap-events").childElementCount > ROWS_MAX) $("tap-events").lastElementChild.remove();
}

function showEvent(line) {
  const { id, event = "message", subject, data, base64 } = JSON.parse(line);
  const text = base64 ?? (typeof data === "string" ? data : JSON.stringify(data, null, 2));
  const preview = base64 ?? (typeof data === "string" ? data : JSON.stringify(data));
  add(element("li", {},
    head(event, subject, id),
    element("details", {},
      element("summary", { textContent: preview.slice(0, 400) || "(empty)" }),
      element("pre", { textContent: base64 ? `base64: ${text}` : text }))));
}

function showLarge({ bytes: size, head: text }) {
  const subject = /"subject":"([^"]*)"/.exec(text)?.[1] ?? "";
  add(element("li", {},
    head("large", subject, ""),
    element("details", {},
      element("summary", { textContent: `An event of ${bytes(size)}; its beginning:` }),
      element("pre", { textContent: text }))));
}

function showGap({ reason, missed }) {
  const text = `Gap (${reason}): ${missed === null ? "an unknown number of" : count(missed)} events are missing here`;
  add(element("li", { className: "gap", textContent: text }));
}

function head(name, subject, id) {
  const time = new Date().toTimeString().slice(0, 8);
  return element("p", { className: "event-head" },
    element("span", { className: "soft", textContent: time }),
    element("b", { textContent: name }),
    element("code", { textContent: subject }),
    element("code", { className: "soft", textContent: id }));
}
