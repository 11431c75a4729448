// The key, and where it goes.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, button, choose, downloaded, failure, length, playAnswers, refusal, reload, said, servedModel, shot, startNew, step, streamOf, TROUBLE } from "../browser.mjs";

const isRight = (route) => route.request().headers().authorization === "Bearer secret";
const guarded = (page) => page.route("**/v1/**", (route) => (isRight(route) ? route.fallback() : route.fulfill(refusal(401, "invalid API key"))));
const stored = (page) => page.evaluate(() => [sessionStorage["braidinfer.key"] ?? null, localStorage["braidinfer.key"] ?? null]);

await step("401 asks for a key, sends it, and keeps it over a reload", async (page) => {
  await page.locator(".key-dialog[open]").waitFor();
  await shot(page, "key-light");
  await page.keyboard.press("Escape");
  await page.locator(".key-dialog").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await ask(page, "May I?");
  await page.click("#no-key");
  await failure(page).waitFor();
  await button(page, "Send again").click();
  await page.fill("#key", "wrong");
  await page.keyboard.press("Enter");
  await page.getByText("does not accept this key").waitFor();
  await page.fill("#key", "secret");
  await page.keyboard.press("Enter");
  await page.locator(".key-dialog").waitFor({ state: "detached" });
  await answered(page);
  assert.equal(await failure(page).count(), 0);
  assert.ok((await length(said(page))) > 0);
  assert.deepEqual(await stored(page), ['"secret"', null]);
  await reload(page);
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  assert.equal(await page.locator(".key-dialog").count(), 0);
  await page.locator(".said").waitFor();
  const { text } = await downloaded(page, () => choose(page, "Import and export", "Export all as JSON"));
  assert.ok(!text.includes("secret"));
}, { ...TROUBLE, prepare: guarded });

await step("a key is remembered on this computer if it is wished, and forgotten", async (page) => {
  await page.fill("#key", "secret");
  await page.check("#remember-key");
  await button(page, "Use this key").click();
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  assert.deepEqual(await stored(page), ['"secret"', '"secret"']);
  assert.equal(page.url().includes("secret"), false);
  await page.evaluate(() => sessionStorage.clear());
  await reload(page);
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  await button(page, "Settings").click();
  await button(page, "Forget the key").click();
  await page.getByText("The API key is forgotten.").waitFor();
  assert.deepEqual(await stored(page), [null, null]);
  await page.reload();
  await page.locator(".key-dialog[open]").waitFor();
}, { ...TROUBLE, prepare: guarded });

await step("the page works where browsers offer neither clipboard nor random identifiers", async (page) => {
  await playAnswers(page, streamOf("Yes."));
  await askAndWait(page, "On the local network?");
  await button(page, "Copy this answer").click();
  await page.getByRole("button", { name: "Copied" }).waitFor();
  await startNew(page);
}, {
  prepare: (page) =>
    page.addInitScript(() => {
      Object.defineProperty(navigator, "clipboard", { value: undefined });
      Object.defineProperty(crypto, "randomUUID", { value: undefined });
    }),
});
