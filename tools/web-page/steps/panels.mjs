// The report of a model, and metrics.

import assert from "node:assert/strict";

import { answered, ask, button, modelEntry, playModels, refusal, shot, step, TROUBLE } from "../browser.mjs";
import { sampleReport } from "../mock_server.mjs";

const METRICS = (generated, fast, slow) => `# HELP x y
vllm:num_requests_running{model_name="a b, \\"c\\""} 2
vllm:num_requests_waiting{model_name="a b, \\"c\\""} 3
vllm:kv_cache_usage_perc{model_name="a b, \\"c\\""} 0.42
vllm:kv_cache_usage_perc{model_name="other"} 0.99
braidinfer_prompt_tokens_total 1000
braidinfer_generation_tokens_total{model_name="a b, \\"c\\""} ${generated}
braidinfer_generation_tokens_total{model_name="other"} ${1000 * generated}
braidinfer_prefix_cache_queries_total 1000
braidinfer_prefix_cache_hits_total 250
braidinfer_requests_total{model_name="a b, \\"c\\"",finish_reason="stop"} 5
braidinfer_requests_total{model_name="a b, \\"c\\"",finish_reason="length"} 2
braidinfer_requests_total{model_name="other",finish_reason="stop"} 500
braidinfer_time_to_first_token_seconds_bucket{le="0.1"} ${fast}
braidinfer_time_to_first_token_seconds_bucket{le="0.2"} ${fast + slow}
braidinfer_time_to_first_token_seconds_bucket{le="+Inf"} ${fast + slow}
`;

await step("metrics: figures of the chosen model, plots, and polling only while they are open", async (page) => {
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
  await button(page, "Close").click();
  await panel.waitFor({ state: "detached" });
  const before = polls;
  await page.clock.fastForward(60_000);
  // Asked last, so that whatever the timers asked for has been asked when this is answered.
  await page.evaluate(() => fetch("/v1/models"));
  assert.equal(polls, before);
}, {
  prepare: async (page) => {
    await page.clock.install();
    await playModels(page, [modelEntry('a b, "c"'), modelEntry("other", { status: { value: "unloaded" } })]);
  },
});

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

await step("a report shows verdict, reason, runs, errors by layer, plan and advice, of the chosen model", async (page) => {
  const asked = [];
  await page.route("**/v1/compat?*", (route) => {
    asked.push(new URL(route.request().url()).searchParams.get("model"));
    return route.fulfill({ json: sampleReport() });
  });
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
  await page.click("#model");
  await page.locator(".models .choose").getByText("b&b").click();
  await page.locator("#panel").getByText("Of b&b").waitFor();
  await page.locator("#report .verdict").waitFor();
  assert.deepEqual(asked, ["a", "b&b"]);
}, { colorScheme: "dark", viewport: { width: 1280, height: 1800 }, prepare: (page) => playModels(page, [modelEntry("a"), modelEntry("b&b")]) });

await step("a report of the weights alone, and no report", async (page) => {
  const predicted = { ...sampleReport(), measured: null, layers: [], plan: [] };
  await page.route("**/v1/compat*", (route) => route.fulfill({ json: predicted }), { times: 1 });
  await button(page, "Report").click();
  await page.getByText("predicted warning").waitFor();
  await button(page, "Close").click();
  await page.route("**/v1/compat*", (route) => route.fulfill(refusal(404, "no verdict")));
  await button(page, "Report").click();
  await page.getByText("runs without a verdict").waitFor();
}, TROUBLE);
