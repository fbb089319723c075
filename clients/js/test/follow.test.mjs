// `follow` against a small server on loopback.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Refused, follow } from "@sidestream/client";
import { answer, serve, stream } from "./server.mjs";

/** Follows until a 204 or `count` events; returns all that the handlers received. */
async function followed(url, options = {}, count = Infinity) {
  const received = { events: [], gaps: [], closes: [], states: [] };
  const stop = new AbortController();
  const on = {
    onEvent: (event) => {
      received.events.push(event);
      if (received.events.length >= count) stop.abort();
    },
    onGap: (gap) => received.gaps.push(gap),
    onClose: (close) => received.closes.push(close),
    onState: (state) => received.states.push(state),
  };
  await follow(url, { retryMs: 5, signal: stop.signal, ...on, ...options });
  return received;
}

const waits = (received) => received.states.filter(({ state }) => state === "waiting").map(({ delayMs }) => delayMs);

test("events have an id, a name and data, however the bytes are cut", async (t) => {
  const text = "\u{feff}retry: 7\r\nid: a-1\r\n\r\nevent: created\ndata: ä\ndata:  b\nid: a-2\n\n: hb\ndata\n\nid: x\0\rdata:c\r\rdata: cut";
  const bytes = Buffer.from(text);
  const whole = await serve(t, [stream([bytes]), answer(204)]);
  const cut = await serve(t, [stream([...bytes].map((byte) => Buffer.of(byte))), answer(204)]);
  for (const { url, requests } of [whole, cut]) {
    const { events } = await followed(url);
    assert.deepEqual(events, [
      { id: "a-2", event: "created", data: "ä\n b" },
      { id: "a-2", event: "message", data: "" },
      { id: "a-2", event: "message", data: "c" },
    ]);
    assert.equal(requests[1].headers["last-event-id"], "a-2");
  }
});

test("a stream that ends or breaks is resumed after the last event", async (t) => {
  const { url, requests } = await serve(t, [
    stream(["data: one\nid: a-1\n\n"]),
    stream(["data: two\nid: a-2\n\ndata: half\nid: a-3\n"], { broken: true }),
    stream(["event: sidestream.position\ndata: {}\nid: a-4\n\n"]),
    stream(["id: a-5\n\n"]),
    answer(204),
  ]);
  const { events } = await followed(url);
  assert.deepEqual(events.map(({ id }) => id), ["a-1", "a-2"]);
  assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), [undefined, "a-1", "a-2", "a-4", "a-5"]);
  assert.equal(requests[0].headers.accept, "text/event-stream");
});

test("headers and a position can be given", async (t) => {
  const { url, requests } = await serve(t, [answer(204)]);
  await followed(url, { headers: { Authorization: "Bearer t" }, lastEventId: "a-9" });
  assert.equal(requests[0].headers.authorization, "Bearer t");
  assert.equal(requests[0].headers["last-event-id"], "a-9");
});

test("gaps and closes have handlers of their own", async (t) => {
  const { url, requests } = await serve(t, [
    stream([
      'event: sidestream.gap\ndata: {"reason":"expired","missed":3,"resume":"oldest"}\nid: a-4\n\n',
      'event: sidestream.close\ndata: {"reason":"drain","retry":7}\nid: a-6\n\n',
    ]),
    answer(204),
  ]);
  const { events, gaps, closes } = await followed(url);
  assert.deepEqual(events, []);
  assert.deepEqual(gaps, [{ reason: "expired", missed: 3, resume: "oldest" }]);
  assert.deepEqual(closes, [{ reason: "drain", retry: 7 }]);
  assert.equal(requests[1].headers["last-event-id"], "a-6");
});

test("the end of a finite event stream resolves, and nothing is requested again", async (t) => {
  const end = "data: 1\nid: a-1\n\nevent: sidestream.end\ndata: {}\nid: a-1\n\n";
  const { url, requests } = await serve(t, [stream([end], { open: true })]);
  const { events, closes } = await followed(url);
  assert.deepEqual([events.map(({ data }) => data), closes, requests.length], [["1"], [], 1]);
});

test("a renewal reconnects at once with fresh headers at the position", async (t) => {
  const renewal = 'event: sidestream.renew\ndata: {"expires":1795961031}\n\n';
  const { url, requests } = await serve(t, [
    stream(["data: 1\nid: a-1\n\n", renewal, "data: never read\nid: a-2\n\n"], { open: true }),
    stream(["data: 2\nid: a-2\n\n"], { open: true }),
  ]);
  let tokens = 0;
  const renewals = [];
  const received = await followed(
    url,
    {
      retryMs: 60_000,
      headers: async () => ({ Authorization: `Bearer ${(tokens += 1)}` }),
      onRenew: (renewal) => renewals.push(renewal),
    },
    2,
  );
  assert.deepEqual(received.events.map(({ data }) => data), ["1", "2"]);
  assert.deepEqual(renewals, [{ expires: 1795961031 }]);
  assert.deepEqual(requests.map(({ headers }) => headers.authorization), ["Bearer 1", "Bearer 2"]);
  assert.equal(requests[1].headers["last-event-id"], "a-1");
  assert.deepEqual(waits(received), []);
});

test("a renewal that fails keeps the stream", async (t) => {
  const { url, requests } = await serve(t, [
    stream(["event: sidestream.renew\ndata: {}\n\n", "data: 1\nid: a-1\n\n"], { open: true }),
  ]);
  let calls = 0;
  const headers = () => {
    if ((calls += 1) > 1) throw new Error("no token");
    return {};
  };
  const received = await followed(url, { headers }, 1);
  assert.deepEqual(received.events.map(({ data }) => data), ["1"]);
  assert.deepEqual([calls, requests.length], [2, 1]);
});

test("a renewal is not an event, and headers that cannot change keep the stream", async (t) => {
  const { url, requests } = await serve(t, [
    stream(["event: sidestream.renew\ndata: {}\n\n", "data: 1\nid: a-1\n\n"], { open: true }),
  ]);
  const received = await followed(url, {}, 1);
  assert.deepEqual(received.events.map(({ data }) => data), ["1"]);
  assert.equal(requests.length, 1);
});

test("the delay doubles up to its cap, with full jitter, and begins again after an event", async (t) => {
  const { url } = await serve(t, [answer(500), answer(502), answer(503), answer(500), stream(["data: x\n\n"]), answer(500), answer(204)]);
  const whole = await followed(url, { retryMs: 10, capMs: 40, random: () => 1 });
  assert.deepEqual(waits(whole), [10, 20, 40, 40, 10, 20]);
  const other = await serve(t, [answer(500), answer(500), answer(204)]);
  const quarter = await followed(other.url, { retryMs: 40, random: () => 0.25 });
  assert.deepEqual(waits(quarter), [10, 20]);
});

test("the server's retry is the base, also above the cap", async (t) => {
  const { url } = await serve(t, [stream(["retry: 30\n\n"]), answer(500), answer(204)]);
  const received = await followed(url, { capMs: 20, random: () => 1 });
  assert.deepEqual(waits(received), [30, 30]);
});

test("an overloaded server that only closes does not count as a success", async (t) => {
  const busy = stream(['retry: 4\n\nevent: sidestream.close\ndata: {"reason":"overload","retry":4}\n\n']);
  const { url } = await serve(t, [busy, busy, busy, answer(204)]);
  const received = await followed(url, { random: () => 1 });
  assert.deepEqual(waits(received), [4, 8, 16]);
});

test("Retry-After is a lower bound with jitter above it", async (t) => {
  const { url, requests } = await serve(t, [answer(429, { "retry-after": "1" }), answer(503, { "retry-after": "Thu, 01 Jan 1970 00:00:00 GMT" }), answer(204)]);
  const received = await followed(url, { retryMs: 10, random: () => 0.5 });
  assert.deepEqual(waits(received), [1005, 10]);
  assert.ok(requests[1].at - requests[0].at >= 1000);
});

test("a 4xx rejects with the message of the server, and is not repeated", async (t) => {
  const body = JSON.stringify({ error: { code: "subject_not_allowed", message: "not allowed" } });
  const { url, requests } = await serve(t, [answer(403, { "content-type": "application/json" }, body)]);
  await assert.rejects(followed(url), (error) => {
    assert.ok(error instanceof Refused);
    assert.deepEqual([error.status, error.code, error.message], [403, "subject_not_allowed", "403: not allowed"]);
    return true;
  });
  assert.equal(requests.length, 1);
});

test("a page is not an event stream", async (t) => {
  const { url } = await serve(t, [answer(200, { "content-type": "text/html" }, "<html>")]);
  await assert.rejects(followed(url), /expected text.event-stream/);
});

test("a handler that fails ends it before the position advances", async (t) => {
  const { url, requests } = await serve(t, [stream(["data: x\nid: a-1\n\n"], { open: true })]);
  const failing = followed(url, { onEvent: () => Promise.reject(new Error("the database is down")) });
  await assert.rejects(failing, /the database is down/);
  assert.equal(requests.length, 1);
});

test("an event that is too long is an error", async (t) => {
  const pieces = Array.from({ length: 20 }, () => "data: 0123456789\n");
  const { url } = await serve(t, [stream(pieces, { open: true }), stream(["x".repeat(200)], { open: true }), answer(204)]);
  const received = await followed(url, { eventCharsMax: 100 });
  const causes = received.states.filter(({ cause }) => cause).map(({ cause }) => cause.message);
  assert.deepEqual(causes, ["event with more than 100 characters", "event with more than 100 characters"]);
});

test("aborting ends it, in the middle of a stream and of a pause", async (t) => {
  const streaming = await serve(t, [stream(["data: x\n\n"], { open: true })]);
  assert.equal((await followed(streaming.url, {}, 1)).events.length, 1);

  const pausing = await serve(t, [answer(503, { "retry-after": "3600" })]);
  const stop = new AbortController();
  const onState = ({ state }) => state === "waiting" && stop.abort();
  await follow(pausing.url, { onEvent() {}, onState, signal: stop.signal });
  assert.equal(pausing.requests.length, 1);
});
