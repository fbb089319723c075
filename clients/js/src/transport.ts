/**
 * One attempt in one framing. Each transport is a generator of items that ends with the connection;
 * its first item, without fields, means that the server has accepted the request.
 */

import { Lines, lineItem, limit, sseParser, type Item } from "./items.js";

/**
 * Framing of an event stream. `sse`: Server-Sent Events over `fetch`. `ndjson`: JSON lines over `fetch`,
 * with the subject of each event. `websocket`, `long_poll`: for networks in which a response does not arrive
 * until it ends.
 */
export type Framing = "sse" | "ndjson" | "websocket" | "long_poll";

/** Request of one attempt. */
export interface Attempt {
  url: URL;
  headers: HeadersInit | undefined;
  credentials: RequestCredentials | undefined;
  lastEventId: string;
  /** Time until a poll is answered without events, in seconds. */
  wait: number;
  charsMax: number;
  fetch: typeof fetch;
  signal: AbortSignal;
  /** Records that bytes have arrived. */
  heard: () => void;
}

/** Rejection by the server. */
export class Refused extends Error {
  constructor(
    /** HTTP status. */
    readonly status: number,
    message: string,
    /** Code of the problem, if the server sent one. */
    readonly code?: string,
    /** Minimum delay before the next attempt, in milliseconds. */
    readonly retryAfter = 0,
  ) {
    super(`${status}: ${message}`);
    this.name = "Refused";
  }

  /** Whether the same request can succeed later. */
  get temporary(): boolean {
    return this.status >= 500 || this.status === 429;
  }
}

/** End of a finite event stream: status 204. */
export class Ended extends Error {}

const ACCEPT = {
  sse: "text/event-stream",
  ndjson: "application/x-ndjson",
  long_poll: "application/json",
};

/** Opens an event stream. */
export function open(framing: Framing, attempt: Attempt): AsyncGenerator<Item> {
  if (framing === "websocket") return messages(attempt);
  return framing === "long_poll" ? polls(attempt) : lines(framing, attempt);
}

/** Sends a request; throws unless it is answered by a body of the framing. */
async function request(framing: keyof typeof ACCEPT, { url, headers, credentials, lastEventId, fetch, signal }: Attempt): Promise<Response> {
  const all = new Headers(headers);
  all.set("Accept", ACCEPT[framing]);
  if (lastEventId) all.set("Last-Event-ID", lastEventId);
  const response = await fetch(url, { headers: all, signal, cache: "no-store", ...(credentials && { credentials }) });
  const { status } = response;
  if (status === 204) throw new Ended();
  if (status !== 200) {
    const { error = {} } = json(await response.text().catch(() => ""));
    throw new Refused(status, error.message ?? response.statusText, error.code, retryAfter(response));
  }
  if (response.headers.get("content-type")?.split(";")[0]!.trim().toLowerCase() !== ACCEPT[framing]) {
    throw new Refused(status, `expected ${ACCEPT[framing]}`);
  }
  return response;
}

/** `Retry-After` in milliseconds from now: seconds or a date (RFC 9110, section 10.2.3). */
function retryAfter(response: Response): number {
  const value = response.headers.get("retry-after") ?? "";
  const ms = /^\d+$/.test(value) ? +value * 1000 : Date.parse(value) - Date.now();
  return ms > 0 ? ms : 0;
}

/** Server-Sent Events and newline-delimited JSON. */
async function* lines(framing: "sse" | "ndjson", attempt: Attempt): AsyncGenerator<Item> {
  const { charsMax, heard } = attempt;
  const response = await request(framing, attempt);
  yield {};
  const parse = framing === "sse" ? sseParser(charsMax) : lineItem;
  const split = new Lines();
  // The decoder drops a byte order mark and replaces what is not UTF-8, as the standard requires.
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      for (const line of split.push(value, charsMax)) {
        const item = parse(line);
        if (item) yield item;
      }
    }
  } finally {
    // Leaving the loop ends the request.
    reader.cancel().catch(() => {});
  }
}

/** Long poll: one request after another, each at the position of the last. */
async function* polls(attempt: Attempt): AsyncGenerator<Item> {
  const { url, wait, heard } = attempt;
  let { lastEventId } = attempt;
  // The first poll does not wait: its answer says that the server is there, and names a position.
  for (let seconds = 0; ; seconds = wait) {
    const next = new URL(url);
    next.searchParams.set("wait", `${seconds}s`);
    // Not in a header: a browser would ask for permission before each poll of another origin.
    if (lastEventId) next.searchParams.set("last_event_id", lastEventId);
    const response = await request("long_poll", { ...attempt, url: next, lastEventId: "" });
    const text = await response.text();
    heard();
    if (seconds === 0) yield {};
    for (const item of pollItems(text)) {
      lastEventId = item.id ?? lastEventId;
      yield item;
      if (item.event === "sidestream.close") return;
    }
  }
}

/** Items of the answer to a poll. */
function* pollItems(text: string): Generator<Item> {
  const { events, id } = JSON.parse(text);
  for (const event of events) yield lineItem(JSON.stringify(event))!;
  yield { event: "sidestream.position", data: "{}", id };
}

/** Messages of a WebSocket, each the text of a line. */
async function* messages({ url, lastEventId, charsMax, signal, heard }: Attempt): AsyncGenerator<Item> {
  const target = new URL(url);
  target.protocol = target.protocol.replace("http", "ws");
  if (lastEventId) target.searchParams.set("last_event_id", lastEventId);
  const socket = new WebSocket(target, "sidestream.v1");
  // An undefined entry is the opening.
  let queue: (string | undefined)[] = [];
  let chars = 0;
  let isClosed = false;
  let wake = () => {};
  const received = (text?: string) => {
    queue.push(text);
    chars += text?.length ?? 0;
    heard();
    wake();
  };
  const close = () => {
    isClosed = true;
    wake();
  };
  socket.onopen = () => received();
  socket.onmessage = ({ data }) => received(data);
  socket.onclose = close;
  signal.addEventListener("abort", close);
  try {
    for (;;) {
      const batch = queue;
      queue = [];
      chars = 0;
      for (const text of batch) {
        const item = text === undefined ? {} : lineItem(text);
        if (item) yield item;
        // A WebSocket has no backpressure: what a slow handler leaves here is bounded.
        limit(chars, charsMax);
      }
      if (!queue.length && isClosed) return;
      if (!queue.length) await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    signal.removeEventListener("abort", close);
    socket.close();
  }
}

/** Parses JSON; an empty object if that fails. */
export function json(text: string): any {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
