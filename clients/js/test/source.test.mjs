// `SidestreamSource` against a small server on loopback.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ControlEvent, Refused, SidestreamSource } from "@sidestream/client";
import { answer, serve, stream } from "./server.mjs";

/** Opens a source; the promise resolves with what it dispatched, when `done` of it is true. */
function listen(t, url, options, done, names = []) {
  const source = new SidestreamSource(url, { retryMs: 5, ...options });
  t.after(() => source.close());
  const events = [];
  const finished = new Promise((resolve) => {
    for (const name of ["open", "message", "error", ...names]) {
      source.addEventListener(name, (event) => {
        events.push(event);
        if (done(event, source)) resolve(events);
      });
    }
  });
  return { source, finished };
}

const isClosed = (event, source) => source.readyState === SidestreamSource.CLOSED;
const types = (events) => events.map(({ type }) => type);

test("a source is an EventSource: states, handlers, names, and a position", async (t) => {
  const { url, requests } = await serve(t, [
    stream(["retry: 3\n\nevent: sidestream.position\ndata: {}\nid: a-1\n\nevent: created\ndata: 1\nid: a-2\n\n", "data: 2\nid: a-3\n\n"]),
    answer(204),
  ]);
  const calls = [];
  const { source, finished } = listen(t, url, {}, isClosed, ["created", "sidestream.position"]);
  source.onopen = () => calls.push(["open", source.readyState]);
  source.onmessage = ({ data, lastEventId, origin }) => calls.push([data, lastEventId, origin, source.lastEventId]);
  source.onerror = () => calls.push(["error", source.readyState]);
  assert.deepEqual([source.url, source.readyState, source.withCredentials, source.CONNECTING], [url, 0, false, 0]);
  assert.deepEqual(types(await finished), ["open", "created", "message", "error", "error"]);
  assert.deepEqual(calls, [["open", 1], ["2", "a-3", new URL(url).origin, "a-3"], ["error", 0], ["error", 2]]);
  assert.equal(requests[1].headers["last-event-id"], "a-3");
});

test("control events have their data as text and parsed", async (t) => {
  const { url } = await serve(t, [
    stream(['event: sidestream.gap\ndata: {"reason":"slow","missed":3,"resume":"oldest"}\nid: a-1\n\n']),
    answer(204),
  ]);
  const { finished } = listen(t, url, {}, isClosed, ["sidestream.gap"]);
  const gap = (await finished).find(({ type }) => type === "sidestream.gap");
  assert.ok(gap instanceof ControlEvent && gap instanceof MessageEvent);
  assert.deepEqual(gap.detail, { reason: "slow", missed: 3, resume: "oldest" });
  assert.deepEqual([gap.data, gap.lastEventId], ['{"reason":"slow","missed":3,"resume":"oldest"}', "a-1"]);
});

test("the end of a finite event stream is an event, and closes the source", async (t) => {
  const { url, requests } = await serve(t, [stream(["event: sidestream.end\ndata: {}\nid: a-1\n\n"], { open: true })]);
  const { source, finished } = listen(t, url, {}, isClosed, ["sidestream.end"]);
  assert.deepEqual(types(await finished), ["open", "sidestream.end", "error"]);
  assert.deepEqual([source.lastEventId, requests.length], ["a-1", 1]);
});

test("a rejection that repeating does not change closes the source, with its reason", async (t) => {
  const { url, requests } = await serve(t, [answer(503), answer(403, {}, '{"error":{"code":"subject_not_allowed","message":"no"}}')]);
  const { finished } = listen(t, url, {}, isClosed);
  const events = await finished;
  assert.deepEqual(types(events), ["error", "error"]);
  assert.ok(events[0].cause instanceof Refused && events[0].cause.temporary);
  assert.equal(events[1].cause.code, "subject_not_allowed");
  assert.equal(requests.length, 2);
});

test("an invalid URL throws", () => {
  assert.throws(() => new SidestreamSource("//"), TypeError);
});

test("close ends the request, and no event follows", async (t) => {
  let gone;
  const left = new Promise((resolve) => (gone = resolve));
  const { url } = await serve(t, [
    (request, response) => {
      response.on("close", gone);
      stream(["data: 1\nid: a-1\n\ndata: 2\nid: a-2\n\n"], { open: true })(request, response);
    },
  ]);
  const received = [];
  const source = new SidestreamSource(url);
  source.onmessage = ({ data }) => {
    received.push(data);
    source.close();
  };
  await left;
  assert.deepEqual([received, source.readyState, source.lastEventId], [["1"], 2, "a-1"]);
});

test("lines have the subject, and numbers keep their digits", async (t) => {
  const lines = [
    '{"control":"open","retry":3}\n{"control":"position","id":"a-1"}\n\n',
    '{"id":"a-2","event":"\\"data\\":","subject":"orders.1","data":{"n":12345678901234567890}}\n',
    '{"id":"a-3","subject":"orders.2","data":"text \\"x\\""}\n{"id":"a-4","subject":"orders.3","base64":"//4="}\n',
    '{"control":"gap","reason":"slow","missed":null,"resume":"oldest","id":"a-5"}\n{"id":"a-6","subject":"or',
  ];
  const body = (request, response) => {
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.end(lines.join(""));
  };
  const { url, requests } = await serve(t, [body, answer(204)]);
  const names = ['"data":', "message;base64", "sidestream.gap"];
  const { finished } = listen(t, url, { framings: ["ndjson"] }, isClosed, names);
  const events = (await finished).filter((event) => event instanceof MessageEvent);
  assert.deepEqual(events.map(({ type, data, subject }) => [type, data, subject]), [
    ['"data":', '{"n":12345678901234567890}', "orders.1"],
    ["message", 'text "x"', "orders.2"],
    ["message;base64", "//4=", "orders.3"],
    ["sidestream.gap", '{"reason":"slow","missed":null,"resume":"oldest"}', undefined],
  ]);
  assert.deepEqual(requests.map(({ headers }) => headers.accept), Array(2).fill("application/x-ndjson"));
  assert.equal(requests[1].headers["last-event-id"], "a-5");
});

test("two silent heartbeats end a connection, which resumes in the same framing", async (t) => {
  const { url, requests } = await serve(t, [stream(["data: 1\nid: a-1\n\n"], { open: true }), stream(["data: 2\nid: a-2\n\n"], { open: true })]);
  const { source, finished } = listen(t, url, { heartbeatMs: 100 }, ({ data }) => data === "2");
  await finished;
  assert.ok(requests[1].at - requests[0].at >= 200);
  assert.deepEqual(requests.map(({ headers }) => headers.accept), Array(2).fill("text/event-stream"));
  assert.equal(source.lastEventId, "a-2");
});

test("heartbeats keep a connection", async (t) => {
  const { url, requests } = await serve(t, [
    async (request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      for (let beat = 0; beat < 20; beat += 1) {
        response.write(": hb\n");
        await new Promise((resolve) => setTimeout(resolve, 40));
      }
      response.write("data: 1\n\n");
    },
  ]);
  const { finished } = listen(t, url, { heartbeatMs: 100 }, ({ data }) => data === "1");
  await finished;
  assert.equal(requests.length, 1);
});

/** A proxy that holds a response back until it ends. */
const silent = (request, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.flushHeaders();
};

/** The answer to a poll. */
const poll = (events, id, after = 0) => (request, response) =>
  setTimeout(() => answer(200, { "content-type": "application/json" }, JSON.stringify({ events, id }))(request, response), after);

test("a connection on which nothing arrives falls back to long polls, which end at 204", async (t) => {
  const { url, requests } = await serve(t, [
    silent,
    poll([], "a-1"),
    poll([{ id: "a-2", event: "created", subject: "orders.1", data: { n: 1 } }], "a-3", 50),
    poll([{ control: "close", reason: "drain", retry: 2, id: "a-3" }], "a-3"),
    poll([], "a-3"),
    answer(204),
  ]);
  const { finished } = listen(t, url, { heartbeatMs: 100, framings: ["sse", "long_poll"] }, isClosed, ["created", "sidestream.close"]);
  const events = await finished;
  assert.deepEqual(types(events), ["open", "error", "open", "created", "sidestream.close", "error", "open", "error"]);
  assert.match(String(events[1].cause), /no byte for 200 ms/);
  const [, ...polls] = requests;
  const queries = polls.map((request) => new URL(request.url, url).searchParams);
  assert.deepEqual(queries.map((query) => query.get("wait")), ["0s", "1s", "1s", "0s", "1s"]);
  assert.deepEqual(queries.map((query) => query.get("last_event_id")), [null, "a-1", "a-3", "a-3", "a-3"]);
  assert.ok(polls.every(({ headers }) => headers.accept === "application/json"));
});

test("a framing that the route does not offer is skipped, and all of them are tried again", async (t) => {
  const { url, requests } = await serve(t, [silent, answer(406), stream(["data: 1\nid: a-1\n\n"], { open: true })]);
  const { finished } = listen(t, url, { heartbeatMs: 100, framings: ["sse", "long_poll"] }, ({ data }) => data === "1");
  await finished;
  assert.deepEqual(requests.map(({ headers }) => headers.accept), ["text/event-stream", "application/json", "text/event-stream"]);
});
