/** EventSource with the events of Sidestream, a kept position, and one connection for all tabs. */

import { ControlEvent, type ControlData } from "./control.js";
import type { Item } from "./items.js";
import { pump, wake, type ConnectionOptions } from "./pump.js";
import { canShare, share } from "./tabs.js";
import { json } from "./transport.js";

/** Options of a source. All have defaults; with none it behaves as an EventSource. */
export interface SourceOptions extends Omit<ConnectionOptions, "credentials"> {
  /** Whether requests to other origins carry cookies. */
  withCredentials?: boolean;
  /** Whether all tabs with this URL share one connection. */
  shared?: boolean;
  /** Whether the position survives a reload of the tab, in sessionStorage. */
  keepPosition?: boolean;
  /** Whether the connection ends while the page is hidden, and resumes when it is visible. */
  pauseHidden?: boolean;
}

/** End of a connection, or of the source if its `readyState` is 2. */
export class ErrorOfSource extends Event {
  constructor(
    /** Error, such as `Refused`; absent after an end in good order. */
    readonly cause?: unknown,
  ) {
    super("error");
  }
}

type ControlEvents = { [K in keyof ControlData]: ControlEvent<ControlData[K]> };

/** Events of a source. Events of the application have the names that they were published with. */
export interface SourceEventMap extends ControlEvents {
  open: Event;
  message: MessageEvent<string>;
  error: ErrorOfSource;
}

type Listener<E> = ((this: SidestreamSource, event: E) => unknown) | { handleEvent(event: E): unknown } | null;

export interface SidestreamSource {
  addEventListener<K extends keyof SourceEventMap>(type: K, listener: Listener<SourceEventMap[K]>, options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: Listener<MessageEvent<string>>, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof SourceEventMap>(type: K, listener: Listener<SourceEventMap[K]>, options?: boolean | EventListenerOptions): void;
  removeEventListener(type: string, listener: Listener<MessageEvent<string>>, options?: boolean | EventListenerOptions): void;
}

/** Drop-in for EventSource. */
export class SidestreamSource extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSED = 2;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSED = 2;

  readonly url: string;
  readonly withCredentials: boolean;
  readyState: 0 | 1 | 2 = 0;
  /** Position after the last event. */
  lastEventId: string;
  onopen: ((this: this, event: Event) => unknown) | null = null;
  onmessage: ((this: this, event: MessageEvent<string>) => unknown) | null = null;
  onerror: ((this: this, event: ErrorOfSource) => unknown) | null = null;

  readonly #options: SourceOptions;
  readonly #key: string;
  readonly #closed = new AbortController();
  #hasState = false;
  /** Present while connected or connecting; a paused source has none. */
  #run: AbortController | undefined;

  constructor(url: string | URL, options: SourceOptions = {}) {
    super();
    // Throws if the URL is invalid.
    this.url = new URL(url, globalThis.location?.href).href;
    this.withCredentials = !!options.withCredentials;
    this.#options = options;
    this.#key = "sidestream:" + this.url;
    this.lastEventId = this.#stored() ?? options.lastEventId ?? "";
    for (const type of ["open", "message", "error"] as const) {
      this.addEventListener(type, (event: any) => this[`on${type}`]?.(event));
    }
    if (globalThis.document) this.#watchPage();
    this.#start();
  }

  /** Ends the source. */
  close(): void {
    this.readyState = 2;
    this.#closed.abort();
    this.#pause();
  }

  /** A page in the back/forward cache has no connection; one that becomes visible or online does not wait. */
  #watchPage(): void {
    const { signal } = this.#closed;
    const { pauseHidden } = this.#options;
    const on = (target: EventTarget, type: string, act: () => void) => target.addEventListener(type, act, { signal });
    const wakeUp = () => wake.dispatchEvent(new Event("wake"));
    on(globalThis, "pagehide", () => this.#pause());
    on(globalThis, "pageshow", () => this.#start());
    on(globalThis, "online", wakeUp);
    on(document, "visibilitychange", () => {
      if (!document.hidden) {
        this.#start();
        wakeUp();
      } else if (pauseHidden) this.#pause();
    });
  }

  #pause(): void {
    this.#run?.abort();
    this.#run = undefined;
    if (this.readyState === 1) this.readyState = 0;
  }

  #start(): void {
    if (this.#run || this.readyState === 2 || (this.#options.pauseHidden && globalThis.document?.hidden)) return;
    const { signal } = (this.#run = new AbortController());
    const run = this.#options.shared && canShare() ? this.#share(signal) : this.#connect(signal, (item) => this.#deliver(item));
    const over = (cause?: unknown) => {
      if (signal.aborted) return;
      this.close();
      this.dispatchEvent(new ErrorOfSource(cause));
    };
    run.then(() => over(), over);
  }

  #connect(signal: AbortSignal, item: (item: Item) => void, state: (readyState: number, cause?: unknown) => void = (state, cause) => this.#state(state, cause)): Promise<void> {
    const credentials = this.withCredentials ? "include" : "same-origin";
    const options: ConnectionOptions = { ...this.#options, credentials, lastEventId: this.lastEventId };
    return pump(this.url, options, signal, {
      item,
      state({ state: name, cause }) {
        if (name === "live") state(1);
        else if (name === "waiting") state(0, cause);
      },
    });
  }

  #share(signal: AbortSignal): Promise<void> {
    const source = this;
    return share(
      this.#key + (this.withCredentials ? "+" : ""),
      {
        heartbeatMs: this.#options.heartbeatMs ?? 15_000,
        get position() {
          return source.lastEventId;
        },
        get hasState() {
          return source.#hasState;
        },
        set hasState(value) {
          source.#hasState = value;
        },
        deliver: (item) => this.#deliver(item),
        state: (state, cause) => this.#state(state, cause),
        run: (signal, deliver, state) => this.#connect(signal, deliver, state ?? (() => {})),
      },
      signal,
    );
  }

  #state(readyState: number, cause?: unknown): void {
    if (this.readyState === 2 || (readyState && this.readyState)) return;
    this.readyState = readyState as 0 | 1;
    this.dispatchEvent(readyState ? new Event("open") : new ErrorOfSource(cause));
  }

  #deliver({ id, event, data = "", subject }: Item): void {
    if (this.readyState === 2) return;
    this.lastEventId = id ?? this.lastEventId;
    if (event && event !== "sidestream.position") {
      const { lastEventId } = this;
      const init = { data, lastEventId, origin: new URL(this.url).origin };
      const isControl = event.startsWith("sidestream.");
      const message = isControl ? new ControlEvent(event, init, json(data)) : new MessageEvent(event, init);
      this.dispatchEvent(subject ? Object.assign(message, { subject }) : message);
    }
    if (id !== undefined) this.#stored(id);
  }

  /** Reads or writes the position in sessionStorage, which can be full or blocked. */
  #stored(id?: string): string | undefined {
    if (!this.#options.keepPosition) return;
    try {
      if (id === undefined) return sessionStorage.getItem(this.#key) ?? undefined;
      sessionStorage.setItem(this.#key, id);
    } catch {}
    return;
  }
}
