// Asking and answering.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, button, failure, figures, length, LONG, playAnswers, question, refusal, reload, said, saved, servedModel, shot, startNew, step, streamOf, streamOfDeltas, TROUBLE } from "../browser.mjs";

await step("loads, names the model, and is protected by a policy", async (page, response) => {
  await page.locator("#model").getByText(await servedModel(page)).waitFor();
  const policy = response.headers()["content-security-policy"] ?? "none";
  for (const part of ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "require-trusted-types-for 'script'"]) assert.ok(policy.includes(part), policy);
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await shot(page, "empty-light");
});

await step("waits for a server that loads its model", async (page) => {
  await page.locator(".failed").getByText("not ready: the model is being loaded").waitFor();
  await page.locator("#model:not(.failed)").getByText(await servedModel(page)).waitFor();
}, { ...TROUBLE, prepare: (page) => page.route("**/v1/models", (route) => route.fulfill(refusal(503, "the model is being loaded")), { times: 1 }) });

await step("the answer of the server grows while it comes, has figures, and survives a reload", async (page) => {
  await ask(page, "Tell me a story.");
  const lengths = new Set();
  while (await page.locator("body.answering").count()) lengths.add(await length(said(page)));
  assert.ok(lengths.size > 3, `seen ${[...lengths]}`);
  assert.match(await figures(page).textContent(), /\d+ tokens? · [\d.,]+ tokens\/s · first after [\d.]+ m?s · prompt \d+/);
  assert.equal(await failure(page).count(), 0);
  const whole = await said(page).textContent();
  await saved(page);
  await reload(page);
  assert.equal(await said(page).textContent(), whole);
  assert.equal(await question(page).textContent(), "Tell me a story.");
  await shot(page, "answer-light");
}, { slow: 40 });

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
  await askAndWait(page, "Another one.");
  assert.equal(await failure(page).count(), 0);
});

await step("a stopped answer and one that was cut are continued in place", async (page) => {
  const bodies = await playAnswers(page, streamOf("one two", { finish: "length" }), streamOf(" three four"), streamOf("half an", { isBroken: true }), streamOf(" answer"));
  await askAndWait(page, "Count.");
  assert.match(await figures(page).textContent(), /cut at the limit of tokens/);
  await button(page, "Continue").click();
  await said(page).getByText("one two three four").waitFor();
  await answered(page);
  const { messages, continue_final_message, add_generation_prompt } = bodies[1];
  assert.deepEqual([continue_final_message, add_generation_prompt], [true, false]);
  assert.deepEqual(messages, [{ role: "user", content: "Count." }, { role: "assistant", content: "one two" }]);
  assert.equal(await page.locator(".said p").count(), 1);
  assert.equal(await button(page, "Continue").count(), 0);
  assert.equal(await page.locator(".versions").count(), 0);
  await askAndWait(page, "Break.");
  await button(page, "Continue").click();
  await said(page).getByText("half an answer").waitFor();
  await answered(page);
  assert.equal(await failure(page).count(), 0);
});

await step("when the server is gone, the text stays and can be sent again", async (page) => {
  await page.getByText("does not answer").waitFor();
  await ask(page, "Do not lose me.");
  await failure(page).waitFor();
  assert.match(await failure(page).textContent(), /does not answer/);
  await shot(page, "server-gone-light");
  await page.unroute("**/v1/**");
  await button(page, "Send again").click();
  await answered(page);
  assert.ok((await length(said(page))) > 0);
  assert.equal(await failure(page).count(), 0);
  assert.deepEqual(await page.locator(".question").allTextContents(), ["Do not lose me."]);
  assert.equal(await page.locator(".versions").count(), 0);
  assert.doesNotMatch(await page.textContent("#model"), /does not answer/);
}, { ...TROUBLE, prepare: (page) => page.route("**/v1/**", (route) => route.abort("connectionrefused")) });

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

await step("a reload in the middle of an answer keeps what came, which can be continued", async (page) => {
  await playAnswers(page, streamOf(LONG));
  await ask(page, "Count.");
  await page.getByText("word20").waitFor();
  await reload(page);
  assert.match(await said(page).textContent(), /^word0 .*word20/);
  assert.equal(await page.textContent("#send"), "Send");
  await playAnswers(page, streamOf(" and on"));
  await button(page, "Continue").click();
  await said(page).getByText("and on").waitFor();
}, { slow: 15 });

await step("a draft survives a reload", async (page) => {
  await page.fill("#question", "half a thought");
  await reload(page);
  assert.equal(await page.inputValue("#question"), "half a thought");
});

await step("an answer goes on while another conversation is open", async (page) => {
  await playAnswers(page, streamOf(LONG), streamOf("Quick."));
  await ask(page, "Count.");
  await page.getByText("word20").waitFor();
  await startNew(page);
  await askAndWait(page, "Quick?");
  assert.equal(await said(page).textContent(), "Quick.");
  await page.locator("#sidebar .title").getByText("Count.").click();
  await said(page).getByText("word399").waitFor();
  await answered(page);
  assert.equal(await said(page).textContent(), LONG);
}, { slow: 15 });

await step("400 and 429 say why, and when to try again", async (page) => {
  await playAnswers(page, refusal(400, "temperature must be from 0 to 2"), refusal(429, "queue is full", { "Retry-After": "7" }));
  await ask(page, "Too hot.");
  await failure(page).waitFor();
  assert.match(await failure(page).textContent(), /refused the request: temperature must be from 0 to 2\.$/);
  await button(page, "Send again").click();
  await page.getByText("Try again in 7 s.").waitFor();
}, TROUBLE);

await step("questions without an answer are not sent along", async (page) => {
  const bodies = await playAnswers(page, refusal(400, "no"), streamOf("Yes."));
  await askAndWait(page, "Lost?");
  await askAndWait(page, "Found?");
  assert.deepEqual(bodies[1].messages, [{ role: "user", content: "Found?" }]);
}, TROUBLE);

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

await step("answers are announced once, when they are there", async (page) => {
  await playAnswers(page, streamOf("All of it."));
  await page.evaluate(() => {
    window.announced = [];
    const region = document.getElementById("announcement");
    new MutationObserver(() => window.announced.push(region.textContent)).observe(region, { childList: true, characterData: true, subtree: true });
  });
  await askAndWait(page, "Well?");
  await page.waitForFunction(() => window.announced.includes("All of it."));
  const announced = await page.evaluate(() => window.announced.filter(Boolean));
  assert.deepEqual(announced, ["Answering", "All of it."]);
  assert.equal(await page.locator("#announcement").getAttribute("role"), "status");
});

await step("tools: calls in pieces are shown, results are typed and answered", async (page) => {
  const call = (fields) => ({ tool_calls: [fields] });
  const calls = streamOfDeltas([
    { content: "I look." },
    call({ index: 0, id: "a1", type: "function", function: { name: "weather", arguments: "" } }),
    call({ index: 0, function: { arguments: '{"city":' } }),
    call({ index: 0, function: { arguments: '"Bern"}' } }),
    call({ index: 1, id: "b2", type: "function", function: { name: "clock", arguments: "{}" } }),
    call({ index: 1e9, function: { name: "far" } }),
  ], { finish: "tool_calls" });
  const bodies = await playAnswers(page, calls, streamOf("It rains at noon."));
  await askAndWait(page, "How is it?");
  assert.deepEqual(await page.locator(".call h3").allTextContents(), ["Calls weather", "Calls clock"]);
  assert.equal(await page.locator(".call pre").first().textContent(), '{\n  "city": "Bern"\n}');
  await page.getByLabel("Result of weather").fill("rain");
  await page.getByLabel("Result of clock").fill("12:00");
  await shot(page, "tools-light");
  await button(page, "Send the results").click();
  await said(page).getByText("It rains at noon.").waitFor();
  await answered(page);
  const [, assistant, ...results] = bodies[1].messages;
  assert.deepEqual(assistant.tool_calls.map(({ id, function: { name, arguments: text } }) => [id, name, text]), [["a1", "weather", '{"city":"Bern"}'], ["b2", "clock", "{}"]]);
  assert.deepEqual(results, [{ role: "tool", tool_call_id: "a1", content: "rain" }, { role: "tool", tool_call_id: "b2", content: "12:00" }]);
  await saved(page);
  await reload(page);
  assert.equal(await page.locator(".call").count(), 4);
});

await step("reasoning that the server tells apart is folded, timed and not sent back", async (page) => {
  const thoughtful = streamOfDeltas([{ reasoning_content: "Hm, </think> is " }, { reasoning_content: "a mark." }, { content: "It is a mark." }], { thoughtTokens: 9 });
  const bodies = await playAnswers(page, thoughtful);
  await askAndWait(page, "What is </think>?");
  assert.equal(await said(page).textContent(), "It is a mark.");
  assert.equal(await page.locator(".thoughts p").textContent(), "Hm, </think> is a mark.");
  assert.equal(await page.getByText("Hm, </think>").isVisible(), false);
  assert.match(await page.locator(".thoughts summary").textContent(), /^Thought for \d+ ms · 9 tokens$/);
  await askAndWait(page, "Sure?");
  assert.deepEqual(bodies[1].messages.map(({ content }) => content), ["What is </think>?", "It is a mark.", "Sure?"]);
  await saved(page);
  await reload(page);
  assert.equal(await page.locator(".thoughts p").first().textContent(), "Hm, </think> is a mark.");
}, { slow: 30 });
