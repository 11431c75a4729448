// Drives the page of a running server in Chromium and checks what a person relies on.
// node drive.mjs http://127.0.0.1:8099/ SCREENSHOT_FOLDER [WORD of the steps to run]

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { sampleReport } from "./mock_server.mjs";

// `require` looks into NODE_PATH, `import` does not.
const { chromium } = createRequire(import.meta.url)("playwright-core");

const [address, folder, word = ""] = process.argv.slice(2);
if (!address || !folder) {
  console.error("usage: node drive.mjs ADDRESS SCREENSHOT_FOLDER [WORD]");
  process.exit(2);
}
const origin = new URL(address).origin;
mkdirSync(folder, { recursive: true });

const COMPLETIONS = "**/v1/chat/completions";
const DESKTOP = { width: 1280, height: 800 };
const PHONE = { width: 360, height: 740 };
const TROUBLE = { expectsTrouble: true };
const HOSTILE = `<img src=x onerror="window.harmed = true"> <script>window.harmed = true</script>
[click](javascript:window.harmed=true) <b>not bold</b>`;

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
let failed = 0;

/** One check on a page of its own. Console errors and requests to other origins fail every one. */
async function step(name, check, { expectsTrouble = false, slow = 0, prepare, ...options } = {}) {
  if (!name.includes(word)) return;
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: "light", ...options });
  const complaints = [];
  context.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && new URL(request.url()).origin !== origin) complaints.push(`request to ${request.url()}`);
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => complaints.push(`error: ${error.stack}`));
  page.on("console", (message) => {
    const isFailedLoad = expectsTrouble && message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !isFailedLoad) complaints.push(`console: ${message.text()}`);
  });
  try {
    if (slow > 0) await page.addInitScript(slowStreams, slow);
    await prepare?.(page);
    const response = await page.goto(address);
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

/** The stream of an answer. */
function streamOf(text, { isBroken = false, finish = "stop" } = {}) {
  const pieces = text.match(/\s*\S+|\s+$/g) ?? [];
  const chunk = (choices, usage = null) => ({ id: "x", object: "chat.completion.chunk", choices, usage });
  const chunks = [
    chunk([{ index: 0, delta: { role: "assistant" }, finish_reason: null }]),
    ...pieces.map((content) => chunk([{ index: 0, delta: { content }, finish_reason: null }])),
    chunk([{ index: 0, delta: {}, finish_reason: finish }]),
    chunk([], { prompt_tokens: 20, completion_tokens: pieces.length, total_tokens: 20 + pieces.length, prompt_tokens_details: { cached_tokens: 16 } }),
  ];
  const events = chunks.slice(0, isBroken ? pieces.length + 1 : undefined).map((each) => `data: ${JSON.stringify(each)}\n\n`);
  return { contentType: "text/event-stream", body: events.join("") + (isBroken ? "" : "data: [DONE]\n\n") };
}

function refusal(status, message, headers = {}) {
  return { status, headers, contentType: "application/json", body: JSON.stringify({ error: { message, type: "x", param: null, code: null } }) };
}

/** Answers come from here instead of the server, one after the other, the last one again and again; returns what was asked. */
async function playAnswers(page, ...answers) {
  const bodies = [];
  await page.route(COMPLETIONS, (route) => {
    bodies.push(route.request().postDataJSON());
    return route.fulfill(answers[Math.min(bodies.length, answers.length) - 1]);
  });
  return bodies;
}

async function ask(page, text) {
  const before = await page.locator(".turn").count();
  await page.fill("#question", text);
  await page.click("#send");
  await page.locator(".turn").nth(before).waitFor();
}

async function answered(page) {
  await page.waitForSelector("body:not(.answering)");
}

const said = (page) => page.locator(".turn").last().locator(".said");
const figures = (page) => page.locator(".turn").last().locator(".figures");
const failure = (page) => page.locator(".turn").last().locator(".failure");
const button = (page, name) => page.getByRole("button", { name, exact: true }).last();
const length = async (locator) => (await locator.textContent()).length;

async function servedModel(page) {
  return (await (await page.request.get(`${origin}/v1/models`)).json()).data[0].id;
}

async function shot(page, name) {
  await page.screenshot({ path: join(folder, `${name}.png`) });
}

async function hasNoSidewaysScroll(page) {
  for (const selector of ["html", "#scroller", "#panel"]) {
    const surplus = await page.locator(selector).evaluate((it) => it.scrollWidth - it.clientWidth);
    assert.ok(surplus <= 0, `${selector} is ${surplus} px too wide`);
  }
}

await step("loads, names the model, and is protected by a policy", async (page, response) => {
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  assert.match(response.headers()["content-security-policy"] ?? "none", /default-src 'self'/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await shot(page, "empty-light");
});

await step("waits for a server that loads its model", async (page) => {
  const name = await servedModel(page);
  await page.route("**/v1/models", (route) => route.fulfill(refusal(503, "the model is being loaded")), { times: 1 });
  await page.reload();
  await page.locator("#model.failed").getByText("not ready: the model is being loaded").waitFor();
  await page.locator("#model:not(.failed)").getByText(name).waitFor();
}, TROUBLE);

await step("the answer of the server grows while it comes, has figures, and survives a reload", async (page) => {
  await ask(page, "Tell me a story.");
  const lengths = new Set();
  while (await page.locator("body.answering").count()) lengths.add(await length(said(page)));
  assert.ok(lengths.size > 3, `seen ${[...lengths]}`);
  assert.match(await figures(page).textContent(), /\d+ tokens? · [\d.,]+ tokens\/s · first after [\d.]+ m?s · prompt \d+/);
  assert.equal(await failure(page).isHidden(), true);
  const whole = await said(page).textContent();
  await page.reload();
  assert.equal(await said(page).textContent(), whole);
  assert.equal(await page.locator(".question").textContent(), "Tell me a story.");
  await shot(page, "answer-light");
}, { slow: 40 });

const LONG = Array.from({ length: 400 }, (_, index) => `word${index}`).join(" ");

for (const [way, stop] of [
  ["the button", (page) => page.click("#send")],
  ["Escape", (page) => page.keyboard.press("Escape")],
]) {
  await step(`stopped by ${way}, an answer keeps what came`, async (page) => {
    await playAnswers(page, streamOf(LONG));
    await ask(page, "Count.");
    await page.getByText("word20").waitFor();
    assert.equal(await page.textContent("#send"), "Stop");
    await stop(page);
    await answered(page);
    const kept = await length(said(page));
    assert.ok(kept > 0 && kept < LONG.length);
    // The stream has tried to bring another word.
    await page.waitForFunction(() => window.endedStreams === 1);
    assert.equal(await length(said(page)), kept);
    assert.match(await figures(page).textContent(), /about \d+ tokens.*stopped/);
    assert.equal(await page.textContent("#send"), "Send");
  }, { slow: 15 });
}

await step("stopping an answer of the server leaves the page ready", async (page) => {
  await ask(page, "Tell me a long story.");
  await page.keyboard.press("Escape");
  await answered(page);
  await ask(page, "Another one.");
  await answered(page);
  assert.equal(await failure(page).isHidden(), true);
});

await step("regenerate asks the same again and replaces the last answer only", async (page) => {
  const bodies = await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("third"));
  await ask(page, "One?");
  await answered(page);
  await ask(page, "Two?");
  await answered(page);
  await button(page, "Regenerate").click();
  await said(page).getByText("third").waitFor();
  await answered(page);
  assert.deepEqual(await page.locator(".said").allTextContents(), ["first", "third"]);
  assert.equal(await page.textContent("#announcement"), "third");
  assert.deepEqual(bodies[2], bodies[1]);
  assert.deepEqual(bodies[2].messages.map(({ role, content }) => `${role}: ${content}`), ["user: One?", "assistant: first", "user: Two?"]);
});

await step("a failed regeneration keeps the answer that was there", async (page) => {
  await playAnswers(page, streamOf("kept"), refusal(503, "loading"));
  await ask(page, "One?");
  await answered(page);
  await button(page, "Regenerate").click();
  await failure(page).waitFor();
  assert.equal(await said(page).textContent(), "kept");
}, TROUBLE);

await step("the theme follows the system, switches, and is remembered", async (page) => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.click("#theme");
  const dark = await ground();
  assert.notEqual(dark, light);
  await page.reload();
  assert.equal(await ground(), dark);
  await shot(page, "empty-dark");
  await page.click("#theme");
  assert.equal(await ground(), light);
  await page.emulateMedia({ colorScheme: "dark" });
  assert.equal(await ground(), dark);
});

await step("sampling values are sent when they are set, and only then", async (page) => {
  const bodies = [];
  page.on("request", (request) => request.method() === "POST" && bodies.push(request.postDataJSON()));
  await ask(page, "Bare.");
  await answered(page);
  assert.deepEqual(Object.keys(bodies[0]).sort(), ["messages", "model", "stream", "stream_options"]);
  await button(page, "Settings").click();
  const values = { temperature: 0.7, top_p: 0.9, top_k: 40, min_p: 0.05, max_completion_tokens: 8, seed: 7 };
  for (const [name, value] of Object.entries(values)) await page.fill(`[name=${name}]`, String(value));
  await ask(page, "Set.");
  await answered(page);
  assert.equal(await failure(page).isHidden(), true);
  const { model, messages, stream, stream_options, ...sent } = bodies[1];
  assert.deepEqual(sent, values);
  assert.deepEqual([stream, stream_options], [true, { include_usage: true }]);
  await page.reload();
  await button(page, "Settings").click();
  assert.equal(await page.inputValue("[name=top_p]"), "0.9");
  await shot(page, "settings-light");
  await button(page, "Clear all settings").click();
  await page.fill("#system-prompt", "Be brief.");
  await playAnswers(page, streamOf("Yes."));
  await ask(page, "Again.");
  await answered(page);
  assert.deepEqual(Object.keys(bodies[2]).sort(), ["messages", "model", "stream", "stream_options"]);
  assert.deepEqual(bodies[2].messages[0], { role: "system", content: "Be brief." });
});

await step("when the server is gone, the text stays and can be sent again", async (page) => {
  await page.route("**/v1/**", (route) => route.abort("connectionrefused"));
  await page.reload();
  await page.getByText("does not answer").waitFor();
  await ask(page, "Do not lose me.");
  await failure(page).waitFor();
  assert.match(await failure(page).textContent(), /does not answer/);
  await shot(page, "server-gone-light");
  await page.unroute("**/v1/**");
  await button(page, "Send again").click();
  await answered(page);
  assert.ok((await length(said(page))) > 0);
  assert.equal(await failure(page).isHidden(), true);
  assert.deepEqual(await page.locator(".question").allTextContents(), ["Do not lose me."]);
  assert.doesNotMatch(await page.textContent("#model"), /does not answer/);
}, TROUBLE);

await step("an answer that breaks off keeps what came and says so", async (page) => {
  const inStream = streamOf("half an", { isBroken: true });
  inStream.body += `data: {"error":{"message":"out of blocks","type":"server_error","code":null}}\n\n`;
  await playAnswers(page, streamOf("half an", { isBroken: true }), inStream);
  await ask(page, "Break.");
  await failure(page).waitFor();
  assert.equal(await said(page).textContent(), "half an");
  await button(page, "Regenerate").click();
  await page.getByText("out of blocks").waitFor();
  assert.equal(await said(page).textContent(), "half an");
});

await step("a reload in the middle of an answer keeps what came", async (page) => {
  await playAnswers(page, streamOf(LONG));
  await ask(page, "Count.");
  await page.getByText("word20").waitFor();
  await page.reload();
  assert.match(await said(page).textContent(), /^word0 .*word20/);
  assert.equal(await page.textContent("#send"), "Send");
}, { slow: 15 });

await step("a draft survives a reload", async (page) => {
  await page.fill("#question", "half a thought");
  await page.reload();
  assert.equal(await page.inputValue("#question"), "half a thought");
});

await step("400 and 429 say why, and when to try again", async (page) => {
  await playAnswers(page, refusal(400, "temperature must be from 0 to 2"), refusal(429, "queue is full", { "Retry-After": "7" }));
  await ask(page, "Too hot.");
  await failure(page).waitFor();
  assert.match(await failure(page).textContent(), /refused the request: temperature must be from 0 to 2\.$/);
  await button(page, "Send again").click();
  await page.getByText("Try again in 7 s.").waitFor();
}, TROUBLE);

await step("401 asks for a key, sends it, and keeps it over a reload", async (page) => {
  const isRight = (route) => route.request().headers().authorization === "Bearer secret";
  await page.route("**/v1/**", (route) => (isRight(route) ? route.fallback() : route.fulfill(refusal(401, "invalid API key"))));
  await page.reload();
  await page.locator("#key-dialog[open]").waitFor();
  await shot(page, "key-light");
  await page.keyboard.press("Escape");
  await ask(page, "May I?");
  await page.click("#no-key");
  await failure(page).waitFor();
  await button(page, "Send again").click();
  await page.fill("#key", "wrong");
  await page.keyboard.press("Enter");
  await page.getByText("does not accept this key").waitFor();
  await page.fill("#key", "secret");
  await page.keyboard.press("Enter");
  await answered(page);
  assert.equal(await failure(page).isHidden(), true);
  assert.ok((await length(said(page))) > 0);
  await page.reload();
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  assert.equal(await page.locator("#key-dialog[open]").count(), 0);
}, TROUBLE);

await step("keyboard: Enter, Shift+Enter, Escape, Tab", async (page) => {
  const bodies = await playAnswers(page, streamOf("Yes."));
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  assert.equal(await page.inputValue("#question"), "one\ntwo");
  await page.keyboard.press("Enter");
  await answered(page);
  assert.equal(bodies[0].messages[0].content, "one\ntwo");
  assert.equal(await page.inputValue("#question"), "");
  await page.keyboard.press("Enter");
  assert.equal(bodies.length, 1);
  await button(page, "Settings").focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#settings").isVisible(), true);
  await page.keyboard.press("Tab");
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), "none");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#settings").isVisible(), false);
  assert.equal(await page.evaluate(() => document.activeElement.dataset.panel), "settings");
});

await step("hostile text is shown as text", async (page) => {
  await playAnswers(page, streamOf(HOSTILE));
  await ask(page, HOSTILE);
  await answered(page);
  const strange = await page.locator("#turns :is(img, script, a, b, iframe)").count();
  assert.equal(strange, 0);
  assert.equal(await said(page).textContent(), HOSTILE);
  assert.equal(await page.locator(".question").textContent(), HOSTILE);
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  await shot(page, "hostile-light");
});

const MARKDOWN = `<think>Let me show everything.</think>
## Kinds of text

Plain, **bold**, *slanted*, \`code\`, snake_case_name and 2 * 3 * 4.

- one
  1. inner
- two

\`\`\`python
print("<b>")
\`\`\`
The end.`;

await step("reasoning that the server tells apart is folded and not sent back", async (page) => {
  const delta = (fields) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: fields, finish_reason: null }] })}\n\n`;
  const body = delta({ reasoning_content: "Hm, </think> is " }) + delta({ reasoning_content: "a mark." }) + delta({ content: "It is a mark." });
  const bodies = await playAnswers(page, { contentType: "text/event-stream", body: `${body}data: [DONE]\n\n` });
  await ask(page, "What is </think>?");
  await answered(page);
  assert.equal(await said(page).textContent(), "It is a mark.");
  assert.equal(await page.locator(".thoughts p").textContent(), "Hm, </think> is a mark.");
  assert.equal(await page.getByText("Hm, </think>").isVisible(), false);
  await ask(page, "Sure?");
  await answered(page);
  assert.deepEqual(bodies[1].messages.map(({ content }) => content), ["What is </think>?", "It is a mark.", "Sure?"]);
  await page.reload();
  assert.equal(await page.locator(".thoughts p").first().textContent(), "Hm, </think> is a mark.");
});

await step("a model without a chat template continues texts", async (page) => {
  await page.getByText("it continues the text that you write").waitFor();
  await shot(page, "continues-light");
  await page.fill("#question", "Once upon a time");
  const [request] = await Promise.all([page.waitForRequest("**/v1/completions"), page.click("#send")]);
  assert.deepEqual([request.postDataJSON().prompt, request.postDataJSON().max_tokens], ["Once upon a time", 200]);
  await answered(page);
  const first = await page.locator(".turn").last().locator(".said").textContent();
  assert.ok(first.length > 20, first);
  assert.equal(await failure(page).textContent(), "");
  await page.fill("#question", "The end");
  const [next] = await Promise.all([page.waitForRequest("**/v1/completions"), page.click("#send")]);
  assert.ok(next.postDataJSON().prompt.startsWith("Once upon a time") && next.postDataJSON().prompt.endsWith("\nThe end"));
  await answered(page);
}, {
  prepare: async (page) => {
    await page.route("**/v1/models", async (route) => {
      const response = await route.fetch();
      const models = await response.json();
      models.data[0].has_chat_template = false;
      await route.fulfill({ response, json: models });
    });
  },
});

await step("Markdown becomes elements, thoughts are folded, code can be copied", async (page) => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await playAnswers(page, streamOf(MARKDOWN));
  await ask(page, "Show me.");
  await answered(page);
  const texts = (selector) => said(page).locator(selector).allTextContents();
  assert.deepEqual(await texts("h4"), ["Kinds of text"]);
  assert.deepEqual(await texts("strong"), ["bold"]);
  assert.deepEqual(await texts("em"), ["slanted"]);
  assert.deepEqual(await texts("p > code"), ["code"]);
  assert.deepEqual(await texts("ul > li > ol > li"), ["inner"]);
  assert.deepEqual(await texts("pre"), [`print("<b>")`]);
  assert.deepEqual(await texts("p"), ["Plain, bold, slanted, code, snake_case_name and 2 * 3 * 4.", "The end."]);
  assert.equal(await page.getByText("Let me show everything.").isVisible(), false);
  await page.click(".thoughts summary");
  assert.equal(await page.getByText("Let me show everything.").isVisible(), true);
  await page.click(".code button");
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), `print("<b>")`);
  await shot(page, "markdown-dark");
}, { colorScheme: "dark", slow: 5 });

await step("the end is followed until the reader goes up", async (page) => {
  await playAnswers(page, streamOf(LONG.replaceAll(" word", "\n\nword")));
  await ask(page, "Count.");
  await page.getByText("word60").waitFor();
  const isNearEnd = (distance) => {
    const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#scroller");
    return scrollHeight - scrollTop - clientHeight < distance;
  };
  await page.waitForFunction(isNearEnd, 60);
  await page.mouse.move(640, 400);
  await page.mouse.wheel(0, -600);
  await page.locator("#to-end").waitFor();
  const top = await page.locator("#scroller").evaluate((it) => it.scrollTop);
  await page.getByText("word200").waitFor();
  assert.equal(await page.locator("#scroller").evaluate((it) => it.scrollTop), top);
  await page.click("#to-end");
  await answered(page);
  await page.waitForFunction(isNearEnd, 2);
}, { slow: 10 });

await step("a new chat can be taken back", async (page) => {
  await playAnswers(page, streamOf("Yes."));
  await ask(page, "Remember me.");
  await answered(page);
  await button(page, "New chat").click();
  assert.equal(await page.locator(".turn").count(), 0);
  await button(page, "Back to the previous chat").click();
  assert.equal(await page.locator(".question").textContent(), "Remember me.");
});

await step("works without storage", async (page) => {
  await playAnswers(page, streamOf("Yes."));
  await page.click("#theme");
  await ask(page, "Forbidden?");
  await answered(page);
  assert.equal(await said(page).textContent(), "Yes.");
}, {
  prepare: (page) =>
    page.addInitScript(() => {
      const forbidden = { get: () => { throw new DOMException("forbidden", "SecurityError"); } };
      Object.defineProperties(window, { localStorage: forbidden, sessionStorage: forbidden });
    }),
});

const METRICS = (generated, fast, slow) => `# HELP x y
vllm:num_requests_running{model_name="a b, \\"c\\"}"} 2
vllm:num_requests_waiting{model_name="x"} 3
vllm:kv_cache_usage_perc{model_name="x"} 0.42
braidinfer_prompt_tokens_total{model_name="x"} 1000
braidinfer_generation_tokens_total{model_name="x"} ${generated}
braidinfer_prefix_cache_queries_total 1000
braidinfer_prefix_cache_hits_total 250
braidinfer_requests_total{finish_reason="stop"} 5
braidinfer_requests_total{finish_reason="length"} 2
braidinfer_time_to_first_token_seconds_bucket{le="0.1"} ${fast}
braidinfer_time_to_first_token_seconds_bucket{le="0.2"} ${fast + slow}
braidinfer_time_to_first_token_seconds_bucket{le="+Inf"} ${fast + slow}
`;

await step("metrics: figures, plots, and polling only while they are open", async (page) => {
  let polls = 0;
  await page.route("**/metrics", (route) => {
    polls += 1;
    return route.fulfill({ contentType: "text/plain", body: METRICS(500 * polls, 10 * polls, 30 * polls) });
  });
  await button(page, "Metrics").click();
  const panel = page.locator("#metrics");
  await panel.getByText("42.0 % in use").waitFor();
  for (const text of ["2 running", "3 waiting", "25.0 %"]) await panel.getByText(text).first().waitFor();
  await panel.getByText("133 ms median").waitFor();
  await page.waitForFunction(() => document.querySelectorAll("#metrics polyline").length > 3);
  const generated = parseFloat(await panel.locator(".value b").first().textContent());
  assert.ok(generated > 150 && generated < 350, `${generated} tokens/s`);
  const facts = await panel.locator("dl").textContent();
  assert.match(facts, /Requests finished7/);
  await page.click("#close-panel");
  const before = polls;
  await page.clock.fastForward(60_000);
  // Asked last, so that whatever the timers asked for has been asked when this is answered.
  await page.evaluate(() => fetch("/v1/models"));
  assert.equal(polls, before);
}, { prepare: (page) => page.clock.install() });

await step("metrics of the server, and what is said when they cannot be read", async (page) => {
  await page.route("**/metrics", (route) => route.fulfill(refusal(503, "later")));
  await button(page, "Metrics").click();
  await page.locator("#metrics .failure").waitFor();
  await page.unroute("**/metrics");
  await ask(page, "Give it something to do.");
  await page.waitForFunction(() => document.querySelectorAll("#metrics polyline").length > 2);
  assert.equal(await page.locator("#metrics .failure").isHidden(), true);
  await answered(page);
  await shot(page, "metrics-light");
}, TROUBLE);

await step("the report of the server shows a verdict, or that there is none", async (page) => {
  await button(page, "Report").click();
  await page.locator("#report .verdict").or(page.getByText("runs without a verdict")).waitFor();
  await shot(page, "report-of-server-light");
}, TROUBLE);

await step("a report shows verdict, reason, runs, errors by layer, plan and advice", async (page) => {
  await page.route("**/v1/compat", (route) => route.fulfill({ json: sampleReport() }));
  await button(page, "Report").click();
  const text = await page.locator("#report .verdict").textContent();
  assert.match(text, /warning.*score 0\.74.*8-bit activations/i);
  assert.equal(await page.locator("#report tbody").count(), 4);
  assert.ok((await page.locator("#report polyline").count()) >= 3);
  await page.getByText("Mixed kernels: 25 layers int8, K/V in f16; 2 layers f32 and int8, K/V in f16; 1 layer standard").waitFor();
  await page.getByText("Use the plan: it keeps 94 % of the speed.").waitFor();
  await page.getByText("3 of 28 layers").click();
  await page.getByText("Layer 9: wrong from ffn.out on").waitFor();
  await shot(page, "report-dark");
}, { colorScheme: "dark", viewport: { width: 1280, height: 1800 } });

await step("a report of the weights alone, and no report", async (page) => {
  const predicted = { ...sampleReport(), measured: null, layers: [], plan: [] };
  await page.route("**/v1/compat", (route) => route.fulfill({ json: predicted }), { times: 1 });
  await button(page, "Report").click();
  await page.getByText("predicted warning").waitFor();
  await page.click("#close-panel");
  await page.route("**/v1/compat", (route) => route.fulfill(refusal(404, "no verdict")));
  await button(page, "Report").click();
  await page.getByText("runs without a verdict").waitFor();
}, TROUBLE);

for (const colorScheme of ["light", "dark"]) {
  await step(`a phone of 360 px has no sideways scroll (${colorScheme})`, async (page) => {
    await page.route("**/v1/compat", (route) => route.fulfill({ json: sampleReport() }));
    await playAnswers(page, streamOf(`${MARKDOWN}\n\n${"unbroken".repeat(40)}\n\n\`\`\`\n${"x ".repeat(200)}\n\`\`\`\nDone.`));
    await shot(page, `phone-empty-${colorScheme}`);
    await ask(page, `A question with a ${"very".repeat(40)} long word`);
    await said(page).getByText("Done.").waitFor();
    await answered(page);
    await hasNoSidewaysScroll(page);
    await shot(page, `phone-answer-${colorScheme}`);
    for (const [name, content] of [["Settings", "#system-prompt"], ["Report", ".verdict"], ["Metrics", "polyline >> nth=2"]]) {
      await button(page, name).click();
      await page.locator(`#${name.toLowerCase()}`).waitFor();
      // A line without ups and downs has no height, and counts as hidden.
      await page.locator(`#${name.toLowerCase()} ${content}`).waitFor({ state: "attached" });
      await hasNoSidewaysScroll(page);
      await shot(page, `phone-${name.toLowerCase()}-${colorScheme}`);
    }
  }, { viewport: PHONE, deviceScaleFactor: 2, hasTouch: true, colorScheme });
}

await browser.close();
console.log(failed === 0 ? "all steps passed" : `${failed} steps failed`);
process.exit(failed === 0 ? 0 : 1);
