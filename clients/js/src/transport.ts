/**
 * One attempt in one framing: a generator of items that ends with the connection. Its first item, without fields,
 * means that the server has accepted the request.
 */

import { Lines, lineItem, sseParser, type Item } from "./items.js";

/** Framing of an event stream: Server-Sent Events, or JSON lines with the subject of each event. */
export type Framing = "sse" | "ndjson";

/** Request of one attempt. */
export interface Attempt {
  url: URL;
  headers: HeadersInit | undefined;
  credentials: RequestCredentials | undefined;
  lastEventId: string;
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
};

/** Sends a request; throws unless it is answered by a body of the framing. */
async function request(framing: Framing, { url, headers, credentials, lastEventId, fetch, signal }: Attempt): Promise<Response> {
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

/** Opens an event stream. */
export async function* open(framing: Framing, attempt: Attempt): AsyncGenerator<Item> {
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

/** Parses JSON; an empty object if that fails. */
export function json(text: string): any {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
