// Live figures of the server, read from its Prometheus text while somebody looks.

import { request } from "../api/requests";
import { create } from "./elements";
import { percent, rate, seconds, whole } from "./numbers";
import { timePlot } from "./plot";

/** Between two readings, in milliseconds. */
const PERIOD = 2000;
/** Readings that a plot has room for at first, and that are kept: one minute, and three. */
const ROOM = 31;
const KEPT = 91;
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
const CARDS: Card[] = [
  { title: "Generated tokens per second", lines: [["generated", (readings, at) => perSecond(GENERATED, readings, at)]], inWords: rate },
  { title: "Prompt tokens per second", lines: [["read", (readings, at) => perSecond(PROMPT, readings, at)]], inWords: rate },
  { title: "Requests", lines: [["running", valueOf(RUNNING)], ["waiting", valueOf(WAITING)]], inWords: whole },
  { title: "K/V cache", lines: [["in use", valueOf(CACHE_USE)]], inWords: percent, top: 1 },
  { title: "Time to first token, last minute", lines: [["median", (readings, at) => recentMedian(FIRST_TOKEN, readings, at)]], inWords: seconds },
];

/** Sums over labels: `totals` by name; `buckets` by name of histogram and upper bound, cumulative. */
interface Reading {
  time: number;
  totals: Map<string, number>;
  buckets: Map<string, Buckets>;
}

type Buckets = Map<number, number>;
type ValueAt = (readings: Reading[], at: number) => number | null;

interface Card {
  title: string;
  lines: [string, ValueAt][];
  inWords: (value: number) => string;
  top?: number;
}

/** Shows the figures of one model in a panel, until it is stopped. */
export class Metrics {
  private readings: Reading[] = [];
  private timer: ReturnType<typeof setInterval> | undefined;
  private isReading = false;
  private readonly cards = create("div");
  private readonly totals = create("dl", { className: "facts" });
  private readonly failure = create("p", { className: "failure", role: "alert", hidden: true });

  constructor(panel: HTMLElement, private readonly model: string | null) {
    panel.replaceChildren(this.failure, this.cards, create("h3", { textContent: "Since the server started" }), this.totals);
    document.addEventListener("visibilitychange", this.resume);
    this.show();
    void this.read(true);
    this.resume();
  }

  stop(): void {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.resume);
  }

  /** Nothing is read while nobody looks. */
  private readonly resume = (): void => {
    clearInterval(this.timer);
    if (!document.hidden) this.timer = setInterval(() => void this.read(false), PERIOD);
  };

  private async read(mayAsk: boolean): Promise<void> {
    if (this.isReading) return;
    this.isReading = true;
    try {
      const text = await (await request("metrics", { mayAsk })).text();
      this.keepReading({ time: performance.now() / 1000, ...parseMetrics(text, this.model) });
      this.failure.hidden = true;
    } catch (error) {
      this.failure.textContent = (error as Error).message;
      this.failure.hidden = false;
    }
    this.isReading = false;
    this.show();
  }

  /** Counters that fall belong to a server that was started again. */
  private keepReading(next: Reading): void {
    const before = this.readings.at(-1);
    if (before && (next.totals.get(GENERATED) ?? 0) < (before.totals.get(GENERATED) ?? 0)) this.readings = [];
    this.readings = [...this.readings, next].slice(-KEPT);
  }

  private show(): void {
    this.cards.replaceChildren(...CARDS.map((each) => card(each, this.readings)));
    const latest = this.readings.at(-1);
    const facts = latest === undefined ? [] : factsOf(latest);
    this.totals.replaceChildren(
      ...facts.flatMap(([name, value]) => [create("dt", { textContent: name }), create("dd", { textContent: value })]),
    );
  }
}

/** Figures of a model, or of all if it is null; those without the name of a model are the server's. */
function parseMetrics(text: string, model: string | null): Pick<Reading, "totals" | "buckets"> {
  const totals = new Map<string, number>();
  const buckets = new Map<string, Buckets>();
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (found === null) continue;
    const [, name = "", labels = "", value] = found;
    const owner = /(?:^|,)\s*model_name="((?:[^"\\]|\\.)*)"/.exec(labels)?.[1];
    if (model !== null && owner !== undefined && owner.replace(/\\(["\\])/g, "$1") !== model) continue;
    const bound = /(?:^|,)\s*le="([^"]*)"/.exec(labels)?.[1];
    if (bound !== undefined) {
      const histogram = name.replace(/_bucket$/, "");
      const known: Buckets = buckets.get(histogram) ?? new Map<number, number>();
      buckets.set(histogram, known);
      add(known, bound === "+Inf" ? Infinity : Number(bound), Number(value));
    } else {
      add(totals, name, Number(value));
    }
  }
  return { totals, buckets };
}

function add<K>(map: Map<K, number>, name: K, value: number): void {
  map.set(name, (map.get(name) ?? 0) + value);
}

function valueOf(name: string): ValueAt {
  return (readings, at) => readings[at]?.totals.get(name) ?? null;
}

function perSecond(name: string, readings: Reading[], at: number): number | null {
  const [before, now] = [readings[at - 1], readings[at]];
  if (!before || !now) return null;
  const grown = (now.totals.get(name) ?? NaN) - (before.totals.get(name) ?? NaN);
  return Number.isFinite(grown) ? Math.max(0, grown) / (now.time - before.time) : null;
}

function recentMedian(name: string, readings: Reading[], at: number): number | null {
  const before = at === 0 ? undefined : readings[Math.max(0, at - QUANTILE_SPAN)];
  return before ? quantile(0.5, readings[at]?.buckets.get(name), before.buckets.get(name)) : null;
}

/** Interpolated within its bucket, as Prometheus does; `null` if nothing was observed since `before`. */
function quantile(share: number, buckets: Buckets = new Map(), before: Buckets = new Map()): number | null {
  const bounds = [...buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => (buckets.get(bound) ?? 0) - (before.get(bound) ?? 0));
  const wanted = share * (counts.at(-1) ?? 0);
  if (!(wanted > 0)) return null;
  const found = counts.findIndex((count) => count >= wanted);
  const [lower, below] = found === 0 ? [0, 0] : [bounds[found - 1] as number, counts[found - 1] as number];
  const [upper, reached] = [bounds[found] as number, counts[found] as number];
  return upper === Infinity ? lower : lower + ((upper - lower) * (wanted - below)) / (reached - below);
}

function card({ title, lines, inWords, top }: Card, readings: Reading[]): HTMLElement {
  const series = lines.map(([, value]) => readings.map((_, at) => value(readings, at)));
  const latest = series.map((values) => values.findLast((value) => value !== null));
  const shown = latest.map((value) => (value == null ? "–" : inWords(value)));
  const values = lines.map(([name], index) =>
    create("span", { className: `value swatch-${index}` }, create("b", { textContent: shown[index] ?? "" }), ` ${name}`),
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

function factsOf({ totals, buckets }: Reading): [string, string][] {
  const total = (name: string) => totals.get(name) ?? 0;
  const [half, most] = [0.5, 0.95].map((share) => quantile(share, buckets.get(FIRST_TOKEN)));
  return [
    ["Requests finished", whole(total(FINISHED))],
    ["Tokens generated", whole(total(GENERATED))],
    ["Prompt tokens", whole(total(PROMPT))],
    ["Prompt tokens found in the cache", total(PREFIX_QUERIES) > 0 ? percent(total(PREFIX_HITS) / total(PREFIX_QUERIES)) : "–"],
    ["Time to first token: median, 95 %", half == null || most == null ? "–" : `${seconds(half)}, ${seconds(most)}`],
  ];
}
