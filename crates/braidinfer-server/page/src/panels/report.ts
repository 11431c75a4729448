// The compatibility report of the served model: do fast kernels change its answers?

import { Failure, request } from "../api/requests";
import { create, type Content } from "./elements";
import { number, percent } from "./numbers";
import { errorPlot } from "./plot";

type Status = "COMPATIBLE" | "WARNING" | "INCOMPATIBLE";

interface Divergence {
  kl_mean: number;
  kl_p99: number;
  kl_max: number;
  top1_agreement: number;
  near_ties: number;
  disagreements: number;
}

interface LayerError {
  error: number | null;
}

interface Layer {
  layer: number;
  exact: LayerError[];
  fastest: LayerError[];
  fault: string | null;
  raised: string | null;
}

interface PlanEntry {
  layer: number | null;
  kernels: string;
  kv: string | null;
  levels: Record<string, string>;
}

interface Measured {
  tokens: number;
  text: boolean;
  loss: number;
  uniform_loss: number;
  runs: { name: string; divergence: Divergence }[];
  speed?: { fastest_tok_s: number; plan_tok_s: number } | null;
  seconds: number;
}

interface Report {
  status: Status;
  score: number;
  reason: string;
  predicted: { status: Status; score: number; max_weight?: number | null; max_ratio?: number | null };
  measured: Measured | null;
  layers: Layer[];
  plan: PlanEntry[];
  recommendations: string[];
}

const MOODS: Record<Status, string> = { COMPATIBLE: "good", WARNING: "doubtful", INCOMPATIBLE: "bad" };
const RUN_COLUMNS = ["mean KL", "99 %", "largest", "same top token", "near ties", "others"];
const ERROR_SERIES = ["fastest level", "nothing rounded but sums"];

/** Shows the report of a model. */
export async function showReport(panel: HTMLElement, model: string | null, signal: AbortSignal): Promise<void> {
  panel.replaceChildren(paragraph("Reading the report …", "hint"));
  const found = await contents(model);
  if (!signal.aborted) panel.replaceChildren(...found);
}

async function contents(model: string | null): Promise<HTMLElement[]> {
  const query = model === null ? "" : `?model=${encodeURIComponent(model)}`;
  try {
    return sections((await (await request(`v1/compat${query}`)).json()) as Report);
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return [paragraph("This model runs without a verdict: its kernels were chosen by hand, or there was nothing to check.")];
    return [create("p", { className: "failure", role: "alert", textContent: (error as Error).message })];
  }
}

function sections(report: Report): HTMLElement[] {
  return [
    verdict(report),
    ...titled("What to do", create("ul", {}, ...report.recommendations.map((line) => create("li", { textContent: sentence(line) })))),
    ...(report.plan.length > 0 ? titled("Plan", paragraph(sentence(planInShort(report.plan))), ...departures(report.layers)) : []),
    ...(report.measured ? titled("Runs beside standard kernels in f32", runTable(report.measured.runs), paragraph("KL is in nats.", "hint")) : []),
    ...(report.layers.length > 0 ? titled("Error of each layer", ...layerErrors(report.layers)) : []),
    ...titled("Figures", facts(report)),
  ];
}

function titled(title: string, ...content: HTMLElement[]): HTMLElement[] {
  return [create("h3", { textContent: title }), ...content];
}

function paragraph(text: string, className = ""): HTMLElement {
  return create("p", { textContent: text, className });
}

function verdict({ status, score, reason, measured }: Report): HTMLElement {
  const word = measured ? status : `Predicted ${status}`;
  return create(
    "div",
    { className: `verdict ${MOODS[status] ?? "doubtful"}` },
    create("b", { textContent: word.toLowerCase() }),
    create("span", { className: "score", textContent: `score ${score.toFixed(2)}` }),
    paragraph(sentence(reason)),
  );
}

function sentence(text: string): string {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

/** How most of the model is computed. */
function planInShort(plan: PlanEntry[]): string {
  const standard = plan.filter((entry) => entry.kernels === "standard").length;
  if (standard === plan.length) return "standard kernels throughout";
  const kinds = new Map<string, number>();
  for (const entry of plan.filter((entry) => entry.layer !== null)) {
    const kind = kindOf(entry);
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  const layers = [...kinds].map(([kind, count]) => `${count} ${count === 1 ? "layer" : "layers"} ${kind}`);
  return `${standard > 0 ? "mixed" : "fused"} kernels: ${layers.join("; ")}`;
}

function kindOf({ kernels, kv, levels }: PlanEntry): string {
  const names = kernels === "fused" ? [...new Set(Object.values(levels))].sort() : [kernels];
  return names.join(" and ") + (kv ? `, K/V in ${kv}` : "");
}

/** Layers that are not computed at the fastest level, and why. */
function departures(layers: Layer[]): HTMLElement[] {
  const notes = layers.flatMap(({ layer, fault, raised }) => {
    const note = fault ? `wrong from ${fault} on` : raised;
    return note ? [create("li", { textContent: `Layer ${layer}: ${note}` })] : [];
  });
  if (notes.length === 0) return [];
  const summary = create("summary", { textContent: `${notes.length} of ${layers.length} layers are computed more exactly` });
  return [create("details", {}, summary, create("ul", {}, ...notes))];
}

/** A run's name has a row of its own, so that the table fits a narrow panel. */
function runTable(runs: Measured["runs"]): HTMLElement {
  const head = create("tr", {}, ...RUN_COLUMNS.map((name) => create("th", { scope: "col", textContent: name })));
  const bodies = runs.map(({ name, divergence: of }) => {
    const values = [number(of.kl_mean), number(of.kl_p99), number(of.kl_max), percent(of.top1_agreement), of.near_ties, of.disagreements];
    const title = create("th", { scope: "rowgroup", colSpan: RUN_COLUMNS.length, textContent: name });
    return create("tbody", {}, create("tr", {}, title), create("tr", {}, ...values.map((value) => create("td", { textContent: String(value) }))));
  });
  return create("table", {}, create("thead", {}, head), ...bodies);
}

function layerErrors(layers: Layer[]): HTMLElement[] {
  const [fastest, exact] = [layers.map((layer) => largest(layer.fastest)), layers.map((layer) => largest(layer.exact))];
  const worst = fastest.reduce<number>((most, value, at) => ((value ?? Infinity) > (fastest[most] ?? Infinity) ? at : most), 0);
  const label = `Largest relative error that each layer makes by itself; at the fastest level most in layer ${layers[worst]?.layer}, ${number(fastest[worst] ?? null)}`;
  const legend = ERROR_SERIES.map((name, index) => create("span", { className: `value swatch-${index}`, textContent: name }));
  const figure = create("figure", {}, create("div", { className: "values" }, ...legend), errorPlot({ series: [fastest, exact], label }));
  return [paragraph("The largest relative error that each layer makes by itself, on the true input.", "hint"), figure];
}

/** `null` stands for what is not a number, and for no measurement. */
function largest(errors: LayerError[]): number | null {
  if (errors.length === 0 || errors.some(({ error }) => error === null)) return null;
  return Math.max(...errors.map(({ error }) => Math.abs(error ?? 0)));
}

function facts({ predicted, measured }: Report): HTMLElement {
  const rows: [string, string][] = [["Predicted from the weights", `${predicted.status.toLowerCase()}, score ${predicted.score.toFixed(2)}`]];
  if (predicted.max_weight != null) rows.push(["Largest weight of a norm on keys", number(predicted.max_weight)]);
  if (predicted.max_ratio != null) rows.push(["Largest ratio to its median", number(predicted.max_ratio)]);
  if (measured) {
    rows.push(["Read", `${measured.tokens} ${measured.text ? "tokens of text" : "random tokens"} in ${measured.seconds.toFixed(1)} s`]);
    if (measured.text) rows.push(["Loss", `${number(measured.loss)} nats per token; knowing nothing gives ${number(measured.uniform_loss)}`]);
    if (measured.speed) rows.push(["Speed that the plan keeps", speedInWords(measured.speed)]);
  }
  return create("dl", { className: "facts" }, ...rows.flatMap(([name, value]): Content[] => [create("dt", { textContent: name }), create("dd", { textContent: value })]));
}

function speedInWords({ fastest_tok_s: fastest, plan_tok_s: plan }: NonNullable<Measured["speed"]>): string {
  return `${number(plan)} of ${number(fastest)} tokens/s (${percent(plan / fastest)})`;
}
