// The grid of samples: filters, orders, and how masks are shown. Every state is an address.

import { openSample, repaintSample } from "./sample.js";
import { colorsOf, loadImage, loadMask, paint, problemOf } from "./masks.js";

const CHUNK = 60;      // cells that are added at once
const THUMBNAIL = 320; // pixels

const $ = (selector) => document.querySelector(selector);
const filters = $("#filters"), look = $("#look"), grid = $("#grid"), status = $("#status");
export const state = { overview: null, positions: [], shown: 0, hidden: new Set() };

/** What masks look like now. */
export function currentLook() {
  const form = new FormData(look);
  return {
    layer: form.get("layer"),
    fill: form.has("fill"),
    outline: form.has("outline"),
    opacity: Number(form.get("opacity")),
    colors: colorsOf(state.overview, form.get("palette")),
    ignore: state.overview.ignore_index,
    hidden: state.hidden,
  };
}

/** Say something, or what went wrong. */
export function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("error", wrong);
}

async function getJson(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await problemOf(answer));
  return answer.json();
}

function query() {
  const parameters = new URLSearchParams();
  for (const [name, value] of new FormData(filters)) {
    if (value === "" || (name === "sort" && value === "position")) continue;
    if (name === "evaluation" && value === "0") continue;
    parameters.set(name, name === "least" || name === "most" ? Number(value) / 100 : value);
  }
  const pair = new URLSearchParams(location.search).get("pair");
  if (pair) parameters.set("pair", pair);
  return parameters;
}

function fillForms() {
  const { classes, orders, evaluations, predictions, samples } = state.overview;
  for (const [id, { name, images }] of classes.entries()) {
    if (images) filters.elements.class.append(new Option(`${name} (${images})`, id));
  }
  for (const order of orders.slice(0, evaluations.length ? orders.length : 5)) {
    filters.elements.sort.append(new Option(order, order));
  }
  for (const [number, { name, mIoU }] of evaluations.entries()) {
    const score = mIoU === null ? "" : `, mIoU ${mIoU.toFixed(3)}`;
    filters.elements.evaluation.append(new Option(name + score, number));
  }
  $(".needs-evaluation").hidden = !evaluations.length;
  look.elements.layer.append(new Option("ground truth", "truth"));
  for (const [number, name] of predictions.entries()) {
    look.elements.layer.append(new Option(`prediction: ${name}`, `prediction-${number}`));
    look.elements.layer.append(new Option(`difference: ${name}`, `difference-${number}`));
  }
  look.elements.layer.append(new Option("image alone", "image"));
  document.title = `${samples} samples - cocoseg view`;
}

function readAddress() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    const element = filters.elements[name] ?? look.elements[name];
    if (!element) continue;
    if (element.type === "checkbox") element.checked = value === "1";
    else element.value = name === "least" || name === "most" ? Number(value) * 100 : value;
  }
}

function writeAddress(position = null) {
  const parameters = query();
  const { layer, fill, outline } = look.elements;
  if (layer.value !== "truth") parameters.set("layer", layer.value);
  if (!fill.checked) parameters.set("fill", "0");
  if (outline.checked) parameters.set("outline", "1");
  if (look.elements.palette.value !== "classes") parameters.set("palette", look.elements.palette.value);
  if (position !== null) parameters.set("sample", position);
  history.replaceState(null, "", `?${parameters}`);
}

async function search() {
  writeAddress();
  say("searching …");
  try {
    state.positions = (await getJson(`api/samples?${query()}`)).positions;
  } catch (error) {
    return say(error.message, true);
  }
  grid.replaceChildren();
  state.shown = 0;
  const { length } = state.positions;
  say(length ? `${length} of ${state.overview.samples} samples` :
    "No sample matches: search for less of the name, or choose another class.");
  addCells();
}

function addCells() {
  const next = state.positions.slice(state.shown, state.shown + CHUNK);
  for (const position of next) grid.append(cellOf(position));
  state.shown += next.length;
}

const visible = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    visible.unobserve(entry.target);
    fillCell(entry.target);
  }
}, { rootMargin: "400px" });

function cellOf(position) {
  const cell = document.createElement("button");
  cell.className = "cell";
  cell.dataset.position = position;
  const label = document.createElement("span");
  label.textContent = `sample ${position}`;
  cell.append(document.createElement("canvas"), label);
  cell.addEventListener("click", () => show(position));
  visible.observe(cell);
  return cell;
}

/** Fetch what a layer needs of a sample: image, mask, and the mask it is compared with. */
export async function fetchLayer(position, layer, side = null) {
  const size = side ? `?side=${side}` : "";
  const { bits } = state.overview;
  const [kind, number] = layer.split("-");
  const truth = () => loadMask(`mask/${position}${size}`, bits);
  const prediction = () => loadMask(`prediction/${number}/${position}${size}`, bits);
  const [image, mask, other] = await Promise.all([
    loadImage(`image/${position}${size}`),
    kind === "image" ? null : kind === "prediction" ? prediction() : truth(),
    kind === "difference" ? prediction() : null,
  ]);
  return { image, mask, other };
}

async function fillCell(cell) {
  const { position } = cell.dataset;
  const [canvas, label] = cell.children;
  try {
    const wanted = currentLook();
    const [content, facts] = await Promise.all([
      fetchLayer(position, wanted.layer, THUMBNAIL),
      cell.facts ?? getJson(`api/samples/${position}`),
    ]);
    cell.content = content;
    cell.facts = facts;
    paint(canvas, content.image, content.mask, currentLook(), content.other);
    const score = facts.scores[filters.elements.evaluation.value || 0];
    const text = score ? `${facts.key} · mIoU ${score.mIoU.toFixed(3)}` : facts.key;
    label.textContent = text;
    cell.setAttribute("aria-label", describe(facts, text));
  } catch (error) {
    label.textContent = error.message;
  }
}

function describe({ classes }, text) {
  const names = classes.map(({ train_id: id }) => state.overview.classes[id]?.name).filter(Boolean);
  return `${text}: ${names.join(", ")}`;
}

function repaint() {
  writeAddress();
  for (const cell of grid.children) {
    if (!cell.content) continue;
    const { image, mask, other } = cell.content;
    paint(cell.firstChild, image, mask, currentLook(), other);
  }
  repaintSample();
}

function reload() {
  writeAddress();
  for (const cell of grid.children) {
    if (cell.content) {
      cell.content = null;
      visible.observe(cell);
    }
  }
}

/** Open a sample; its place is a part of the address. */
export async function show(position) {
  writeAddress(position);
  try {
    await openSample(position, await getJson(`api/samples/${position}`));
  } catch (error) {
    say(error.message, true);
  }
}

/** Open the sample that is `step` further in the present order. */
export function showNext(position, step) {
  const next = state.positions[state.positions.indexOf(position) + step];
  if (next !== undefined) show(next);
}

/** Called when a sample was closed. */
export function closed() {
  writeAddress();
}

function choose(prefix) {
  const options = [...look.elements.layer.options].map(({ value }) => value);
  const found = options.find((value) => value.startsWith(prefix));
  if (found) {
    look.elements.layer.value = found;
    reload();
    repaintSample();
  }
}

function toggle(name) {
  look.elements[name].checked = !look.elements[name].checked;
  repaint();
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=search], input[type=number], select")) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    o: () => toggle("outline"),
    f: () => toggle("fill"),
    g: () => choose("truth"),
    p: () => choose("prediction"),
    d: () => choose("difference"),
    "?": () => $("#help").showModal(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});

let waiting = 0;
filters.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 200);
});
filters.addEventListener("submit", (event) => event.preventDefault());
look.addEventListener("input", (event) => event.target.name === "layer" ? reload() : repaint());
$("#help-button").addEventListener("click", () => $("#help").showModal());
new IntersectionObserver((entries) => {
  if (entries[0].isIntersecting && state.shown) addCells();
}, { rootMargin: "800px" }).observe($("#more"));

async function start() {
  try {
    state.overview = await getJson("api/overview");
  } catch (error) {
    return say(error.message, true);
  }
  fillForms();
  readAddress();
  const sample = new URLSearchParams(location.search).get("sample");
  await search();
  if (sample !== null) await show(Number(sample));
}

start();
