// Charts by plotly.js, which is fetched when the first one is drawn.

import { make } from "./dom.js";

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(make("script", { src: "plotly.js", onload: () => resolve(window.Plotly),
      onerror: () => reject(new Error("plotly.js is not there: pip install 'cocoseg[view]'")) }));
  });
  return loading;
}

/** Release the charts of a page that is left. */
export function clearCharts(page) {
  for (const chart of page.querySelectorAll(".js-plotly-plot")) window.Plotly.purge(chart);
}

function color(name) {
  const probe = make("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/**
 * Draw a chart into an element, or draw it anew.
 *
 * label: what it shows, for screen readers; clicked(point): a click on a point.
 */
export async function draw(element, label, traces, layout = {}, clicked = null) {
  const library = await plotly();
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), automargin: true };
  element.setAttribute("role", "figure");
  element.setAttribute("aria-label", label);
  await library.react(element, traces, {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: color("text"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 55, r: 15, t: 35, b: 45 },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["toImage", "sendDataToCloud"] });
  if (clicked) {
    element.removeAllListeners?.("plotly_click");
    element.on("plotly_click", ({ points }) => clicked(points[0]));
  }
}

/** A map of numbers, [row][column], null where there is none. */
export function heatmap(element, label, names, values, texts, titles, clicked) {
  const side = Math.max(names.rows.length, names.columns.length);
  element.style.height = `${Math.min(900, 160 + 22 * side)}px`;
  return draw(element, label, [{
    type: "heatmap", z: values, x: names.columns, y: names.rows, text: texts,
    colorscale: "Viridis", hoverongaps: false, hovertemplate: "%{text}<extra></extra>",
  }], {
    xaxis: { title: { text: titles.columns }, type: "category", tickangle: -60, dtick: side > 60 ? null : 1 },
    yaxis: { title: { text: titles.rows }, type: "category", autorange: "reversed", dtick: side > 60 ? null : 1 },
    margin: { l: 110, r: 15, t: 20, b: 110 },
  }, clicked);
}
