// Certified accuracy over the radius: steps, what attacks left, toggles, and a cursor moved by pointer or keys.

const redraws = [];
const radiusSlider = byId("curves-radius");

function largestRadius() {
  const curves = data.curves.filter(visible);
  const ends = (curves.length ? curves : data.curves).flatMap((curve) => [
    curve.radii.at(-1) ?? 0,
    ...(shown.attacked ? curve.attacked.map(([radius]) => radius) : []),
  ]);
  return Math.max(...ends) || 1;
}

// The slider ends beyond the largest radius, in about a hundred steps; its place stays where it can.
function fitSlider(slider) {
  const step = niceStep(largestRadius(), 100);
  slider.step = step;
  slider.max = (Math.floor(largestRadius() / step) + 1) * step;
  return (radius) => Number(radius).toFixed(digitsOf(step));
}

// A radius that just holds is certified: the curve goes down behind it.
function stepPath(radii, shares, { x, y }, { from = 0, to = from } = {}) {
  const steps = radii.map((radius, index) => `H${x(radius).toFixed(1)}V${y(shares[index + 1]).toFixed(1)}`);
  return `M${x(from).toFixed(1)} ${y(shares[0]).toFixed(1)}${steps.join("")}${to > from ? `H${x(to).toFixed(1)}` : ""}`;
}

// The steps up to where sampling stopped, and dotted what its votes prove beyond, behind an arrow: no end of robustness.
function stoppedPaths(curve, shares, chart) {
  const [stop, place] = [curve.stoppedAt, placeOf(curve.radii, curve.stoppedAt)];
  const [x, y] = [chart.x(stop), chart.y(shares[place])];
  const before = stepPath(curve.radii.slice(0, place), shares, chart, { to: stop });
  const beyond = stepPath(curve.radii.slice(place), shares.slice(place), chart, { from: stop });
  const arrow = shares[place] ? [svg("path", { class: "stop", d: `M${x} ${y - 6}L${x + 11} ${y}L${x} ${y + 6}Z` })] : [];
  return [before, svg("path", { class: "line beyond", d: beyond }), ...arrow];
}

function drawCurve(chart, curve, order) {
  const { x, y } = chart;
  const shares = curve.right.map((right) => right / curve.images);
  const index = colourIndex(curve);
  const group = svg("g", { class: "ink curve", style: inkOf(index), "data-name": nameOf(curve) });
  const [steps, ...beyond] =
    curve.stoppedAt === null ? [stepPath(curve.radii, shares, chart)] : stoppedPaths(curve, shares, chart);
  group.append(svg("path", { class: "line", "stroke-dasharray": dashOf(index), d: steps }), ...beyond);
  const end = curve.radii.at(-1) ?? 0;
  for (const part of [0.1, 0.35, 0.6, 0.85]) {
    const radius = end * (part + 0.03 * order); // beside those of the other curves
    if (radius <= end) group.append(markerOf(curve, x(radius), y(accuracyAt(curve, radius).share)));
  }
  if (shown.attacked && curve.attacked.length) {
    const [[first, share], ...rest] = curve.attacked; // an attack of one radius is an attack of every larger one
    const steps = rest.map(([radius, left]) => `H${x(radius)}V${y(left)}`);
    group.append(svg("path", { class: "line attacked", d: `M${x(first)} ${y(share)}${steps.join("")}` }));
    for (const [radius, left] of curve.attacked) {
      group.append(svg("circle", { class: "dot", fill: "currentColor", cx: x(radius), cy: y(left), r: 3.5 }));
    }
  }
  chart.root.append(group);
}

function drawBest(chart, method) {
  const radii = distinct(data.curves.filter((c) => c.method === method).flatMap((c) => c.radii)).sort((a, b) => a - b);
  const shares = [...radii.map((radius) => bestAt(method, radius)), 0];
  const index = methods.length > 1 ? methods.indexOf(method) : data.colours.length - 1;
  const line = svg("path", { class: "line best", d: stepPath(radii, shares, chart) });
  chart.root.append(svg("g", { class: "ink", style: inkOf(index), "data-name": `best of ${method}` }, line));
}

let chart;
function drawCurves() {
  const end = largestRadius() * 1.03;
  chart = emptyChart(byId("curves-chart"), {
    label: "Accuracy over the radius; the slider below reads it",
    xLabel: "L2 radius (pixels in [0, 1])",
    yLabel: data.curves.some((curve) => curve.attacked.length) ? "accuracy (%)" : "certified accuracy (%)",
    ticks: linearTicks(end),
    scale: (radius) => radius / end,
  });
  for (const method of methods) if (bestShown(method)) drawBest(chart, method);
  data.curves.forEach((curve, order) => visible(curve) && drawCurve(chart, curve, order));
  chart.root.addEventListener("pointermove", follow);
  chart.root.addEventListener("pointerdown", follow);
  chart.end = end;
  readCurves();
}

const bestShown = (method) => shown.methods.has(method) && shown.best.has(method);

function follow(event) {
  const { left, width } = chart.root.getBoundingClientRect();
  const part = ((event.clientX - left) / width) * chart.width;
  radiusSlider.value = Math.max(0, ((part - chart.x(0)) / (chart.x(chart.end) - chart.x(0))) * chart.end);
  readCurves();
}

function attackText(curve, radius) {
  const reached = curve.attacked.filter(([attacked]) => attacked <= radius).at(-1);
  if (!shown.attacked || !reached) return "";
  return `; ${percentUp(reached[1])} ${curve.attackedLabel} at ${reached[0]} (first ${curve.attackedImages} images)`;
}

function swatch(style, dash, marker, kind = "") {
  const line = svg("path", { class: `line ${kind}`, "stroke-dasharray": dash, d: "M1 8H33" });
  return svg("svg", { class: "swatch ink", style, viewBox: "0 0 34 16", "aria-hidden": "true" }, line, ...marker);
}
const swatchOf = (curve) => swatch(inkOf(colourIndex(curve)), dashOf(colourIndex(curve)), [markerOf(curve, 17, 8)]);

// Where the cursor is, as a line in the chart and as text that screen readers hear.
function readCurves() {
  const radius = Number(radiusSlider.value);
  const written = fitSlider(radiusSlider)(radius);
  radiusSlider.setAttribute("aria-valuetext", `radius ${written}`);
  const { root, x, y } = chart;
  root.querySelector(".reading")?.remove();
  const reading = svg("g", { class: "reading" });
  reading.append(svg("line", { class: "cursor", x1: x(radius), x2: x(radius), y1: y(0), y2: y(1) }));
  const lines = data.curves.filter(visible).map((curve) => {
    const { share, low, high } = accuracyAt(curve, radius);
    const whisker = { class: "whisker ink", style: inkOf(colourIndex(curve)) };
    reading.append(svg("line", { ...whisker, x1: x(radius), x2: x(radius), y1: y(low), y2: y(high) }));
    const interval = `(${percent(low)} to ${percent(high)})`;
    const text = `${nameOf(curve)}: ${percent(share)} ${interval}${stoppedText(curve, radius)}${attackText(curve, radius)}`;
    return html("li", {}, swatchOf(curve), html("span", {}, text));
  });
  for (const method of methods.filter(bestShown)) {
    const text = `${method}, best sigma per radius, chosen on this data: ${percent(bestAt(method, radius))}`;
    lines.push(html("li", {}, html("span", {}, text)));
  }
  root.append(reading);
  byId("curves-readout").replaceChildren(html("b", {}, `Radius ${written}`), html("ul", {}, ...lines));
}

function toggle(text, checked, picture, change) {
  const box = html("input", { type: "checkbox" });
  box.checked = checked;
  box.addEventListener("change", () => {
    change(box.checked);
    for (const redraw of redraws) redraw();
  });
  return html("label", {}, box, ...picture, html("span", {}, text));
}

const switched = (set, name) => (on) => (on ? set.add(name) : set.delete(name));
const BEST = "Best sigma per radius, chosen on this data";
const group = (title, toggles) => html("fieldset", {}, html("legend", {}, title), ...toggles);

function methodSwatch(method) {
  if (methods.length === 1) return [];
  const index = methods.indexOf(method);
  return [swatch(inkOf(index), dashOf(index), [])];
}

function levelSwatch(level) {
  const curve = data.curves.find((candidate) => candidate.level === level);
  return [methods.length === 1 ? swatchOf(curve) : swatch("--ink: #777777", "", [markerOf(curve, 17, 8)])];
}

function buildToggles() {
  const several = methods.filter((method) => data.curves.filter((curve) => curve.method === method).length > 1);
  const attacks = toggle("accuracy under attack", true, [swatch("--ink: #777777", "", [], "attacked")], (on) => {
    shown.attacked = on;
  });
  byId("toggles").append(
    group("Methods", methods.map((m) => toggle(m, true, methodSwatch(m), switched(shown.methods, m)))),
    group("Noise levels", levels.map((l) => toggle(levelName(l), true, levelSwatch(l), switched(shown.levels, l)))),
    ...(several.length
      ? [group(BEST, several.map((method) => toggle(method, false, [], switched(shown.best, method))))]
      : []),
    ...(data.curves.some((curve) => curve.attacked.length) ? [group("Attacks", [attacks])] : []),
  );
}

buildToggles();
radiusSlider.addEventListener("input", readCurves);
redraws.push(drawCurves);
redrawn(byId("curves-chart"), drawCurves);
