// Small plots of lines as SVG. The first series has the accent colour, the second is quiet.

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 320;
/** Up to so many points, each one is marked. */
const FEW = 48;

function svg(tag, attributes, text = "") {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function frame(height, label) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label, class: "plot" });
}

/** Values over time, the newest at the right; `slots` of them fill the plot. `top` is the end of the scale, if it is fixed. */
export function timePlot({ series, slots, top, label, inWords }) {
  const [upper, base, height] = [4, 68, 72];
  const largest = Math.max(0, ...series.flat().filter(Number.isFinite));
  const high = top ?? (largest > 0 ? largest * 1.1 : 1);
  const plot = frame(height, label);
  plot.append(line("base", 0, base, WIDTH));
  const y = (value) => base - ((base - upper) * value) / high;
  series.forEach((values, index) => {
    const x = (slot) => WIDTH - 3 - ((WIDTH - 3) * (values.length - 1 - slot)) / (slots - 1);
    plot.append(...strokes(values, x, y, index), ...lastDot(values, x, y, index));
  });
  if (largest > 0) plot.append(line("limit", 0, y(largest), WIDTH), svg("text", { x: 0, y: y(largest) + (y(largest) > 20 ? -3 : 10) }, inWords(largest)));
  return plot;
}

/** Errors by layer, from powers of ten to powers of ten. */
export function errorPlot({ series, label }) {
  const [height, left, lower, upper] = [150, 34, 18, 8];
  const known = series.flat().filter((value) => value > 0 && Number.isFinite(value));
  const plot = frame(height, label);
  if (known.length === 0) return plot;
  const low = Math.floor(Math.log10(Math.min(...known)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known))));
  const layers = Math.max(...series.map((values) => values.length));
  const x = (layer) => left + 6 + ((WIDTH - left - 12) * layer) / Math.max(1, layers - 1);
  const y = (value) => upper + ((height - upper - lower) * (high - Math.max(low, Math.log10(value)))) / (high - low);
  for (let power = low; power <= high; power += Math.ceil((high - low) / 5)) {
    plot.append(line("grid", left, y(10 ** power), WIDTH), svg("text", { x: 0, y: y(10 ** power) + 3 }, `1e${power}`));
  }
  for (const [layer, anchor] of [[0, "middle"], [layers - 1, "end"]]) {
    plot.append(svg("text", { x: x(layer) + (anchor === "end" ? 6 : 0), y: height - 4, "text-anchor": anchor }, String(layer)));
  }
  plot.append(svg("text", { x: (left + WIDTH) / 2, y: height - 4, "text-anchor": "middle" }, "layer"));
  series.forEach((values, index) => {
    plot.append(...strokes(values, x, y, index));
    if (layers <= FEW) values.forEach((value, layer) => plot.append(...dot(value, layer, x, y, index)));
  });
  return plot;
}

function line(kind, from, y, to) {
  return svg("line", { class: kind, x1: from, y1: y, x2: to, y2: y });
}

/** One stroke for each stretch without gaps. */
function strokes(values, x, y, index) {
  const stretches = [[]];
  values.forEach((value, position) => {
    if (Number.isFinite(value)) stretches.at(-1).push(`${x(position).toFixed(1)},${y(value).toFixed(1)}`);
    else stretches.push([]);
  });
  const drawn = stretches.filter((points) => points.length > 1);
  return drawn.map((points) => svg("polyline", { class: `series-${index}`, points: points.join(" ") }));
}

function dot(value, position, x, y, index) {
  if (!Number.isFinite(value)) return [];
  return [svg("circle", { class: `series-${index}`, cx: x(position).toFixed(1), cy: y(value).toFixed(1), r: 2 })];
}

function lastDot(values, x, y, index) {
  return dot(values.at(-1), values.length - 1, x, y, index);
}
