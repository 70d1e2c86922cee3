// One evaluation: scores of the classes, confusions, calibration; and two of them compared.

import { choice, empty, link, make, number, percent, score, swatch, table } from "./dom.js";
import { getJson } from "./data.js";
import { draw, heatmap } from "./charts.js";
import { currentLook, go, nameOf, note, parameters, say, shared } from "./state.js";

const NONE = ["There is no evaluation: score a checkpoint, and give the folder of its scores, too.",
  "cocoseg eval --checkpoint RUN --shards SHARDS --output SCORES --save-predictions\ncocoseg view SHARDS SCORES"];

function options() {
  return shared.overview.evaluations.map(({ name, mIoU }, i) => [i, mIoU === null ? name : `${name}, mIoU ${mIoU.toFixed(4)}`]);
}

/** Show the page. */
export async function showEvaluation(main) {
  if (!shared.overview.evaluations.length) return main.append(empty(...NONE));
  const evaluation = Number(parameters().get("evaluation") ?? 0);
  document.title = `${shared.overview.evaluations[evaluation]?.name} - cocoseg view`;
  const { metrics, confusions, regions } = await getJson(`api/evaluations/${evaluation}`);
  const samples = (more) => ({ tab: "samples", ...(evaluation ? { evaluation } : {}), ...more });
  const { prediction } = shared.overview.evaluations[evaluation] ?? {};
  const layer = typeof prediction === "number" ? { layer: `difference-${prediction}` } : {}; // that shows mistakes
  main.append(
    make("form", { onsubmit: () => false }, choice("Evaluation", "evaluation", options(), evaluation, (value) => {
      note({ evaluation: value === "0" ? null : value });
      shared.navigate();
    })),
    make("p", {}, ...summary(metrics)),
    make("p", { className: "links" },
      link(samples({ sort: "mIoU", ...layer }), "worst images"), link(samples({ sort: "mIoU", desc: 1 }), "best images"),
      link({ tab: "labels", ...(evaluation ? { evaluation } : {}) }, `${number(regions)} suspicious labels`)),
    classTable(metrics.classes ?? [], (more) => samples({ ...more, ...layer })));
  const map = make("div", { className: "chart" });
  main.append(make("h2", {}, "Confusions"));
  if (confusions.length) {
    main.append(make("p", {}, "Share of a true class's pixels that was predicted as another. Click a cell for its images."), map,
      confusionTable(confusions, metrics, (more) => samples({ ...more, ...layer })));
  } else {
    main.append(empty("This evaluation has no confusions of images: run 'cocoseg eval' of this version again, without --quick."));
  }
  if (confusions.length) await confusionMap(map, confusions, metrics, (more) => samples({ ...more, ...layer })).catch((error) => say(error.message, true));
  if (metrics.calibration) {
    const chart = make("div", { className: "chart" });
    main.append(make("h2", {}, `Calibration, error ${score(metrics.calibration.ECE)}`), chart);
    await calibration(chart, metrics.calibration).catch((error) => say(error.message, true));
  }
}

function summary(metrics) {
  const parts = [["mIoU", metrics.mIoU], ["without background", metrics.mIoU_foreground], ["boundary mIoU", metrics.boundary_mIoU],
    ["pixel accuracy", metrics.pixel_accuracy], ["mean Dice", metrics.mean_Dice]];
  return parts.filter(([, value]) => typeof value === "number").flatMap(([name, value]) => [`${name} `, make("strong", {}, score(value)), "  "]);
}

function classTable(classes, samples) {
  const ids = new Map(shared.overview.classes.map(({ name }, id) => [name, id]));
  const { colors } = currentLook();
  const column = (title, key) => ({ title, number: true, value: (row) => row[key], cell: (row) => score(row[key]) });
  return table("Scores of the classes; a class leads to its worst images", [
    { title: "class", value: ({ name }) => name, cell: ({ name }) => ids.has(name) ?
      link(samples({ class: ids.get(name), sort: "IoU" }), swatch(colors[ids.get(name)]), name) : name },
    column("IoU", "IoU"), column("boundary IoU", "boundary_IoU"), column("accuracy", "accuracy"), column("Dice", "Dice"),
    { title: "pixels", number: true, value: ({ pixels }) => pixels, cell: ({ pixels }) => number(pixels) },
  ], classes.filter(({ IoU }) => IoU !== null), { title: "IoU", falling: false });
}

function confusionTable(confusions, metrics, samples) {
  const pixels = pixelsOf(metrics);
  return table("The most frequent confusions", [
    { title: "annotated", value: ([truth]) => nameOf(truth), cell: ([truth]) => nameOf(truth) },
    { title: "predicted", value: ([, predicted]) => nameOf(predicted), cell: ([, predicted]) => nameOf(predicted) },
    { title: "share", number: true, value: ([truth,, count]) => count / pixels(truth), cell: ([truth,, count]) => percent(count / pixels(truth)) },
    { title: "pixels", number: true, value: ([,, count]) => count, cell: ([,, count]) => number(count) },
    { title: "images", number: true, value: ([,,, images]) => images, cell: ([truth, predicted,, images]) =>
      link(samples({ pair: `${truth},${predicted}` }), number(images)) },
  ], confusions.slice(0, 200), { title: "pixels", falling: true });
}

function pixelsOf(metrics) {
  const known = new Map((metrics.classes ?? []).map(({ name, pixels }) => [name, pixels]));
  return (truth) => Math.max(known.get(nameOf(truth)) ?? 0, 1);
}

function confusionMap(element, confusions, metrics, samples) {
  const pixels = pixelsOf(metrics);
  const rows = [...new Set(confusions.map(([truth]) => truth))].sort((one, other) => one - other);
  const columns = [...new Set(confusions.map(([, predicted]) => predicted))].sort((one, other) => one - other);
  const [values, texts] = [0, 1].map(() => rows.map(() => columns.map(() => null)));
  for (const [truth, predicted, count, images] of confusions) {
    const [i, k] = [rows.indexOf(truth), columns.indexOf(predicted)];
    values[i][k] = count / pixels(truth);
    texts[i][k] = `${nameOf(truth)} predicted as ${nameOf(predicted)}:<br>${percent(values[i][k])}, ${number(count)} pixels in ${number(images)} images`;
  }
  return heatmap(element, "Share of each true class that was predicted as another; the table below lists them",
    { rows: rows.map(nameOf), columns: columns.map(nameOf) }, values, texts, { rows: "annotated", columns: "predicted" },
    ({ pointIndex: [i, k] }) => go(samples({ pair: `${rows[i]},${columns[k]}` })));
}

function calibration(element, { bins }) {
  const used = bins.filter(({ pixels }) => pixels);
  element.style.height = "360px";
  const line = { color: "gray", dash: "dot" };
  return draw(element, "Accuracy of the pixels by the probability of their class", [
    { x: [0, 1], y: [0, 1], mode: "lines", line, name: "calibrated", hoverinfo: "skip" },
    { x: used.map(({ confidence }) => confidence), y: used.map(({ accuracy }) => accuracy), mode: "lines+markers", name: "network",
      text: used.map(({ pixels }) => `${number(pixels)} pixels`), hovertemplate: "probability %{x:.3f}, accuracy %{y:.3f}<br>%{text}<extra></extra>" },
  ], { xaxis: { title: { text: "mean probability" }, range: [0, 1.02] }, yaxis: { title: { text: "accuracy" }, range: [0, 1.02] } });
}

/** Show two evaluations beside each other. */
export async function showComparison(main) {
  const { evaluations } = shared.overview;
  document.title = "Comparison - cocoseg view";
  if (evaluations.length < 2) {
    return main.append(empty("Two evaluations are compared: give the folders of both.", "cocoseg view SHARDS SCORES-A SCORES-B"));
  }
  const [a, b] = [Number(parameters().get("a") ?? 0), Number(parameters().get("b") ?? 1)];
  const { metrics, classes, images } = await getJson(`api/comparison?a=${a}&b=${b}`);
  const pick = (label, name, value) => choice(label, name, options(), value, (chosen) => {
    note({ [name]: chosen });
    shared.navigate();
  });
  const changed = (more) => ({ tab: "samples", evaluation: a, other: b, sort: "change", ...more });
  const difference = ({ before, after }) => before === null || before === undefined || after === null || after === undefined ? null : after - before;
  const signed = (row) => {
    const value = difference(row);
    return value === null ? "" : make("span", { className: value < 0 ? "worse" : value > 0 ? "better" : "" }, `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`);
  };
  const columns = (title) => [
    { title, value: ({ name }) => name, cell: ({ name }) => name === "mIoU_foreground" ? "mIoU without background" : name.replace("_", " ") },
    { title: "before", number: true, value: ({ before }) => before, cell: ({ before }) => score(before) },
    { title: "after", number: true, value: ({ after }) => after, cell: ({ after }) => score(after) },
    { title: "change", number: true, value: difference, cell: signed },
  ];
  main.append(
    make("form", { onsubmit: () => false }, pick("From", "a", a), pick("to", "b", b)),
    make("p", {}, `Of ${number(images.compared)} images that both scored, `,
      link(changed({ most: -1e-9 }), `${number(images.worse)} became worse`), " and ", link(changed({ desc: 1, least: 1e-9 }), `${number(images.better)} better`), "."),
    table("Scores", columns("score"), metrics.filter(({ before, after }) => before !== null || after !== null)),
    table("IoU of the classes", columns("class"), classes, { title: "change", falling: false }));
}
