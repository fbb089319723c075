/**
 * Event stream over many connections: reconnects, resumes, renews credentials and changes the framing.
 *
 * - An attempt ends in good order (a drain, an age limit) or breaks. Both reconnect after a random part of
 *   `base * 2^failures`, at most `capMs` (full jitter: clients of one pod do not return in step). `base` is the
 *   server's `retry`. `Retry-After` is a minimum, with jitter above it.
 * - Two heartbeats of silence are a broken connection. If nothing has arrived since the request, a proxy may hold
 *   the response back: the next attempt uses the next framing.
 * - `sidestream.renew` requests fresh headers and reconnects at once, at the position.
 */

import { Ended, Refused, json, open, type Framing } from "./transport.js";
import type { Item } from "./items.js";

/** State of an event stream. */
export interface State {
  state: "connecting" | "live" | "waiting";
  framing: Framing;
  /** Time until the next attempt, while waiting. */
  delayMs?: number;
  /** Error that ended the attempt; absent after an end in good order. */
  cause?: unknown;
}

/** Options of a connection. */
export interface ConnectionOptions {
  /** Request headers, or a function that returns them: called before each attempt, and after `sidestream.renew`. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  credentials?: RequestCredentials;
  /** Position to resume after; "" is live. */
  lastEventId?: string;
  /** Framings in order of preference. Default: `sse`, `websocket` (without `headers`), `long_poll`. */
  framings?: readonly Framing[];
  /** Heartbeat interval of the route, in milliseconds; 15,000. Two of them without a byte end a connection. */
  heartbeatMs?: number;
  /** Base of the delay until the server sends one, in milliseconds; 3,000. */
  retryMs?: number;
  /** Maximum of the delay, in milliseconds; 30,000. */
  capMs?: number;
  /** Maximum length of an event; 16 Mi characters. */
  eventCharsMax?: number;
  fetch?: typeof fetch;
  /** Source of jitter. */
  random?: () => number;
}

/** Receivers of one run. */
export interface Receiver {
  /** Called for each item, and awaited before the position advances. An error ends the run. */
  item(item: Item): unknown;
  state?(state: State): void;
}

/** Error of a receiver. */
class ReceiverError {
  constructor(readonly error: unknown) {}
}

/** Aborts the pause of every run: the network is there again, or the page is visible. */
export const wake = new EventTarget();

/** Runs until the signal, `sidestream.end` or status 204; rejects if the server rejects what repeating does not change. */
export async function pump(url: string | URL, options: ConnectionOptions, signal: AbortSignal, receiver: Receiver): Promise<void> {
  const { headers, credentials, heartbeatMs = 15_000, capMs = 30_000, eventCharsMax = 16 << 20, random = Math.random } = options;
  const framings = options.framings ?? defaultFramings(headers !== undefined);
  const fetched = framings.filter((framing) => framing !== "websocket").length;
  const target = new URL(url, globalThis.location?.href);
  const silenceMs = 2 * heartbeatMs;
  let { lastEventId = "", retryMs = 3000 } = options;
  let failures = 0;
  let refusals = 0;
  let preference = 0;
  let fresh: HeadersInit | undefined;

  while (!signal.aborted) {
    const framing = framings[preference % framings.length]!;
    let waitMs = 0;
    let cause: unknown;
    // Of this attempt alone: leaving the loop below ends the request.
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    signal.addEventListener("abort", abort);
    let heardAt = Date.now();
    let isSilent = false;
    let isHeard = false;
    let isLive = false;
    let isBusy = false;
    // The timer of a hidden page can be late; then the page that becomes visible checks. The heartbeats of an open
    // WebSocket are pings, which a page does not see: only a page that wakes up checks it.
    const check = (woken?: Event) => {
      const left = heardAt + silenceMs - Date.now();
      clearTimeout(timer);
      if (isBusy || left > 0 || (isLive && framing === "websocket" && !woken)) timer = setTimeout(check, left > 0 ? left : silenceMs);
      else {
        isSilent = true;
        abort();
      }
    };
    let timer = setTimeout(check, silenceMs);
    wake.addEventListener("wake", check);
    try {
      receiver.state?.({ state: "connecting", framing });
      const given = fresh ?? (typeof headers === "function" ? await headers() : headers);
      fresh = undefined;
      const items = open(framing, {
        url: target,
        headers: given,
        credentials,
        lastEventId,
        // The answer to a poll must come before the silence is too long.
        wait: Math.max(1, Math.floor((silenceMs * 0.8) / 1000)),
        charsMax: eventCharsMax,
        fetch: options.fetch ?? globalThis.fetch,
        signal: attempt.signal,
        heard: () => {
          heardAt = Date.now();
          isHeard = true;
        },
      });
      for await (const item of items) {
        if (attempt.signal.aborted) break;
        if (!isLive) {
          isLive = true;
          receiver.state?.({ state: "live", framing });
        }
        const isClose = item.event === "sidestream.close";
        const retry = isClose ? json(item.data!).retry : item.retry;
        if (retry >= 0) retryMs = retry;
        isBusy = true;
        try {
          await receiver.item(item);
        } catch (error) {
          throw new ReceiverError(error);
        }
        isBusy = false;
        heardAt = Date.now();
        if (item.id !== undefined) lastEventId = item.id;
        if (item.event === "sidestream.end") return;
        // A position or an event is a stream that works; a delay and a close alone can be an overloaded server.
        if (!isClose && (item.id !== undefined || item.event)) failures = 0;
        if (item.event === "sidestream.renew" && typeof headers === "function") fresh = await renewed(headers);
        if (fresh) break;
      }
    } catch (error) {
      if (error instanceof ReceiverError) throw error.error;
      if (signal.aborted || error instanceof Ended) return;
      cause = error;
    } finally {
      clearTimeout(timer);
      wake.removeEventListener("wake", check);
      signal.removeEventListener("abort", abort);
      attempt.abort();
    }
    if (fresh) continue;
    const isRefused = cause instanceof Refused;
    if (isRefused) waitMs = (cause as Refused).retryAfter;
    const isPermanent = isRefused && !(cause as Refused).temporary;
    if (isLive) refusals = 0;
    // The preferred framing decides about the request itself; a route may not offer the others.
    if (isPermanent && (preference % framings.length === 0 || ++refusals >= fetched)) throw cause;
    if (isSilent) cause = new Error(`no byte for ${silenceMs} ms`);
    if ((isSilent && !isHeard) || isPermanent || (framing === "websocket" && !isLive)) preference += 1;
    const highest = waitMs > 0 ? retryMs : Math.min(Math.max(capMs, retryMs), retryMs * 2 ** failures);
    const delayMs = waitMs + random() * highest;
    failures += 1;
    if (signal.aborted) return;
    receiver.state?.({ state: "waiting", framing, delayMs, cause });
    await pause(delayMs, signal, waitMs);
  }
}

function defaultFramings(hasHeaders: boolean): Framing[] {
  // A page cannot set the headers of a WebSocket.
  const socket: Framing[] = hasHeaders || !globalThis.WebSocket ? [] : ["websocket"];
  return ["sse", ...socket, "long_poll"];
}

/** Headers of a renewal; undefined if the application has none at the moment. */
async function renewed(headers: () => HeadersInit | Promise<HeadersInit>): Promise<HeadersInit | undefined> {
  try {
    return await headers();
  } catch {
    return;
  }
}

/** Waits. `wake` ends a pause that has no minimum. */
function pause(ms: number, signal: AbortSignal, minimum: number): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      wake.removeEventListener("wake", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
    if (!minimum) wake.addEventListener("wake", done);
    if (signal.aborted) done();
  });
}
