// The pages, their addresses and the keys.

import { getJson, isFile } from "./data.js";
import { clearCharts } from "./charts.js";
import { make } from "./dom.js";
import { showClasses } from "./classes.js";
import { showComparison, showEvaluation } from "./evaluation.js";
import { showLabels } from "./labels.js";
import { showLeftOut } from "./left-out.js";
import { lookKey } from "./look.js";
import { showRuns } from "./runs.js";
import { leaveSample, sampleKey } from "./sample.js";
import { showSamples } from "./samples.js";
import { go, parameters, say, shared } from "./state.js";

const PAGES = {
  samples: ["Samples", showSamples],
  classes: ["Classes", showClasses],
  evaluation: ["Evaluation", showEvaluation],
  comparison: ["Comparison", showComparison],
  labels: ["Label errors", showLabels],
  "left-out": ["Left out", showLeftOut],
  runs: ["Runs", showRuns],
};
const TYPED = "input:not([type=checkbox]):not([type=range]), select, textarea";
const main = document.querySelector("main");

async function navigate() {
  const asked = parameters().get("tab") ?? (shared.overview.samples || !shared.overview.runs.length ? "samples" : "runs");
  const tab = Object.hasOwn(PAGES, asked) ? asked : "samples";
  for (const one of document.querySelectorAll("nav a")) {
    if (one.dataset.tab === tab) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  leaveSample();
  say("");
  clearCharts(main);
  const page = make("div"); // what comes too late stays in a page that is gone
  main.replaceChildren(page);
  const slow = setTimeout(() => {
    if (!document.querySelector("#status").textContent) say("loading …");
  }, 500);
  try {
    await PAGES[tab][1](page);
    if (document.querySelector("#status").textContent === "loading …") say("");
  } catch (error) {
    if (page.isConnected) say(error.message, true);
  }
  clearTimeout(slow);
}

shared.navigate = navigate;
addEventListener("popstate", navigate);
document.addEventListener("click", (event) => {
  const found = event.target.closest?.("a[href^='?']");
  if (!found || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(new URL(found.href).searchParams);
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches(TYPED) || event.ctrlKey || event.metaKey || event.altKey) return;
  const onSlider = event.target.matches("input[type=range]") && event.key.startsWith("Arrow");
  if (document.querySelector("#help").open) return;
  if (event.key === "?") document.querySelector("#help").showModal();
  else if (onSlider || !(sampleKey(event) || lookKey(event))) return;
  event.preventDefault();
});

async function start() {
  try {
    shared.overview = await getJson("api/overview");
  } catch (error) {
    return say(error.message, true);
  }
  const { left_out: leftOut } = shared.overview;
  if (!isFile) {
    document.querySelector("nav").append(...Object.entries(PAGES).map(([tab, [title]]) =>
      make("a", { href: `?tab=${tab}`, "data-tab": tab }, tab === "left-out" && leftOut ? `${title} (${leftOut})` : title)));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", navigate);
  await navigate();
}

start();
