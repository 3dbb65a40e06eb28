// What a method costs against what it certifies, at a radius that is chosen.

const costSlider = byId("cost-radius");

function describe(curve, radius) {
  const { share, low, high } = accuracyAt(curve, radius);
  const seconds = curve.seconds === null ? "" : `, ${Number(curve.seconds.toPrecision(3))} seconds per image`;
  return (
    `${curve.method}, ${levelName(curve.level)}: ${percent(share)} (${percent(low)} to ${percent(high)}) ` +
    `at radius ${radius}${stoppedText(curve, radius)}, ${counted(curve.evaluations)} evaluations per image${seconds}`
  );
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    ticks.push(...[1, 2, 5].map((factor) => factor * power));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 7 ? inside.filter((tick) => Number.isInteger(Math.log10(tick))) : inside;
}

// The nearest place around a point where its name covers neither another name nor a point, with a line to it where
// it is far; none where all is full, as the point's title has the name too.
function placeName(text, [x, y], { taken, width, floor }) {
  const long = 7 * text.length;
  const rows = [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6].map((row) => y + 17 * row);
  const places = rows.flatMap((middle) => [x + 10, x - 10 - long, x - long / 2].map((left) => [left, middle]));
  for (const [left, middle] of places) {
    const box = { left, top: middle - 7, right: left + long, bottom: middle + 7 };
    const free = taken.every(
      (other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom,
    );
    if (free && left >= MARGIN.left && box.right <= width && box.top >= 0 && box.bottom <= floor) {
      taken.push(box);
      const end = Math.max(left, Math.min(x, box.right));
      const leader = svg("line", { class: "leader", x1: x, y1: y, x2: end, y2: middle });
      return [...(Math.abs(middle - y) > 17 ? [leader] : []), svg("text", { x: left, y: middle + 4 }, text)];
    }
  }
  return [];
}

function drawPoint(chart, curve, [x, y], radius, name) {
  const text = describe(curve, radius);
  const { low, high } = accuracyAt(curve, radius);
  const point = svg(
    "g",
    { class: "point ink", tabindex: 0, role: "img", "aria-label": text, style: inkOf(colourIndex(curve)) },
    svg("title", {}, text),
    svg("line", { class: "whisker", x1: x, x2: x, y1: chart.y(low), y2: chart.y(high) }),
    svg("circle", { class: "ring", cx: x, cy: y, r: 11 }),
    markerOf(curve, x, y),
    ...name,
  );
  const tell = () => byId("cost-readout").replaceChildren(text);
  point.addEventListener("focus", tell);
  point.addEventListener("pointerenter", tell);
  chart.root.append(point);
}

function drawCost() {
  const written = fitSlider(costSlider)(costSlider.value);
  const radius = Number(written);
  byId("cost-value").replaceChildren(written);
  byId("cost-readout").replaceChildren();
  const known = data.curves.filter((curve) => curve.evaluations > 0);
  const unknown = data.curves.filter((curve) => !known.includes(curve) && visible(curve)).map(nameOf);
  byId("cost-note").replaceChildren(
    "Evaluations of the network for each image, the mean, on a logarithmic scale; the lines are 95 % intervals." +
      (unknown.length ? ` Not drawn, since what they cost is unknown: ${unknown.join("; ")}.` : ""),
  );
  if (!known.length) return;
  const costs = known.map((curve) => curve.evaluations);
  const room = Math.max(...costs) > 4 * Math.min(...costs) ? 1.6 : 3; // at least two numbers at the axis
  const [low, high] = [Math.min(...costs) / room, Math.max(...costs) * room];
  const drawn = emptyChart(byId("cost-chart"), {
    label: "Certified accuracy over evaluations per image",
    xLabel: "evaluations per image",
    yLabel: "certified accuracy (%)",
    ticks: logTicks(low, high),
    scale: (cost) => Math.log(cost / low) / Math.log(high / low),
  });
  const points = known.filter(visible).map((curve) => {
    const { share, low, high } = accuracyAt(curve, radius);
    return { curve, at: [drawn.x(curve.evaluations), drawn.y(share)], top: drawn.y(high), bottom: drawn.y(low) };
  });
  const taken = points.map(({ at: [x, y], top, bottom }) => ({
    left: x - 6,
    right: x + 6,
    top: Math.min(y - 6, top),
    bottom: Math.max(y + 6, bottom),
  }));
  for (const { curve, at } of points) {
    const name = `${curve.method}, ${levelName(curve.level)}`;
    const placed = placeName(name, at, { taken, width: drawn.width, floor: drawn.y(0) });
    drawPoint(drawn, curve, at, radius, placed);
  }
}

costSlider.addEventListener("input", drawCost);
redraws.push(drawCost);
redrawn(byId("cost-chart"), drawCost);
