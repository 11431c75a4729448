// A phone of 360 px.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, attachFile, button, hasNoSidewaysScroll, modelEntry, PHONE, play, playAnswers, playModels, said, shot, step, streamOf, streamOfDeltas } from "../browser.mjs";
import { sampleReport } from "../mock_server.mjs";

const WIDE = `## Wide things

${"unbroken".repeat(40)}

\`\`\`js
${"x += 1; ".repeat(50)}
\`\`\`

| one | two | three | four | five |
|--|--|--|--|--|
| ${"cell ".repeat(8)} | ${"cell".repeat(10)} | c | d | e |

$$ ${"a + b \\cdot ".repeat(20)} c $$

Done.`;

const MODELS = [modelEntry("a-model-with-a-very-long-name-q4_k_m", { capabilities: ["completion", "thinking"] }), modelEntry("other", { status: { value: "unloaded", failed: true, error: "the file ends too early, in the middle of a tensor" } })];

for (const colorScheme of ["light", "dark"]) {
  await step(`a phone of 360 px has no sideways scroll (${colorScheme})`, async (page) => {
    await page.route("**/v1/compat*", (route) => route.fulfill({ json: sampleReport() }));
    await play(page, "**/tokenize", { json: { count: 5000, max_model_len: 4096, tokens: [] } });
    const calls = streamOfDeltas([{ reasoning_content: "Hm." }, { tool_calls: [{ index: 0, id: "a", function: { name: "a_tool_with_a_long_name", arguments: `{"text":"${"long".repeat(40)}"}` } }] }], { finish: "tool_calls" });
    await playAnswers(page, streamOf(WIDE), calls, streamOf(" more"));
    const look = async (name) => {
      await hasNoSidewaysScroll(page);
      await shot(page, `phone-${name}-${colorScheme}`);
    };
    await page.locator("#model .name").waitFor();
    await look("empty");
    await ask(page, `A question with a ${"very".repeat(40)} long word`);
    await said(page).getByText("Done.").waitFor();
    await answered(page);
    await said(page).locator("math").waitFor();
    await look("answer");
    await button(page, "Regenerate").click();
    await page.locator(".call").waitFor();
    await answered(page);
    await look("tools");
    await attachFile(page, `${"a-long-name-".repeat(8)}.txt`, "text");
    await page.locator("#composer .warning").waitFor();
    await look("attachment");
    await button(page, `Remove ${"a-long-name-".repeat(8)}.txt`).click();
    await page.click("#model");
    await page.locator(".models li").first().waitFor();
    await look("models");
    await page.keyboard.press("Escape");
    await page.click("#show-list");
    await page.locator("#sidebar").waitFor();
    await look("list");
    for (const name of ["Report", "Metrics"]) {
      await page.locator(`[data-panel=${name.toLowerCase()}]`).click();
      await page.locator("#sidebar").waitFor({ state: "detached" });
      // A line without ups and downs has no height, and counts as hidden.
      await page.locator(`#${name.toLowerCase()} ${name === "Report" ? ".verdict" : "figure >> nth=2"}`).waitFor({ state: "attached" });
      await look(name.toLowerCase());
      await page.click("#show-list");
    }
    await page.click("#help");
    await page.locator("dialog[open]").waitFor();
    await look("help");
    await page.keyboard.press("Escape");
    await page.locator(".shade").click({ position: { x: 350, y: 300 } });
    await page.locator("#sidebar").waitFor({ state: "detached" });
    await button(page, "Settings").click();
    await page.locator("#settings").waitFor();
    await page.fill("[name=temperature]", "9");
    await look("settings");
    await button(page, "Close").click();
    await page.locator("header").getByRole("button", { name: "New conversation" }).click();
    await page.locator("#empty").waitFor();
    await button(page, "Notebook").click();
    await play(page, "**/v1/completions", streamOf(` more ${"unbroken".repeat(20)}`));
    await page.fill("#notebook", "Some text");
    await page.click("#generate");
    await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("unbroken"));
    await answered(page);
    await look("notebook");
  }, { ...PHONE, colorScheme, prepare: (page) => playModels(page, MODELS) });
}

await step("on a phone Enter starts a line, and the list closes after a choice", async (page) => {
  await playAnswers(page, streamOf("Yes."));
  await page.fill("#question", "One?");
  await page.locator("#question").press("Enter");
  assert.equal(await page.inputValue("#question"), "One?\n");
  await page.click("#send");
  await said(page).getByText("Yes.").waitFor();
  await answered(page);
  await page.click("#show-list");
  await page.locator("#new-conversation").click();
  await page.locator("#sidebar").waitFor({ state: "detached" });
  await page.click("#show-list");
  await page.locator("#sidebar .title").getByText("One?").click();
  await page.locator("#sidebar").waitFor({ state: "detached" });
  await said(page).getByText("Yes.").waitFor();
  await askAndWait(page, "Two?");
}, { ...PHONE, isMobile: true });
