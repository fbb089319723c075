/** Event stream as one call, for services: handlers are awaited, and the position is the last one that is processed. */

import { json } from "./transport.js";
import { pump, type ConnectionOptions, type State } from "./pump.js";
import type { Close, Gap, Renewal } from "./control.js";

/** Event of the application, or one of `sidestream.removed`, `sidestream.snapshot`, `sidestream.synced`. */
export interface ReceivedEvent {
  /** Position after the event; "" before the first one. */
  id: string;
  /** Name; "message" if the event has none. */
  event: string;
  data: string;
  /** NATS subject, in framings that have it. */
  subject?: string;
}

/** Options of `follow`. */
export interface FollowOptions extends ConnectionOptions {
  /** Called for each event. The next one waits for it; an error ends `follow`. */
  onEvent(event: ReceivedEvent): unknown;
  /** Called if events are missing, before the first one after them. */
  onGap?(gap: Gap): unknown;
  /** Called when the server ends the event stream, with its reason. */
  onClose?(close: Close): unknown;
  /** Called before the credentials expire; awaited before `headers` is called. */
  onRenew?(renewal: Renewal): unknown;
  onState?(state: State): void;
  /** Ends `follow`, which resolves. */
  signal?: AbortSignal;
}

/** Follows an event stream until the signal or its end; rejects with `Refused` if repeating does not help. */
export function follow(url: string | URL, options: FollowOptions): Promise<void> {
  const { onEvent, onGap, onClose, onRenew, onState, lastEventId = "" } = options;
  let position = lastEventId;
  return pump(url, options, options.signal ?? new AbortController().signal, {
    state: (state) => onState?.(state),
    item({ event, data = "", id = position, subject }) {
      position = id;
      if (event === "sidestream.gap") return onGap?.(json(data));
      if (event === "sidestream.close") return onClose?.(json(data));
      if (event === "sidestream.renew") return onRenew?.(json(data));
      if (event && event !== "sidestream.position" && event !== "sidestream.end") return onEvent({ id, event, data, ...(subject && { subject }) });
    },
  });
}
