// The images: filters, order, cards in portions, and a dialog with all that is known about one.

const { gallery, pictures } = data;
const PORTION = 60;
const MOST_BARS = 3;
const SIGMAS = 32; // steps of stored noise in one sigma; 128 is none

const outcomeOf = (card) =>
  card.predicted === null ? "abstained" : card.predicted === gallery.images[card.image].label ? "right" : "wrong";
// The name where the data name their classes; with the number where two are called alike.
const often = Object.values(gallery.names).reduce((count, name) => count.set(name, (count.get(name) ?? 0) + 1), new Map());
function called(c) {
  const name = gallery.names[c];
  if (name === undefined) return `${c}`;
  return often.get(name) > 1 ? `${name} (${c})` : name;
}
const uri = (code) => `data:image/webp;base64,${code}`;
const cleanPicture = (card) =>
  html("img", { src: uri(pictures.clean[card.image]), alt: `image ${gallery.images[card.image].id}` });

async function pixelsOf(code) {
  const picture = new Image();
  picture.src = uri(code);
  await picture.decode();
  const canvas = html("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// What the first estimation vote saw: the clean picture, plus noise that is stored in units of sigma.
function noisyPicture(card) {
  const label = `the same with noise of sigma ${card.sigma}`;
  const canvas = html("canvas", { role: "img", "aria-label": label });
  const noise = pictures.noise[pictures.shared ? card.image : gallery.cards.indexOf(card)];
  Promise.all([pixelsOf(pictures.clean[card.image]), pixelsOf(noise)]).then(([clean, added]) => {
    const scale = (255 * Number(card.sigma)) / SIGMAS;
    // The array clamps to 0 and 255 by itself; every fourth number is opacity.
    for (let i = 0; i < clean.data.length; i++) if (i % 4 < 3) clean.data[i] += scale * (added.data[i] - 128);
    [canvas.width, canvas.height] = [clean.width, clean.height];
    canvas.getContext("2d").putImageData(clean, 0, 0);
    canvas.dataset.ready = "";
  });
  return canvas;
}

function outcomeText(card) {
  const { label } = gallery.images[card.image];
  const outcome = outcomeOf(card);
  const radius = (Math.floor(card.radius * 1e4 + 1e-6) / 1e4).toFixed(4);
  const predicted = outcome === "abstained" ? "" : `: ${called(card.predicted)}`;
  const certified = outcome === "abstained" ? "" : `, radius ${radius}`;
  return html("p", {}, html("b", { class: outcome }, outcome), `${predicted} (label ${called(label)})${certified}`);
}

function voteTable(card, rows, caption) {
  const bars = rows.map(([name, count]) => {
    const width = `width: ${(100 * count) / Math.max(1, card.total)}%`;
    return html(
      "tr",
      {},
      html("th", { scope: "row" }, typeof name === "number" ? called(name) : name),
      html("td", {}, counted(count)),
      html("td", { "aria-hidden": "true" }, html("div", { class: count ? "bar" : "bar none", style: width })),
    );
  });
  return html("table", { class: "votes", "aria-label": caption }, html("tbody", {}, ...bars));
}

function buildCard(card) {
  const { id } = gallery.images[card.image];
  const name = `Details of image ${id} at sigma ${card.sigma}`;
  const open = html("button", { type: "button", "aria-haspopup": "dialog", "aria-label": name }, "Details");
  open.addEventListener("click", () => openDetail(card));
  const most = card.votes.toSorted((a, b) => b[1] - a[1]).slice(0, MOST_BARS);
  return html(
    "li",
    { class: "card", "data-outcome": outcomeOf(card) },
    html("div", { class: "pair" }, cleanPicture(card), noisyPicture(card)),
    outcomeText(card),
    voteTable(card, most, "Classes with the most votes"),
    html("p", {}, `${id}, sigma ${card.sigma}`),
    open,
  );
}

// Classes without a vote are not stored; of very many classes only those with the most votes are.
function allVotes(card) {
  const { label } = gallery.images[card.image];
  const votes = new Map(card.votes);
  const classes = gallery.classes > 50 ? [...votes.keys()] : Array.from({ length: gallery.classes }, (_, c) => c);
  const rows = classes.map((c) => {
    const notes = [...(c === label ? ["label"] : []), ...(c === card.predicted ? ["predicted"] : [])];
    return [notes.length ? `${called(c)} (${notes.join(", ")})` : c, votes.get(c) ?? 0];
  });
  const rest = card.total - rows.reduce((sum, [, count]) => sum + count, 0);
  return classes.length < gallery.classes ? [...rows, ["all others", rest]] : rows;
}

const factPair = ([name, fact]) => html("div", {}, html("dt", {}, name), html("dd", {}, `${fact}`));

function openDetail(card) {
  const { id, label } = gallery.images[card.image];
  const abstained = card.predicted === null;
  const facts = {
    Label: called(label),
    Predicted: abstained ? "abstained" : called(card.predicted),
    Sigma: card.sigma,
    Radius: abstained ? "none" : card.radius,
    [gallery.bound === "margin" ? "Margin at least" : "Probability at least"]: card.bound ?? "unknown",
    Evaluations: counted(card.evaluations),
    Seconds: card.seconds,
  };
  byId("detail-title").replaceChildren(`Image ${id}, sigma ${card.sigma}: ${outcomeOf(card)}`);
  byId("detail-body").replaceChildren(
    html("div", { class: "pair" }, cleanPicture(card), noisyPicture(card)),
    html("dl", { class: "facts" }, ...Object.entries(facts).map(factPair)),
    html("h4", {}, "Votes per class"),
    voteTable(card, allVotes(card), "Votes per class"),
  );
  byId("detail").showModal();
}

const INTERESTING = ["wrong", "abstained", "right"];
const interest = (card) => INTERESTING.indexOf(outcomeOf(card));
const ORDERS = {
  "wrong, abstained, smallest radius": (a, b) => interest(a) - interest(b) || a.radius - b.radius,
  "as in the data": () => 0,
  "largest radius first": (a, b) => b.radius - a.radius,
  "smallest radius first": (a, b) => a.radius - b.radius,
};
let [listed, placed] = [[], 0];

// Cards in portions, so that a page of many images opens at once.
function placeMore() {
  const before = byId("gallery").children.length;
  byId("gallery").append(...listed.slice(placed, placed + PORTION).map(buildCard));
  placed = Math.min(listed.length, placed + PORTION);
  const all = placed === listed.length;
  byId("more").hidden = all;
  byId("more").replaceChildren(`Show ${Math.min(PORTION, listed.length - placed)} more`);
  const rest = all ? "." : `; the first ${counted(placed)} are listed.`;
  byId("gallery-count").replaceChildren(
    `${counted(listed.length)} of ${counted(gallery.cards.length)} match${rest}`,
  );
  return byId("gallery").children[before];
}

function list() {
  const [outcome, sigma, label, order] = ["outcome", "sigma", "label", "order"].map((name) => byId(`by-${name}`).value);
  const chosen = (wanted, value) => wanted === "all" || wanted === `${value}`;
  listed = gallery.cards
    .filter((card) => chosen(outcome, outcomeOf(card)) && chosen(sigma, card.sigma))
    .filter((card) => chosen(label, gallery.images[card.image].label))
    .sort(ORDERS[order]);
  placed = 0;
  byId("gallery").replaceChildren();
  placeMore();
}

function choices(name, values, text = String) {
  byId(`by-${name}`).append(...values.map((value) => html("option", { value }, text(value))));
  byId(`by-${name}`).addEventListener("change", list);
}

choices("outcome", ["all", "abstained", "wrong", "right"]);
choices("sigma", ["all", ...distinct(gallery.cards.map((card) => card.sigma))]);
const labels = distinct(gallery.images.map((image) => image.label)).sort((a, b) => a - b);
choices("label", ["all", ...labels], called);
choices("order", Object.keys(ORDERS));
// The button may vanish with the last portion: the keyboard goes on at the first new card.
byId("more").addEventListener("click", () => placeMore()?.querySelector("button").focus());
list();
