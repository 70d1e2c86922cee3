// The state of the page, which is its address, and what all pages share.

import { isFile } from "./data.js";
import { colorsOf } from "./masks.js";

/** Set once at the start; see `Answers.overview`. */
export const shared = { overview: null, picked: new Set(), navigate: null };
const KEPT = ["palette", "opacity", "fill", "outline", "hide"]; // from page to page

let address = location.search; // a browser may refuse to change that of a file

addEventListener("popstate", () => {
  address = location.search;
});

/** The parameters of the address. */
export function parameters() {
  return new URLSearchParams(address);
}

/** Change some parameters of the address, null removes one; the page stays as it is. */
export function note(changes) {
  const now = parameters();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "" || value === undefined) now.delete(name);
    else now.set(name, value);
  }
  address = `?${now}`;
  if (!isFile) history.replaceState(null, "", address);
}

/** Go to another state of the page. */
export function go(wanted) {
  const next = new URLSearchParams(wanted);
  for (const name of KEPT) {
    const value = parameters().get(name);
    if (value !== null && !next.has(name)) next.set(name, value);
  }
  address = `?${next}`;
  if (!isFile) history.pushState(null, "", address);
  shared.navigate();
}

/** Say something, or what went wrong. */
export function say(text, wrong = false) {
  const status = document.querySelector("#status");
  status.textContent = text;
  status.classList.toggle("error", wrong);
}

/** What masks look like now. */
export function currentLook() {
  const { overview } = shared;
  const now = parameters();
  const pair = now.get("pair");
  return {
    layer: now.get("layer") ?? "truth",
    fill: now.get("fill") !== "0",
    outline: now.get("outline") === "1",
    opacity: Number(now.get("opacity") ?? 0.55),
    colors: colorsOf(overview, now.get("palette") ?? "classes"),
    ignore: overview.ignore_index,
    pair: pair ? pair.split(",").map(Number) : null,
    hidden: new Set((now.get("hide") ?? "").split(",").filter(Boolean).map(Number)),
  };
}

/** Which prediction is meant: that of the layer, or else of the evaluation. */
export function predictionNumber() {
  const now = parameters();
  const [, number] = (now.get("layer") ?? "").split("-");
  const { prediction } = shared.overview.evaluations[Number(now.get("evaluation") ?? 0)] ?? {};
  return Number(number ?? prediction ?? 0);
}

/** The name of a class. */
export function nameOf(id) {
  if (id === shared.overview.ignore_index) return "(ignored)";
  if (id === shared.overview.classes.length) return "(no prediction)";
  return shared.overview.classes[id]?.name ?? `${id}`;
}
