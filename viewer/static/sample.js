// One sample: panels that zoom and pan together, the classes in it, what is recorded of it.

import { button, choice, make, percent, score, swatch } from "./dom.js";
import { getJson } from "./data.js";
import { fetchLayers } from "./look.js";
import { paint } from "./masks.js";
import { currentLook, nameOf, note, parameters, predictionNumber, shared } from "./state.js";

const dialog = document.querySelector("#detail");
let open = null; // { position, facts, panels, view, calls }
let asked = 0;   // samples: only the last one that was asked for is shown

/** Show a sample. calls: { step(±1), closed(), repaint() } */
export async function openSample(position, calls) {
  const layers = ["image", "truth"];
  for (const i of shared.overview.predictions.keys()) layers.push(`prediction-${i}`, `difference-${i}`);
  const mine = ++asked;
  const facts = await getJson(`api/samples/${position}`);
  const found = await fetchLayers(position, layers);
  if (mine !== asked) return;
  const panels = layers.map((layer, i) => ({ layer, ...found[i], canvas: make("canvas", { role: "img", "aria-label": titleOf(layer) }) }));
  open = { position, facts, panels, view: { scale: 0, x: 0, y: 0 }, calls };
  draw();
}

function draw() {
  const focused = document.activeElement?.getAttribute("aria-label");
  dialog.replaceChildren(bar(), body());
  if (!dialog.open) dialog.showModal();
  // Not the first control: keys are for the sample.
  ([...dialog.querySelectorAll(".bar button")].find((one) => one.getAttribute("aria-label") === focused) ?? dialog).focus();
  repaintSample();
  arrange();
  aim();
}

/** Show the part that the address names, or all. */
function aim() {
  const box = parameters().get("box");
  if (box) frame(...box.split(",").map(Number));
  else fit();
}

/** Close it. */
export function closeSample() {
  dialog.close();
}

/** Close it because the page goes elsewhere. */
export function leaveSample() {
  open = null;
  asked++;
  dialog.close();
}

dialog.addEventListener("close", () => {
  const calls = open?.calls;
  open = null;
  asked++;
  calls?.closed();
});

function titleOf(layer) {
  const [kind, i] = layer.split("-");
  const { predictions } = shared.overview;
  return kind === "truth" ? "ground truth" : kind + (i && predictions.length > 1 ? ` ${predictions[i]}` : "");
}

function bar() {
  const { facts, calls } = open;
  const name = facts.meta.file_name ? ` (${facts.meta.file_name})` : "";
  return make("div", { className: "bar" },
    make("h2", { id: "detail-title" }, `${facts.key}${name}, ${facts.width} × ${facts.height}`),
    choice("Panels", "panels", choices(), parameters().get("panels") ?? "beside", show),
    button("←", () => calls.step(-1), "Sample before"),
    button("→", () => calls.step(1), "Next sample"),
    button("−", () => zoom(1 / 1.5), "Zoom out"),
    button("fit", fit, "Zoom to fit"),
    button("+", () => zoom(1.5), "Zoom in"),
    button("×", closeSample, "Close"));
}

/** Deal the panels to rows and columns, so that the image is as large as possible in each. */
function arrange() {
  const panels = dialog.querySelector(".panels");
  const { width, height } = open.facts;
  const count = panels.children.length;
  const sizes = [...panels.children].map((_, i) => {
    const columns = i + 1, rows = Math.ceil(count / columns);
    return Math.min(panels.clientWidth / columns / width, panels.clientHeight / rows / height);
  });
  panels.style.gridTemplateColumns = `repeat(${sizes.indexOf(Math.max(...sizes)) + 1}, 1fr)`;
}

new ResizeObserver(() => {
  if (!open) return;
  arrange();
  aim();
}).observe(dialog);

function choices() {
  const { predictions } = shared.overview;
  const slider = predictions.length ? [["slider", "ground truth and prediction under a slider"]] : [];
  return [["beside", "side by side"], ...slider, ...open.panels.map(({ layer }) => [layer, titleOf(layer)])];
}

/** Show all panels, the slider, or one panel alone. */
function show(choice) {
  note({ panels: choice === "beside" ? null : choice });
  draw();
}

function body() {
  const wanted = parameters().get("panels");
  const panels = make("div", { className: "panels" });
  const one = open.panels.filter(({ layer }) => layer === wanted);
  for (const panel of open.panels) panel.element = null;
  if (wanted === "slider" && shared.overview.predictions.length) panels.append(underSlider());
  else panels.append(...(one.length ? one : open.panels).map((panel) => panelOf([panel], titleOf(panel.layer), panel.problem)));
  return make("div", { className: "body" }, panels, factsOf());
}

function panelOf(shown, title, problem) {
  const element = make("div", { className: "panel" }, ...shown.map(({ canvas }) => canvas), make("b", {}, title),
    problem && make("p", { className: "error" }, problem));
  for (const panel of shown) panel.element = element;
  listen(element);
  return element;
}

/** Ground truth left of the divider, prediction right of it. */
function underSlider() {
  const truth = open.panels.find(({ layer }) => layer === "truth");
  const prediction = open.panels.find(({ layer }) => layer === `prediction-${predictionNumber()}`);
  const element = panelOf([truth, prediction], "ground truth | prediction", prediction.problem);
  const range = make("input", { type: "range", className: "divider", min: 0, max: 100, value: 50,
    "aria-label": "Divider between ground truth and prediction", oninput: () => {
      open.divider = range.value / 100;
      place();
    } });
  range.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.append(range);
  open.divider = 0.5;
  return element;
}

function factsOf() {
  const { facts } = open;
  const pixels = facts.width * facts.height;
  const { evaluations } = shared.overview;
  const side = make("div", { className: "facts", tabIndex: 0, role: "region", "aria-label": "What is known of the sample" },
    make("p", { id: "under", role: "status" }, "Point at a pixel: its classes appear here."));
  const heads = evaluations.length ? [["", ...evaluations.map(({ name }) => `IoU, ${name}`), "share"]] : [];
  side.append(make("h3", {}, "Classes"), plainTable([...heads, ...facts.classes.map(({ train_id: id, pixels: count }) => {
    const box = make("input", { type: "checkbox", checked: !currentLook().hidden.has(id), onchange: () => {
      const { hidden } = currentLook();
      if (box.checked) hidden.delete(id);
      else hidden.add(id);
      note({ hide: [...hidden].join(",") });
      open.calls.repaint();
    } });
    const color = currentLook().colors[id] ?? [128, 128, 128];
    const scores = facts.scores.map((one) => one?.IoU[id]?.toFixed(3) ?? "");
    return [make("label", {}, box, swatch(color), nameOf(id)), ...scores, percent(count / pixels)];
  })]));
  facts.scores.forEach((one, i) => {
    if (!one) return;
    side.append(make("h3", {}, evaluations[i].name), plainTable([["mIoU", score(one.mIoU)],
      ["confidence", score(one.confidence)], ["label quality", score(one.quality)]].filter(([, value]) => value)));
  });
  facts.regions.forEach((regions, i) => {
    if (!regions.length) return;
    side.append(make("h3", {}, `Labels to check (${evaluations[i].name})`), plainTable(regions.map((one) => [
      button(`${one.kind}: ${nameOf(one.annotated)}, predicted ${nameOf(one.predicted)}`, () => frame(...one.box)),
      one.suspicion.toFixed(2)])));
  });
  side.append(make("h3", {}, "Recorded by prepare"),
    make("div", { className: "recorded" }, plainTable(Object.entries(facts.meta).map(([name, value]) => [name, String(value)]))));
  return side;
}

function plainTable(rows) {
  return make("table", {}, ...rows.map((row) => make("tr", {},
    ...row.map((cell, i) => make("td", { className: i ? "number" : "" }, cell)))));
}

/** Paint the open sample again, after what masks look like has changed. */
export function repaintSample() {
  if (!open) return;
  const look = currentLook();
  for (const { canvas, image, mask, other } of open.panels) {
    if (image) paint(canvas, image, mask, look, other);
  }
}

function shown() {
  return open.panels.filter(({ element }) => element);
}

function place() {
  const { view: { scale, x, y }, divider } = open;
  const [{ element }] = shown();
  for (const { canvas } of open.panels) {
    canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    canvas.style.clipPath = "";
  }
  const range = element.querySelector(".divider");
  if (range) {
    const cut = (divider * element.clientWidth - x) / scale;
    shown()[1].canvas.style.clipPath = `inset(0 0 0 ${Math.max(0, cut)}px)`;
  }
}

function fit() {
  frame(0, 0, open.facts.width, open.facts.height, 1);
}

/** Zoom to a part of the image, with a margin around it. */
function frame(left, top, width, height, margin = 2) {
  const { clientWidth, clientHeight } = shown()[0].element;
  const scale = Math.min(32, clientWidth / (width * margin), clientHeight / (height * margin));
  open.view = { scale, x: clientWidth / 2 - scale * (left + width / 2), y: clientHeight / 2 - scale * (top + height / 2) };
  place();
}

function zoom(factor, at = null) {
  const { clientWidth, clientHeight } = shown()[0].element;
  const { x, y } = at ?? { x: clientWidth / 2, y: clientHeight / 2 };
  const { view } = open;
  const scale = Math.min(64, Math.max(0.05, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  place();
}

function listen(element) {
  const at = (event) => {
    const box = element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), at(event));
  }, { passive: false });
  element.addEventListener("pointerdown", (event) => element.setPointerCapture(event.pointerId));
  element.addEventListener("pointermove", (event) => {
    if (event.buttons && element.hasPointerCapture(event.pointerId)) {
      open.view.x += event.movementX;
      open.view.y += event.movementY;
      return place();
    }
    const { x, y } = at(event);
    name(Math.floor((x - open.view.x) / open.view.scale), Math.floor((y - open.view.y) / open.view.scale));
  });
}

function name(column, row) {
  const { width, height } = open.facts;
  if (column < 0 || row < 0 || column >= width || row >= height) return;
  const found = [];
  for (const { layer, mask } of open.panels) {
    if (!mask || layer.startsWith("difference")) continue;
    found.push(`${titleOf(layer)}: ${nameOf(mask.ids[row * width + column])}`);
  }
  document.querySelector("#under").textContent = `${column}, ${row}: ${found.join("; ")}`;
}

/** Act on a key, if a sample is open and it is one of its keys. */
export function sampleKey({ key, shiftKey }) {
  if (!open) return false;
  const move = (x, y) => () => {
    open.view.x += x;
    open.view.y += y;
    place();
  };
  const alone = (layer) => () => show(parameters().get("panels") === layer ? "beside" : layer);
  const moves = { ArrowLeft: move(60, 0), ArrowRight: move(-60, 0), ArrowUp: move(0, 60), ArrowDown: move(0, -60) };
  const actions = shiftKey && key in moves ? moves : {
    g: alone("truth"),
    p: alone(`prediction-${predictionNumber()}`),
    d: alone(`difference-${predictionNumber()}`),
    ArrowLeft: () => open.calls.step(-1),
    ArrowRight: () => open.calls.step(1),
    "+": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: fit,
  };
  actions[key]?.();
  return key in actions;
}
