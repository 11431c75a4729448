// The tree of turns.

import assert from "node:assert/strict";

import { answered, askAndWait, button, choose, failure, playAnswers, question, refusal, reload, said, saved, shot, step, streamOf, titles, TROUBLE } from "../browser.mjs";

const texts = (page) => page.locator(".question, .said").allTextContents();
const versions = (page) => page.locator(".versions > span").allTextContents();

await step("regenerate makes another version, and the one that is shown is remembered", async (page) => {
  const bodies = await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("third"), streamOf("more"));
  await askAndWait(page, "One?");
  await askAndWait(page, "Two?");
  await button(page, "Regenerate").click();
  await said(page).getByText("third").waitFor();
  await answered(page);
  assert.deepEqual(await texts(page), ["One?", "first", "Two?", "third"]);
  assert.deepEqual(await versions(page), ["2/2"]);
  assert.deepEqual(bodies[2], bodies[1]);
  await button(page, "Earlier version").click();
  await said(page).getByText("second").waitFor();
  assert.deepEqual(await versions(page), ["1/2"]);
  await shot(page, "versions-light");
  await saved(page);
  await reload(page);
  assert.deepEqual(await texts(page), ["One?", "first", "Two?", "second"]);
  await askAndWait(page, "Three?");
  assert.deepEqual(bodies[3].messages.map(({ content }) => content), ["One?", "first", "Two?", "second", "Three?"]);
  await button(page, "Later version").click();
  await said(page).getByText("third").waitFor();
  assert.deepEqual(await texts(page), ["One?", "first", "Two?", "third"]);
});

await step("a new version is shown, whichever was shown before", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("third"));
  await askAndWait(page, "One?");
  await button(page, "Regenerate").click();
  await said(page).getByText("second").waitFor();
  await answered(page);
  await button(page, "Earlier version").click();
  await said(page).getByText("first").waitFor();
  await button(page, "Regenerate").click();
  await said(page).getByText("third").waitFor();
  await answered(page);
  assert.deepEqual(await versions(page), ["3/3"]);
});

await step("a failed regeneration keeps the answer that was there", async (page) => {
  await playAnswers(page, streamOf("kept"), refusal(503, "loading"));
  await askAndWait(page, "One?");
  await button(page, "Regenerate").click();
  await failure(page).waitFor();
  assert.equal(await said(page).textContent(), "kept");
  assert.equal(await page.locator(".versions").count(), 0);
  await saved(page);
  await reload(page);
  assert.deepEqual(await texts(page), ["One?", "kept"]);
}, TROUBLE);

await step("an edited question is another version that is answered anew", async (page) => {
  const bodies = await playAnswers(page, streamOf("first"), streamOf("second"));
  await askAndWait(page, "Wrong?");
  await question(page).hover();
  await button(page, "Edit this question").click();
  await page.locator("#edited").press("Escape");
  await page.locator(".editor").waitFor({ state: "detached" });
  await button(page, "Edit this question").click();
  await page.fill("#edited", "Right?");
  await page.keyboard.press("Enter");
  await said(page).getByText("second").waitFor();
  await answered(page);
  assert.deepEqual(bodies[1].messages.map(({ content }) => content), ["Right?"]);
  assert.deepEqual(await texts(page), ["Right?", "second"]);
  await button(page, "Earlier version").click();
  await said(page).getByText("first").waitFor();
  assert.deepEqual(await texts(page), ["Wrong?", "first"]);
});

await step("an edited answer is another version, and what follows is asked with it", async (page) => {
  const bodies = await playAnswers(page, streamOf("It is 5."), streamOf("Because."));
  await askAndWait(page, "How much?");
  await button(page, "Edit this answer").click();
  await page.fill("#edited", "It is 6.");
  await button(page, "Save").click();
  await said(page).getByText("It is 6.").waitFor();
  assert.deepEqual(await versions(page), ["2/2"]);
  assert.match(await page.locator(".figures").textContent(), /edited/);
  assert.equal(bodies.length, 1);
  await askAndWait(page, "Why?");
  assert.deepEqual(bodies[1].messages.map(({ content }) => content), ["How much?", "It is 6.", "Why?"]);
});

await step("a turn is deleted with what follows, after a question", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("second"));
  await askAndWait(page, "One?");
  await askAndWait(page, "Two?");
  const menu = page.locator(".turn.assistant").first().getByRole("button", { name: "More" });
  const remove = async () => {
    await menu.click();
    await page.getByRole("menuitem", { name: "Delete" }).click();
    await page.getByText("and the 2 turns that follow").waitFor();
  };
  await remove();
  await shot(page, "delete-question-light");
  await button(page, "Cancel").click();
  assert.deepEqual(await texts(page), ["One?", "first", "Two?", "second"]);
  await remove();
  await page.locator("dialog").getByRole("button", { name: "Delete" }).click();
  await page.locator(".question").getByText("Two?").waitFor({ state: "detached" });
  assert.deepEqual(await texts(page), ["One?"]);
  await saved(page);
  await reload(page);
  assert.deepEqual(await texts(page), ["One?"]);
});

await step("a branch becomes a conversation of its own", async (page) => {
  const bodies = await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("other"));
  await askAndWait(page, "One?");
  await askAndWait(page, "Two?");
  await page.locator(".turn.assistant").first().getByRole("button", { name: "More" }).click();
  await page.getByRole("menuitem", { name: "Branch into a new conversation" }).click();
  await page.locator(".question").getByText("Two?").waitFor({ state: "detached" });
  assert.deepEqual(await texts(page), ["One?", "first"]);
  await askAndWait(page, "Else?");
  assert.deepEqual(bodies[2].messages.map(({ content }) => content), ["One?", "first", "Else?"]);
  assert.deepEqual((await titles(page)).sort(), ["One?", "One? (branch)"]);
  await page.locator("#sidebar .title").getByText("One?", { exact: true }).click();
  await page.locator(".question").getByText("Two?").waitFor();
});

await step("answers and questions can be copied", async (page) => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await playAnswers(page, streamOf("<think>Hm.</think>**Bold**"));
  await askAndWait(page, "What?");
  await button(page, "Copy this answer").click();
  await page.getByRole("button", { name: "Copied" }).waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "**Bold**");
  await question(page).hover();
  await button(page, "Copy this question").click();
  await page.waitForFunction(async () => (await navigator.clipboard.readText()) === "What?");
});
