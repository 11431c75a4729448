// Which model answers.

import assert from "node:assert/strict";

import { answered, askAndWait, button, modelEntry, playAnswers, playModels, reload, said, saved, shot, startNew, step, streamOf, TROUBLE } from "../browser.mjs";

const unloaded = { value: "unloaded", failed: false };
const loading = { value: "loading", failed: false, layers: [3, 12] };
const broken = { value: "unloaded", failed: true, error: "the file ends too early" };

function three() {
  return [
    modelEntry("small", { status: { value: "loaded", failed: false, memory: 5e8, in_use: 2 } }),
    modelEntry("large", { status: unloaded }),
    modelEntry("broken", { status: broken }),
  ];
}

await step("one model is named, with its state", async (page) => {
  await page.locator("#model").getByText("only").waitFor();
  await page.locator("#model").getByText("loading: 3 of 12 layers").waitFor();
  assert.equal(await page.locator("button#model").count(), 0);
}, { prepare: (page) => playModels(page, [modelEntry("only", { status: loading })]) });

let models = [];
await step("models are listed with their states, loaded and unloaded", async (page) => {
  const asked = [];
  await page.route("**/v1/models/*", (route) => {
    asked.push([new URL(route.request().url()).pathname, route.request().postDataJSON()]);
    models[1].status = loading;
    return route.fulfill({ json: models[1] });
  });
  await page.click("#model");
  const list = page.getByRole("dialog", { name: "Models" });
  for (const text of ["loaded · 500 MB · 2 requests", "not loaded", "could not be loaded", "the file ends too early"]) await list.getByText(text, { exact: true }).waitFor();
  await shot(page, "models-light");
  await button(page, "Load large").click();
  await list.getByText("loading: 3 of 12 layers").waitFor();
  assert.equal(await button(page, "Load large").isDisabled(), true);
  models[1].status = { value: "loaded", failed: false, memory: 2.5e9, in_use: 0 };
  await list.getByText("loaded · 2.5 GB").waitFor();
  await button(page, "Unload large").click();
  await page.waitForFunction(() => true);
  assert.deepEqual(asked, [["/v1/models/load", { model: "large" }], ["/v1/models/unload", { model: "large" }]]);
}, { prepare: (page) => playModels(page, (models = three())) });

await step("a model that cannot be loaded says why", async (page) => {
  await page.route("**/v1/models/load", (route) => route.fulfill({ status: 503, json: { error: { message: "there is too little memory" } } }));
  await page.click("#model");
  await button(page, "Load large").click();
  await page.locator(".notice.failed").getByText("there is too little memory").waitFor();
}, { ...TROUBLE, prepare: (page) => playModels(page, three()) });

await step("each conversation has its model, and answers say who wrote them when they differ", async (page) => {
  const bodies = await playAnswers(page, streamOf("from small"), streamOf("from large"), streamOf("from large, too"), streamOf("again"));
  const choose = async (name) => {
    await page.click("#model");
    await page.locator(".models .choose").getByText(name).click();
    await page.locator("#model .name").getByText(name).waitFor();
  };
  await askAndWait(page, "One?");
  assert.equal(await page.locator(".by").count(), 0);
  await choose("large");
  await askAndWait(page, "Two?");
  assert.deepEqual(await page.locator(".by").allTextContents(), ["small", "large"]);
  await shot(page, "mixed-models-light");
  await startNew(page);
  await choose("small");
  await askAndWait(page, "Three?");
  await page.locator("#sidebar .title").getByText("One?").click();
  await page.locator("#model .name").getByText("large").waitFor();
  await saved(page);
  await reload(page);
  await page.locator("#model .name").getByText("large").waitFor();
  await askAndWait(page, "Four?");
  assert.deepEqual(bodies.map(({ model }) => model), ["small", "large", "small", "large"]);
}, { prepare: (page) => playModels(page, three().slice(0, 2)) });

await step("a model of a conversation that is gone gives way to one that is there", async (page) => {
  const bodies = await playAnswers(page, streamOf("Yes."));
  await page.click("#model");
  await page.locator(".models .choose").getByText("large").click();
  models.splice(1, 2);
  await reload(page);
  await page.locator("#model").getByText("small").waitFor();
  await askAndWait(page, "There?");
  assert.equal(bodies[0].model, "small");
}, { prepare: (page) => playModels(page, (models = three())) });
