// Chromium on the page of the admin port, by Playwright: the form, and errors that no page may have.
import assert from "node:assert/strict";

import { chromium } from "playwright-core";

export const [url, token, hostile] = process.argv.slice(2);

// No sandbox, because containers run the tests as root.
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-background-networking"],
});

// Opens the page at a width and logs in. Errors of scripts and of the content policy fail the test.
export async function open(width = 1280, colorScheme = "light") {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("pageerror", (error) => assert.fail(error));
  page.on("console", (message) => {
    if (/Content Security Policy|Trusted/.test(message.text())) assert.fail(message.text());
  });
  await page.goto(url);
  await page.getByLabel("Token").fill("wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("The token is wrong.").waitFor();
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("live", { exact: true }).waitFor();
  return page;
}

export const close = () => browser.close();
