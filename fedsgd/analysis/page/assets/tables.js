/* Hints at tables that are wider than the page. */
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

  return { watchTables };
})();
