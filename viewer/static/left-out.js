// Images that 'cocoseg prepare' left out, and why.

import { choice, empty, make, number, table, whenVisible } from "./dom.js";
import { getImage, getJson } from "./data.js";
import { note, parameters, shared } from "./state.js";

const MOST = 1000;

/** Show the page. */
export async function showLeftOut(main) {
  document.title = "Left out - cocoseg view";
  const { images } = await getJson("api/left-out");
  if (!images.length) return main.append(empty("No image was left out of these shards."));
  const counts = new Map();
  for (const { reason } of images) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  const wanted = parameters().get("reason") ?? "";
  const rows = images.map((entry, i) => ({ ...entry, i })).filter(({ reason }) => !wanted || reason === wanted);
  main.append(
    make("p", {}, "These images could not be trusted, and are not in the shards. Give the folder of the images, too, to see those that can be opened."),
    make("form", { onsubmit: () => false }, choice("Reason", "reason",
      [["", `all (${number(images.length)})`], ...[...counts].map(([reason, count]) => [reason, `${reason} (${number(count)})`])],
      wanted, (value) => {
        note({ reason: value });
        shared.navigate();
      })),
    table("Images that were left out", [
      { title: "file", value: ({ file_name: name }) => name, cell: ({ file_name: name }) => name },
      { title: "reason", value: ({ reason }) => reason, cell: ({ reason }) => reason },
      { title: "detail", value: ({ detail }) => detail, cell: ({ detail }) => detail },
      { title: "picture", cell: ({ i }) => pictureOf(i) },
    ], rows.slice(0, MOST)));
  if (rows.length > MOST) main.append(make("p", {}, `Not listed: ${number(rows.length - MOST)} more; quarantine.jsonl has all.`));
}

const visible = whenVisible(fill);

function pictureOf(i) {
  const element = make("div", { className: "small" });
  element.number = i;
  visible.observe(element);
  return element;
}

async function fill(element) {
  try {
    const image = await getImage(`left-out/${element.number}?side=160&v=${shared.overview.session}`);
    const canvas = make("canvas", { width: image.width, height: image.height, role: "img", "aria-label": "the image" });
    canvas.getContext("2d").drawImage(image, 0, 0);
    element.replaceChildren(canvas);
  } catch (error) {
    element.textContent = error.message;
  }
}
