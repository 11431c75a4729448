// What the steps share: a page of its own for each, played answers, and where things are on the page.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

// `require` looks into NODE_PATH, `import` does not.
const { chromium } = createRequire(import.meta.url)("playwright-core");

const [address, folder, word = ""] = process.argv.slice(2);
if (!address || !folder) {
  console.error("usage: node drive.mjs ADDRESS SCREENSHOT_FOLDER [WORD]");
  process.exit(2);
}
export const origin = new URL(address).origin;
mkdirSync(folder, { recursive: true });

export const COMPLETIONS = "**/v1/chat/completions";
export const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true };
/** A step whose server misbehaves: the browser reports loads that failed. */
export const TROUBLE = { expectsTrouble: true };

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
let failed = 0;

/** One check on a page of its own. Console errors and requests to other origins fail every one. */
export async function step(name, check, { expectsTrouble = false, slow = 0, prepare, ...options } = {}) {
  if (!name.includes(word)) return;
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: "light", ...options });
  const complaints = [];
  context.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && new URL(request.url()).origin !== origin) complaints.push(`request to ${request.url()}`);
  });
  context.on("page", (page) => {
    page.setDefaultTimeout(Number(process.env.STEP_TIMEOUT ?? 60_000));
    page.on("pageerror", (error) => complaints.push(`error: ${error.stack}`));
    page.on("console", (message) => {
      const isFailedLoad = expectsTrouble && message.text().startsWith("Failed to load resource");
      if (message.type() === "error" && !isFailedLoad) complaints.push(`console: ${message.text()}`);
    });
  });
  const page = await context.newPage();
  try {
    if (slow > 0) await context.addInitScript(slowStreams, slow);
    await prepare?.(page);
    const response = await page.goto(address);
    await isReady(page);
    await check(page, response);
    assert.deepEqual(complaints, []);
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}\n${complaints.join("\n")}`);
    await page.screenshot({ path: join(folder, `failed-${failed}.png`) }).catch(() => {});
  }
  await context.close();
}

/** Ends the program with 1 if a step failed. */
export async function finish() {
  await browser.close();
  console.log(failed === 0 ? "all steps passed" : `${failed} steps failed`);
  process.exit(failed === 0 ? 0 : 1);
}

export async function isReady(page) {
  await page.locator("#page").waitFor();
}

export async function reload(page) {
  await page.reload();
  await isReady(page);
}

/** The same browser's second tab. */
export async function secondTab(page) {
  const tab = await page.context().newPage();
  await tab.goto(address);
  await isReady(tab);
  return tab;
}

/** Runs in the page: hands the events of a stream over one by one, so that even a fast server can be watched. */
function slowStreams(milliseconds) {
  const fetchAtOnce = window.fetch;
  window.fetch = async (path, options) => {
    const response = await fetchAtOnce(path, options);
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
    const body = new ReadableStream({
      async start(controller) {
        options.signal.addEventListener("abort", () => controller.error(options.signal.reason));
        try {
          for (const event of (await response.text()).split(/(?<=\n\n)/)) {
            await new Promise((resolve) => setTimeout(resolve, milliseconds));
            controller.enqueue(new TextEncoder().encode(event));
          }
          controller.close();
        } catch (error) {
          controller.error(error);
        }
        window.endedStreams = (window.endedStreams ?? 0) + 1;
      },
    });
    return new Response(body, { status: response.status, headers: response.headers });
  };
}

const eventOf = (chunk) => `data: ${JSON.stringify(chunk)}\n\n`;

/** The stream of an answer. */
export function streamOf(text, { isBroken = false, finish = "stop" } = {}) {
  const pieces = text.match(/\s*\S+|\s+$/g) ?? [];
  const deltas = [{ role: "assistant" }, ...pieces.map((content) => ({ content }))];
  return streamOfDeltas(deltas, { isBroken, finish, tokens: pieces.length });
}

export function streamOfDeltas(deltas, { isBroken = false, finish = "stop", tokens = deltas.length, thoughtTokens = 0 } = {}) {
  const chunk = (choices, usage = null) => ({ id: "x", object: "chat.completion.chunk", choices, usage });
  const usage = {
    prompt_tokens: 20, completion_tokens: tokens, total_tokens: 20 + tokens,
    prompt_tokens_details: { cached_tokens: 16 }, completion_tokens_details: { reasoning_tokens: thoughtTokens },
  };
  const events = deltas.map((delta) => eventOf(chunk([{ index: 0, delta, text: delta.content, finish_reason: null }])));
  const end = isBroken ? "" : eventOf(chunk([{ index: 0, delta: {}, finish_reason: finish }])) + eventOf(chunk([], usage)) + "data: [DONE]\n\n";
  return { contentType: "text/event-stream", body: events.join("") + end };
}

export function refusal(status, message, headers = {}) {
  return { status, headers, contentType: "application/json", body: JSON.stringify({ error: { message, type: "x", param: null, code: null } }) };
}

/** Answers come from here instead of the server, one after the other, the last one again and again; returns what was asked. */
export async function playAnswers(page, ...answers) {
  return play(page, COMPLETIONS, ...answers);
}

export async function play(page, path, ...answers) {
  const bodies = [];
  await page.unroute(path);
  await page.route(path, (route) => {
    bodies.push(route.request().postDataJSON());
    return route.fulfill(answers[Math.min(bodies.length, answers.length) - 1]);
  });
  return bodies;
}

/** The list of models is this one. `models` may be changed later. */
export async function playModels(page, models) {
  await page.route("**/v1/models", (route) => route.fulfill({ json: { object: "list", data: models } }));
}

export const modelEntry = (id, fields = {}) => ({ id, object: "model", owned_by: "braidinfer", max_model_len: 4096, has_chat_template: true, status: { value: "loaded", failed: false, memory: 5e8, in_use: 0 }, ...fields });

export async function ask(page, text) {
  const before = await page.locator(".turn.assistant").count();
  await page.fill("#question", text);
  await page.click("#send");
  await page.locator(".turn.assistant").nth(before).waitFor();
}

/** What was just clicked has been drawn by then. */
export async function answered(page) {
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
  await page.waitForSelector("body:not(.answering)");
}

export async function askAndWait(page, text) {
  await ask(page, text);
  await answered(page);
}

export async function startNew(page) {
  await page.locator("#new-conversation").click();
  await page.locator(".turn").first().waitFor({ state: "detached" });
}

/** What the page has written down is there after this. */
export async function saved(page) {
  await page.waitForTimeout(500);
}

const last = (page) => page.locator(".turn.assistant").last();
export const said = (page) => last(page).locator(".said");
export const figures = (page) => last(page).locator(".figures");
export const failure = (page) => last(page).locator(".failure");
export const button = (page, name) => page.getByRole("button", { name, exact: true }).last();
export const question = (page) => page.locator(".question").last();
export const titles = (page) => page.locator("#sidebar .title").allTextContents();
export const length = async (locator) => (await locator.textContent()).length;

/** Opens a menu and chooses from it. */
export async function choose(page, menu, entry) {
  await button(page, menu).click();
  await page.getByRole("menuitem", { name: entry }).click();
}

export async function servedModels(page) {
  return (await (await page.request.get(`${origin}/v1/models`)).json()).data;
}

/** The one that answers if nobody chose: the first that is loaded, or the first. */
export async function servedModel(page) {
  const models = await servedModels(page);
  return (models.find(({ status }) => status?.value === "loaded") ?? models[0]).id;
}

/** What a click lets the browser save. */
export async function downloaded(page, click) {
  const [download] = await Promise.all([page.waitForEvent("download"), click()]);
  return { name: download.suggestedFilename(), text: await readFile(await download.path(), "utf8") };
}

export async function importText(page, name, text) {
  await page.setInputFiles("#import-picker", { name, mimeType: "text/plain", buffer: Buffer.from(text) });
}

export async function attachFile(page, name, content, mimeType = "text/plain") {
  await page.setInputFiles("#file-picker", { name, mimeType, buffer: Buffer.from(content) });
}

export async function shot(page, name) {
  await page.screenshot({ path: join(folder, `${name}.png`) });
}

export async function hasNoSidewaysScroll(page) {
  for (const selector of ["html", "#scroller", "#panel", "#sidebar .list", "dialog[open]"]) {
    for (const found of await page.locator(selector).all()) {
      const surplus = await found.evaluate((it) => it.scrollWidth - it.clientWidth);
      assert.ok(surplus <= 0, `${selector} is ${surplus} px too wide`);
    }
  }
}

export const LONG = Array.from({ length: 400 }, (_, index) => `word${index}`).join(" ");
