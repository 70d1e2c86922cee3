"""How a report looks, and the script that sorts its tables."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --text: #1b1f24; --quiet: #5d6673; --line: #dde1e7;
  --accent: #2f6fde; --alarm: #b3261e; --alarm-back: #fdf0ef; --well: #eceef2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --text: #e6e9ed; --quiet: #9aa4b1; --line: #323841;
    --accent: #6ea2ff; --alarm: #ff9a91; --alarm-back: #3a2223; --well: #262b32;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 84rem;
  background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
p, ul { margin: 0 0 .75rem; max-width: 75ch; overflow-wrap: anywhere; }
ul { padding-left: 1.25rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-bottom: 1.25rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem clamp(.75rem, 2vw, 1.4rem) .6rem; margin-bottom: 1.1rem;
}
figure { margin: 0; }
figcaption, caption, dt, .detail { color: var(--quiet); font-size: .87rem; }
.note {
  max-width: none; padding: .55rem .8rem; border-left: 4px solid var(--accent);
  background: var(--well); border-radius: 0 6px 6px 0;
}
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .6rem;
  margin-top: 0;
}
.figures > div { background: var(--well); border-radius: 8px; padding: .6rem .85rem; }
.figures dd { margin: 0; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures dd.detail { font-size: .87rem; }
.figures .alarming { background: var(--alarm-back); }
.figures .alarming dd:not(.detail) { color: var(--alarm); font-weight: 600; }
.scroll { overflow: auto; }
.scroll.tall { max-height: 34rem; border: 1px solid var(--line); border-radius: 6px; }
.scroll.tall caption { padding: .5rem .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.tall table { width: 100%; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .22rem .6rem; text-align: left; vertical-align: top; }
td { border-top: 1px solid var(--line); overflow-wrap: anywhere; min-width: 3.5rem; }
th { position: sticky; top: 0; background: var(--card); white-space: nowrap; }
th button {
  font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer;
}
th button::after { content: "↕"; margin-left: .3em; opacity: .35; font-weight: 400; }
th[aria-sort=ascending] button::after { content: "↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: "↓"; opacity: 1; }
td:has(.tag) { min-width: 8rem; }
.n { text-align: right; }
td.n { white-space: nowrap; }
.tag { display: inline-block; margin-right: .7em; overflow-wrap: anywhere; }
.swatch {
  display: inline-block; width: .8em; height: .8em; margin-right: .4em; vertical-align: -.05em;
  border-radius: 2px; outline: 1px solid var(--line);
}
.pictures {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(clamp(9.3rem, 18vw, 13.5rem), 1fr));
}
.pictures img, .pictures .missing {
  display: block; width: 100%; height: auto; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--well); border-radius: 6px;
}
img.tiny { image-rendering: pixelated; }
.pictures .missing {
  display: grid; place-items: center; text-align: center; padding: 1rem; color: var(--quiet);
  border: 1px dashed var(--line); overflow: hidden; overflow-wrap: anywhere;
}
.pictures figcaption { margin-top: .35rem; line-height: 1.4; }
.pictures .tag {
  max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  vertical-align: bottom;
}
.pictures b { color: var(--text); font-weight: 600; overflow-wrap: anywhere; }
.comparisons {
  display: grid; gap: 1.3rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 31rem), 1fr));
}
.comparisons h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.comparisons h3 span { color: var(--quiet); font-weight: 400; margin-left: .8em; }
.panels { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }
.panels img {
  display: block; width: 100%; height: auto; background: var(--well); border-radius: 6px;
}
.panels figcaption { margin-top: .3rem; line-height: 1.4; }
.panels figcaption b { color: var(--text); font-weight: 600; margin-right: .6em; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start; }
.beside > * { max-width: 100%; }
.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .5rem 1.5rem;
}
.chart figcaption { margin-bottom: .5rem; max-width: 75ch; }
.chart svg { display: block; max-width: 100%; height: auto; }
.columns svg { width: 100%; max-width: 26rem; }
.chart text { font-size: 12px; fill: var(--text); }
.chart text.value, .chart text.axis { font-size: 11px; fill: var(--quiet); }
.chart .bar, .chart .heat { fill: var(--accent); }
.chart .wrong { fill: var(--alarm); }
.chart .heat, .chart .wrong { stroke: var(--card); stroke-width: 1; }
.chart .diagonal { stroke: var(--quiet); stroke-dasharray: 4 4; fill: none; }
.reliability circle.mark { fill: var(--text); stroke: var(--card); }
.confusion svg { max-width: none; }
.chart .grid, .chart .frame { stroke: var(--line); fill: none; }
.chart .mark { stroke: var(--line); }
section > * { margin-bottom: .9rem; }
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --card: #fff; --text: #000; --quiet: #444; --line: #bbb; --accent: #2f6fde;
    --alarm: #b3261e; --alarm-back: #fff; --well: #f2f2f2;
  }
  body { padding: 0; max-width: none; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav, th button::after { display: none; }
  section { border: 0; padding: 0; }
  .scroll, .scroll.tall { overflow: visible; max-height: none; border: 0; }
  th { position: static; }
  h2, .chart figcaption, caption { break-after: avoid; }
  tr, .pictures figure, .comparisons > div, .columns svg, .figures > div { break-inside: avoid; }
  .pictures { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const before = head.getAttribute("aria-sort");
    const numeric = head.classList.contains("n");
    const falling = before ? before === "ascending" : numeric;
    const key = row => {
      const cell = row.cells[head.cellIndex];
      if (!numeric) return cell.textContent;
      const value = parseFloat(cell.dataset.v);
      return Number.isNaN(value) ? -Number.MAX_VALUE : value;
    };
    const compare = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, {numeric: true});
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort((a, b) => falling ? compare(b[0], a[0]) : compare(a[0], b[0]));
    body.append(...rows.map(pair => pair[1]));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  });
}
"""
