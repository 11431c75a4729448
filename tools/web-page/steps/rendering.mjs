// Markdown, code, LaTeX, and hostile text.

import assert from "node:assert/strict";

import { answered, ask, askAndWait, button, LONG, playAnswers, question, said, shot, step, streamOf } from "../browser.mjs";

const MARKDOWN = `<think>Let me show everything.</think>
# Kinds of text

Plain, **bold**, *slanted*, ~~gone~~, \`code\`, snake_case_name, H<sub>2</sub>O and 2 * 3 * 4.

| name | value |
|:-----|------:|
| a    | 1     |
| b\\|c | **2** |

- one
  1. inner
- two

- [x] done
- [ ] open

> quoted
> text

\`\`\`python
def f(x):  # a comment
    return "<b>" + str(x)
\`\`\`

Euler: $e^{i\\pi} = -1$, \\(a_1\\), and

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

\\[ \\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix} \\]

It costs $5 and $6, or 7$ to 8$. [A link](https://example.org/a?b=1&c=2), <https://example.org/>, mailto:a@example.org
![A cat](https://example.org/cat.png)

The end.`;

await step("Markdown, tables, tasks, code and LaTeX become elements", async (page) => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await playAnswers(page, streamOf(MARKDOWN));
  await askAndWait(page, "Show me.");
  const texts = (selector) => said(page).locator(selector).allTextContents();
  assert.deepEqual(await texts("h3"), ["Kinds of text"]);
  assert.deepEqual(await texts("strong"), ["bold", "2"]);
  assert.deepEqual([await texts("em"), await texts("del"), await texts("sub")], [["slanted"], ["gone"], ["2"]]);
  assert.deepEqual(await texts("p > code"), ["code"]);
  assert.deepEqual(await texts("td"), ["a", "1", "b|c", "2"]);
  assert.deepEqual(await texts("ul > li > ol > li"), ["inner"]);
  assert.deepEqual(await said(page).locator("li.task input").evaluateAll((boxes) => boxes.map(({ checked }) => checked)), [true, false]);
  assert.match((await texts("blockquote"))[0], /quoted\s*text/);
  assert.equal(await said(page).locator("blockquote br").count(), 1);
  assert.deepEqual(await texts("pre"), ['def f(x):  # a comment\n    return "<b>" + str(x)']);
  await said(page).locator(".hljs-comment").waitFor();
  await said(page).locator("math").nth(3).waitFor();
  assert.equal(await said(page).locator("math").count(), 4);
  assert.equal(await said(page).locator("mtable").count(), 1);
  assert.match((await texts("p")).join("\n"), /It costs \$5 and \$6, or 7\$ to 8\$\./);
  const links = await said(page).locator("a").evaluateAll((all) => all.map(({ textContent, href, target, rel }) => [textContent, href, target, rel]));
  const away = ["_blank", "noopener noreferrer"];
  assert.deepEqual(links, [
    ["A link", "https://example.org/a?b=1&c=2", ...away],
    ["https://example.org/", "https://example.org/", ...away],
    ["mailto:a@example.org", "mailto:a@example.org", ...away],
    ["Image: A cat", "https://example.org/cat.png", ...away],
  ]);
  assert.equal(await page.locator("#page [style]:not(math *, math, textarea, .popover)").count(), 0);
  assert.equal(await page.getByText("Let me show everything.").isVisible(), false);
  await page.click(".thoughts summary");
  assert.equal(await page.getByText("Let me show everything.").isVisible(), true);
  await page.click(".code button");
  await page.waitForFunction(async () => (await navigator.clipboard.readText()).startsWith("def f(x)"));
  await shot(page, "markdown-dark");
}, { colorScheme: "dark", slow: 3, viewport: { width: 1280, height: 1500 } });

const HOSTILE = `<img src=x onerror="window.harmed = true"> <script>window.harmed = true</script> <b onclick="window.harmed = true">bold</b>
[click](javascript:window.harmed=true) [data](data:text/html,<script>harmed=true</script>) [relative](/v1/models) ![image](https://example.org/x.png "t")
<iframe src="https://example.org"></iframe><svg onload="window.harmed=true"></svg><a href="https://example.org" style="position:fixed">x</a>

<style>body { display: none }</style>

<form action="https://example.org"><input name=x></form>

\`\`\`"><img src=x onerror=window.harmed=true>
<img src=x onerror="window.harmed = true">
\`\`\`

$\\href{javascript:window.harmed=true}{x}$ $\\includegraphics{https://example.org/x.png}$ $<img src=x onerror=window.harmed=true>$ $\\def\\a{\\a\\a}\\a$ $\\style{background:url(https://example.org)}{x}$`;

await step("hostile text does nothing, and can be read", async (page) => {
  await playAnswers(page, streamOf(HOSTILE));
  await askAndWait(page, HOSTILE);
  await page.waitForTimeout(300);
  assert.equal(await page.locator("#turns :is(img, script, iframe, svg[onload], style, form, [onclick], [onerror], [onload])").count(), 0);
  assert.deepEqual(await said(page).locator("a").evaluateAll((all) => all.map(({ href }) => href)), ["https://example.org/x.png"]);
  const text = await said(page).textContent();
  for (const part of ['<img src=x onerror="window.harmed = true">', "<script>window.harmed = true</script>", "[click](javascript:window.harmed=true)", "[relative](/v1/models)", "<iframe", "<style>", "<form"]) {
    assert.ok(text.includes(part), part);
  }
  assert.equal(await question(page).textContent(), HOSTILE);
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  await shot(page, "hostile-light");
});

await step("text that is deep, long or full of signs does not hang the page", async (page) => {
  const cruel = [">".repeat(3000), "- ".repeat(3000), "[".repeat(3000), "*a ".repeat(3000), "$".repeat(3000), "`".repeat(2999), "<".repeat(3000), "|".repeat(2000), "$x".repeat(2000), "\\(".repeat(2000), "_".repeat(3000), "-".repeat(300)];
  await playAnswers(page, streamOf(cruel.join("\n\n")));
  const started = Date.now();
  await askAndWait(page, "Hang!");
  assert.ok(Date.now() - started < 15_000, `${Date.now() - started} ms`);
  await askAndWait(page, "Still there?");
});

await step("while an answer comes, what is finished is drawn once and stays selected", async (page) => {
  const blocks = Array.from({ length: 120 }, (_, at) => (at % 10 === 5 ? `\`\`\`js\nlet x${at} = ${at};\n\`\`\`` : `Block ${at} with *some* text and \`code\` of ${at}.`));
  await playAnswers(page, streamOf(blocks.join("\n\n")));
  await ask(page, "Go on.");
  await said(page).getByText("Block 8 with").waitFor();
  await page.evaluate(() => {
    const said = document.querySelector(".said");
    const first = said.children[0];
    getSelection().selectAllChildren(first);
    window.redrawn = 0;
    new MutationObserver((records) => (window.redrawn += records.filter(({ removedNodes }) => [...removedNodes].some((node) => node === first || node === said.children[3])).length)).observe(said, { childList: true, subtree: true });
    window.slowest = 0;
    let before = performance.now();
    const frame = () => {
      window.slowest = Math.max(window.slowest, performance.now() - before);
      before = performance.now();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
  await answered(page);
  assert.equal(await said(page).locator("> *").count(), 120);
  assert.equal(await page.evaluate(() => getSelection().toString()), "Block 0 with some text and code of 0.");
  assert.equal(await page.evaluate(() => window.redrawn), 0);
  // A frame takes some milliseconds; machines that do much else are given time.
  assert.ok((await page.evaluate(() => window.slowest)) < 1000);
}, { slow: 2 });

await step("text that comes in pieces looks as it does when it is complete", async (page) => {
  await playAnswers(page, streamOf(MARKDOWN), streamOf("x"));
  await askAndWait(page, "Show me.");
  await said(page).locator("math").nth(3).waitFor();
  await page.waitForTimeout(500);
  const html = () => page.locator(".said").first().evaluate((it) => it.innerHTML);
  const grown = await html();
  await button(page, "Edit this answer").click();
  await page.locator("#edited").press("Escape");
  await said(page).locator("math").nth(3).waitFor();
  await page.waitForTimeout(500);
  assert.equal(await html(), grown);
}, { slow: 2 });
