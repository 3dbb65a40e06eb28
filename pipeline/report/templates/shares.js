// Of how many images the top class has at least so many of the votes; its scale shows what lies near all of them.

const sharesSlider = byId("shares-slider");
const SHARES = [0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1];
const SHARE_TICKS = [0, 0.5, 0.9, 0.99, 0.999, 0.9999];

// The distance from all votes on a logarithmic scale, which ends where one vote less cannot be told.
const fewest = Math.min(
  0.005,
  ...data.shares.flatMap(({ right, wrong }) => [right, wrong].flatMap((curve) => curve.radii.map((share) => 1 - share || 1))),
) / 2;
const shareScale = (share) => Math.log10(Math.max(1 - share, fewest)) / Math.log10(fewest);
const shareText = (share) => (share === 1 ? "all" : `${Number((100 * share).toFixed(2))}\u00a0%`);
const offered = SHARES.filter((share) => share === 1 || 1 - share >= fewest);
const sharesOf = (curve) => ({ ...curve, shares: data.shares[data.curves.indexOf(curve)] });

let sharesChart;
function drawShares() {
  sharesChart = emptyChart(byId("shares-chart"), {
    label: "Images over the share of votes of their top class; the slider below reads it",
    xLabel: "share of votes for the top class, at least",
    yLabel: "images (%)",
    ticks: [...SHARE_TICKS.filter((share) => 1 - share >= 2 * fewest), 1],
    tickText: shareText,
    scale: shareScale,
  });
  for (const curve of data.curves.filter(visible)) {
    const { right, wrong } = sharesOf(curve).shares;
    const group = svg("g", { class: "ink curve", style: inkOf(colourIndex(curve)), "data-name": nameOf(curve) });
    for (const [part, kind] of [[wrong, "attacked"], [right, ""]]) {
      const parts = part.right.map((count) => count / part.images);
      group.append(svg("path", { class: `line ${kind}`, d: stepPath(part.radii, parts, sharesChart) }));
    }
    for (const share of SHARE_TICKS.filter((tick) => 1 - tick >= fewest)) {
      group.append(markerOf(curve, sharesChart.x(share), sharesChart.y(accuracyAt(right, share).share)));
    }
    sharesChart.root.append(group);
  }
  sharesChart.root.addEventListener("pointermove", followShares);
  sharesChart.root.addEventListener("pointerdown", followShares);
  readShares();
}

function followShares(event) {
  const { left, width } = sharesChart.root.getBoundingClientRect();
  const at = ((event.clientX - left) / width) * sharesChart.width;
  const distances = offered.map((share) => Math.abs(sharesChart.x(share) - at));
  sharesSlider.value = distances.indexOf(Math.min(...distances));
  readShares();
}

function readShares() {
  const share = offered[sharesSlider.value];
  sharesSlider.setAttribute("aria-valuetext", `${shareText(share)} of the votes`);
  const { root, x, y } = sharesChart;
  root.querySelector(".cursor")?.remove();
  root.append(svg("line", { class: "cursor", x1: x(share), x2: x(share), y1: y(0), y2: y(1) }));
  const lines = data.curves.filter(visible).map((curve) => {
    const { right, wrong } = sharesOf(curve).shares;
    const [rightShare, wrongShare] = [accuracyAt(right, share), accuracyAt(wrong, share)];
    const interval = `(${percent(rightShare.low)} to ${percent(rightShare.high)})`;
    const text = `${nameOf(curve)}: ${percent(rightShare.share)} ${interval} right, ${percent(wrongShare.share)} wrong`;
    return html("li", {}, swatchOf(curve), html("span", {}, text));
  });
  const title = share === 1 ? "All votes for the top class" : `At least ${shareText(share)} of the votes`;
  byId("shares-readout").replaceChildren(html("b", {}, title), html("ul", {}, ...lines));
}

sharesSlider.max = offered.length - 1;
sharesSlider.value = offered.indexOf(0.9);
sharesSlider.addEventListener("input", readShares);
redraws.push(drawShares);
redrawn(byId("shares-chart"), drawShares);
