// Users of a shop in Chromium, by Playwright: what they see, click and order.
import assert from "node:assert/strict";

import { chromium } from "playwright-core";

const PASSWORDS = { alice: "wonderland", bob: "builder" };

// No sandbox, because containers run the tests as root.
const OPTIONS = {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  handleSIGTERM: false, // load.js handles it
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-background-networking"],
};

export const browser = await chromium.launch(OPTIONS);

// Tab of a browser that shows the shop. Tabs of one context share their cookies.
export class Tab {
  static async open(origin, context = undefined) {
    const tab = new Tab();
    tab.context = context ?? (await browser.newContext());
    tab.page = await tab.context.newPage();
    tab.page.on("pageerror", (error) => assert.fail(error));
    // Time at which the newest event stream of the page ended.
    tab.ended = null;
    const end = (request) => { if (request.url().endsWith("/orders/live")) tab.ended = performance.now(); };
    tab.page.on("requestfinished", end);
    tab.page.on("requestfailed", end);
    await tab.page.goto(origin);
    return tab;
  }

  async logIn(user, password = PASSWORDS[user]) {
    await this.page.getByLabel("Name").fill(user);
    await this.page.getByLabel("Password").fill(password);
    await this.page.getByRole("button", { name: "Log in" }).click();
  }

  // Waits until the event stream is open.
  async isLive() {
    await this.page.getByText("Live", { exact: true }).waitFor();
  }

  async order(item) {
    await this.page.getByLabel("Item").fill(item);
    await this.page.getByRole("button", { name: "Order" }).click();
  }

  async logOut() {
    await this.page.getByRole("button", { name: "Log out" }).click();
  }

  // Items on the page, as text.
  orders() {
    return this.page.locator("#orders li").allTextContents();
  }

  // Waits until an item is on the page.
  async has(item) {
    await this.page.locator("#orders li").getByText(item, { exact: true }).waitFor();
  }
}

// Waits until `probe` returns true.
export async function eventually(fact, probe, milliseconds = 10_000) {
  for (const end = performance.now() + milliseconds; performance.now() < end; ) {
    if (await probe()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(`still not true: ${fact}`);
}
