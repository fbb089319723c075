// Sessions of two users in one shop: node sessions.js ORIGIN. Exits with 0 if each of them sees what it should.
import assert from "node:assert/strict";

import { Tab, browser, eventually } from "./users.js";

const origin = process.argv[2];
const MARKUP = "<img src=x onerror='document.title = 1'>";

// The shop says no without a session and with a wrong password.
const live = (cookie) => fetch(`${origin}/orders/live`, { headers: { Accept: "text/event-stream", cookie } });
assert.equal((await live("")).status, 401);
assert.equal((await live("session=forged")).status, 401);
assert.equal((await fetch(`${origin}/orders`, { method: "POST", body: new URLSearchParams({ item: "x" }) })).status, 401);
const stranger = await Tab.open(origin);
await stranger.logIn("alice", "guess");
await stranger.page.getByText("Wrong name or password.").waitFor();

// Alice and Bob log in at the same moment, at the same URL. Alice has two sessions, and two tabs in one of them.
const [alice, bob, phone] = await Promise.all(["alice", "bob", "alice"].map(async (user) => {
  const tab = await Tab.open(origin);
  await tab.logIn(user);
  await tab.isLive();
  return tab;
}));
const second = await Tab.open(origin, alice.context);
await second.isLive();

await Promise.all([alice.order("tea"), bob.order("coffee")]);
await Promise.all([alice.has("tea"), second.has("tea"), phone.has("tea"), bob.has("coffee")]);
await Promise.all([alice.order(MARKUP), bob.order("cake")]);
await Promise.all([alice.has(MARKUP), second.has(MARKUP), phone.has(MARKUP), bob.has("cake")]);
// All orders are in one stream: one of another user would have arrived before the last one.
for (const tab of [alice, second, phone]) assert.deepEqual(await tab.orders(), ["tea", MARKUP]);
assert.deepEqual(await bob.orders(), ["coffee", "cake"]);
assert.equal(await second.page.title(), "Shop", "an item is text");

// The logout in one tab ends the event stream of the other, and of any program with the cookie.
const [cookie] = await alice.context.cookies();
assert.ok(cookie.httpOnly && cookie.sameSite === "Lax", JSON.stringify(cookie));
const copy = `${cookie.name}=${cookie.value}`;
const stream = await live(copy);
assert.equal(stream.status, 200);
const end = stream.text().then((text) => ({ text, at: performance.now() }));
assert.equal(second.ended, null);
const logout = alice.page.waitForRequest(`${origin}/logout`).then(() => performance.now());
await alice.logOut();
const { text, at } = await end;
assert.match(text, /event: sidestream.close\ndata: {"reason":"revoked"/);
const elapsed = at - (await logout);
assert.ok(elapsed < 1000, `the event stream ended after ${elapsed} ms`);
await eventually("the event stream of the other tab has ended", () => second.ended !== null);
await Promise.all([alice, second].map((tab) => tab.page.getByRole("button", { name: "Log in" }).waitFor()));
assert.deepEqual(await alice.context.cookies(), []);

// A reconnect is rejected: without the cookie by the shop, with a copy of it by Sidestream.
assert.equal((await live("")).status, 401);
const rejected = await live(copy);
assert.equal(rejected.status, 401);
assert.equal((await rejected.json()).error.code, "revoked");

// The other session of the same user, and the other user, go on.
await phone.order("milk");
await bob.order("water");
await Promise.all([phone.has("milk"), bob.has("water")]);
assert.deepEqual(await phone.orders(), ["tea", MARKUP, "milk"]);
assert.deepEqual(await bob.orders(), ["coffee", "cake", "water"]);
assert.deepEqual([phone.ended, bob.ended], [null, null]);

// A new login of the same user is a new session.
await alice.logIn("alice");
await alice.isLive();
await phone.order("bread");
await alice.has("bread");
assert.deepEqual(await alice.orders(), ["bread"]);
console.log(`the event stream ended ${Math.round(elapsed)} ms after the logout`);
await browser.close();
