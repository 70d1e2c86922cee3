// The grid of samples: filters, orders, and which are picked. Every state is an address.

import { button, choice, empty, make, number } from "./dom.js";
import { getJson, getText, isFile } from "./data.js";
import { fetchLayers, lookBar } from "./look.js";
import { paint } from "./masks.js";
import { closeSample, openSample, repaintSample } from "./sample.js";
import { currentLook, nameOf, note, parameters, say, shared } from "./state.js";

const CHUNK = 60;      // cells that are added at once
const THUMBNAIL = 320; // pixels
const NEEDS_CLASS = ["share", "IoU"];
const FILTERS = ["q", "class", "with", "least", "most", "evaluation", "other", "sort", "desc", "pair"];
const RANGES = {
  size: "pixels", classes: "classes", instances: "instances", share: "% of the image", mIoU: "0 … 1", IoU: "0 … 1",
  confidence: "0 … 1", quality: "0 … 1", suspicion: "0 … 1", change: "−1 … 1",
}; // orders whose values can be limited, and their units
const WORDS = {
  position: "order of the shards", key: "key", size: "image size", classes: "number of classes",
  instances: "number of instances", share: "share of the class", mIoU: "mIoU", IoU: "IoU of the class",
  confidence: "confidence", quality: "label quality", suspicion: "suspicion of a label error",
  change: "change of mIoU",
};

let positions = [], grid = null, more = null, count = 0;

/** Show the page. */
export async function showSamples(main) {
  const { overview } = shared;
  if (!overview.samples) {
    return main.append(empty("There are no samples: give a folder of shards, too.", "cocoseg view SHARDS …"));
  }
  grid = make("div", { id: "grid", role: "list", "aria-label": "Samples" });
  more = make("div", { id: "more" });
  main.append(make("div", { className: "bars" }, isFile ? null : filterBar(), lookBar(repaint, reload),
    isFile ? null : pickBar()), grid, more);
  ends.disconnect();
  await search();
  const sample = parameters().get("sample");
  if (sample !== null) await show(Number(sample));
}

/** The part of the address that chooses samples, as the server takes it. */
function query() {
  const now = parameters();
  const asked = new URLSearchParams();
  for (const name of FILTERS) {
    const value = now.get(name);
    if (value) asked.set(name, value);
  }
  for (const name of ["least", "most"]) {
    if (!(asked.get("sort") in RANGES)) asked.delete(name);
    else if (asked.has(name) && asked.get("sort") === "share") asked.set(name, asked.get(name) / 100);
  }
  if (asked.get("sort") === "change") asked.set("other", other());
  return asked;
}

/** The evaluation that a change leads to. */
function other() {
  const evaluation = Number(parameters().get("evaluation") ?? 0);
  const given = Number(parameters().get("other") ?? -1);
  return given >= 0 && given !== evaluation ? given : evaluation === 0 ? 1 : 0;
}

function filterBar() {
  const { classes, orders, evaluations, samples } = shared.overview;
  const now = parameters();
  let waiting = 0;
  const change = (name, value) => {
    note({ [name]: value, sample: null });
    clearTimeout(waiting);
    waiting = setTimeout(search, 200);
  };
  const input = (label, name, properties) => {
    const field = make("input", { name, value: now.get(name) ?? "", ...properties,
      oninput: () => change(name, field.value) });
    return make("label", {}, label, field);
  };
  const ofClasses = classes.flatMap(({ name, images }, id) => images ? [[id, `${name} (${number(images)})`]] : []);
  const falling = make("input", { type: "checkbox", name: "desc", checked: now.get("desc") === "1",
    onchange: () => change("desc", falling.checked ? "1" : "") });
  const unit = make("span");
  const range = make("span", { className: "range" }, input("from", "least", { type: "number", step: "any" }),
    input("to", "most", { type: "number", step: "any" }), unit);
  const limit = () => {
    const order = parameters().get("sort");
    range.hidden = !(order in RANGES);
    unit.textContent = RANGES[order] ?? "";
  };
  limit();
  const clear = () => {
    note(Object.fromEntries([...FILTERS, "sample", "hide"].map((name) => [name, null])));
    shared.navigate();
  };
  document.title = `${number(samples)} samples - cocoseg view`;
  return make("form", { role: "search", "aria-label": "Which samples are shown", onsubmit: () => false },
    input("Search", "q", { type: "search", placeholder: "key, image id or file name" }),
    choice("Class", "class", [["", "any"], ...ofClasses], now.get("class") ?? "", (value) => change("class", value)),
    evaluations.length > 1 ? choice("Evaluation", "evaluation", evaluations.map(({ name }, i) => [i, name]),
      now.get("evaluation") ?? 0, (value) => change("evaluation", value === "0" ? "" : value)) : null,
    choice("Sort", "sort", orders.map((order) => [order, WORDS[order]]), now.get("sort") ?? "position",
      (value) => {
        for (const field of range.querySelectorAll("input")) field.value = "";
        falling.checked = value === "suspicion";
        note({ least: null, most: null, desc: falling.checked ? "1" : null });
        change("sort", value === "position" ? "" : value);
        limit();
      }),
    range, make("label", {}, falling, "descending"),
    button("Reset", clear));
}

/** What is chosen beside the controls: a cell of a table that led here. */
function restriction() {
  const now = parameters();
  const found = [];
  if (now.get("pair")) {
    const [truth, predicted] = now.get("pair").split(",").map(Number);
    found.push(`${nameOf(truth)} predicted as ${nameOf(predicted)}${now.get("sort") ? "" : ", most such pixels first"}`);
  }
  if (now.get("sort") === "change") found.push(`change to ${shared.overview.evaluations[other()].name}`);
  if (now.get("with")) found.push(`also with ${nameOf(Number(now.get("with")))}`);
  return found.length ? `: ${found.join("; ")}` : "";
}

let turn = 0; // of searches: answers of earlier ones are dropped

async function search() {
  const mine = ++turn;
  if (isFile) {
    positions = shared.overview.positions;
  } else {
    if (NEEDS_CLASS.includes(parameters().get("sort")) && !parameters().get("class")) {
      return say(`To sort by the ${WORDS[parameters().get("sort")]}, choose a class.`, true);
    }
    say("searching …");
    try {
      const found = await getJson(`api/samples?${query()}`);
      if (mine !== turn || !grid.isConnected) return;
      positions = found.positions;
    } catch (error) {
      if (mine === turn && grid.isConnected) say(error.message, true);
      return;
    }
  }
  grid.replaceChildren();
  count = 0;
  adding = false;
  const { samples } = shared.overview;
  say(positions.length ? `${number(positions.length)} of ${number(samples)} samples${restriction()}` :
    "No sample matches. Search for less of the name, choose another class, or remove the limits; Reset shows all.");
  await addCells();
}

let adding = false;
const ends = new IntersectionObserver((entries) => {
  if (entries[0].isIntersecting && count) addCells();
}, { rootMargin: "800px" });

async function addCells() {
  const next = positions.slice(count, count + CHUNK);
  if (adding || !next.length) return;
  adding = true;
  const mine = turn;
  const cells = next.map(cellOf);
  grid.append(...cells);
  count += next.length;
  try {
    const facts = isFile ? next.map((position) => shared.overview.facts[position]) :
      (await getJson(`api/facts?positions=${next}`)).facts;
    cells.forEach((cell, i) => describe(cell, facts[i]));
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
  if (mine !== turn) return;
  adding = false;
  ends.unobserve(more); // so that it looks again: the end may still be in sight
  ends.observe(more);
}

// Cells far from the screen give their pixels back.
const visible = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !target.content) fillCell(target);
    else if (!isIntersecting && target.content) {
      target.content = null;
      target.querySelector("canvas").width = 0;
    }
  }
}, { rootMargin: "600px" });

function cellOf(position) {
  const open = make("button", { type: "button", className: "open", onclick: () => show(position) },
    make("canvas"), make("span", {}, `sample ${position}`));
  const pick = make("input", { type: "checkbox", checked: shared.picked.has(position),
    "aria-label": `Pick sample ${position}`, onchange: () => {
      if (pick.checked) shared.picked.add(position);
      else shared.picked.delete(position);
      countPicked();
    } });
  const cell = make("div", { className: "cell", role: "listitem" }, open, isFile ? null : pick);
  cell.position = position;
  visible.observe(cell);
  return cell;
}

function describe(cell, facts) {
  const text = `${facts.key}${valueOf(facts)}`;
  const names = facts.classes.map(({ train_id: id }) => nameOf(id));
  const open = cell.querySelector(".open");
  cell.text = text;
  if (!open.classList.contains("wrong")) open.querySelector("span").textContent = text;
  open.setAttribute("aria-label", `${text}: ${names.join(", ")}`);
  cell.querySelector("input")?.setAttribute("aria-label", `Pick ${facts.key}`);
}

/** What the samples are sorted by, or their mIoU. */
function valueOf({ scores, classes, width, height }) {
  const now = parameters();
  const [scored, train_id] = [scores[Number(now.get("evaluation") ?? 0)], Number(now.get("class") ?? -1)];
  const share = classes.find((one) => one.train_id === train_id)?.pixels / (width * height);
  const values = {
    IoU: ["IoU", scored?.IoU[train_id]], confidence: ["confidence", scored?.confidence], quality: ["label quality", scored?.quality],
    share: ["share", share], change: ["change", scores[other()]?.mIoU - scored?.mIoU],
  };
  const [name, value] = values[now.get("sort")] ?? ["mIoU", scored?.mIoU];
  return typeof value === "number" && !Number.isNaN(value) ? ` · ${name} ${value.toFixed(3)}` : "";
}

async function fillCell(cell) {
  cell.content = {};
  const { layer } = currentLook();
  const [open, span] = [cell.querySelector(".open"), cell.querySelector(".open span")];
  try {
    const [content] = await fetchLayers(cell.position, [layer], { side: THUMBNAIL });
    if (!cell.content || layer !== currentLook().layer) return; // scrolled away, or another is shown now
    cell.content = content;
    paint(cell.querySelector("canvas"), content.image, content.mask, currentLook(), content.other);
    open.classList.toggle("wrong", Boolean(content.problem));
    span.textContent = content.problem ?? cell.text ?? span.textContent;
  } catch (error) {
    open.classList.add("wrong");
    span.textContent = error.message;
  }
}

function repaint() {
  for (const cell of grid.children) {
    if (!cell.content?.image) continue;
    const { image, mask, other } = cell.content;
    paint(cell.querySelector("canvas"), image, mask, currentLook(), other);
  }
  repaintSample();
}

function reload() {
  for (const cell of grid.children) {
    if (cell.content) fillCell(cell);
  }
  repaintSample();
}

// ---- picked samples

function pickBar() {
  return make("div", { className: "picks", role: "group", "aria-label": "Picked samples" },
    make("span", { id: "picked" }, picked()),
    button("Copy keys", copyKeys), button("Save list", saveList),
    button("Clear selection", () => {
      shared.picked.clear();
      for (const box of grid.querySelectorAll(".cell > input")) box.checked = false;
      countPicked();
    }));
}

function picked() {
  return shared.picked.size ? `${number(shared.picked.size)} picked:` : "All results:";
}

function countPicked() {
  document.querySelector("#picked").textContent = picked();
}

async function listed(form = "") {
  const chosen = [...shared.picked].sort((one, other) => one - other);
  return getText(`api/list?${chosen.length ? `positions=${chosen}` : query()}${form}`);
}

async function copyKeys() {
  try {
    const keys = (await listed("&keys=1")).split("\n");
    if (!navigator.clipboard) throw new Error("The browser copies only from https or from localhost: save the list.");
    await navigator.clipboard.writeText(keys.join("\n"));
    say(`${number(keys.length - 1)} keys are in the clipboard.`);
  } catch (error) {
    say(error.message, true);
  }
}

async function saveList() {
  try {
    const text = await listed();
    const save = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: "samples.txt" });
    save.click();
    URL.revokeObjectURL(save.href);
    say("samples.txt is saved: 'cocoseg infer --input' and 'cocoseg prepare --only' read it.");
  } catch (error) {
    say(error.message, true);
  }
}

// ---- one sample

async function show(position) {
  note({ sample: position });
  try {
    await openSample(position, {
      step: (step) => {
        const next = positions[positions.indexOf(position) + step];
        if (next === undefined) return;
        note({ box: null });
        show(next);
      },
      repaint,
      closed: () => note({ sample: null, box: null }),
    });
  } catch (error) {
    closeSample();
    say(error.message, true);
  }
}
