// Plays the API of `braidinfer serve` for work on its page, and serves the page as it was built.
// node mock_server.mjs [--port 8099] [--key KEY] [--api ADDRESS of a real server, which then answers instead]

import { createServer, request as forward } from "node:http";
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const PAGE = new URL("../../crates/braidinfer-server/page/built/", import.meta.url);
/** As in crates/braidinfer-server/src/api/page.rs. */
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const TYPES = { html: "text/html; charset=utf-8", css: "text/css; charset=utf-8", js: "text/javascript; charset=utf-8", txt: "text/plain; charset=utf-8" };
const TOKEN_MILLISECONDS = 25;
const LAYERS = 28;
const LAYER_MILLISECONDS = 60;
const SAMPLING_FIELDS =
  "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty seed stop response_format tools enable_thinking thinking_budget";
const FIELDS = new Set(
  `model messages prompt stream stream_options max_completion_tokens max_tokens continue_final_message add_generation_prompt add_special_tokens ${SAMPLING_FIELDS}`.split(" "),
);
const FIRST_TOKEN_BOUNDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, Infinity];

const models = [
  {
    id: "mock-model", max_model_len: 8192, has_chat_template: true, capabilities: ["completion", "tools", "thinking"],
    default_sampling: { temperature: 0.6, top_p: 0.95, top_k: 20, min_p: 0, repetition_penalty: 1 }, memory: 1.93e9,
    state: "loaded",
  },
  { id: "mock-text", max_model_len: 2048, has_chat_template: false, capabilities: ["completion"], default_sampling: { temperature: 1 }, memory: 0.55e9, state: "unloaded" },
  { id: "mock-broken", state: "unloaded", failure: "model.safetensors: the file ends in the middle of a tensor" },
];

const ANSWERS = [
  `<think>The reader wants to know how a cache of prefixes works. A short example helps.</think>

### A cache of prefixes

Requests often **begin alike**: the same system prompt, the same earlier turns. Keys and values of such a beginning are computed *once* and kept in blocks of \`16\` tokens.

1. Hash each full block together with the one before it.
2. Look the hash up:
   - found: reuse the block;
   - not found: compute it, then keep it.
3. Free the block that was used least recently.

\`\`\`rust
fn block_hash(parent: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(parent, |hash, &token| hash.rotate_left(5) ^ u64::from(token))
}
\`\`\`

What stays to be computed is the part that differs, so the first token comes sooner.`,
  `In short: what two prompts have in common is read once.

- **Saves** time to the first token.
- **Costs** memory that would be free otherwise.

Prices such as $5 and $6 stay text; $O(n^2)$ does not. [A page](https://example.org/) opens in a tab of its own.`,
];

const counts = { running: 0, prompt: 0, generated: 0, finished: { stop: 0, length: 0 }, answers: 0 };
const firstTokens = [];

class Refusal extends Error {
  constructor(status, message, param = null) {
    super(message);
    Object.assign(this, { status, param });
  }
}

async function route(request, response, { key, api }) {
  const { pathname } = new URL(request.url, "http://mock");
  const isApi = pathname.startsWith("/v1/") || pathname === "/metrics" || pathname === "/tokenize";
  if (isApi && api) return passOn(request, response, api);
  if (key && isApi && request.headers.authorization !== `Bearer ${key}`) throw new Refusal(401, "invalid API key");
  switch (pathname) {
    case "/v1/models":
      return sendJson(response, 200, { object: "list", data: models.map(described) });
    case "/v1/models/load":
      return sendJson(response, 200, described(await loaded(await bodyOf(request))));
    case "/v1/models/unload":
      return sendJson(response, 200, described(await unloaded(await bodyOf(request))));
    case "/v1/chat/completions":
      return chat(await bodyOf(request), response);
    case "/v1/completions":
      return complete(await bodyOf(request), response);
    case "/tokenize":
      return tokenize(await bodyOf(request), response);
    case "/v1/extract_text":
      return extractText(await bytesOf(request), response);
    case "/v1/compat":
      return sendJson(response, 200, sampleReport());
    case "/metrics":
      return response.writeHead(200, { "Content-Type": "text/plain; version=0.0.4" }).end(models.map(metrics).join(""));
    default:
      return sendPage(pathname === "/" ? "index.html" : pathname.slice(1), response);
  }
}

function passOn(request, response, api) {
  const { host, ...headers } = request.headers;
  const passed = forward(new URL(request.url, api), { method: request.method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  passed.on("error", (error) => response.destroy(error));
  response.on("close", () => passed.destroy());
  request.pipe(passed);
}

async function sendPage(name, response) {
  if (!/^[a-z]+\.(html|css|js|txt)$/.test(name)) throw new Refusal(404, `no ${name}`);
  const content = await readFile(new URL(name, PAGE)).catch(() => {
    throw new Refusal(404, `no ${name}`);
  });
  response.writeHead(200, { "Content-Type": TYPES[name.split(".")[1]], "Content-Security-Policy": POLICY }).end(content);
}

function sendJson(response, status, value, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(value));
}

async function bytesOf(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function bodyOf(request) {
  const body = JSON.parse((await bytesOf(request)).toString());
  const unknown = Object.keys(body).find((name) => !FIELDS.has(name));
  if (unknown) throw new Refusal(400, `unknown field \`${unknown}\``, unknown);
  if (!models.some(({ id }) => id === body.model)) throw new Refusal(404, `no model ${body.model}`, "model");
  if (body.temperature < 0 || body.temperature > 2) throw new Refusal(400, "temperature must be from 0 to 2", "temperature");
  return body;
}

function described({ state, failure, layers, memory, inUse = 0, ...entry }) {
  const status = { value: state, failed: failure !== undefined };
  if (state === "loading") status.layers = [layers, LAYERS];
  if (state === "loaded") Object.assign(status, { memory, in_use: inUse });
  if (failure) status.error = failure;
  return { object: "model", owned_by: "braidinfer", status, ...entry };
}

async function loaded({ model: name }) {
  const model = models.find(({ id }) => id === name);
  if (model.failure) throw new Refusal(503, model.failure);
  if (model.state === "unloaded") {
    model.state = "loading";
    for (model.layers = 0; model.layers < LAYERS; model.layers += 1) await sleep(LAYER_MILLISECONDS);
    model.state = "loaded";
  }
  while (model.state !== "loaded") await sleep(LAYER_MILLISECONDS);
  return model;
}

async function unloaded({ model: name }) {
  const model = models.find(({ id }) => id === name);
  model.state = "unloading";
  await sleep(5 * LAYER_MILLISECONDS);
  model.state = "unloaded";
  return model;
}

const piecesOf = (text) => text.match(/\s*\S+|\s+$/g) ?? [];

function tokenize({ model, prompt }, response) {
  const { max_model_len } = models.find(({ id }) => id === model);
  sendJson(response, 200, { count: piecesOf(prompt).length, max_model_len, tokens: [] });
}

function extractText(bytes, response) {
  if (!bytes.toString("latin1").startsWith("%PDF-")) throw new Refusal(400, "this is no PDF file");
  sendJson(response, 200, { text: "The text of the first page.\n\nThe text of the second page.", pages: 2 });
}

/** A question with the word "tool" is answered by a call, if there are tools. */
async function chat(body, response) {
  await loaded(body);
  const last = body.messages.at(-1);
  if (body.tools?.length > 0 && last.role === "user" && /tool/i.test(last.content)) return callTool(body, response);
  const isContinued = body.continue_final_message === true;
  const text = isContinued ? " … and this is how it goes on." : last.role === "tool" ? `The tool says: ${last.content}` : ANSWERS[counts.answers++ % ANSWERS.length];
  const [, thought = "", said = text] = /^<think>([^]*?)<\/think>([^]*)$/.exec(text) ?? [];
  const thoughts = body.enable_thinking === false ? [] : piecesOf(thought).map((piece) => ({ delta: { reasoning_content: piece } }));
  return send(body, response, [...thoughts, ...piecesOf(said.trimStart() || said).map((piece) => ({ delta: { content: piece } }))], thoughts.length);
}

function callTool(body, response) {
  const { name } = body.tools[0].function;
  const begin = { index: 0, id: "call-1", type: "function", function: { name, arguments: "" } };
  const pieces = ['{"city":', '"Bern",', '"days":3}'].map((text) => ({ index: 0, function: { arguments: text } }));
  return send(body, response, [begin, ...pieces].map((call) => ({ delta: { tool_calls: [call] } })), 0, "tool_calls");
}

async function complete(body, response) {
  await loaded(body);
  const story = "a small river ran past the mill, and nobody had asked where it came from. ".repeat(20);
  return send({ ...body, max_completion_tokens: body.max_tokens }, response, piecesOf(story).map((text, at) => ({ text: at === 0 ? ` ${text}` : text })), 0);
}

async function send(body, response, choices, thoughtTokens, end = "stop") {
  const started = performance.now();
  const length = Math.min(choices.length, body.max_completion_tokens ?? Infinity);
  const finish = length < choices.length ? "length" : end;
  const promptTokens = piecesOf(JSON.stringify(body.messages ?? body.prompt)).length + 12;
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  counts.running += 1;
  counts.prompt += promptTokens;
  await sleep(60 + 200 * Math.random());
  firstTokens.push((performance.now() - started) / 1000);
  for (const choice of choices.slice(0, length)) {
    if (response.destroyed) break;
    sendChunk(response, [{ index: 0, finish_reason: null, ...choice }]);
    counts.generated += 1;
    await sleep(TOKEN_MILLISECONDS);
  }
  counts.running -= 1;
  counts.finished[finish === "length" ? "length" : "stop"] += 1;
  sendChunk(response, [{ index: 0, delta: {}, text: "", finish_reason: finish }]);
  sendChunk(response, [], {
    prompt_tokens: promptTokens,
    completion_tokens: length,
    total_tokens: promptTokens + length,
    prompt_tokens_details: { cached_tokens: 16 * Math.floor(promptTokens / 32) },
    completion_tokens_details: { reasoning_tokens: Math.min(thoughtTokens, length) },
  });
  response.end("data: [DONE]\n\n");
}

function sendChunk(response, choices, usage = null) {
  response.write(`data: ${JSON.stringify({ id: "mock", object: "chat.completion.chunk", choices, usage })}\n\n`);
}

function metrics({ id }) {
  const labels = `model_name="${id}"`;
  if (id !== models[0].id) return `braidinfer_generation_tokens_total{${labels}} 0\n`;
  const buckets = FIRST_TOKEN_BOUNDS.map((bound) => {
    const name = bound === Infinity ? "+Inf" : bound;
    const count = firstTokens.filter((seconds) => seconds <= bound).length;
    return `braidinfer_time_to_first_token_seconds_bucket{${labels},le="${name}"} ${count}`;
  });
  return `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{${labels}} ${counts.running}
vllm:num_requests_waiting{${labels}} 0
vllm:kv_cache_usage_perc{${labels}} ${Math.min(1, 0.02 + 0.3 * counts.running + counts.generated / 20000)}
braidinfer_prompt_tokens_total{${labels}} ${counts.prompt}
braidinfer_generation_tokens_total{${labels}} ${counts.generated}
braidinfer_prefix_cache_queries_total{${labels}} ${counts.prompt}
braidinfer_prefix_cache_hits_total{${labels}} ${Math.floor(counts.prompt / 2)}
braidinfer_requests_total{${labels},finish_reason="stop"} ${counts.finished.stop}
braidinfer_requests_total{${labels},finish_reason="length"} ${counts.finished.length}
${buckets.join("\n")}
braidinfer_time_to_first_token_seconds_sum{${labels}} ${firstTokens.reduce((sum, seconds) => sum + seconds, 0)}
braidinfer_time_to_first_token_seconds_count{${labels}} ${firstTokens.length}
`;
}

/** A report of a model with one layer that fused kernels get wrong and two that amplify rounding. */
export function sampleReport() {
  const numbers = [...Array(28).keys()];
  const exact = (layer) => 2e-7 * (1 + 0.4 * Math.sin(layer));
  const fastest = (layer) => ([2, 21].includes(layer) ? 0.09 : 0.004) * (1 + 0.3 * Math.cos(1.7 * layer));
  const raised = { 2: "k_proj amplifies rounding by 41", 21: "k_proj amplifies rounding by 38" };
  const run = (kind, name, mean, agreement, others) => ({
    kind,
    name,
    divergence: {
      positions: 96, kl_mean: mean, kl_p99: 12 * mean, kl_max: 15 * mean, top1_agreement: agreement,
      near_ties: 96 - Math.round(96 * agreement) - others, disagreements: others, loss: 2.91, kl: [],
    },
    drift: numbers.map((layer) => mean * (layer + 1)),
  });
  const levels = (level) => ({ q_proj: "int8", k_proj: level, v_proj: "int8", o_proj: "int8", down_proj: "int8" });
  return {
    status: "WARNING",
    score: 0.74,
    reason: "8-bit activations, K/V f16: the likeliest token changes at 1.2 % of positions that are no near tie (95 %: 0.4 % to 3.1 %; 256 read); mean KL 3.1e-3 nats from standard kernels in f32, the checkpoint's own type 1.6e-3",
    predicted: { status: "COMPATIBLE", score: 0.92, max_weight: 12.6, max_ratio: 8.1, extreme_layers: 0, amplification: 41.2, norms: [] },
    measured: {
      tokens: 96, text: true, loss: 2.91, uniform_loss: 11.93,
      runs: [
        run("checkpoint", "standard, bf16", 1.6e-3, 0.979, 0),
        run("exact", "fused, nothing rounded but sums", 4.2e-11, 1, 0),
        run("fastest", "fused, fastest (int8, K/V f16)", 2.2e-2, 0.927, 3),
        run("plan", "fused, by the plan", 3.1e-3, 0.969, 1),
      ],
      speed: { fastest_tok_s: 41.3, plan_tok_s: 38.7 },
      seconds: 4.2,
    },
    layers: numbers.map((layer) => ({
      layer,
      exact: [{ op: "attn.k", error: exact(layer) / 2 }, { op: "output", error: layer === 9 ? null : exact(layer) }],
      fastest: [{ op: "attn.k", error: fastest(layer) }, { op: "output", error: fastest(layer) / 3 }],
      fault: layer === 9 ? "ffn.out" : null,
      raised: raised[layer] ?? null,
    })),
    plan: [
      ...numbers.map((layer) => ({
        layer,
        kernels: layer === 9 ? "standard" : "fused",
        kv: "f16",
        levels: layer === 9 ? {} : levels(layer in raised ? "f32" : "int8"),
      })),
      { layer: null, kernels: "fused", kv: null, levels: { lm_head: "int8" } },
    ],
    recommendations: ["use the plan: it keeps 94 % of the speed", "look at layer 9, which fused kernels get wrong from ffn.out on"],
  };
}

function start({ port, ...options }) {
  const server = createServer((request, response) => {
    route(request, response, options).catch((error) => {
      const { status = 500, message, param = null } = error;
      sendJson(response, status, { error: { message, type: "invalid_request_error", param, code: null } });
    });
  });
  server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  start(parseArgs({ options: { port: { type: "string", default: "8099" }, key: { type: "string" }, api: { type: "string" } } }).values);
}
