/**
 * One connection for all tabs that follow the same URL.
 *
 * The tab that holds a Web Lock is the leader: it has the connection and posts each item, with the position
 * before it, to a BroadcastChannel. If the leader ends, the browser grants the lock to the next tab, which resumes at
 * its own position. A leader that a browser has suspended keeps its lock: a visible tab steals it after three
 * heartbeats without a message.
 *
 * Every tab dispatches each event once, by these rules of a follower:
 * - An item that follows its position is the next one.
 * - Any other item with an id that it has seen is old: a new leader can be less advanced.
 * - Any other item means that it has missed something: it catches up with a connection of its own, from its
 *   position until that connection reaches an item that the leader has posted.
 */

import type { Item } from "./items.js";

/** Tab of a group, as its source provides it. */
export interface Tab {
  /** Interval at which the leader posts a sign of life. */
  heartbeatMs: number;
  /** Last position that was dispatched; "" is live. */
  position: string;
  /** Whether the event stream has begun with a state, which a tab that joins needs, too. */
  hasState: boolean;
  deliver(item: Item): void;
  /** Takes over the state of the leader's connection. */
  state(readyState: number, cause?: unknown): void;
  /** Runs a connection from the position. */
  run(signal: AbortSignal, deliver: (item: Item) => void, state?: (readyState: number, cause?: unknown) => void): Promise<void>;
}

/** Message of the leader, or the question of a tab that joins. */
interface Post {
  hello?: boolean;
  /** Position of the leader, at its start and as the answer to `hello`. */
  at?: string;
  /** Whether the event stream began with a state, which a tab that joins needs. */
  hasState?: boolean;
  readyState?: number;
  /** Position before the item. */
  after?: string;
  item?: Item;
}

/** Number of ids that a tab remembers. An older id costs a connection to catch up, never an event. */
const SEEN_MAX = 1024;

/** Number of posts that wait until a tab has caught up; older ones are dropped, and then cost another catch-up. */
const HELD_MAX = 10_000;

/** Whether this environment has what a group of tabs needs. Pages need a secure context. */
export const canShare = () => !!globalThis.navigator?.locks && !!globalThis.BroadcastChannel;

/** Takes part in a group until the signal or the end of the event stream. */
export async function share(name: string, tab: Tab, signal: AbortSignal): Promise<void> {
  const channel = new BroadcastChannel(name);
  const seen = new Set<string>();
  let isLeader = false;
  let isGreeted = false;
  let isStealing = false;
  let postedAt = 0;
  let turn: AbortController | undefined;
  let readyState = 0;
  let held: Post[] | undefined;
  let catching: AbortController | undefined;
  let ended: () => void;
  let failed: (error: unknown) => void;
  const end = new Promise<void>((resolve, reject) => ([ended, failed] = [resolve, reject]));

  const post = (message: Post) => channel.postMessage(message);
  const greet = () => post({ at: tab.position, hasState: tab.hasState, readyState });
  const deliver = (item: Item) => {
    tab.hasState ||= item.event === "sidestream.snapshot";
    if (item.id) {
      // Inserted again, the id is the newest.
      seen.delete(item.id);
      seen.add(item.id);
      if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value!);
    }
    tab.deliver(item);
    if (item.event === "sidestream.end") ended();
  };
  const stopCatching = () => {
    catching?.abort();
    catching = held = undefined;
  };

  const catchUp = (target?: string) => {
    const stop = (catching = new AbortController());
    held = [];
    const reached = (item: Item) => {
      deliver(item);
      if (!item.id) return;
      const index = held!.findLastIndex((post) => post.item!.id === item.id);
      if (index < 0 && item.id !== target) return;
      const rest = held!.slice(index + 1);
      stopCatching();
      rest.forEach(receive);
    };
    tab.run(stop.signal, reached).then(() => stop.signal.aborted || ended(), failed);
  };

  const receive = (message: Post) => {
    const { at, hasState: isStateful, readyState: state, after, item } = message;
    // What comes before the greeting is before its position.
    if (at === undefined && !isGreeted) return;
    isGreeted = true;
    if (state || (state === 0 && at === undefined)) tab.state(state);
    tab.hasState ||= !!isStateful;
    if (at !== undefined && !held) {
      if (!tab.position && tab.hasState) catchUp(at);
      // Without a position a tab begins live, and the leader is there.
      else if (!tab.position) deliver({ id: at });
      else if (at !== tab.position && !seen.has(at)) catchUp(at);
    }
    if (!item) return;
    if (held) {
      held.push(message);
      if (held.length > HELD_MAX) held.shift();
      // Its own connection was ahead of the leader.
      if (item.id && item.id === tab.position) stopCatching();
    } else if (after === tab.position || !tab.position) deliver(item);
    else if (!item.id || !seen.has(item.id)) {
      catchUp();
      held!.push(message);
    }
  };

  channel.onmessage = ({ data }: MessageEvent<Post>) => {
    if (data.hello) isLeader && greet();
    else if (!isLeader) {
      postedAt = Date.now();
      receive(data);
    }
  };
  const lead = async (signal: AbortSignal) => {
    stopCatching();
    isLeader = true;
    greet();
    const deliverToAll = (item: Item) => {
      if (!item.event && !item.id) return;
      post({ after: tab.position, item });
      deliver(item);
    };
    await tab.run(signal, deliverToAll, (state, cause) => {
      readyState = state;
      tab.state(state, cause);
      post({ readyState });
    });
  };
  /** Waits for the lock and leads; again if another tab has stolen it. */
  const attend = async () => {
    while (!signal.aborted) {
      const { signal: mine } = (turn = new AbortController());
      // A lock cannot be stolen with a signal.
      const options = isStealing ? { steal: true } : { signal: mine };
      isLeader = isGreeted = isStealing = false;
      postedAt = Date.now();
      post({ hello: true });
      try {
        return await navigator.locks.request(name, options, () => lead(mine));
      } catch (error: any) {
        turn.abort();
        if (error.name !== "AbortError") throw error;
      }
    }
  };
  const abort = () => turn?.abort();
  const watch = setInterval(() => {
    if (isLeader) post({});
    else if (!globalThis.document?.hidden && Date.now() - postedAt > 3 * tab.heartbeatMs) {
      isStealing = true;
      abort();
    }
  }, tab.heartbeatMs);
  signal.addEventListener("abort", abort);
  try {
    await Promise.race([attend(), end]);
  } finally {
    clearInterval(watch);
    stopCatching();
    channel.close();
  }
}
