// What all charts and the gallery share. Text from data goes into text nodes only, never into markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const distinct = (values) => [...new Set(values)];
const methods = distinct(data.curves.map((curve) => curve.method));
const noiseOf = (level) => (/^\d/.test(level) ? Number(level) : Infinity);
const levels = distinct(data.curves.map((curve) => curve.level)).sort((a, b) => noiseOf(a) - noiseOf(b) || 0);
// Shares are rounded down, and up where they bound from above.
const percent = (share) => `${(Math.floor(1000 * share + 1e-8) / 10).toFixed(1)}\u00a0%`;
const percentUp = (share) => `${(Math.ceil(1000 * share - 1e-8) / 10).toFixed(1)}\u00a0%`;
const counted = (number) => Math.round(number).toLocaleString("en");
const levelName = (level) => (/^\d/.test(level) ? `sigma ${level}` : level);
const nameOf = (curve) => (methods.length > 1 ? `${curve.method}, ${levelName(curve.level)}` : levelName(curve.level));

// What is switched on; the toggles change it and every chart draws it.
const shown = { methods: new Set(methods), levels: new Set(levels), best: new Set(), attacked: true };
const visible = (curve) => shown.methods.has(curve.method) && shown.levels.has(curve.level);

// The first place in a rising list whose number is not below the given one.
function placeOf(numbers, number) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < number) low = middle + 1;
    else high = middle;
  }
  return low;
}

function accuracyAt(curve, radius) {
  const place = placeOf(curve.radii, radius);
  return { share: curve.right[place] / curve.images, low: curve.low[place], high: curve.high[place] };
}

// What to say of a curve beyond the radius where sampling stopped.
const isStopped = (curve, radius) => curve.stoppedAt !== null && radius > curve.stoppedAt;
const stoppedText = (curve, radius) =>
  isStopped(curve, radius) ? `, at least: sampling stopped at radius ${curve.stoppedAt}` : "";

const bestAt = (method, radius) =>
  Math.max(...data.curves.filter((c) => c.method === method).map((c) => accuracyAt(c, radius).share));

// Of several methods each has a colour, and each level a marker; of one method each level has both. More than there
// are colours are told apart by dashes.
const DASHES = ["", "8 3", "3 3", "8 3 3 3"];
const MARKERS = [
  "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",
  "M-4 -4H4V4H-4Z",
  "M0 -5L5 4H-5Z",
  "M0 -5L5 0L0 5L-5 0Z",
  "M0 5L5 -4H-5Z",
  "M-2 -5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
];
const inkOf = (index) => `--ink: ${data.colours[index % data.colours.length]}`;
const dashOf = (index) => DASHES[Math.floor(index / data.colours.length) % DASHES.length];
const colourIndex = (curve) =>
  methods.length > 1 ? methods.indexOf(curve.method) : levels.indexOf(curve.level);

function markerOf(curve, x = 0, y = 0) {
  const shape = MARKERS[levels.indexOf(curve.level) % MARKERS.length];
  return svg("path", { class: "marker", d: shape, transform: `translate(${x} ${y})` });
}

// A round number near span / count: 1, 2 or 5 times a power of ten.
function niceStep(span, count) {
  const power = 10 ** Math.floor(Math.log10(span / count));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= (span / count) * 0.999);
}
const digitsOf = (step) => Math.max(0, -Math.floor(Math.log10(step) + 1e-9));

function linearTicks(end) {
  const step = niceStep(end, 6);
  const count = Math.floor(end / step + 1e-9) + 1;
  return Array.from({ length: count }, (_, index) => Number((index * step).toFixed(digitsOf(step))));
}

const MARGIN = { left: 52, right: 14, top: 10, bottom: 46 };

// An empty chart as wide as its place: percent upwards, `scale` (0 to 1) sidewards.
function emptyChart(place, { label, xLabel, yLabel, ticks, scale, tickText = (tick) => tick.toLocaleString("en") }) {
  const width = Math.max(280, place.clientWidth);
  const height = Math.round(Math.min(430, Math.max(280, width * 0.55)));
  const x = (number) => MARGIN.left + scale(number) * (width - MARGIN.left - MARGIN.right);
  const y = (share) => height - MARGIN.bottom - share * (height - MARGIN.top - MARGIN.bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  for (const share of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    root.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(share), y2: y(share) }),
      svg("text", { x: MARGIN.left - 8, y: y(share) + 4, "text-anchor": "end" }, `${100 * share}`),
    );
  }
  let free = 0;
  for (const tick of ticks) {
    const text = tickText(tick);
    if (x(tick) - 4 * text.length < free) continue; // it would cover the number before
    free = x(tick) + 4 * text.length + 6;
    root.append(svg("text", { x: x(tick), y: height - MARGIN.bottom + 20, "text-anchor": "middle" }, text));
  }
  const middle = (MARGIN.top + height - MARGIN.bottom) / 2;
  root.append(
    svg("text", { x: (MARGIN.left + width) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    svg("text", { transform: `translate(14 ${middle}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
  );
  place.replaceChildren(root);
  return { root, x, y, width, height };
}

// Draws now and whenever the width of the place changes.
function redrawn(place, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) draw();
    width = place.clientWidth;
  }).observe(place);
  draw();
}

for (const part of document.querySelectorAll("[data-interactive]")) part.hidden = false;
