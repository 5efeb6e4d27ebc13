/* What the page says in words and tables, made anew whenever something changes. */
"use strict";

const fedsgdWords = (() => {
  const P = fedsgdPricing;
  const { colour, dash, percent, size } = fedsgdDraw;
  const $ = (id) => document.getElementById(id);

  /* An element with attributes and children; text is text, never markup. */
  function h(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function key(method) {
    const svg = d3.create("svg").attr("class", "key").attr("width", 40).attr("height", 12).attr("aria-hidden", "true");
    svg
      .append("line")
      .attr("x2", 24)
      .attr("y1", 6)
      .attr("y2", 6)
      .attr("stroke", colour(method))
      .attr("stroke-width", 3)
      .attr("stroke-dasharray", dash(method));
    svg
      .append("text")
      .attr("x", 29)
      .attr("y", 10.5)
      .attr("font-size", 12)
      .attr("font-weight", 600)
      .attr("fill", colour(method))
      .text(method.letter);
    return svg.node();
  }

  const linkText = (link) => `${P.rateText(link.up)} up, ${P.rateText(link.down)} down, ${P.secondsText(link.latency)} one way`;
  const bold = (text) => h("b", {}, text);

  /* The sentence at the top. preset: the network that the sliders stand for, or null. */
  function showAnswer(model, state, rows, preset) {
    const where = preset && preset.named ? `On ${preset.title} (${linkText(state)}), ` : `At ${linkText(state)}, `;
    const timed = rows.filter((row) => row.seconds && row.seconds.median < Infinity);
    $("answer").replaceChildren(...(timed.length ? [where, ...soonest(timed, model, state, rows)] : withoutTime(state, rows)));
    $("soonest").textContent = timed.length ? `${timed[0].method.short} after ${P.secondsText(timed[0].seconds.median)}` : "";
  }

  function soonest([first, second], model, state, rows) {
    const words = [
      bold(first.method.short),
      ` reaches ${percent(state.target)} `,
      rows.length > 1 ? "first, " : "",
      "after ",
      bold(P.secondsText(first.seconds.median)),
    ];
    const base = rows.find((row) => row.method === model.baseline);
    const other = base === first ? second : base;
    if (!other) return [...words, "."];
    if (!other.seconds) return [...words, `; ${other.method.short} cannot be priced here.`];
    if (other.seconds.median === Infinity) return [...words, `; ${other.method.short} does not reach it.`];
    return [...words, `; ${other.method.short} takes ${P.threeFigures(other.seconds.median / first.seconds.median)}× as long.`];
  }

  function withoutTime(state, rows) {
    const [fewest] = rows.filter((row) => row.up.median < Infinity).sort((a, b) => a.up.median - b.up.median);
    if (fewest)
      return [
        bold(fewest.method.short),
        ` reaches ${percent(state.target)} with the fewest uplink bytes, `,
        bold(size(fewest.up.median)),
        ` (${size(fewest.bytes.median)} in both directions together)`,
        "; it has no time on this network (see below).",
      ];
    const [best] = rows.filter((row) => !Number.isNaN(row.best.median)).sort((a, b) => b.best.median - a.best.median);
    if (!best) return ["In none of these runs was accuracy measured."];
    return [
      `No method reaches ${percent(state.target)} in these runs. The best, `,
      bold(best.method.short),
      `, gets to ${percent(best.best.median)}.`,
    ];
  }

  /* "98.3–98.6 %": a unit that both have is said once. */
  function between(low, high) {
    const [a, b] = [low, high].map((text) => /^([\d.,]+)( \S+)$/.exec(text));
    return a && b && a[2] === b[2]
      ? `${a[1]}–${high}`
      : low.includes(" ") || high.includes(" ")
        ? `${low} – ${high}`
        : `${low}–${high}`;
  }

  /* A figure over seeds, and below it the least and most where they differ. */
  function cell(seeds, text, attributes = {}) {
    if (seeds.median === Infinity) return h("td", { class: "none", ...attributes }, "not reached");
    const middle = text(seeds.median);
    const [low, high] = [seeds.low, seeds.high].map((value) => (value === Infinity ? "not reached" : text(value)));
    const spread =
      seeds.n > 1 && (low !== middle || high !== middle) ? h("span", { class: "small" }, between(low, high)) : null;
    return h("td", attributes, middle, spread);
  }

  /* What stands below a method's name: the rest of its label, and at what of the tuned values it is shown. */
  function below({ label, short, tuned, tried }, target) {
    const at = Object.entries(tuned).map(([name, value]) => `${name.split(".").at(-1)} ${value}`);
    const best = `at ${at.join(", ")}, the best of ${tried.length} for ${percent(target)}`;
    return [label.slice(short.length + 2), at.length ? best : ""].filter(Boolean);
  }

  /* Marks below the name of a method whose runs diverged, or whose settings a component is not made for. */
  function marks({ method, rounds }) {
    const [diverged, warnings, seeds] = [method.diverged.length, method.warnings.length, rounds.n];
    const texts = [
      ...(diverged ? [seeds === 1 ? "diverged" : `${diverged} of ${seeds} seeds diverged`] : []),
      ...(warnings ? [warnings === 1 ? "1 warning" : `${warnings} warnings`] : []),
    ];
    return texts.map((text) => h("span", { class: "warn" }, text));
  }

  function notesOf(row, terms) {
    const { method } = row;
    const edge = method.at_edge.map(
      (name) => `${name} = ${method.tuned[name]} is at the edge of what was tried: a better one may lie beyond`,
    );
    const failed = method.failed_seeds
      ? [`${method.failed_seeds} of ${row.rounds.n} seeds failed; they count as not reached`]
      : [];
    const priced = method.notPriced !== null ? [method.notPriced] : [];
    const deadline = row.late
      ? [
          `on this network a reply that was taken would come after the deadline of ${P.secondsText(terms.deadline_seconds)}: others would have taken part`,
        ]
      : [];
    return [...edge, ...failed, ...method.diverged, ...method.warnings, ...priced, ...deadline];
  }

  /* The table, and what is to be said about its rows. */
  function showRanking(model, state, rows) {
    const base = rows.find((row) => row.method === model.baseline);
    const cost = model.price_per_gigabyte;
    const { short, letter } = model.baseline;
    const baseline = short.length <= 10 ? short : letter;
    const heads = [
      "",
      ["Method", "text"],
      "Time",
      `× ${baseline}`,
      "Rounds",
      "Uplink",
      model.broadcast ? "Downlink, broadcast" : "Downlink",
      ...(cost === null ? [] : ["Cost"]),
      "Best accuracy",
      "Seeds",
    ];
    $("ranking").tHead.replaceChildren(
      h(
        "tr",
        {},
        ...heads.map((head) =>
          h("th", { scope: "col", class: Array.isArray(head) ? head[1] : null }, Array.isArray(head) ? head[0] : head),
        ),
      ),
    );
    $("ranking-caption").textContent =
      `To ${percent(state.target)}: rounds, bytes of all clients and time; the median over seeds, with the least and the most below it. ` +
      `× ${baseline}: time as a multiple of ${short}'s.${cost === null ? "" : ` Cost: of the bytes both ways, at ${cost} a gigabyte.`}`;
    const notes = [];
    const body = rows.map((row, i) => {
      const timed = row.seconds && row.seconds.median < Infinity;
      const own = notesOf(row, model.terms).map((text) => notes.push(text));
      const numbers = own.length ? h("sup", {}, own.join(", ")) : null;
      const name = h(
        "td",
        { class: "text" },
        key(row.method),
        row.method.short,
        numbers,
        ...below(row.method, model.target).map((text) => h("span", { class: "more", title: text }, text)),
        ...marks(row),
      );
      const times =
        timed && base.seconds && base.seconds.median < Infinity
          ? `${P.threeFigures(row.seconds.median / base.seconds.median)}×`
          : "–";
      return h(
        "tr",
        { "data-method": row.method.index, class: timed && i === 0 ? "best" : null },
        h("td", {}, timed ? String(i + 1) : "–"),
        name,
        row.seconds
          ? cell(row.seconds, P.secondsText, { "data-seconds": true })
          : h("td", { class: "none", "data-seconds": true }, "no time"),
        h("td", { class: times === "–" ? "none" : null }, times),
        cell(row.rounds, P.threeFigures),
        cell(row.up, size),
        cell(row.down, size),
        cost === null ? null : cell(row.bytes, (bytes) => P.threeFigures((bytes / 1e9) * cost)),
        cell(row.best, percent),
        h("td", {}, `${row.rounds.reached} of ${row.rounds.n}`),
      );
    });
    $("ranking").tBodies[0].replaceChildren(...body);
    const asked = model.methods.some((method) => Object.keys(method.tuned).length) && state.target !== model.target;
    const tuned = `tuned values are those that are best for ${percent(model.target)}, not for ${percent(state.target)}; a report with that target chooses anew`;
    $("notes").replaceChildren(
      ...notes.map((text, i) => h("li", {}, h("sup", {}, String(i + 1)), ` ${text}.`)),
      ...[...(asked ? [tuned] : []), ...model.notes].map((text) => h("li", {}, `${text}.`)),
    );
  }

  /* Break-evens: those where the soonest of the methods shown changes, and the others. */
  function showBreakEvens(model, shown, { done = false, curves }) {
    const line = (one) =>
      h(
        "li",
        { "data-speed": one.speed },
        bold(one.below.short),
        ` (${one.below.letter}) is sooner than `,
        bold(one.above.short),
        ` (${one.above.letter}) below ${P.rateText(one.speed)} of uplink, and later above.`,
      );
    const [leading, others] = [shown.filter((one) => one.first), shown.filter((one) => !one.first)];
    const racing = new Set([...curves].filter(([, curve]) => curve.some(Number.isFinite)).map(([index]) => index));
    const same = racing.size > 1 ? "Whatever the speed, the order at the top is the same." : "";
    const none = done ? same : "Looking for break-evens …";
    const open = $("break-evens").querySelector("details")?.open;
    const head = leading.length
      ? h("ul", { "aria-label": "Where the soonest method changes" }, ...leading.map(line))
      : h("p", {}, model.methods.length > 1 ? none : "");
    const more = h(
      "details",
      { open },
      h("summary", {}, `${others.length} more where two methods behind change places`),
      h("ul", {}, ...others.map(line)),
    );
    $("break-evens").replaceChildren(head, ...(others.length ? [more] : []));
    $("break-evens").dataset.done = String(done);
  }

  return { h, key, linkText, showAnswer, showRanking, showBreakEvens };
})();
