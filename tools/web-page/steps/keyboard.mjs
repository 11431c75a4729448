// The keyboard, the focus, and what those who do not see or do not like motion need.

import assert from "node:assert/strict";

import { answered, askAndWait, button, LONG, modelEntry, playAnswers, playModels, reload, said, saved, shot, step, streamOf, titles } from "../browser.mjs";

const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim());

/** Goes on with Tab until something is reached; what is focused must be seen. */
async function tabTo(page, name, key = "Tab") {
  for (let at = 0; at < 60; at += 1) {
    await page.keyboard.press(key);
    if ((await focused(page)) === name) {
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement.closest("#composer") ?? document.activeElement).borderColor);
      assert.ok(!outline.startsWith("none") || outline.includes("rgb(67, 82, 181)"), `${name} shows no focus`);
      return;
    }
  }
  assert.fail(`${name} is not reached by ${key}`);
}

await step("a whole visit by keyboard alone", async (page) => {
  const bodies = await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("third"), streamOf(LONG));
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await page.keyboard.press("Enter");
  await said(page).getByText("first").waitFor();
  await answered(page);
  assert.equal(bodies[0].messages[0].content, "one\ntwo");
  assert.equal(await page.inputValue("#question"), "");
  await page.keyboard.press("Enter");
  assert.equal(bodies.length, 1);
  // The last question again.
  await page.keyboard.press("ArrowUp");
  await page.locator("#edited").waitFor();
  await page.keyboard.type(" three");
  await page.keyboard.press("Enter");
  await said(page).getByText("second").waitFor();
  await answered(page);
  assert.equal(bodies[1].messages[0].content, "one\ntwo three");
  assert.equal(await focused(page), "question");
  // Back to the answer's buttons.
  await tabTo(page, "Regenerate", "Shift+Tab");
  await page.keyboard.press("Enter");
  await said(page).getByText("third").waitFor();
  await answered(page);
  await page.keyboard.press("Alt+KeyI");
  await tabTo(page, "More", "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.getAttribute("role") === "menuitem");
  await page.keyboard.press("ArrowDown");
  assert.equal(await focused(page), "Delete");
  await page.keyboard.press("Enter");
  await page.locator("dialog[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.equal(await focused(page), "More");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.getAttribute("role") === "menuitem");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.activeElement.getAttribute("aria-label") === "More");
  // Settings, and back.
  await page.keyboard.press("Alt+KeyO");
  await page.locator("#settings").waitFor();
  await page.waitForFunction(() => document.activeElement.id === "panel-title");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.type("Be brief.");
  assert.equal(await page.inputValue("[name=system]"), "Be brief.");
  await page.keyboard.press("Escape");
  await page.locator("#settings").waitFor({ state: "detached" });
  assert.equal(await focused(page), "Settings");
  // Another conversation; the first one is found, renamed and opened.
  await page.keyboard.press("Alt+KeyN");
  await page.locator(".turn").first().waitFor({ state: "detached" });
  assert.equal(await focused(page), "question");
  await page.keyboard.press("Alt+KeyK");
  await page.waitForFunction(() => document.activeElement.id === "search");
  await page.keyboard.type("three");
  await page.waitForFunction(() => document.querySelectorAll("#sidebar .title").length === 1);
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.textContent === "Rename");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.className === "title-field");
  await page.keyboard.type("Found");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.textContent === "Found");
  await page.keyboard.press("Enter");
  await said(page).getByText("third").waitFor();
  assert.equal(await focused(page), "question");
  // A long answer is stopped.
  await page.keyboard.type("Count.");
  await page.keyboard.press("Enter");
  await page.getByText("word20").waitFor();
  assert.equal(bodies.at(-1).messages[0].content, "Be brief.");
  await page.keyboard.press("Escape");
  await answered(page);
  await tabTo(page, "Continue", "Shift+Tab");
}, { slow: 5 });

await step("shortcuts: versions, copy, regenerate, list, help", async (page) => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await playAnswers(page, streamOf("first"), streamOf("second"));
  await askAndWait(page, "One?");
  await page.keyboard.press("Alt+KeyG");
  await said(page).getByText("second").waitFor();
  await answered(page);
  await page.keyboard.press("Alt+KeyJ");
  await said(page).getByText("first").waitFor();
  await page.keyboard.press("Alt+KeyC");
  await page.locator("#announcement").getByText("Copied").waitFor({ state: "attached" });
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "first");
  await page.keyboard.press("Alt+KeyL");
  await said(page).getByText("second").waitFor();
  await page.keyboard.press("Alt+KeyU");
  await page.locator("#sidebar").waitFor({ state: "detached" });
  await saved(page);
  await reload(page);
  assert.equal(await page.locator("#sidebar").count(), 0);
  await page.keyboard.press("Alt+KeyU");
  await page.locator("#sidebar").waitFor();
  await page.locator("#help").focus();
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Help" }).waitFor();
  await shot(page, "help-light");
  // Nothing happens behind a dialog.
  await page.keyboard.press("Alt+KeyN");
  assert.equal(await page.locator(".turn").count(), 2);
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.equal(await focused(page), "help");
  await page.locator("#question").focus();
  await page.keyboard.type("?");
  assert.equal(await page.inputValue("#question"), "?");
  assert.equal(await page.locator("dialog").count(), 0);
});

await step("a model is chosen by keyboard", async (page) => {
  await page.locator("button#model").waitFor();
  await page.keyboard.press("Alt+KeyP");
  await page.waitForFunction(() => document.activeElement.classList.contains("choose"));
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await page.locator("#model .name").getByText("second").waitFor();
  assert.equal(await focused(page), "model");
}, { prepare: (page) => playModels(page, [modelEntry("first"), modelEntry("second")]) });

await step("every control has a name, and every picture of a control none", async (page) => {
  await playAnswers(page, streamOf("Yes."));
  await askAndWait(page, "One?");
  await button(page, "Settings").click();
  await page.locator("#settings").waitFor();
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, input:not([hidden]), textarea, select, [role=region], nav, aside")]
      .filter((it) => !(it.getAttribute("aria-label") || it.getAttribute("aria-labelledby") || it.textContent.trim() || it.labels?.length))
      .map((it) => it.outerHTML),
  );
  assert.deepEqual(nameless, []);
  assert.equal(await page.locator("svg:not([aria-hidden], [role=img])").count(), 0);
  assert.equal(await page.locator("main").count(), 1);
  assert.deepEqual(await page.locator(".turn h2").allTextContents(), ["You", "Answer"]);
});

await step("nothing moves for those who do not like it", async (page) => {
  await playAnswers(page, streamOf(LONG));
  await page.fill("#question", "Count.");
  await page.click("#send");
  const dot = page.locator(".waiting i").first();
  await dot.waitFor();
  assert.equal(await dot.evaluate((it) => getComputedStyle(it).animationName), "none");
}, { reducedMotion: "reduce", slow: 300 });

await step("the theme follows the system, switches, and is remembered without a flash", async (page) => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.click("#theme");
  await page.locator("#theme").getByText("Light theme").waitFor();
  await page.click("#theme");
  await page.locator("#theme").getByText("Dark theme").waitFor();
  const dark = await ground();
  assert.notEqual(dark, light);
  // Of the first frame, before the page's module has run.
  await page.route("**/page.js", (route) => route.abort());
  await page.reload();
  assert.equal(await ground(), dark);
  await page.unroute("**/page.js");
  await reload(page);
  await shot(page, "empty-dark");
  await page.click("#theme");
  await page.locator("#theme").getByText("System theme").waitFor();
  assert.equal(await ground(), light);
  await page.emulateMedia({ colorScheme: "dark" });
  assert.equal(await ground(), dark);
}, { expectsTrouble: true });
