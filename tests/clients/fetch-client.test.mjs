// web/fetch-client.js against a small server on loopback: `node --test tests/clients/`.

import assert from "node:assert/strict";
import http from "node:http";
import { test } from "node:test";
import { Refused, follow } from "../../web/fetch-client.js";

/** Serves each request with the next of `answers`, a function of (request, response); keeps the requests. */
async function serve(t, answers) {
  const requests = [];
  const server = http.createServer((request, response) => {
    requests.push({ url: request.url, headers: request.headers, at: Date.now() });
    const answer = answers[requests.length - 1] ?? no(500);
    answer(request, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}/events`, requests };
}

/** An event stream of these pieces, each written on its own, that ends by itself unless `open`. */
const stream = (pieces, { open = false, broken = false } = {}) => async (request, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (const piece of pieces) {
    response.write(piece);
    await new Promise(setImmediate);
  }
  if (broken) response.destroy();
  else if (!open) response.end();
};

const no = (status, headers = {}, body = "") => (request, response) => {
  response.writeHead(status, headers);
  response.end(body);
};

/** Follows until a 204 or `count` events; returns all that was told. */
async function followed(url, options = {}, count = Infinity) {
  const told = { events: [], gaps: [], closes: [], states: [] };
  const stop = new AbortController();
  const on = {
    onEvent: (event) => {
      told.events.push(event);
      if (told.events.length >= count) stop.abort();
    },
    onGap: (gap) => told.gaps.push(gap),
    onClose: (close) => told.closes.push(close),
    onState: (state) => told.states.push(state),
  };
  await follow(url, { retryMs: 5, signal: stop.signal, ...on, ...options });
  return told;
}

const waits = (told) => told.states.filter(({ state }) => state === "waiting").map(({ delayMs }) => delayMs);

test("events have an id, a name and data, however the bytes are cut", async (t) => {
  const text = "\u{feff}retry: 7\r\nid: a-1\r\n\r\nevent: created\ndata: ä\ndata:  b\nid: a-2\n\n: hb\ndata\n\nid: x\0\rdata:c\r\rdata: cut";
  const bytes = Buffer.from(text);
  const whole = await serve(t, [stream([bytes]), no(204)]);
  const cut = await serve(t, [stream([...bytes].map((byte) => Buffer.of(byte))), no(204)]);
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
    no(204),
  ]);
  const { events } = await followed(url);
  assert.deepEqual(events.map(({ id }) => id), ["a-1", "a-2"]);
  assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), [undefined, "a-1", "a-2", "a-4", "a-5"]);
  assert.equal(requests[0].headers.accept, "text/event-stream");
});

test("headers and a position can be given", async (t) => {
  const { url, requests } = await serve(t, [no(204)]);
  await followed(url, { headers: { Authorization: "Bearer t" }, lastEventId: "a-9" });
  assert.equal(requests[0].headers.authorization, "Bearer t");
  assert.equal(requests[0].headers["last-event-id"], "a-9");
});

test("gaps and closes are told apart from events", async (t) => {
  const { url, requests } = await serve(t, [
    stream([
      'event: sidestream.gap\ndata: {"reason":"expired","missed":3,"resume":"oldest"}\nid: a-4\n\n',
      'event: sidestream.close\ndata: {"reason":"drain","retry":7}\nid: a-6\n\n',
    ]),
    no(204),
  ]);
  const { events, gaps, closes } = await followed(url);
  assert.deepEqual(events, []);
  assert.deepEqual(gaps, [{ reason: "expired", missed: 3, resume: "oldest" }]);
  assert.deepEqual(closes, [{ reason: "drain", retry: 7 }]);
  assert.equal(requests[1].headers["last-event-id"], "a-6");
});

test("a renewal reconnects at once with fresh headers at the position", async (t) => {
  const renewal = 'event: sidestream.renew\ndata: {"expires":1795961031}\n\n';
  const { url, requests } = await serve(t, [
    stream(["data: 1\nid: a-1\n\n", renewal, "data: never read\nid: a-2\n\n"], { open: true }),
    stream(["data: 2\nid: a-2\n\n"], { open: true }),
  ]);
  let tokens = 0;
  const renewals = [];
  const told = await followed(
    url,
    {
      retryMs: 60_000,
      headers: async () => ({ Authorization: `Bearer ${(tokens += 1)}` }),
      onRenew: (renewal) => renewals.push(renewal),
    },
    2,
  );
  assert.deepEqual(told.events.map(({ data }) => data), ["1", "2"]);
  assert.deepEqual(renewals, [{ expires: 1795961031 }]);
  assert.deepEqual(requests.map(({ headers }) => headers.authorization), ["Bearer 1", "Bearer 2"]);
  assert.equal(requests[1].headers["last-event-id"], "a-1");
  assert.deepEqual(waits(told), []);
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
  const told = await followed(url, { headers }, 1);
  assert.deepEqual(told.events.map(({ data }) => data), ["1"]);
  assert.deepEqual([calls, requests.length], [2, 1]);
});

test("a renewal is no event, and headers that cannot change keep the stream", async (t) => {
  const { url, requests } = await serve(t, [
    stream(["event: sidestream.renew\ndata: {}\n\n", "data: 1\nid: a-1\n\n"], { open: true }),
  ]);
  const told = await followed(url, {}, 1);
  assert.deepEqual(told.events.map(({ data }) => data), ["1"]);
  assert.equal(requests.length, 1);
});

test("the delay doubles up to its cap, with full jitter, and begins anew after an event", async (t) => {
  const { url } = await serve(t, [no(500), no(502), no(503), no(500), stream(["data: x\n\n"]), no(500), no(204)]);
  const whole = await followed(url, { retryMs: 10, capMs: 40, random: () => 1 });
  assert.deepEqual(waits(whole), [10, 20, 40, 40, 10, 20]);
  const other = await serve(t, [no(500), no(500), no(204)]);
  const quarter = await followed(other.url, { retryMs: 40, random: () => 0.25 });
  assert.deepEqual(waits(quarter), [10, 20]);
});

test("the server's retry is the base, also above the cap", async (t) => {
  const { url } = await serve(t, [stream(["retry: 30\n\n"]), no(500), no(204)]);
  const told = await followed(url, { capMs: 20, random: () => 1 });
  assert.deepEqual(waits(told), [30, 30]);
});

test("an overloaded server that only closes is not taken for a success", async (t) => {
  const busy = stream(['retry: 4\n\nevent: sidestream.close\ndata: {"reason":"overload","retry":4}\n\n']);
  const { url } = await serve(t, [busy, busy, busy, no(204)]);
  const told = await followed(url, { random: () => 1 });
  assert.deepEqual(waits(told), [4, 8, 16]);
});

test("Retry-After is a lower bound with jitter above it", async (t) => {
  const { url, requests } = await serve(t, [no(429, { "retry-after": "1" }), no(503, { "retry-after": "Thu, 01 Jan 1970 00:00:00 GMT" }), no(204)]);
  const told = await followed(url, { retryMs: 10, random: () => 0.5 });
  assert.deepEqual(waits(told), [1005, 10]);
  assert.ok(requests[1].at - requests[0].at >= 1000);
});

test("a 4xx rejects with the server's own words, and is not repeated", async (t) => {
  const body = JSON.stringify({ error: { code: "subject_not_allowed", message: "not allowed" } });
  const { url, requests } = await serve(t, [no(403, { "content-type": "application/json" }, body)]);
  await assert.rejects(followed(url), (error) => {
    assert.ok(error instanceof Refused);
    assert.deepEqual([error.status, error.code, error.message], [403, "subject_not_allowed", "403: not allowed"]);
    return true;
  });
  assert.equal(requests.length, 1);
});

test("a page is no event stream", async (t) => {
  const { url } = await serve(t, [no(200, { "content-type": "text/html" }, "<html>")]);
  await assert.rejects(followed(url), /no event stream/);
});

test("a handler that fails ends it before the event is passed", async (t) => {
  const { url, requests } = await serve(t, [stream(["data: x\nid: a-1\n\n"], { open: true })]);
  const failing = followed(url, { onEvent: () => Promise.reject(new Error("the database is down")) });
  await assert.rejects(failing, /the database is down/);
  assert.equal(requests.length, 1);
});

test("an event that would fill the memory is an error", async (t) => {
  const pieces = Array.from({ length: 20 }, () => "data: 0123456789\n");
  const { url } = await serve(t, [stream(pieces, { open: true }), stream(["x".repeat(200)], { open: true }), no(204)]);
  const told = await followed(url, { eventCharsMax: 100 });
  const causes = told.states.filter(({ cause }) => cause).map(({ cause }) => cause.message);
  assert.deepEqual(causes, ["an event above 100 characters", "an event above 100 characters"]);
});

test("aborting ends it, in the middle of a stream and of a pause", async (t) => {
  const streaming = await serve(t, [stream(["data: x\n\n"], { open: true })]);
  assert.equal((await followed(streaming.url, {}, 1)).events.length, 1);

  const pausing = await serve(t, [no(503, { "retry-after": "3600" })]);
  const stop = new AbortController();
  const onState = ({ state }) => state === "waiting" && stop.abort();
  await follow(pausing.url, { onEvent() {}, onState, signal: stop.signal });
  assert.equal(pausing.requests.length, 1);
});
