// One sample: panels that zoom and pan together, the classes in it, what is recorded of it.

import { closed, currentLook, fetchLayer, showNext, state } from "./app.js";
import { paint } from "./masks.js";

const dialog = document.querySelector("#detail");
let open = null; // { position, facts, panels, view }

/** Show a sample. */
export async function openSample(position, facts) {
  const layers = ["image", "truth"];
  for (const number of state.overview.predictions.keys()) {
    layers.push(`prediction-${number}`, `difference-${number}`);
  }
  const content = await Promise.all(layers.map((layer) => fetchLayer(position, layer)));
  const panels = layers.map((layer, i) => ({ layer, ...content[i], canvas: document.createElement("canvas") }));
  open = { position, facts, panels, view: { scale: 0, x: 0, y: 0 } };
  dialog.replaceChildren(bar(), body());
  if (!dialog.open) dialog.showModal();
  repaintSample();
  fit();
}

/** Close it. */
function closeSample() {
  dialog.close();
}

dialog.addEventListener("close", () => {
  open = null;
  closed();
});

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function bar() {
  const { position, facts } = open;
  const name = facts.meta.file_name ? ` (${facts.meta.file_name})` : "";
  const button = (text, label, action) => {
    const made = make("button", { type: "button", textContent: text, onclick: action });
    made.setAttribute("aria-label", label);
    return made;
  };
  return make("div", { className: "bar" },
    make("h2", { textContent: `${facts.key}${name}, ${facts.width} × ${facts.height}` }),
    button("←", "Sample before", () => showNext(position, -1)),
    button("→", "Next sample", () => showNext(position, 1)),
    button("−", "Zoom out", () => zoom(1 / 1.5)),
    button("fit", "Zoom to fit", fit),
    button("+", "Zoom in", () => zoom(1.5)),
    button("×", "Close", closeSample));
}

function body() {
  const panels = make("div", { className: "panels" });
  for (const panel of open.panels) {
    const [kind, number] = panel.layer.split("-");
    const suffix = state.overview.predictions.length > 1 && number ? ` ${state.overview.predictions[number]}` : "";
    const title = kind === "truth" ? "ground truth" : kind + suffix;
    panel.element = make("div", { className: "panel" }, panel.canvas, make("b", { textContent: title }));
    panel.canvas.setAttribute("role", "img");
    panel.canvas.setAttribute("aria-label", title);
    listen(panel.element);
    panels.append(panel.element);
  }
  return make("div", { className: "body" }, panels, factsOf());
}

function factsOf() {
  const { facts } = open;
  const pixels = facts.width * facts.height;
  const side = make("div", { className: "facts" }, make("p", { id: "under", textContent: "Point at a pixel." }));
  side.append(make("h3", { textContent: "Classes" }), table(facts.classes.map(({ train_id: id, pixels: count }) => {
    const name = nameOf(id);
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(id), onchange: () => {
      box.checked ? state.hidden.delete(id) : state.hidden.add(id);
      repaintSample();
    } });
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${(currentLook().colors[id] ?? [128, 128, 128]).join(" ")})`;
    const scores = facts.scores.map((one) => one?.IoU[id] === undefined ? "" : `IoU ${one.IoU[id].toFixed(3)}`);
    return [make("label", {}, box, swatch, name), ...scores, `${(100 * count / pixels).toFixed(2)} %`];
  })));
  for (const [i, regions] of facts.regions.entries()) {
    if (!regions.length) continue;
    side.append(make("h3", { textContent: `Labels to check (${state.overview.evaluations[i].name})` }),
      table(regions.map((one) => [`${one.kind}: ${one.annotated}, predicted ${one.predicted}`, Number(one.suspicion).toFixed(2)])));
  }
  side.append(make("h3", { textContent: "Recorded by prepare" }),
    table(Object.entries(facts.meta).map(([name, value]) => [name, String(value)])));
  return side;
}

function table(rows) {
  return make("table", {}, ...rows.map((row) => make("tr", {},
    ...row.map((cell, i) => make("td", { className: i ? "number" : "" }, cell)))));
}

function nameOf(id) {
  if (id === state.overview.ignore_index) return "(ignored)";
  return state.overview.classes[id]?.name ?? `${id}`;
}

/** Paint the open sample again, after what masks look like has changed. */
export function repaintSample() {
  if (!open) return;
  const look = currentLook();
  for (const { canvas, image, mask, other } of open.panels) paint(canvas, image, mask, look, other);
}

function place() {
  const { scale, x, y } = open.view;
  for (const { canvas } of open.panels) {
    canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }
}

function fit() {
  const { clientWidth, clientHeight } = open.panels[0].element;
  const { width, height } = open.facts;
  const scale = Math.min(clientWidth / width, clientHeight / height);
  open.view = { scale, x: (clientWidth - scale * width) / 2, y: (clientHeight - scale * height) / 2 };
  place();
}

function zoom(factor, at = null) {
  const { clientWidth, clientHeight } = open.panels[0].element;
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
    if (event.buttons) {
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
    const [kind] = layer.split("-");
    if (!mask || kind === "difference") continue;
    found.push(`${kind === "truth" ? "ground truth" : "prediction"}: ${nameOf(mask.ids[row * width + column])}`);
  }
  document.querySelector("#under").textContent = `${column}, ${row}: ${found.join("; ")}`;
}

document.addEventListener("keydown", (event) => {
  if (!open || event.target.matches("input[type=search], input[type=number], select")) return;
  const actions = {
    ArrowLeft: () => showNext(open.position, -1),
    ArrowRight: () => showNext(open.position, 1),
    "+": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: fit,
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});
