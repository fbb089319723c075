// An operator on the page: search, a tap, themes, a phone; and axe-core on each state.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { close, hostile, open, url } from "./browser.js";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

// Checks the page with axe-core, which is injected through the debugger: the content policy holds.
async function isAccessible(page, state) {
  const { readFile } = await import("node:fs/promises");
  await page.evaluate(await readFile(AXE, "utf8"));
  const { violations } = await page.evaluate((values) => axe.run({ runOnly: { type: "tag", values } }), RULES);
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
  assert.deepEqual(found, [], state);
}

const page = await open();
const clients = page.getByRole("table", { name: /event streams/ });
await clients.getByRole("button", { name: "alice" }).waitFor();
// The name of a client is text.
await clients.getByText(hostile, { exact: true }).waitFor();
await isAccessible(page, "light");

await page.getByLabel("Client", { exact: true }).fill(hostile);
await page.getByRole("button", { name: "Find" }).click();
await page.getByText(`1 event stream of ${hostile} on this pod`).waitFor();
await page.getByLabel("On", { exact: true }).selectOption("cluster");
await page.getByLabel("Client", { exact: true }).press("Enter");
await page.getByText(`1 event stream of ${hostile} on all pods`).waitFor();
await page.getByRole("button", { name: "Clear" }).click();
await clients.getByRole("button", { name: "alice" }).click();
await page.getByText("1 event stream of alice on this pod").or(page.getByText("1 event stream of alice on all pods")).waitFor();
await page.getByRole("button", { name: "Clear" }).click();

await page.getByLabel("{query.subject}").fill("users.>");
await page.getByRole("button", { name: "Start" }).click();
await page.getByText("this route does not allow users.>").waitFor();
await page.getByLabel("{query.subject}").fill("orders.42.>");
await page.getByRole("button", { name: "Start" }).click();
await page.getByText("Reading orders.42.>").waitFor();
console.log("tapping");
const events = page.getByRole("list", { name: "Events, newest first" });
await events.getByText("orders.42.paid").waitFor();
await events.locator("summary").click();
await events.locator("pre").getByText("<img src=x").waitFor();
await page.getByRole("button", { name: "Stop" }).click();

await page.getByRole("button", { name: "Dark theme" }).click();
assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
await isAccessible(page, "dark, with a search and a tap");
await page.reload();
await page.getByRole("button", { name: "Light theme" }).waitFor();

// Keyboard: the first stop skips to the clients.
await page.keyboard.press("Tab");
await page.keyboard.press("Enter");
assert.equal(await page.evaluate(() => location.hash), "#clients");

assert.equal(await page.locator("img").count(), 0, "no text has become markup");
assert.notEqual(await page.title(), "broken");

const phone = await open(390, "dark");
await phone.getByRole("button", { name: "alice" }).waitFor();
assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), 390);
await isAccessible(phone, "phone");

await page.getByRole("button", { name: "Log out" }).click();
await page.getByLabel("Token").waitFor();
await isAccessible(page, "form");
const answer = await page.request.get(`${url}connections`);
assert.equal(answer.status(), 401);
await close();
