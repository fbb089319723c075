// Load on a shop with two pods: node load.js ORIGIN. Alice watches the page in Chromium while she places orders with 8
// more connections, until SIGTERM. Exits with 0 if no request failed and the page has every order once.
import assert from "node:assert/strict";

import { Tab, browser, eventually } from "./users.js";

const WORKERS = 8;
const origin = process.argv[2];
let stopping = false;
process.once("SIGTERM", () => { stopping = true; });

const tab = await Tab.open(origin);
await tab.logIn("alice");
await tab.isLive();
const [{ name, value }] = await tab.context.cookies();
const headers = { cookie: `${name}=${value}` };

const placed = [];
const failed = [];
let requests = 0;

async function send(path, expected, options = {}) {
  requests += 1;
  const answer = await fetch(origin + path, { headers, ...options }).catch((error) => ({ status: String(error.cause ?? error) }));
  const body = await answer.text?.().catch(String);
  if (answer.status !== expected) failed.push({ path, status: answer.status, body, at: new Date().toISOString() });
  return body;
}

async function work(worker) {
  for (let count = 0; !stopping; count += 1) {
    const item = `${worker}/${count}`;
    placed.push(item);
    await send("/orders", 201, { method: "POST", body: new URLSearchParams({ item }) });
    const me = await send("/me", 200);
    if (me !== undefined && !stopping) assert.deepEqual(JSON.parse(me), { user: "alice" });
    await send("/", 200);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

console.log("loaded");
await Promise.all(Array.from({ length: WORKERS }, (_, worker) => work(worker)));
assert.deepEqual(failed, []);
await eventually("every order is on the page", async () => (await tab.orders()).length >= placed.length);
assert.deepEqual((await tab.orders()).sort(), placed.sort());
console.log(`${requests} requests, ${placed.length} orders`);
await browser.close();
