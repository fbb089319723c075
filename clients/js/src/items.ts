/**
 * Parsers of the framings. Each turns text into items: events, control events and delays.
 *
 * Control events have the names of Server-Sent Events in every framing: `{"control":"gap",...}` of a
 * line is the event `sidestream.gap`.
 */

/** Event, control event, or delay. An item without `event` has no data to dispatch. */
export interface Item {
  /** Position after the item. */
  id?: string;
  event?: string;
  data?: string;
  /** NATS subject, in framings that have it. */
  subject?: string;
  /** Delay before a reconnect, in milliseconds. */
  retry?: number;
}

/** Lines of a text that arrives in pieces. CR, LF and CRLF end a line. */
export class Lines {
  #rest = "";
  #afterCr = false;

  /** Returns the lines that this piece completes; throws if an unfinished line is too long. */
  push(chunk: string, charsMax: number): string[] {
    // A CR at the end of the last piece has ended its line; the LF after it belongs to it.
    if (this.#afterCr && chunk[0] === "\n") chunk = chunk.slice(1);
    if (chunk) this.#afterCr = chunk.endsWith("\r");
    const lines = (this.#rest + chunk).split(/\r\n|\n|\r/);
    this.#rest = lines.pop()!;
    limit(this.#rest.length, charsMax);
    return lines;
  }
}

/** Throws if an event has more characters than the limit. */
export function limit(chars: number, charsMax: number): void {
  if (chars > charsMax) throw new Error(`event with more than ${charsMax} characters`);
}

/** Parser of Server-Sent Events: WHATWG HTML, section 9.2.6. Takes one line at a time. */
export function sseParser(charsMax: number): (line: string) => Item | undefined {
  let item: Item = {};
  let data: string[] = [];
  let chars = 0;
  return (line) => {
    if (line === "") {
      const block = item;
      if (data.length) block.data = data.join("\n");
      if (data.length) block.event ||= "message";
      else delete block.event;
      item = {};
      data = [];
      chars = 0;
      return block;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") data.push(value);
    else if (name === "event") item.event = value;
    else if (name === "id" && !value.includes("\0")) item.id = value;
    // A delay applies when it is read, also if the block has no end.
    else if (name === "retry" && /^\d+$/.test(value)) return { retry: +value };
    if (name) chars += line.length;
    limit(chars, charsMax);
    return;
  };
}

/** Fields before the payload, none of which is in an escaped string. */
const BEFORE_DATA = /^\{(?:"(?:id|event|subject)":"(?:[^"\\]|\\.)*",)*"data":/;

/** Parses a line of newline-delimited JSON, which is also a message of a WebSocket. */
export function lineItem(line: string): Item | undefined {
  if (!line) return;
  const parsed = JSON.parse(line);
  const { control, id, ...rest } = parsed;
  const { event = "message", subject, retry } = parsed;
  if (control === "open") return { retry };
  if (control) return { event: "sidestream." + control, id, data: JSON.stringify(rest) };
  if ("base64" in parsed) return { id, event: event + ";base64", data: parsed.base64, subject };
  // The text of the line: a number that is parsed and written again can lose digits.
  const raw = line.slice(BEFORE_DATA.exec(line)?.[0].length, -1);
  return { id, event, data: raw[0] === '"' ? JSON.parse(raw) : raw, subject };
}
