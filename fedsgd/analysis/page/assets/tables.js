/* Tables of statistics over seeds, and hints at tables that are wider than the page. */
"use strict";

const fedsgdTables = (() => {
  /* Show a hint above each table that scrolls, as long as it is wider than its place. */
  function watchTables() {
    for (const place of document.querySelectorAll(".scroll")) {
      const hint = Object.assign(document.createElement("p"), { className: "scroll-hint", hidden: true });
      hint.textContent = "Scroll this table sideways for more columns →";
      place.before(hint);
      const update = () => (hint.hidden = place.scrollWidth <= place.clientWidth + 1);
      const observer = new ResizeObserver(update);
      observer.observe(place);
      observer.observe(place.firstElementChild);
    }
  }

  /* Show medians with intervals and ratios, at the report's target. They do not depend on the controls. */
  function showStatistics({ statistics, metric, target }) {
    const { h } = fedsgdWords;
    const place = (id) => document.getElementById(id);
    place("statistics").hidden = !statistics.tables.length;
    if (!statistics.tables.length) return;
    place("statistics-caption").textContent =
      `At ${metric.formatTarget(target)}, the target of the report; the controls do not change these tables.`;
    const createRow = (cells, tag) => h("tr", {}, ...cells.map((lines, i) => createCell(lines, tag, i)));
    const createCell = ([text, ...more], tag, i) =>
      h(tag, { class: i ? null : "text", scope: tag === "th" ? "col" : null }, text, ...more.map((line) => h("span", { class: "small" }, line)));
    const tables = statistics.tables.map(({ title, headings, rows }) =>
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
        h(
          "table",
          {},
          h("caption", {}, title),
          h("thead", {}, createRow(headings.map((heading) => [heading]), "th")),
          h("tbody", {}, ...rows.map((row) => createRow(row, "td"))),
        ),
      ),
    );
    place("statistics-tables").replaceChildren(...tables);
    place("statistics-notes").replaceChildren(...statistics.notes.map((text) => h("li", {}, `${text}.`)));
  }

  return { watchTables, showStatistics };
})();
