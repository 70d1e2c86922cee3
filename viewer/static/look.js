// How masks are shown: a row of controls, their keys, and fetching what a layer needs.

import { button, choice, make } from "./dom.js";
import { getImage, isFile } from "./data.js";
import { loadMask } from "./masks.js";
import { currentLook, note, parameters, shared } from "./state.js";

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
export function lookKey(key) {
  if (!bar?.isConnected) return false;
  const toggle = (name) => bar.elements[name].click();
  const choose = (prefix) => {
    const found = layers().find(([value]) => value.startsWith(prefix));
    if (!found) return;
    bar.elements.layer.value = found[0];
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
 * Fetch what a layer needs of a sample: image, mask, and the mask it is compared with.
 *
 * options: { side (pixels of the longer one), box ([left, top, width, height]) }
 */
export async function fetchLayer(position, layer, options = {}) {
  const asked = new URLSearchParams(isFile ? {} : Object.entries(options).filter(([, value]) => value));
  const size = asked.size ? `?${asked}` : "";
  const { bits } = shared.overview;
  const [kind, number] = layer.split("-");
  const truth = () => loadMask(`mask/${position}${size}`, bits);
  const prediction = () => loadMask(`prediction/${number}/${position}${size}`, bits);
  const [image, mask, other] = await Promise.all([
    getImage(`image/${position}${size}`),
    kind === "image" ? null : kind === "prediction" ? prediction() : truth(),
    kind === "difference" ? prediction() : null,
  ]);
  return { image, mask, other };
}
