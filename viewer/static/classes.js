// The classes: how much there is of each, and which occur together.

import { empty, link, make, number, percent, swatch, table } from "./dom.js";
import { getJson } from "./data.js";
import { heatmap } from "./charts.js";
import { currentLook, go, nameOf, say, shared } from "./state.js";

/** Show the page. */
export async function showClasses(main) {
  const { overview } = shared;
  if (!overview.samples) {
    return main.append(empty("There are no classes: give a folder of shards, too.", "cocoseg view SHARDS …"));
  }
  document.title = "Classes - cocoseg view";
  const { colors } = currentLook();
  const total = overview.classes.reduce((sum, { pixels }) => sum + pixels, 0);
  const rows = overview.classes.map((one, id) => ({ ...one, id })).filter(({ images }) => images);
  const largest = Math.max(...rows.filter(({ id }) => id).map(({ pixels }) => pixels), 1);
  main.append(make("p", {}, imbalance(rows)), absent(overview), table("Pixels and images of each class", [
    { title: "class", value: ({ name }) => name, cell: ({ id, name }) =>
      link({ tab: "samples", class: id, sort: "share", desc: 1 }, swatch(colors[id]), name) },
    { title: "images", number: true, value: ({ images }) => images, cell: ({ images }) => number(images) },
    { title: "share of the images", number: true, value: ({ images }) => images, cell: ({ images }) => percent(images / overview.samples) },
    { title: "pixels", number: true, value: ({ pixels }) => pixels, cell: ({ pixels }) => number(pixels) },
    { title: "share of the pixels", number: true, value: ({ pixels }) => pixels, cell: ({ pixels }) => percent(pixels / total) },
    { title: "relative to the largest class", cell: ({ id, pixels }) => {
      if (!id) return "";
      const bar = make("div", { className: "meter" });
      bar.style.width = `${100 * pixels / largest}%`;
      return bar;
    } },
  ], rows, { title: "pixels", falling: true }));
  const chart = make("div", { className: "chart" });
  const list = make("div");
  main.append(make("h2", {}, "Classes in the same image"), chart, list);
  await together(chart, list).catch((error) => say(error.message, true));
}

function imbalance(rows) {
  const things = rows.filter(({ id }) => id).sort((one, other) => other.pixels - one.pixels);
  if (things.length < 2) return "";
  const [most, least] = [things[0], things.at(-1)];
  const background = rows.find(({ id }) => id === 0);
  const total = rows.reduce((sum, { pixels }) => sum + pixels, 0);
  return `${things.length} classes occur beside the background` +
    (background ? ` (${percent(background.pixels / total)} of the pixels)` : "") +
    `. ${most.name} has ${number(Number((most.pixels / Math.max(least.pixels, 1)).toPrecision(2)))} times the pixels of ${least.name}.`;
}

function absent({ classes }) {
  const names = classes.filter(({ images }, id) => id && !images).map(({ name }) => name);
  if (!names.length) return null;
  return make("p", {}, `${names.length} classes occur in no image: ${names.slice(0, 30).join(", ")}${names.length > 30 ? " …" : "."}`);
}

async function together(chart, list) {
  const { train_ids: ids, images } = await getJson("api/classes");
  if (ids.length < 2) return;
  const names = ids.map(nameOf);
  const pairs = ids.flatMap((one, i) => ids.slice(i + 1).map((other, k) => ({ one, other, count: images[i][i + 1 + k] })));
  list.append(table("Pairs of classes", [
    { title: "class", value: ({ one }) => nameOf(one), cell: ({ one }) => nameOf(one) },
    { title: "and", value: ({ other }) => nameOf(other), cell: ({ other }) => nameOf(other) },
    { title: "images with both", number: true, value: ({ count }) => count,
      cell: ({ one, other, count }) => link({ tab: "samples", class: one, with: other }, number(count)) },
  ], pairs.filter(({ count }) => count).sort((one, other) => other.count - one.count).slice(0, 200),
  { title: "images with both", falling: true }));
  const texts = images.map((row, i) => row.map((count, k) =>
    i === k ? `${names[i]}: ${number(count)} images` : `${names[i]} and ${names[k]}: ${number(count)} images`));
  await heatmap(chart, "Number of images that hold two classes; the table below lists them", { rows: names, columns: names },
    images.map((row, i) => row.map((count, k) => i === k ? null : count)), texts, { rows: "", columns: "" },
    ({ pointIndex: [i, k] }) => go({ tab: "samples", class: ids[i], with: ids[k] }));
}
