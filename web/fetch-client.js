/**
 * An event stream over `fetch`, for clients that need what an EventSource does not give: request headers (a token),
 * every status code, and a say in when to come back. No dependencies; browsers, Node 18 or newer, Deno, Bun.
 *
 *     import { follow } from "./fetch-client.js";
 *
 *     const stop = new AbortController();
 *     await follow("https://pod.example/events/orders/42", {
 *       headers: { Authorization: `Bearer ${token}` },
 *       lastEventId: localStorage.getItem("position") ?? "",
 *       signal: stop.signal,
 *       onEvent: async ({ id, event, data }) => {
 *         await apply(event, JSON.parse(data));
 *         localStorage.setItem("position", id);   // after the work: a crash between the two replays, and loses nothing
 *       },
 *       onGap: ({ reason, missed }) => reloadEverything(),
 *     });
 *
 * What it does, and why:
 * - It resumes. The id of the last event that `onEvent` has finished goes out as `Last-Event-ID`; a position without an
 *   event (`sidestream.position`, or a block with nothing but an id) moves the position too.
 * - A stream that ends is normal (a drain, an age limit), and so is one that breaks. Both reconnect after a random part of
 *   `base * 2^failures`, at most `capMs` ("full jitter": ten thousand clients of one pod do not come back in step). `base`
 *   is the server's `retry:`.
 * - `Retry-After` is a lower bound, with jitter above it.
 * - Before a token expires the server sends `sidestream.renew`. If `headers` is a function, the client then calls it for
 *   fresh headers and reconnects at its position at once; if it throws, the event stream continues. It is called before
 *   every other attempt as well, which fails if it throws and is made again later.
 * - `sidestream.end` and 204 are the end: the promise resolves. A 4xx other than 429 is a mistake that repeating does not mend: the
 *   promise rejects with `Refused`. Everything else is tried again.
 *
 * @param {string | URL} url
 * @param {object} options
 * @param {(event: {id: string, event: string, data: string}) => unknown} options.onEvent awaited before the next one
 * @param {(gap: {reason: string, missed: number | null, resume: string}) => unknown} [options.onGap] events that this
 *   client was owed are gone; it stands before the first event after them
 * @param {(close: {reason: string, retry?: number}) => unknown} [options.onClose] the server says why it ends the stream
 * @param {(renewal: {expires: number}) => unknown} [options.onRenew] the credentials expire at this time, in seconds since
 *   1970; awaited before the headers are asked for
 * @param {(state: {state: "connecting" | "live" | "waiting", delayMs?: number, cause?: unknown}) => void} [options.onState]
 * @param {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [options.headers]
 * @param {string} [options.lastEventId] where to begin; "" is live
 * @param {AbortSignal} [options.signal] aborting resolves the promise
 * @param {RequestCredentials} [options.credentials]
 * @param {number} [options.retryMs] the base until the server sends `retry:`
 * @param {number} [options.capMs]
 * @param {number} [options.eventCharsMax] an event above it is an error, not a full memory
 * @param {typeof fetch} [options.fetch]
 * @param {() => number} [options.random]
 * @returns {Promise<void>}
 */
export async function follow(url, options) {
  const { onEvent, onGap, onClose, onRenew, onState, headers, signal, credentials } = options;
  const { capMs = 30_000, eventCharsMax = 16 << 20, fetch = globalThis.fetch, random = Math.random } = options;
  let { lastEventId = "", retryMs = 3000 } = options;
  let failures = 0;
  // Headers of a renewal, for the next attempt.
  let fresh;

  while (!signal?.aborted) {
    let waitMs = 0;
    let cause;
    // This attempt's own: leaving the loop below must end the request, too.
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    signal?.addEventListener("abort", abort);
    try {
      onState?.({ state: "connecting" });
      const given = fresh ?? (typeof headers === "function" ? await headers() : headers);
      fresh = undefined;
      const response = await fetch(url, { headers: requestHeaders(given, lastEventId), signal: attempt.signal, credentials, cache: "no-store" });
      if (response.status === 204) return;
      waitMs = retryAfter(response);
      if (response.status !== 200) throw await refusal(response);
      if (!/^text\/event-stream\s*(;|$)/i.test(response.headers.get("content-type") ?? "")) {
        throw new Refused(response.status, "the answer is no event stream");
      }
      onState?.({ state: "live" });
      for await (const block of blocks(response.body, lastEventId, eventCharsMax)) {
        if (block.retry !== undefined) retryMs = block.retry;
        if (block.event === "sidestream.close") {
          const close = parsed(block.data);
          if (Number.isFinite(close.retry)) retryMs = Math.max(0, close.retry);
          await handled(() => onClose?.(close));
        } else if (block.event === "sidestream.gap") {
          await handled(() => onGap?.(parsed(block.data)));
        } else if (block.event === "sidestream.renew") {
          await handled(() => onRenew?.(parsed(block.data)));
          if (typeof headers === "function") fresh = await renewed(headers);
        } else if (block.event === "sidestream.end") {
          return;
        } else if (block.event !== undefined && block.event !== "sidestream.position") {
          await handled(() => onEvent(block.toEvent()));
        }
        if (block.id !== undefined) lastEventId = block.id;
        // A position or an event is a stream that works; `retry:` and a close alone may be an overloaded server.
        if (block.told) failures = 0;
        if (fresh !== undefined) break;
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error instanceof HandlerError) throw error.cause;
      if (error instanceof Refused && !error.temporary) throw error;
      cause = error;
    } finally {
      signal?.removeEventListener("abort", abort);
      attempt.abort();
    }
    if (fresh !== undefined) continue;
    const delayMs = waitMs + random() * (waitMs > 0 ? retryMs : Math.min(Math.max(capMs, retryMs), retryMs * 2 ** failures));
    failures += 1;
    onState?.({ state: "waiting", delayMs, cause });
    await pause(delayMs, signal);
  }
}

/** The server's no. `status` is the HTTP status, `code` Sidestream's own name for the reason, if it gave one. */
export class Refused extends Error {
  constructor(status, message, code) {
    super(`${status}: ${message}`);
    this.name = "Refused";
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may well succeed later. */
  get temporary() {
    return this.status >= 500 || this.status === 429;
  }
}

/** What a handler of the application threw: it ends `follow`, because an event that is not applied must not be passed. */
class HandlerError extends Error {}

async function handled(call) {
  try {
    await call();
  } catch (cause) {
    throw new HandlerError("a handler failed", { cause });
  }
}

/** The headers of a renewal; undefined if the application has none at the moment. */
async function renewed(headers) {
  try {
    return await headers();
  } catch {
    return undefined;
  }
}

function requestHeaders(headers, lastEventId) {
  const all = new Headers(headers);
  all.set("Accept", "text/event-stream");
  // Header values are bytes, and fetch takes only those below 256; ids of Sidestream are plain ASCII.
  if (lastEventId) all.set("Last-Event-ID", lastEventId);
  return all;
}

/** `Retry-After` in milliseconds from now: seconds or a date (RFC 9110, section 10.2.3); 0 if there is none. */
function retryAfter(response) {
  const value = response.headers.get("retry-after");
  if (value === null) return 0;
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : 0;
}

async function refusal(response) {
  const { error = {} } = parsed(await response.text().catch(() => ""));
  return new Refused(response.status, error.message ?? response.statusText, error.code);
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}

/**
 * Splits a body into blocks by the rules of the HTML standard, section 9.2.6. A block has the `id` of the position after
 * it and, if it is an event, `event` and `data`; a `retry` comes alone, as soon as it is read. What stands after the last
 * blank line is dropped.
 */
async function* blocks(body, lastEventId, charsMax) {
  // The decoder drops a byte order mark and replaces what is not UTF-8, as the standard asks.
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let afterCr = false;
  let id = lastEventId;
  let positioned = false;
  let event = "";
  let data = [];
  let chars = 0;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      let chunk = value;
      // CR at the end of the last chunk has ended its line already; an LF right after it belongs to it.
      if (afterCr && chunk.startsWith("\n")) chunk = chunk.slice(1);
      if (chunk !== "") afterCr = chunk.endsWith("\r");
      const lines = chunk.split(/\r\n|\n|\r/);
      lines[0] = rest + lines[0];
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          const block = new Block(id, positioned, event, data);
          positioned = false;
          event = "";
          data = [];
          chars = 0;
          yield block;
          continue;
        }
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
        if (name === "data") data.push(value);
        else if (name === "event") event = value;
        else if (name === "id" && !value.includes("\0")) [id, positioned] = [value, true];
        else if (name === "retry" && /^\d+$/.test(value)) yield { retry: Number(value) };
        if (name !== "") chars += line.length;
        if (chars > charsMax) throw new Error(`an event above ${charsMax} characters`);
      }
      if (chars + rest.length > charsMax) throw new Error(`an event above ${charsMax} characters`);
    }
  } finally {
    // Whoever stops reading ends the request.
    await reader.cancel().catch(() => {});
  }
}

class Block {
  constructor(id, positioned, event, data) {
    this.id = id;
    this.told = event !== "sidestream.close" && (positioned || data.length > 0);
    if (data.length > 0) {
      this.event = event === "" ? "message" : event;
      this.data = data.join("\n");
    }
  }

  toEvent() {
    return { id: this.id, event: this.event, data: this.data };
  }
}
