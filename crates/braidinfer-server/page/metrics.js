// Live figures of the server, read from its Prometheus text while somebody looks.

import { request } from "./api.js";
import { create } from "./elements.js";
import { percent, rate, seconds, whole } from "./numbers.js";
import { timePlot } from "./plot.js";

/** Between two readings, in milliseconds. */
const PERIOD = 2000;
/** Readings that a plot has room for at first, and that are kept: one minute, and three. */
const [ROOM, KEPT] = [31, 91];
/** Readings that a quantile looks back over: a minute. */
const QUANTILE_SPAN = 30;

const RUNNING = "vllm:num_requests_running";
const WAITING = "vllm:num_requests_waiting";
const CACHE_USE = "vllm:kv_cache_usage_perc";
const GENERATED = "braidinfer_generation_tokens_total";
const PROMPT = "braidinfer_prompt_tokens_total";
const FINISHED = "braidinfer_requests_total";
const PREFIX_QUERIES = "braidinfer_prefix_cache_queries_total";
const PREFIX_HITS = "braidinfer_prefix_cache_hits_total";
const FIRST_TOKEN = "braidinfer_time_to_first_token_seconds";

/** Each line of a card is its name and its value at a reading. */
const CARDS = [
  { title: "Generated tokens per second", lines: [["generated", (at) => perSecond(GENERATED, at)]], inWords: rate },
  { title: "Prompt tokens per second", lines: [["read", (at) => perSecond(PROMPT, at)]], inWords: rate },
  { title: "Requests", lines: [["running", valueOf(RUNNING)], ["waiting", valueOf(WAITING)]], inWords: whole },
  { title: "K/V cache", lines: [["in use", valueOf(CACHE_USE)]], inWords: percent, top: 1 },
  { title: "Time to first token, last minute", lines: [["median", (at) => recentMedian(FIRST_TOKEN, at)]], inWords: seconds },
];

const panel = document.getElementById("metrics");
const cards = create("div");
const totals = create("dl", { className: "facts" });
const failure = create("p", { className: "failure", role: "alert", hidden: true });
let readings = [];
let timer = null;
let reading = false;

export function startMetrics() {
  panel.append(failure, cards, create("h3", { textContent: "Since the server started" }), totals);
  document.addEventListener("visibilitychange", resume);
}

export function openMetrics() {
  show();
  read(true);
  resume();
}

export function closeMetrics() {
  clearInterval(timer);
  timer = null;
}

/** Nothing is read while nobody looks. */
function resume() {
  closeMetrics();
  if (!panel.hidden && !document.hidden) timer = setInterval(() => read(false), PERIOD);
}

async function read(mayAsk) {
  if (reading) return;
  reading = true;
  try {
    const text = await (await request("metrics", { mayAsk })).text();
    keepReading({ time: performance.now() / 1000, ...parseMetrics(text) });
    failure.hidden = true;
  } catch (error) {
    failure.textContent = error.message;
    failure.hidden = false;
  }
  reading = false;
  show();
}

/** Counters that fall belong to a server that was started again. */
function keepReading(next) {
  const before = readings.at(-1);
  if (before && (next.totals.get(GENERATED) ?? 0) < (before.totals.get(GENERATED) ?? 0)) readings = [];
  readings = [...readings, next].slice(-KEPT);
}

/** Sums over labels: `totals` by name; `buckets` by name of histogram and upper bound, cumulative. */
export function parseMetrics(text) {
  const totals = new Map();
  const buckets = new Map();
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (found === null) continue;
    const [, name, labels = "", value] = found;
    const bound = /(?:^|,)\s*le="([^"]*)"/.exec(labels)?.[1];
    if (bound !== undefined) {
      const histogram = name.replace(/_bucket$/, "");
      if (!buckets.has(histogram)) buckets.set(histogram, new Map());
      add(buckets.get(histogram), bound === "+Inf" ? Infinity : Number(bound), Number(value));
    } else {
      add(totals, name, Number(value));
    }
  }
  return { totals, buckets };
}

function add(map, name, value) {
  map.set(name, (map.get(name) ?? 0) + value);
}

function valueOf(name) {
  return (at) => readings[at].totals.get(name) ?? null;
}

function perSecond(name, at) {
  if (at === 0) return null;
  const [before, now] = [readings[at - 1], readings[at]];
  const grown = (now.totals.get(name) ?? NaN) - (before.totals.get(name) ?? NaN);
  return Number.isFinite(grown) ? Math.max(0, grown) / (now.time - before.time) : null;
}

function recentMedian(name, at) {
  const before = at === 0 ? null : readings[Math.max(0, at - QUANTILE_SPAN)];
  return before && quantile(0.5, readings[at].buckets.get(name), before.buckets.get(name));
}

/** Interpolated within its bucket, as Prometheus does; `null` if nothing was observed since `before`. */
export function quantile(share, buckets = new Map(), before = new Map()) {
  const bounds = [...buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => buckets.get(bound) - (before.get(bound) ?? 0));
  const wanted = share * (counts.at(-1) ?? 0);
  if (!(wanted > 0)) return null;
  const found = counts.findIndex((count) => count >= wanted);
  const [lower, below] = found === 0 ? [0, 0] : [bounds[found - 1], counts[found - 1]];
  if (bounds[found] === Infinity) return lower;
  return lower + ((bounds[found] - lower) * (wanted - below)) / (counts[found] - below);
}

function show() {
  cards.replaceChildren(...CARDS.map(card));
  const facts = readings.length === 0 ? [] : factsOf(readings.at(-1));
  totals.replaceChildren(
    ...facts.flatMap(([name, value]) => [create("dt", { textContent: name }), create("dd", { textContent: value })]),
  );
}

function card({ title, lines, inWords, top }) {
  const series = lines.map(([, value]) => readings.map((_, at) => value(at)));
  const latest = series.map((values) => values.findLast((value) => value !== null));
  const shown = latest.map((value) => (value === undefined ? "–" : inWords(value)));
  const values = lines.map(([name], index) =>
    create("span", { className: `value swatch-${index}` }, create("b", { textContent: shown[index] }), ` ${name}`),
  );
  const label = `${title}: ${lines.map(([name], index) => `${shown[index]} ${name}`).join(", ")}`;
  const head = create("div", { className: "values" }, ...values);
  return create(
    "figure",
    {},
    create("figcaption", { textContent: title }),
    head,
    timePlot({ series, slots: Math.max(ROOM, readings.length), top, label, inWords }),
  );
}

function factsOf({ totals, buckets }) {
  const total = (name) => totals.get(name) ?? 0;
  const [half, most] = [0.5, 0.95].map((share) => quantile(share, buckets.get(FIRST_TOKEN)));
  return [
    ["Requests finished", whole(total(FINISHED))],
    ["Tokens generated", whole(total(GENERATED))],
    ["Prompt tokens", whole(total(PROMPT))],
    ["Prompt tokens found in the cache", total(PREFIX_QUERIES) > 0 ? percent(total(PREFIX_HITS) / total(PREFIX_QUERIES)) : "–"],
    ["Time to first token: median, 95 %", half === null ? "–" : `${seconds(half)}, ${seconds(most)}`],
  ];
}
