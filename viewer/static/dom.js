// Elements, and the parts that several pages have.

/** Make an element; what is no property of it becomes an attribute. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A button with a text, or with a sign that `label` explains. */
export function button(text, onclick, label = null) {
  return make("button", { type: "button", textContent: text, onclick, "aria-label": label, title: label });
}

/** A link to another state of the page. */
export function link(parameters, ...children) {
  return make("a", { href: `?${new URLSearchParams(parameters)}` }, ...children);
}

/** A choice of [value, text] pairs. */
export function choice(label, name, options, value, onchange) {
  const select = make("select", { name, "aria-label": label, onchange: () => onchange(select.value) },
    ...options.map(([key, text]) => new Option(text, key)));
  select.value = value;
  return make("label", {}, label, select);
}

/**
 * A table. columns: { title, cell(row) → text or element, value(row) → to sort by, number }.
 * A click on a heading sorts; what has no value comes last.
 */
export function table(caption, columns, rows, sorted = null) {
  const body = make("tbody");
  const fill = (list) => body.replaceChildren(...list.map((row) => make("tr", {},
    ...columns.map(({ cell, number }, i) =>
      make(i ? "td" : "th", { className: number ? "number" : "", scope: i ? null : "row" }, cell(row) ?? "")))));
  const heads = columns.map((column) => make("th", { scope: "col", className: column.number ? "number" : "" },
    column.value ? button(column.title, () => sort(column)) : column.title));
  let order = sorted;
  function sort(column) {
    const falling = order?.title === column.title ? !order.falling : Boolean(column.number);
    order = { title: column.title, falling };
    apply(column);
  }
  function apply(column) {
    const hasValue = (row) => column.value(row) !== null && column.value(row) !== undefined;
    const known = rows.filter(hasValue), unknown = rows.filter((row) => !hasValue(row));
    const sign = order.falling ? -1 : 1;
    known.sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      return sign * (typeof a === "number" ? a - b : String(a).localeCompare(String(b)));
    });
    fill([...known, ...unknown]);
    columns.forEach(({ title }, i) => {
      if (title === column.title) heads[i].setAttribute("aria-sort", order.falling ? "descending" : "ascending");
      else heads[i].removeAttribute("aria-sort");
    });
  }
  const first = sorted && columns.find(({ title }) => title === sorted.title);
  if (first) apply(first);
  else fill(rows);
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads)), body));
}

/** What an empty page says: what is missing, and what to do. */
export function empty(text, command = null) {
  return make("div", { className: "empty" }, make("p", {}, text), command && make("pre", {}, command));
}

/** An observer that calls `fill` with an element once, when it comes near the screen. */
export function whenVisible(fill) {
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      fill(target);
    }
  }, { rootMargin: "400px" });
  return observer;
}

/** A colored square. */
export function swatch([red, green, blue]) {
  const element = make("span", { className: "swatch" });
  element.style.background = `rgb(${red} ${green} ${blue})`;
  return element;
}

export const number = (value) => value.toLocaleString("en");
export const score = (value) => value === null || value === undefined ? "" : value.toFixed(4);
export const percent = (share) => `${(100 * share).toFixed(share < 0.001 && share > 0 ? 3 : 2)} %`;
