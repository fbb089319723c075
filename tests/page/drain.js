// An operator who watches a drain on the page, from the first phase to the end of the process.
import assert from "node:assert/strict";

import { close, open } from "./browser.js";

const page = await open();
await page.getByText("All 12 event streams").waitFor();
// Every change of the drain, as the page shows it.
await page.evaluate(() => {
  window.seen = [];
  const see = () => {
    const phase = document.querySelector("[aria-current=step] b")?.textContent ?? document.getElementById("status").textContent;
    const text = document.getElementById("drain-text").textContent;
    if (seen.at(-1)?.text !== text || seen.at(-1)?.phase !== phase) seen.push({ phase, text });
  };
  new MutationObserver(see).observe(document.getElementById("drain"), { subtree: true, childList: true, characterData: true, attributes: true });
  window.announced = [];
  const announce = document.getElementById("announce");
  new MutationObserver(() => announced.push(announce.textContent)).observe(announce, { childList: true, characterData: true, subtree: true });
});
console.log("watching");
await page.getByText("The drain is complete and the sidecar has ended").first().waitFor({ timeout: 40_000 });
const { seen, announced } = await page.evaluate(() => ({ seen, announced }));
const phases = seen.map(({ phase }) => phase);
for (const phase of ["accepting", "ending"]) assert.ok(phases.includes(phase), JSON.stringify(seen));
const counts = seen.map(({ text }) => /^(\d+) of (\d+) event streams ended.*; (\d+) streams? left/.exec(text)).filter(Boolean);
const left = counts.map(([, , , left]) => Number(left));
assert.equal(left[0], 12, "begins with all of them");
assert.ok(left.some((count) => count > 0 && count < 12), `progress is shown: ${left}`);
assert.equal(left.at(-1), 0, "ends without any");
assert.ok(left.every((count, index) => index === 0 || count <= left[index - 1]), `never more: ${left}`);
assert.ok(announced.some((text) => text.startsWith("Drain: load balancers notice, 12 streams left")), announced.join(" | "));
assert.ok(announced.at(-1).startsWith("The drain is complete"), announced.join(" | "));
await close();
