// The list of conversations, what is kept, files, and two tabs.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, button, choose, downloaded, importText, LONG, playAnswers, question, reload, said, saved, secondTab, shot, startNew, step, streamOf, titles } from "../browser.mjs";

const open = (page, title) => page.locator("#sidebar .title").getByText(title, { exact: true }).click();
const texts = (page) => page.locator(".question, .said").allTextContents();

/** Conversations with these questions, each with the answer that was played. */
async function talk(page, ...questions) {
  for (const text of questions) {
    await startNew(page);
    await askAndWait(page, text);
  }
}

await step("conversations are listed, searched, renamed, deleted and brought back", async (page) => {
  await playAnswers(page, streamOf("A cold wind from the north-east."), streamOf("Of the sea."), streamOf("Yes."));
  await talk(page, "What is the bise?", "What is a fjord?", "Is it so?");
  assert.deepEqual(await titles(page), ["Is it so?", "What is a fjord?", "What is the bise?"]);
  await open(page, "What is the bise?");
  await said(page).getByText("A cold wind").waitFor();
  await page.fill("#search", "SEA of");
  await page.waitForFunction(() => document.querySelectorAll("#sidebar .title").length === 1);
  assert.deepEqual(await titles(page), ["What is a fjord?"]);
  await page.fill("#search", "nothing such");
  await page.getByText("Nothing was found.").waitFor();
  await page.fill("#search", "");
  await page.waitForFunction(() => document.querySelectorAll("#sidebar .title").length === 3);
  await choose(page, "More for What is a fjord?", "Rename");
  await page.getByLabel("Title").fill("Norway");
  await page.keyboard.press("Enter");
  await page.locator("#sidebar .title").getByText("Norway").waitFor();
  await shot(page, "list-light");
  await saved(page);
  await reload(page);
  assert.deepEqual((await titles(page)).sort(), ["Is it so?", "Norway", "What is the bise?"]);
  await choose(page, "More for What is the bise?", "Delete");
  await page.getByText("Deleted “What is the bise?”.").waitFor();
  await question(page).waitFor({ state: "detached" });
  assert.deepEqual((await titles(page)).sort(), ["Is it so?", "Norway"]);
  await button(page, "Undo").click();
  await said(page).getByText("A cold wind").waitFor();
  await choose(page, "More for Norway", "Delete");
  await saved(page);
  await reload(page);
  assert.deepEqual((await titles(page)).sort(), ["Is it so?", "What is the bise?"]);
});

await step("a conversation that is deleted while an answer comes stays deleted, until it is brought back", async (page) => {
  await playAnswers(page, streamOf(LONG));
  await ask(page, "Count.");
  await page.getByText("word20").waitFor();
  await choose(page, "This conversation", "Delete");
  await question(page).waitFor({ state: "detached" });
  await page.waitForFunction(() => window.endedStreams === 1);
  await saved(page);
  assert.deepEqual(await titles(page), []);
  await button(page, "Undo").click();
  await said(page).getByText("word20").waitFor();
  assert.deepEqual(await titles(page), ["Count."]);
  await saved(page);
  await reload(page);
  assert.deepEqual(await titles(page), ["Count."]);
}, { slow: 15 });

await step("conversations are exported as JSON and come back beside what is there", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("second"), streamOf("other"));
  await askAndWait(page, "One?");
  await button(page, "Regenerate").click();
  await said(page).getByText("second").waitFor();
  await answered(page);
  const one = await downloaded(page, () => choose(page, "This conversation", "Export as JSON"));
  assert.equal(one.name, "One.json");
  await talk(page, "Two?");
  const all = await downloaded(page, () => choose(page, "Import and export", "Export all as JSON"));
  assert.equal(JSON.parse(all.text).conversations.length, 2);
  await importText(page, "one.json", one.text);
  await page.getByText("Imported one conversation.").waitFor();
  await said(page).getByText("second").waitFor();
  assert.deepEqual(await titles(page), ["Two?", "One?", "One?"]);
  await button(page, "Earlier version").click();
  await said(page).getByText("first").waitFor();
  await importText(page, "all.json", all.text);
  await page.getByText("Imported 2 conversations.").waitFor();
  await saved(page);
  await reload(page);
  assert.equal((await titles(page)).length, 5);
});

await step("a file that is wrong is refused in words, and nothing is lost", async (page) => {
  await playAnswers(page, streamOf("kept"));
  await askAndWait(page, "Keep me.");
  const { text } = await downloaded(page, () => choose(page, "This conversation", "Export as JSON"));
  const spoilt = (spoil) => {
    const file = JSON.parse(text);
    spoil(file);
    return JSON.stringify(file);
  };
  const cases = [
    ["{", /is no JSON/],
    ['{"a": 1}', /was not exported from this page/],
    [spoilt((file) => (file.version = 9)), /has version 9/],
    [spoilt((file) => (file.conversations[0].turns[1].text = { toString: 1 })), /Text of turn 2 of conversation 1 should be a text/],
    [spoilt((file) => (file.conversations[0].turns[0].parent = file.conversations[0].turns[1].id)), /in a circle/],
    [spoilt((file) => file.conversations.push(...Array(5000).fill(file.conversations[0]))), /at most 5000/],
    [spoilt((file) => file.conversations.push({ id: "x" })), /conversation 2/],
    [Buffer.from([0xff, 0xfe, 0]).toString("latin1"), /./],
  ];
  for (const [content, expected] of cases) {
    await importText(page, "bad.json", content);
    const notice = page.locator(".notice.failed");
    await notice.waitFor();
    assert.match(await notice.textContent(), /Nothing was imported from “bad.json”/);
    assert.match(await notice.textContent(), expected);
    await button(page, "Dismiss").click();
    await notice.waitFor({ state: "detached" });
  }
  assert.deepEqual(await titles(page), ["Keep me."]);
  assert.deepEqual(await texts(page), ["Keep me.", "kept"]);
});

await step("hostile conversations of a file do nothing but show their text", async (page) => {
  const turn = (id, parent, role, text) => ({ id, parent, role, text, at: 1 });
  const hostile = '<img src=x onerror="window.harmed = true"><script>window.harmed = true</script>';
  const file = {
    format: "braidinfer-conversations", version: 1,
    conversations: [{
      title: hostile.slice(0, 60), created: 1, changed: 1, mode: "chat", model: hostile,
      settings: JSON.parse('{"__proto__": {"temperature": "9"}, "system": "s"}'), chosen: JSON.parse('{"__proto__": "a"}'),
      turns: [turn("__proto__", null, "user", hostile), { ...turn("constructor", "__proto__", "assistant", hostile), model: hostile, calls: [{ id: "c", name: hostile, arguments: hostile }] }],
    }],
  };
  await importText(page, "hostile.json", JSON.stringify(file));
  await page.locator(".call").waitFor();
  assert.equal(await question(page).textContent(), hostile);
  assert.equal(await page.locator("#page :is(img, script)").count(), 0);
  assert.equal(await page.evaluate(() => window.harmed ?? {}.temperature), undefined);
});

await step("Markdown brings the shown branch back", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("<!-- braidinfer:user -->\n## You\n\n```js\nlet a;\n```"));
  await askAndWait(page, "One?");
  await button(page, "Regenerate").click();
  await page.locator(".code").waitFor();
  await answered(page);
  const before = await texts(page);
  const { name, text } = await downloaded(page, () => choose(page, "This conversation", "Export as Markdown"));
  assert.equal(name, "One.md");
  assert.match(text, /^<!-- braidinfer:conversation .*\n# One\?\n/);
  await importText(page, name, text);
  await page.getByText("Imported one conversation.").waitFor();
  assert.deepEqual(await titles(page), ["One?", "One?"]);
  assert.deepEqual(await texts(page), before);
  const again = await downloaded(page, () => choose(page, "This conversation", "Export as Markdown"));
  assert.equal(again.text, text);
  await importText(page, "readme.md", "# Something else");
  await page.locator(".notice.failed").waitFor();
});

await step("two tabs do not overwrite each other", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("mine"), streamOf("mine, too"));
  await askAndWait(page, "One?");
  await saved(page);
  const other = await secondTab(page);
  await playAnswers(other, streamOf("theirs"), streamOf("elsewhere"));
  await open(other, "One?");
  await said(other).getByText("first").waitFor();
  // Both answer in the same conversation at the same time.
  await ask(page, "Mine?");
  await ask(other, "Theirs?");
  await answered(page);
  await answered(other);
  await saved(page);
  await choose(other, "More for One?", "Rename");
  await other.getByLabel("Title").fill("Shared");
  await other.keyboard.press("Enter");
  await page.locator("#sidebar .title").getByText("Shared").waitFor();
  await askAndWait(page, "Again?");
  await talk(other, "Elsewhere?");
  await page.locator("#sidebar .title").getByText("Elsewhere?").waitFor();
  await saved(page);
  await reload(page);
  assert.deepEqual((await titles(page)).sort(), ["Elsewhere?", "Shared"]);
  const { text } = await downloaded(page, () => choose(page, "More for Shared", "Export as JSON"));
  const kept = JSON.parse(text).conversations[0].turns.map((turn) => turn.text).sort();
  assert.deepEqual(kept, ["Again?", "Mine?", "One?", "Theirs?", "first", "mine", "mine, too", "theirs"]);
  await open(other, "Shared");
  await choose(page, "More for Shared", "Delete");
  await other.locator("#sidebar .title").getByText("Shared").waitFor({ state: "detached" });
  assert.deepEqual(await texts(other), []);
}, { slow: 30 });

await step("two tabs that do not hear of each other lose nothing either", async (page) => {
  await playAnswers(page, streamOf("first"), streamOf("mine"), streamOf("mine, too"));
  await askAndWait(page, "One?");
  await saved(page);
  const other = await secondTab(page);
  await playAnswers(other, streamOf("theirs"));
  await open(other, "One?");
  await said(other).getByText("first").waitFor();
  await askAndWait(page, "Mine?");
  await saved(page);
  await askAndWait(other, "Theirs?");
  await saved(other);
  await askAndWait(page, "Again?");
  await saved(page);
  await reload(page);
  const { text } = await downloaded(page, () => choose(page, "More for One?", "Export as JSON"));
  const kept = JSON.parse(text).conversations[0].turns.map((turn) => turn.text).sort();
  assert.deepEqual(kept, ["Again?", "Mine?", "One?", "Theirs?", "first", "mine", "mine, too", "theirs"]);
}, { prepare: (page) => page.context().addInitScript(() => delete window.BroadcastChannel) });

await step("without a database the page says so and works in memory", async (page) => {
  await page.getByText("This browser keeps no data for this page").waitFor();
  await playAnswers(page, streamOf("Yes."));
  await page.click("#theme");
  await talk(page, "Forbidden?", "Again?");
  await open(page, "Forbidden?");
  await question(page).getByText("Forbidden?").waitFor();
  assert.equal(await said(page).textContent(), "Yes.");
  await page.fill("#search", "forbidden");
  await page.waitForFunction(() => document.querySelectorAll("#sidebar .title").length === 1);
  const { text } = await downloaded(page, () => choose(page, "This conversation", "Export as JSON"));
  assert.match(text, /Forbidden\?/);
  await shot(page, "no-database-light");
}, {
  prepare: (page) =>
    page.addInitScript(() => {
      const forbidden = { get: () => { throw new DOMException("forbidden", "SecurityError"); } };
      Object.defineProperties(window, { localStorage: forbidden, sessionStorage: forbidden });
      Object.defineProperty(window, "indexedDB", { value: { open: () => { throw new DOMException("forbidden", "SecurityError"); } } });
    }),
});

await step("thousands of conversations and turns stay quick", async (page) => {
  const turns = Array.from({ length: 400 }, (_, at) => ({ id: `${at}`, parent: at === 0 ? null : `${at - 1}`, role: at % 2 === 0 ? "user" : "assistant", text: `${at} ${LONG.slice(0, 300)}`, at }));
  const conversations = Array.from({ length: 1000 }, (_, at) => ({ title: `Talk ${at}`, created: at, changed: at, mode: "chat", turns: at === 999 ? turns : [] }));
  await importText(page, "many.json", JSON.stringify({ format: "braidinfer-conversations", version: 1, conversations }));
  await page.getByText("Imported 1000 conversations.").waitFor();
  await reload(page);
  await page.waitForFunction(() => document.querySelectorAll("#sidebar .title").length === 1000);
  await open(page, "Talk 999");
  await page.getByText("399 word0").waitFor();
  await playAnswers(page, streamOf(LONG));
  const started = Date.now();
  await askAndWait(page, "And now?");
  assert.ok(Date.now() - started < 20_000, `${Date.now() - started} ms`);
});
