// Small plots of lines as SVG. The first series has the accent colour, the second is quiet.

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 320;
/** Up to so many points, each one is marked. */
const FEW = 48;

type Series = (number | null)[];
type Place = (value: number) => number;

function svg(tag: string, attributes: Record<string, string | number>, text = ""): SVGElement {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.textContent = text;
  return element;
}

function frame(height: number, label: string): SVGElement {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label, class: "plot" });
}

/** Values over time, the newest at the right; `slots` of them fill the plot. `top` is the end of the scale, if it is fixed. */
export interface TimePlot {
  series: Series[];
  slots: number;
  top?: number | undefined;
  label: string;
  inWords: (value: number) => string;
}

export function timePlot({ series, slots, top, label, inWords }: TimePlot): SVGElement {
  const [upper, base, height] = [4, 68, 72];
  const largest = Math.max(0, ...series.flat().filter(isNumber));
  const high = top ?? (largest > 0 ? largest * 1.1 : 1);
  const plot = frame(height, label);
  plot.append(line("base", 0, base, WIDTH));
  const y: Place = (value) => base - ((base - upper) * value) / high;
  series.forEach((values, index) => {
    const x: Place = (slot) => WIDTH - 3 - ((WIDTH - 3) * (values.length - 1 - slot)) / (slots - 1);
    plot.append(...strokes(values, x, y, index), ...lastDot(values, x, y, index));
  });
  if (largest > 0) plot.append(line("limit", 0, y(largest), WIDTH), svg("text", { x: 0, y: y(largest) + (y(largest) > 20 ? -3 : 10) }, inWords(largest)));
  return plot;
}

/** Errors by layer, from powers of ten to powers of ten. */
export function errorPlot({ series, label }: { series: Series[]; label: string }): SVGElement {
  const [height, left, lower, upper] = [150, 34, 18, 8];
  const known = series.flat().filter(isNumber).filter((value) => value > 0);
  const plot = frame(height, label);
  if (known.length === 0) return plot;
  const low = Math.floor(Math.log10(Math.min(...known)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known))));
  const layers = Math.max(...series.map((values) => values.length));
  const x: Place = (layer) => left + 6 + ((WIDTH - left - 12) * layer) / Math.max(1, layers - 1);
  const y: Place = (value) => upper + ((height - upper - lower) * (high - Math.max(low, Math.log10(value)))) / (high - low);
  for (let power = low; power <= high; power += Math.ceil((high - low) / 5)) {
    plot.append(line("grid", left, y(10 ** power), WIDTH), svg("text", { x: 0, y: y(10 ** power) + 3 }, `1e${power}`));
  }
  for (const [layer, anchor] of [[0, "middle"], [layers - 1, "end"]] as [number, string][]) {
    plot.append(svg("text", { x: x(layer) + (anchor === "end" ? 6 : 0), y: height - 4, "text-anchor": anchor }, String(layer)));
  }
  plot.append(svg("text", { x: (left + WIDTH) / 2, y: height - 4, "text-anchor": "middle" }, "layer"));
  series.forEach((values, index) => {
    plot.append(...strokes(values, x, y, index));
    if (layers <= FEW) values.forEach((value, layer) => plot.append(...dot(value, layer, x, y, index)));
  });
  return plot;
}

function isNumber(value: number | null | undefined): value is number {
  return Number.isFinite(value);
}

function line(kind: string, from: number, y: number, to: number): SVGElement {
  return svg("line", { class: kind, x1: from, y1: y, x2: to, y2: y });
}

/** One stroke for each stretch without gaps. */
function strokes(values: Series, x: Place, y: Place, index: number): SVGElement[] {
  const stretches: string[][] = [[]];
  values.forEach((value, position) => {
    if (isNumber(value)) stretches.at(-1)?.push(`${x(position).toFixed(1)},${y(value).toFixed(1)}`);
    else stretches.push([]);
  });
  const drawn = stretches.filter((points) => points.length > 1);
  return drawn.map((points) => svg("polyline", { class: `series-${index}`, points: points.join(" ") }));
}

function dot(value: number | null | undefined, position: number, x: Place, y: Place, index: number): SVGElement[] {
  if (!isNumber(value)) return [];
  return [svg("circle", { class: `series-${index}`, cx: x(position).toFixed(1), cy: y(value).toFixed(1), r: 2 })];
}

function lastDot(values: Series, x: Place, y: Place, index: number): SVGElement[] {
  return dot(values.at(-1), values.length - 1, x, y, index);
}
