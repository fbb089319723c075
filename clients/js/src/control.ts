/** Control events: their names, and what their data says. */

/** Events that the client should have received and does not. Load the state again from its origin. */
export interface Gap {
  reason: string;
  /** Number of missing events, if it is known. */
  missed: number | null;
  /** Where the event stream continues. */
  resume: "oldest" | "live";
}

/** End of an event stream. The client reconnects. */
export interface Close {
  reason: string;
  /** Delay before the reconnect, in milliseconds. */
  retry?: number;
}

/** Expiry of the credentials, in seconds since 1970. */
export interface Renewal {
  expires: number;
}

/** Removal of the value of a subject. */
export interface Removed {
  reason: string;
  subject: string;
}

/** Data of each control event. */
export interface ControlData {
  "sidestream.gap": Gap;
  "sidestream.close": Close;
  "sidestream.renew": Renewal;
  "sidestream.removed": Removed;
  /** Start of a state: discard what you hold. */
  "sidestream.snapshot": object;
  /** End of a state: changes follow. */
  "sidestream.synced": object;
  /** Last event of a finite event stream. */
  "sidestream.end": object;
}

/** Control event. `data` is the JSON text, as of an EventSource; `detail` is parsed. */
export class ControlEvent<T> extends MessageEvent<string> {
  constructor(
    type: string,
    init: MessageEventInit<string>,
    readonly detail: T,
  ) {
    super(type, init);
  }
}
