// How masks are shown: a row of controls, their keys, and fetching what a layer needs.

import { button, choice, make } from "./dom.js";
import { getImages, isFile } from "./data.js";
import { maskOf } from "./masks.js";
import { currentLook, note, parameters, predictionNumber, shared } from "./state.js";

let repaint = () => {}, reload = () => {}, bar = null;

/**
 * The controls. `painted` is called when only colors change, `fetched` when other masks are needed.
 */
export function lookBar(painted, fetched) {
  [repaint, reload] = [painted, fetched];
  const look = currentLook();
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: look.opacity,
    oninput: () => change({ opacity: opacity.value === "0.55" ? null : opacity.value }) });
  bar = make("form", { className: "look", "aria-label": "How masks are shown", onsubmit: () => false },
    choice("Show", "layer", layers(), look.layer, (value) => change({ layer: value === "truth" ? null : value }, true)),
    box("fill", look.fill), box("outlines", look.outline, "outline"),
    make("label", {}, "Opacity", opacity),
    choice("Colors", "palette", [["classes", "of the classes"], ["safe", "color-blind safe"]],
      parameters().get("palette") ?? "classes",
      (value) => change({ palette: value === "classes" ? null : value })),
    button("Keys", () => document.querySelector("#help").showModal()));
  return bar;
}

function box(label, checked, name = label) {
  const input = make("input", { type: "checkbox", name, checked, onchange: () => {
    const usual = name === "fill";
    change({ [name]: input.checked === usual ? null : input.checked ? "1" : "0" });
  } });
  return make("label", {}, input, label);
}

function layers() {
  const { predictions } = shared.overview;
  const of = predictions.flatMap((name, number) =>
    [[`prediction-${number}`, `prediction: ${name}`], [`difference-${number}`, `difference: ${name}`]]);
  return [["truth", "ground truth"], ...of, ["image", "image alone"]];
}

function change(changes, otherMasks = false) {
  note(changes);
  if (otherMasks) reload();
  else repaint();
}

/** Act on a key, if it is one of the controls'. */
export function lookKey({ key }) {
  if (!bar?.isConnected) return false;
  const toggle = (name) => bar.elements[name].click();
  const choose = (prefix) => {
    const wanted = prefix === "truth" ? prefix : `${prefix}-${predictionNumber()}`;
    if (!layers().some(([value]) => value === wanted)) return;
    bar.elements.layer.value = wanted;
    bar.elements.layer.onchange();
  };
  const actions = {
    o: () => toggle("outline"),
    f: () => toggle("fill"),
    g: () => choose("truth"),
    p: () => choose("prediction"),
    d: () => choose("difference"),
  };
  actions[key]?.();
  return key in actions;
}

/**
 * Fetch layers of a sample: a list of { image, mask, other }, other being the mask it is compared
 * with, or { problem } where one of them is missing. Throws an Error without the image.
 *
 * options: { side (pixels of the longer one), box ([left, top, width, height]) }
 */
export async function fetchLayers(position, layers, options = {}) {
  const { bits, predictions } = shared.overview;
  const all = ["truth", ...predictions.map((_, i) => `prediction-${i}`)];
  const needed = isFile ? all : all.filter((one) => layers.some((layer) => needs(layer).includes(one)));
  const asked = isFile ? "" : Object.entries({ ...options, v: shared.overview.session }).filter(([, value]) => value).map(([name, value]) => `&${name}=${value}`).join("");
  const [image, ...found] = await getImages(`pictures/${position}?layers=${["image", ...needed]}${asked}`);
  if (image instanceof Error) throw image;
  const masks = new Map(needed.map((name, i) => [name, found[i] instanceof Error ? found[i] : maskOf(found[i], bits)]));
  return layers.map((layer) => {
    const [mask, other] = needs(layer).map((name) => masks.get(name));
    const problem = [mask, other].find((one) => one instanceof Error);
    return problem ? { image, problem: problem.message } : { image, mask: mask ?? null, other: other ?? null };
  });
}

/** Fetch one layer; throws an Error if it is missing. */
export async function fetchLayer(position, layer, options = {}) {
  const [content] = await fetchLayers(position, [layer], options);
  if (content.problem) throw new Error(content.problem);
  return content;
}

function needs(layer) {
  const [kind, number] = layer.split("-");
  if (kind === "image") return [];
  if (kind === "difference") return ["truth", `prediction-${number}`];
  return [layer];
}
