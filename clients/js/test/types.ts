// Compiled by package.test.mjs: a program that uses the types.
import { ControlEvent, follow, Refused, SidestreamSource, type Gap } from "@sidestream/client";

const source = new SidestreamSource("/events", { shared: true, headers: async () => ({ Authorization: "Bearer t" }) });
source.onmessage = ({ data, lastEventId }) => [data.length, lastEventId.length];
source.onerror = function ({ cause }) {
  if (this.readyState === SidestreamSource.CLOSED && cause instanceof Refused) cause.status.toFixed();
};
source.addEventListener("sidestream.gap", ({ detail }) => {
  const missed: number | null = detail.missed;
  return missed;
});
source.addEventListener("sidestream.renew", (event: ControlEvent<{ expires: number }>) => event.detail.expires.toFixed());
source.addEventListener("created", ({ data }) => data.trim(), { once: true });
// @ts-expect-error: a gap has no such field
source.addEventListener("sidestream.gap", ({ detail }) => detail.number);

// A drop-in for EventSource, for code that takes one.
const count = (events: Pick<EventSource, "readyState" | "url" | "withCredentials" | "close" | "dispatchEvent">) => events.readyState;
count(source);

const gaps: Gap[] = [];
await follow(new URL("http://127.0.0.1/"), {
  framings: ["ndjson", "long_poll"],
  onEvent: async ({ id, event, data, subject }) => [id, event, data, subject?.length],
  onGap: (gap) => gaps.push(gap),
});
// @ts-expect-error: there is no such framing
await follow("http://127.0.0.1/", { framings: ["carrier_pigeon"], onEvent() {} });
