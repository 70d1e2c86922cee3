// Labels that may be wrong, the most suspicious first.

import { choice, empty, link, make, number, table, whenVisible } from "./dom.js";
import { getJson } from "./data.js";
import { fetchLayer, lookBar } from "./look.js";
import { paint } from "./masks.js";
import { currentLook, go, nameOf, note, parameters, shared } from "./state.js";

const SHOWN = 60;

/** Show the page. */
export async function showLabels(main) {
  document.title = "Label errors - cocoseg view";
  const { evaluations } = shared.overview;
  if (!evaluations.length) {
    return main.append(empty("Score the shards that are to be checked with a network that was trained on them:",
      "cocoseg eval --checkpoint RUN --shards SHARDS --output LABEL-CHECK --save-predictions\ncocoseg view SHARDS LABEL-CHECK"));
  }
  const evaluation = Number(parameters().get("evaluation") ?? 0);
  const { regions } = await getJson(`api/labels/${evaluation}`);
  const kinds = [...new Set(regions.map(({ kind }) => kind))];
  const wanted = parameters().get("kind") ?? "";
  const found = regions.filter(({ kind }) => !wanted || kind === wanted);
  const grid = make("div", { id: "grid", className: "labels", role: "list", "aria-label": "Suspicious regions" });
  const again = (name, usual) => (value) => {
    note({ [name]: value === usual ? null : value });
    shared.navigate();
  };
  const filled = () => [...grid.children].filter(({ content }) => content);
  const redraw = () => filled().forEach(drawn);
  const refetch = () => filled().forEach(fill);
  main.append(make("div", { className: "bars" }, make("form", { onsubmit: () => false },
    choice("Evaluation", "evaluation", evaluations.map(({ name }, i) => [i, name]), evaluation, again("evaluation", "0")),
    choice("Kind", "kind", [["", "all"], ...kinds.map((kind) => [kind, kind])], wanted, again("kind", ""))),
  lookBar(redraw, refetch)));
  if (!found.length) {
    return main.append(empty("Nothing is suspicious here. An evaluation with --quick, or of --predictions, looks for nothing."));
  }
  main.append(make("p", {}, `${number(found.length)} regions where the network contradicts the label and is sure of it. ` +
    "A suspicion is a place to look at, not a verdict."), grid);
  grid.append(...found.slice(0, SHOWN).map((region) => cellOf(region, evaluation)));
  for (const cell of grid.children) visible.observe(cell);
  main.append(table("All of them", [
    { title: "suspicion", number: true, value: ({ suspicion }) => suspicion, cell: ({ suspicion }) => suspicion.toFixed(4) },
    { title: "kind", value: ({ kind }) => kind, cell: ({ kind }) => kind },
    { title: "annotated", value: ({ annotated }) => nameOf(annotated), cell: ({ annotated }) => nameOf(annotated) },
    { title: "predicted", value: ({ predicted }) => nameOf(predicted), cell: ({ predicted }) => nameOf(predicted) },
    { title: "image", value: ({ file_name: name }) => name, cell: ({ file_name: name, position, box }) =>
      link({ tab: "samples", sample: position, box }, name) },
  ], found));
}

const visible = whenVisible(fill);

function cellOf(region, evaluation) {
  const words = region.kind === "missing object" ? `${region.kind}: ${nameOf(region.predicted)}` :
    region.kind === "extra object" ? `${region.kind}: ${nameOf(region.annotated)}` :
      `${region.kind}: ${nameOf(region.annotated)}, predicted ${nameOf(region.predicted)}`;
  const open = make("button", { type: "button", className: "open",
    onclick: () => go({ tab: "samples", sample: region.position, box: region.box, ...(evaluation ? { evaluation } : {}) }) },
  make("canvas"), make("span", {}, `${region.suspicion.toFixed(2)} ${words}`));
  const cell = make("div", { className: "cell", role: "listitem" }, open);
  cell.region = region;
  return cell;
}

/** Draw the surroundings of a region, and the region's box. */
async function fill(cell) {
  const { position, box: [left, top, width, height] } = cell.region;
  const label = cell.querySelector(".open span");
  const { layer } = currentLook();
  const margin = Math.round(Math.max(width, height, 60) / 2);
  const part = [Math.max(0, left - margin), Math.max(0, top - margin)];
  part.push(left + width + margin - part[0], top + height + margin - part[1]);
  try {
    const content = await fetchLayer(position, layer, { box: part });
    if (layer !== currentLook().layer) return;
    cell.content = { ...content, place: [left - part[0], top - part[1], width, height] };
    drawn(cell);
  } catch (error) {
    label.textContent = error.message;
  }
}

function drawn(cell) {
  const { image, mask, other, place: [left, top, width, height] } = cell.content;
  const canvas = cell.querySelector("canvas");
  paint(canvas, image, mask, currentLook(), other);
  const context = canvas.getContext("2d");
  const line = Math.max(1, canvas.width / 200);
  for (const [color, grow] of [["black", line], ["white", 0]]) {
    context.strokeStyle = color;
    context.lineWidth = line;
    context.strokeRect(left - grow, top - grow, width + 2 * grow, height + 2 * grow);
  }
}
