// Training runs: curves, live while they train, over each other; settings; validation pictures.

import { choice, empty, make, number, score, table } from "./dom.js";
import { getJson } from "./data.js";
import { draw } from "./charts.js";
import { note, parameters, say, shared } from "./state.js";

const EVERY = 2000; // milliseconds between two looks at runs that may still train
const CURVES = [
  ["loss", "loss"], ["val_loss", "validation loss"], ["val_mIoU", "validation mIoU"], ["class", "validation IoU of one class"],
  ["learning_rate", "learning rate"], ["images_per_second", "images per second"], ["data_wait", "share of the time that waits for data"],
];
let runs = [];

/** Show the page. */
export async function showRuns(main) {
  document.title = "Runs - cocoseg view";
  const { overview } = shared;
  if (!overview.runs.length) {
    return main.append(empty("There is no run: give the folder of a training, while it trains or later.", "cocoseg view SHARDS RUN"));
  }
  runs = overview.runs.map((name) => ({ name, lines: [], end: 0, settings: {} }));
  await look();
  const scores = runs.flatMap(({ lines }) => lines.flatMap((line) => Object.entries(line.val_IoU ?? {})));
  const classes = [...new Set(scores.flatMap(([name, iou]) => iou === null ? [] : [name]))];
  const chosen = parameters().get("of") ?? classes[1] ?? classes[0] ?? "";
  const charts = CURVES.map(([key, title]) => ({ key, title, element: make("div", { className: "chart" }) }));
  const last = make("div");
  const redraw = async () => {
    last.replaceChildren(lastValues());
    for (const { key, title, element } of charts) await curve(element, key, title, parameters().get("of") ?? chosen);
  };
  main.append(last,
    classes.length ? make("form", { onsubmit: () => false }, choice("Class", "of", classes.map((name) => [name, name]), chosen, (value) => {
      note({ of: value });
      redraw();
    })) : "",
    make("div", { className: "charts" }, ...charts.map(({ element }) => element)), settingsTable(), pictures());
  await redraw().catch((error) => say(error.message, true));
  const again = async () => {
    if (!last.isConnected) return;
    try {
      if (!document.hidden && await look()) await redraw();
    } catch (error) {
      if (last.isConnected) say(error.message, true);
    }
    setTimeout(again, EVERY);
  };
  setTimeout(again, EVERY);
}

/** Ask for what was recorded since; true if there is something new. */
async function look() {
  let news = false;
  await Promise.all(runs.map(async (run, i) => {
    const { lines, start, end, settings } = await getJson(`api/runs/${i}?from=${run.end}`);
    news ||= end !== run.end;
    run.lines = start ? [...run.lines, ...lines] : lines;
    run.end = end;
    if (settings) run.settings = settings;
  }));
  return news;
}

function lastValues() {
  const latest = ({ lines }, key) => lines.findLast((line) => line[key] !== undefined)?.[key];
  const best = ({ lines }) => Math.max(...lines.map((line) => line.val_mIoU ?? -Infinity));
  return table("Runs", [
    { title: "run", value: ({ name }) => name, cell: ({ name }) => name },
    { title: "steps", number: true, value: (run) => latest(run, "step"), cell: (run) => number(latest(run, "step") ?? 0) },
    { title: "loss", number: true, value: (run) => latest(run, "loss"), cell: (run) => score(latest(run, "loss")) },
    { title: "validation mIoU", number: true, value: (run) => latest(run, "val_mIoU"), cell: (run) => score(latest(run, "val_mIoU")) },
    { title: "best", number: true, value: best, cell: (run) => Number.isFinite(best(run)) ? score(best(run)) : "" },
  ], runs);
}

function curve(element, key, title, ofClass) {
  const traces = runs.flatMap(({ name, lines }) => {
    if (key === "class") return [trace(name, lines, (line) => line.val_IoU?.[ofClass])];
    if (key !== "learning_rate") return [trace(name, lines, (line) => line[key])];
    const groups = [...new Set(lines.flatMap((line) => Object.keys(line.learning_rate ?? {})))];
    return groups.map((group) => trace(`${name} ${group}`, lines, (line) => line.learning_rate?.[group]));
  });
  const text = key === "class" ? `validation IoU of ${ofClass}` : title;
  return draw(element, `${text} by step`, traces, { title: { text, font: { size: 14 } }, height: 300, uirevision: key,
    xaxis: { title: { text: "step" } }, legend: { orientation: "h", y: -0.25 }, showlegend: traces.length > 1 });
}

function trace(name, lines, value) {
  const known = lines.filter((line) => typeof value(line) === "number");
  return { name, x: known.map(({ step }) => step), y: known.map(value), mode: known.length < 60 ? "lines+markers" : "lines", type: "scatter" };
}

function settingsTable() {
  const keys = [...new Set(runs.flatMap(({ settings }) => Object.keys(settings)))].sort();
  const told = ({ settings }, key) => settings[key] === undefined ? "" : JSON.stringify(settings[key]);
  const differ = keys.filter((key) => new Set(runs.map((run) => told(run, key))).size > 1);
  const listed = runs.length > 1 ? differ : keys;
  const rows = listed.map((key) => ({ key }));
  if (!rows.length) return make("p", {}, runs.length > 1 ? "The runs have the same settings." : "");
  const found = table(runs.length > 1 ? "Settings that differ" : "Settings", [
    { title: "setting", value: ({ key }) => key, cell: ({ key }) => key },
    ...runs.map((run) => ({ title: run.name, cell: ({ key }) => told(run, key) })),
  ], rows);
  return runs.length > 1 ? found : make("details", {}, make("summary", {}, "Settings"), found);
}

/** Validation pictures: a run, a sample, and a slider through the steps. */
function pictures() {
  const place = make("section", { "aria-label": "Validation pictures" }, make("h2", {}, "Validation pictures"));
  const show = make("div");
  const choose = async (run) => {
    try {
      const found = (await getJson(`api/runs/${run}/pictures`)).pictures;
      show.replaceChildren(found.length ? slider(run, found) : empty("This run has no pictures yet; train.pictures says how many are made."));
    } catch (error) {
      show.replaceChildren(empty(error.message));
    }
  };
  if (runs.length > 1) place.append(make("form", { onsubmit: () => false }, choice("Run", "run", runs.map(({ name }, i) => [i, name]), 0, choose)));
  place.append(show);
  choose(0);
  return place;
}

function slider(run, found) {
  const names = [...new Set(found.map(({ name }) => name))];
  const picture = make("img", { className: "wide" });
  const step = make("output");
  const range = make("input", { type: "range", min: 0, "aria-label": "Step", oninput: () => show() });
  let steps = [], name = names[0];
  const choose = (value) => {
    name = value;
    steps = found.filter((one) => one.name === name).map((one) => one.step);
    range.max = steps.length - 1;
    range.value = range.max;
    show();
  };
  const show = () => {
    const at = steps[Number(range.value)];
    step.textContent = `step ${number(at)}`;
    picture.src = `run-picture/${run}?${new URLSearchParams({ name, step: at, v: shared.overview.session })}`;
    picture.alt = `${name} at step ${at}: image, ground truth and prediction`;
  };
  const controls = make("form", { onsubmit: () => false }, choice("Sample", "name", names.map((one) => [one, one]), name, choose), range, step);
  choose(name);
  return make("div", {}, controls, picture);
}
