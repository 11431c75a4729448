// Texts that the model continues.

import assert from "node:assert/strict";

import { answered, button, choose, LONG, modelEntry, play, playModels, refusal, reload, saved, shot, step, streamOf, titles, TROUBLE } from "../browser.mjs";

const TEXT = "**/v1/completions";
const text = (page) => page.inputValue("#notebook");
const tinted = (page) => page.locator(".tints mark").allTextContents();
const plain = (page) => playModels(page, [modelEntry("plain", { has_chat_template: false })]);

async function withoutTemplate(page) {
  await page.route("**/v1/models", async (route) => {
    const response = await route.fetch();
    const models = await response.json();
    for (const model of models.data) Object.assign(model, { has_chat_template: false, capabilities: undefined });
    await route.fulfill({ response, json: models });
  });
}

await step("the server continues a text where there is no chat template", async (page) => {
  await page.getByText("it continues the text that you write").waitFor();
  await page.fill("#notebook", "Once upon a time");
  const [request] = await Promise.all([page.waitForRequest(TEXT), page.click("#generate")]);
  const { model, prompt, max_tokens, stream, ...rest } = request.postDataJSON();
  assert.deepEqual([prompt, max_tokens, stream, Object.keys(rest)], ["Once upon a time", 200, true, ["stream_options"]]);
  await page.waitForFunction(() => /^Once upon a time.{15}/s.test(document.querySelector("#notebook").value));
  await answered(page);
  assert.equal(await page.locator(".notebook .failure").count(), 0);
  await page.locator(".token-count").getByText(/^[\d,]+ of [\d,]+ tokens$/).waitFor();
  await shot(page, "notebook-light");
}, { prepare: withoutTemplate });

await step("what the model wrote is tinted, changed by hand, undone, redone and kept", async (page) => {
  const bodies = await play(page, TEXT, streamOf(" ran a river"), streamOf(" and sang"));
  await play(page, "**/tokenize", { json: { count: 7, max_model_len: 4096, tokens: [] } });
  await page.fill("#notebook", "Through the wood");
  await page.keyboard.press("Control+Enter");
  await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("river"));
  await answered(page);
  assert.deepEqual(await tinted(page), [" ran a river"]);
  await page.click("#generate");
  await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("sang"));
  await answered(page);
  assert.deepEqual(bodies.map(({ prompt }) => prompt), ["Through the wood", "Through the wood ran a river"]);
  assert.match(await page.locator(".notebook-foot .figures").textContent(), /2 tokens .*prompt 20/);
  await page.getByText("7 of 4,096 tokens").waitFor();
  await button(page, "Undo the last generation").click();
  await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("river"));
  await button(page, "Undo the last generation").click();
  await page.waitForFunction(() => document.querySelector("#notebook").value === "Through the wood");
  assert.equal(await button(page, "Undo the last generation").isDisabled(), true);
  await button(page, "Redo the generation").click();
  await page.waitForFunction(() => document.querySelector("#notebook").value === "Through the wood ran a river");
  await page.locator("#notebook").press("ControlOrMeta+End");
  for (let at = 0; at < 5; at += 1) await page.keyboard.press("Backspace");
  await page.keyboard.type("stream.");
  assert.equal(await text(page), "Through the wood ran a stream.");
  assert.deepEqual(await tinted(page), [" ran a "]);
  await saved(page);
  await reload(page);
  assert.equal(await text(page), "Through the wood ran a stream.");
  assert.deepEqual(await tinted(page), [" ran a "]);
  assert.deepEqual(await titles(page), ["Through the wood"]);
}, { prepare: plain });

await step("a notebook is stopped, and says what went wrong", async (page) => {
  await play(page, TEXT, streamOf(` ${LONG}`), refusal(503, "too many requests"));
  await page.fill("#notebook", "Count:");
  await page.click("#generate");
  await page.waitForFunction(() => document.querySelector("#notebook").value.includes("word20"));
  assert.equal(await page.textContent("#generate"), "Stop");
  await page.keyboard.press("Escape");
  await answered(page);
  const kept = await text(page);
  assert.ok(kept.startsWith("Count: word0") && !kept.includes("word399"));
  await page.getByText(/stopped$/).waitFor();
  await page.click("#generate");
  await page.getByText("not ready: too many requests").waitFor();
  assert.equal(await text(page), kept);
}, { ...TROUBLE, slow: 15, prepare: plain });

await step("a conversation of a model that chats can be a notebook, with its settings", async (page) => {
  const bodies = await play(page, TEXT, streamOf(" more"));
  await button(page, "Notebook").click();
  await page.fill("#notebook", "Some text");
  await button(page, "Settings").click();
  await page.fill("[name=temperature]", "0.2");
  await page.fill("[name=max_completion_tokens]", "33");
  await page.fill("[name=system]", "Not sent.");
  await page.fill("[name=tools]", '[{"type":"function","function":{"name":"f"}}]');
  await page.click("#generate");
  await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("more"));
  await answered(page);
  const { model, prompt, stream, stream_options, ...sent } = bodies[0];
  assert.deepEqual(sent, { max_tokens: 33, temperature: 0.2 });
  await saved(page);
  await reload(page);
  assert.equal(await text(page), "Some text more");
  await choose(page, "This conversation", "Switch to chat");
  await page.locator("#question").waitFor();
  await choose(page, "This conversation", "Switch to notebook");
  assert.equal(await text(page), "Some text more");
}, { prepare: (page) => playModels(page, [modelEntry("chatty")]) });

await step("the tints lie exactly under the text", async (page) => {
  await play(page, TEXT, streamOf(` ${LONG}`));
  await page.fill("#notebook", "Line\n\n  indented\twith a tab and a veryverylongword".repeat(3));
  await page.click("#generate");
  await page.waitForFunction(() => document.querySelector("#notebook").value.endsWith("word399"));
  await answered(page);
  const [field, tints] = await page.locator("#notebook, .tints").evaluateAll((both) => both.sort((a) => (a.id ? -1 : 1)).map((it) => [it.scrollHeight, it.clientWidth, getComputedStyle(it).fontSize]));
  assert.deepEqual(field, tints);
  await shot(page, "notebook-long-dark");
}, { colorScheme: "dark", prepare: plain });
