// Settings.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, button, failure, modelEntry, playAnswers, playModels, reload, saved, shot, startNew, step, streamOf } from "../browser.mjs";

const BARE = ["messages", "model", "stream", "stream_options"];
const THINKER = modelEntry("thinker", { capabilities: ["completion", "tools", "thinking"], default_sampling: { temperature: 0.6000000238, top_p: 0.95, top_k: 20, min_p: 0, repetition_penalty: 1.1 } });

const openSettings = async (page) => {
  await button(page, "Settings").click();
  await page.locator("#settings").waitFor();
};

await step("sampling values are sent when they are set, and only then", async (page) => {
  const bodies = [];
  page.on("request", (request) => request.url().endsWith("/chat/completions") && bodies.push(request.postDataJSON()));
  await askAndWait(page, "Bare.");
  assert.deepEqual(Object.keys(bodies[0]).sort(), BARE);
  await openSettings(page);
  const values = { temperature: 0.7, top_p: 0.9, top_k: 40, min_p: 0.05, repetition_penalty: 1.05, presence_penalty: 0.1, frequency_penalty: -0.1, max_completion_tokens: 8, seed: 7 };
  for (const [name, value] of Object.entries(values)) await page.fill(`[name=${name}]`, String(value));
  await page.fill("[name=stop]", "END\n\\n\\n");
  await askAndWait(page, "Set.");
  assert.equal(await failure(page).count(), 0);
  const { model, messages, stream, stream_options, ...sent } = bodies[1];
  assert.deepEqual(sent, { ...values, stop: ["END", "\n\n"] });
  assert.deepEqual([stream, stream_options], [true, { include_usage: true }]);
  await saved(page);
  await reload(page);
  await openSettings(page);
  assert.equal(await page.inputValue("[name=top_p]"), "0.9");
  await shot(page, "settings-light");
  await button(page, "Clear all settings").click();
  await page.fill("[name=system]", "Be brief.");
  await playAnswers(page, streamOf("Yes."));
  await askAndWait(page, "Again.");
  assert.deepEqual(Object.keys(bodies[2]).sort(), BARE);
  assert.deepEqual(bodies[2].messages[0], { role: "system", content: "Be brief." });
});

await step("what is out of range is marked, and nothing is sent", async (page) => {
  const bodies = await playAnswers(page, streamOf("Yes."));
  await openSettings(page);
  for (const [name, value, expected] of [
    ["temperature", "2.5", "Temperature must be a number from 0 to 2."],
    ["top_k", "1.5", "Top k must be a whole number"],
    ["seed", "abc", "Seed must be a whole number"],
    ["schema", "{", "This is no JSON"],
    ["tools", '[{"type": "function"}]', "Tool 1 should be"],
  ]) {
    await page.fill(`[name=${name}]`, value);
    await page.locator(`#${name}-fault`).getByText(expected).waitFor();
    assert.equal(await page.locator(`[name=${name}]`).getAttribute("aria-invalid"), "true");
    await ask(page, "Send?");
    await failure(page).getByText("Nothing was sent").waitFor();
    await answered(page);
    if (name === "temperature") await shot(page, "settings-fault-light");
    await page.fill(`[name=${name}]`, "");
  }
  assert.equal(bodies.length, 0);
  await button(page, "Send again").click();
  await answered(page);
  assert.equal(bodies.length, 1);
});

await step("the model's own values are shown, and thinking, form and tools are sent", async (page) => {
  const bodies = await playAnswers(page, streamOf("{}"));
  await openSettings(page);
  const placeholder = (name) => page.locator(`[name=${name}]`).getAttribute("placeholder");
  assert.deepEqual(await Promise.all(["temperature", "top_p", "top_k", "repetition_penalty"].map(placeholder)), ["0.6", "0.95", "20", "1.1"]);
  const schema = { type: "object", properties: { a: { type: "number" } } };
  const tools = [{ type: "function", function: { name: "weather", parameters: {} } }];
  await page.fill("[name=schema]", JSON.stringify(schema));
  await page.fill("[name=tools]", JSON.stringify(tools));
  await page.selectOption("[name=enable_thinking]", "off");
  await page.fill("[name=thinking_budget]", "50");
  await askAndWait(page, "Go.");
  const { response_format, tools: sent, enable_thinking, thinking_budget } = bodies[0];
  assert.deepEqual([response_format.type, response_format.json_schema.schema, sent, enable_thinking, thinking_budget], ["json_schema", schema, tools, false, 50]);
}, { prepare: (page) => playModels(page, [THINKER]) });

await step("settings of thinking are offered and sent only where the model thinks", async (page) => {
  const bodies = await playAnswers(page, streamOf("Yes."));
  const models = [THINKER, modelEntry("plain", { capabilities: ["completion", "embedding"] })];
  await page.unroute("**/v1/models");
  await playModels(page, models);
  await reload(page);
  await openSettings(page);
  await page.fill("[name=thinking_budget]", "50");
  await page.click("#model");
  await page.locator(".models .choose").getByText("plain").click();
  await page.locator("[name=thinking_budget]").waitFor({ state: "detached" });
  await askAndWait(page, "Go.");
  assert.deepEqual(Object.keys(bodies[0]).sort(), BARE);
}, { prepare: (page) => playModels(page, [THINKER]) });

await step("settings belong to a conversation, and can be those of new ones", async (page) => {
  const bodies = await playAnswers(page, streamOf("Yes."));
  await openSettings(page);
  await page.fill("[name=temperature]", "0.3");
  await saved(page);
  await reload(page);
  await openSettings(page);
  assert.equal(await page.inputValue("[name=temperature]"), "0.3");
  await askAndWait(page, "One?");
  await startNew(page);
  assert.equal(await page.inputValue("[name=temperature]"), "");
  await askAndWait(page, "Two?");
  await page.fill("[name=temperature]", "0.9");
  await button(page, "Use for new conversations").click();
  await startNew(page);
  assert.equal(await page.inputValue("[name=temperature]"), "0.9");
  await page.fill("[name=temperature]", "1");
  await button(page, "Take those of new conversations").click();
  await askAndWait(page, "Three?");
  await page.locator("#sidebar .title").getByText("One?").click();
  await page.locator(".question").getByText("One?").waitFor();
  assert.equal(await page.inputValue("[name=temperature]"), "0.3");
  assert.deepEqual(bodies.map(({ temperature }) => temperature), [0.3, undefined, 0.9]);
});
