// Files that go into a question.

import assert from "node:assert/strict";

import { answered, askAndWait, attachFile, button, modelEntry, play, playAnswers, playModels, refusal, reload, said, saved, shot, step, streamOf, TROUBLE } from "../browser.mjs";

const chips = (page) => page.locator("#composer .chips li").allTextContents();
const count = (tokens) => ({ json: { count: tokens, max_model_len: 4096, tokens: [] } });
const one = (page) => playModels(page, [modelEntry("reader")]);

await step("text files are attached by button, drop and paste, and go into the prompt under their names", async (page) => {
  const counts = await play(page, "**/tokenize", count(12), count(1234), count(5));
  const bodies = await playAnswers(page, streamOf("Read."));
  await attachFile(page, "notes.md", "# Notes\n```\ncode\n```\n");
  await page.getByText("12 tokens").waitFor();
  await page.evaluate(() => {
    const files = new DataTransfer();
    files.items.add(new File(["a,b\n1,2\n"], "dropped.csv", { type: "text/csv" }));
    document.querySelector("#scroller").dispatchEvent(new DragEvent("dragover", { dataTransfer: files, bubbles: true, cancelable: true }));
    document.querySelector("#scroller").dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
  });
  await page.getByText("1,234 tokens").waitFor();
  await page.evaluate(() => {
    const files = new DataTransfer();
    files.items.add(new File(["pasted"], "pasted.txt", { type: "text/plain" }));
    document.querySelector("#question").dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true }));
  });
  await page.getByText("5 tokens", { exact: true }).waitFor();
  assert.deepEqual(await chips(page), ["notes.md12 tokens", "dropped.csv1,234 tokens", "pasted.txt5 tokens"]);
  assert.deepEqual([counts[0].model, counts[0].add_special_tokens], ["reader", false]);
  await shot(page, "attachments-light");
  await button(page, "Remove pasted.txt").click();
  await askAndWait(page, "What is in them?");
  assert.equal(
    bodies[0].messages[0].content,
    'File "notes.md":\n````\n# Notes\n```\ncode\n```\n````\n\nFile "dropped.csv":\n```\na,b\n1,2\n```\n\nWhat is in them?',
  );
  assert.equal(await page.locator("#composer .chips").count(), 0);
  assert.deepEqual(await page.locator(".turn .chip-name").allTextContents(), ["notes.md", "dropped.csv"]);
  await saved(page);
  await reload(page);
  await button(page, "Regenerate").click();
  await answered(page);
  assert.deepEqual(bodies[1].messages, bodies[0].messages);
}, { prepare: one });

await step("binary, empty and large files are refused in words", async (page) => {
  const refused = async (text) => {
    await page.locator(".notice.failed").getByText(text).waitFor();
    await button(page, "Dismiss").click();
    await page.locator(".notice").waitFor({ state: "detached" });
  };
  await attachFile(page, "cat.png", Buffer.from([0x89, 0x50, 0x4e, 0x47, 0xff, 0xfe]), "image/png");
  await refused("“cat.png” is no text in UTF-8 and no PDF.");
  await attachFile(page, "nul.txt", Buffer.from("a\0b"));
  await refused("“nul.txt” is no text in UTF-8");
  await attachFile(page, "empty.txt", " \n");
  await refused("“empty.txt” has no text.");
  await attachFile(page, "large.txt", "x".repeat(5_000_001));
  await refused("“large.txt” has more than 5 MB of text.");
  assert.deepEqual(await chips(page), []);
}, { prepare: one });

await step("the server reads PDFs, and says what is wrong with them", async (page) => {
  const posted = [];
  await play(page, "**/tokenize", count(9));
  await page.route("**/v1/extract_text", (route) => {
    posted.push([route.request().headers()["content-type"], route.request().postDataBuffer().toString()]);
    return route.fulfill(posted.length === 1 ? { json: { text: "First page.\n\nSecond page.", pages: 2 } } : refusal(400, "the file is encrypted"));
  });
  const bodies = await playAnswers(page, streamOf("Read."));
  await attachFile(page, "paper.pdf", "%PDF-1.7 …", "application/pdf");
  await page.getByText("9 tokens").waitFor();
  assert.deepEqual(posted[0], ["application/pdf", "%PDF-1.7 …"]);
  await attachFile(page, "secret.pdf", "%PDF-1.7 x", "application/octet-stream");
  await page.locator(".notice.failed").getByText("The text of “secret.pdf” could not be read. The server refused the request: the file is encrypted.").waitFor();
  await page.click("#send");
  await said(page).getByText("Read.").waitFor();
  assert.equal(bodies[0].messages[0].content, 'File "paper.pdf":\n```\nFirst page.\n\nSecond page.\n```');
}, { ...TROUBLE, prepare: one });

await step("files that do not fit into the context are warned of", async (page) => {
  await play(page, "**/tokenize", count(3000), count(2000));
  await attachFile(page, "half.txt", "half");
  await page.getByText("3,000 tokens").waitFor();
  assert.equal(await page.locator("#composer .warning").count(), 0);
  await attachFile(page, "more.txt", "more");
  await page.getByText("This does not fit: the files have 5,000 tokens, and the model reads at most 4,096.").waitFor();
  await shot(page, "too-long-light");
  await button(page, "Remove half.txt").click();
  await page.locator("#composer .warning").waitFor({ state: "detached" });
}, { prepare: one });

await step("without a count of tokens files are attached all the same", async (page) => {
  await play(page, "**/tokenize", refusal(404, "no tokenizer"));
  await attachFile(page, "a.txt", "text");
  await page.locator("#composer .chips").getByText("a.txt").waitFor();
  assert.deepEqual(await chips(page), ["a.txt"]);
}, { ...TROUBLE, prepare: one });
