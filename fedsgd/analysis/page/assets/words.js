/* Texts and tables of the page that are written again after every change of the state. */
"use strict";

const fedsgdWords = (() => {
  const P = fedsgdPricing;
  const { methodColour, methodDash, formatByteCount } = fedsgdDraw;
  const $ = (id) => document.getElementById(id);

  /* An element with attributes and children. Strings become text nodes, so they cannot contain markup. */
  function h(tag, attributes = {}, ...children) {
    const newElement = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) newElement.setAttribute(key, value === true ? "" : value);
    }
    newElement.append(...children.filter((child) => child !== null && child !== undefined));
    return newElement;
  }

  function createLegendKey(method) {
    const svg = d3.create("svg").attr("class", "key").attr("width", 40).attr("height", 12).attr("aria-hidden", "true");
    svg
      .append("line")
      .attr("x2", 24)
      .attr("y1", 6)
      .attr("y2", 6)
      .attr("stroke", methodColour(method))
      .attr("stroke-width", 3)
      .attr("stroke-dasharray", methodDash(method));
    svg
      .append("text")
      .attr("x", 29)
      .attr("y", 10.5)
      .attr("font-size", 12)
      .attr("font-weight", 600)
      .attr("fill", methodColour(method))
      .text(method.letter);
    return svg.node();
  }

  const describeLink = (link) =>
    `${P.formatRate(link.up)} up, ${P.formatRate(link.down)} down, ${P.formatSeconds(link.latency)} one way`;
  const createBold = (text) => h("b", {}, text);

  /* Show the sentence at the top. preset: network with the link that the sliders show, or null. */
  function showAnswer(model, state, rows, preset) {
    const where = preset && preset.named ? `On ${preset.title} (${describeLink(state)}), ` : `At ${describeLink(state)}, `;
    const timedRows = rows.filter((row) => row.seconds && row.seconds.median < Infinity);
    $("answer").replaceChildren(
      ...(timedRows.length ? [where, ...describeFastest(timedRows, model, state, rows)] : describeWithoutTimes(model, state, rows)),
    );
    const [first] = timedRows;
    $("soonest").textContent = first ? `${first.method.short} after ${P.formatSeconds(first.seconds.median)}` : "";
  }

  function describeFastest([first, second], model, state, rows) {
    const words = [
      createBold(first.method.short),
      ` reaches ${model.metric.formatTarget(state.target)} `,
      rows.length > 1 ? "first, " : "",
      "after ",
      createBold(P.formatSeconds(first.seconds.median)),
    ];
    const base = rows.find((row) => row.method === model.baseline);
    const other = base === first ? second : base;
    if (!other) return [...words, "."];
    if (!other.seconds) return [...words, `; ${other.method.short} cannot be priced here.`];
    if (other.seconds.median === Infinity) return [...words, `; ${other.method.short} does not reach this ${model.metric.isAccuracy ? "accuracy" : "target"}.`];
    return [
      ...words,
      `; ${other.method.short} takes ${P.formatSignificant(other.seconds.median / first.seconds.median)}× as long.`,
    ];
  }

  function describeWithoutTimes({ metric }, state, rows) {
    const [fewest] = rows.filter((row) => row.up.median < Infinity).sort((a, b) => a.up.median - b.up.median);
    if (fewest)
      return [
        createBold(fewest.method.short),
        ` reaches ${metric.formatTarget(state.target)} with the fewest uplink bytes, `,
        createBold(formatByteCount(fewest.up.median)),
        ` (${formatByteCount(fewest.bytes.median)} in both directions together)`,
        "; this method has no time on this network (see below).",
      ];
    const [best] = rows.filter((row) => !Number.isNaN(row.best.median)).sort(
      (a, b) => metric.sign * (b.best.median - a.best.median),
    );
    if (!best) return [`No ${metric.name} was measured in these runs.`];
    return [
      `No method reaches ${metric.formatTarget(state.target)} in these runs. The best, `,
      createBold(best.method.short),
      `, gets to ${metric.format(best.best.median)}.`,
    ];
  }

  /* A range, such as "98.3–98.6 %". A common unit is written once. */
  function formatRange(low, high) {
    const [a, b] = [low, high].map((text) => /^([\d.,]+)( \S+)$/.exec(text));
    return a && b && a[2] === b[2]
      ? `${a[1]}–${high}`
      : low.includes(" ") || high.includes(" ")
        ? `${low} – ${high}`
        : `${low}–${high}`;
  }

  /* A cell with the median over seeds, and below it minimum and maximum if they differ. */
  function createSeedCell(seeds, text, attributes = {}) {
    if (seeds.median === Infinity) return h("td", { class: "none", ...attributes }, "not reached");
    const middle = text(seeds.median);
    const [low, high] = [seeds.low, seeds.high].map((value) => (value === Infinity ? "not reached" : text(value)));
    const spread =
      seeds.n > 1 && (low !== middle || high !== middle) ? h("span", { class: "small" }, formatRange(low, high)) : null;
    return h("td", attributes, middle, spread);
  }

  /* Lines below a method's name: the rest of its label, and its best tuned values. */
  function describeVariant({ label, short, tuned, tried, on_validation }, targetText) {
    const at = Object.entries(tuned).map(([name, value]) => `${name.split(".").at(-1)} ${value}`);
    const examples = on_validation ? " on validation examples" : "";
    const best = `at ${at.join(", ")}, the best of ${tried.length} for ${targetText}${examples}`;
    return [label.slice(short.length + 2), at.length ? best : ""].filter(Boolean);
  }

  /* Marks of a method whose runs diverged, or whose settings a component does not suit. */
  function createWarningMarks({ method, rounds }) {
    const [diverged, warnings, seeds] = [method.diverged.length, method.warnings.length, rounds.n];
    const texts = [
      ...(diverged ? [seeds === 1 ? "diverged" : `${diverged} of ${seeds} seeds diverged`] : []),
      ...(warnings ? [warnings === 1 ? "1 warning" : `${warnings} warnings`] : []),
    ];
    return texts.map((text) => h("span", { class: "warn" }, text));
  }

  function collectNotes(row, terms) {
    const { method } = row;
    const edge = method.at_edge.map(
      (name) => `${name} = ${method.tuned[name]} is at the edge of the values that were tried; a better value may exist beyond this edge`,
    );
    const failed = method.failed_seeds
      ? [`${method.failed_seeds} of ${row.rounds.n} seeds failed; they count as not reached`]
      : [];
    const priced = method.notPriced !== null ? [method.notPriced] : [];
    const deadline = row.late
      ? [
          `on this network, an accepted reply would arrive after the deadline of ${P.formatSeconds(terms.deadline_seconds)}; other clients would have taken part`,
        ]
      : [];
    return [...edge, ...failed, ...method.diverged, ...method.warnings, ...priced, ...deadline];
  }

  /* Show the ranking, and notes on its rows. */
  function showRanking(model, state, rows) {
    const base = rows.find((row) => row.method === model.baseline);
    const cost = state.price || null;
    const { short, letter } = model.baseline;
    const { best, format, formatTarget } = model.metric;
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
      best[0].toUpperCase() + best.slice(1),
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
      `Rounds, bytes of all clients and time to ${formatTarget(state.target)}: median over seeds, with minimum and maximum below. ` +
      `× ${baseline}: time divided by that of ${short}.` +
      (cost === null ? "" : ` Cost: of the bytes in both directions, at ${cost} per gigabyte.`);
    const notes = [];
    const body = rows.map((row, i) => {
      const hasTime = row.seconds && row.seconds.median < Infinity;
      const noteNumbers = collectNotes(row, model.terms).map((text) => notes.indexOf(text) + 1 || notes.push(text));
      const numbers = noteNumbers.length ? h("sup", {}, noteNumbers.join(", ")) : null;
      const name = h(
        "td",
        { class: "text" },
        createLegendKey(row.method),
        row.method.short,
        numbers,
        ...describeVariant(row.method, formatTarget(model.target)).map((text) => h("span", { class: "more", title: text }, text)),
        ...createWarningMarks(row),
      );
      const times =
        hasTime && base.seconds && base.seconds.median < Infinity
          ? `${P.formatSignificant(row.seconds.median / base.seconds.median)}×`
          : "–";
      return h(
        "tr",
        { "data-method": row.method.index, class: hasTime && i === 0 ? "best" : null },
        h("td", {}, hasTime ? String(i + 1) : "–"),
        name,
        row.seconds
          ? createSeedCell(row.seconds, P.formatSeconds, { "data-seconds": true })
          : h("td", { class: "none", "data-seconds": true }, "no time"),
        h("td", { class: times === "–" ? "none" : null }, times),
        createSeedCell(row.rounds, P.formatSignificant),
        createSeedCell(row.up, formatByteCount),
        createSeedCell(row.down, formatByteCount),
        cost === null ? null : createSeedCell(row.bytes, (bytes) => P.formatSignificant((bytes / 1e9) * cost)),
        createSeedCell(row.best, format),
        h("td", {}, `${row.rounds.reached} of ${row.rounds.n}`),
      );
    });
    $("ranking").tBodies[0].replaceChildren(...body);
    const targetDiffers = model.methods.some((method) => Object.keys(method.tuned).length) && state.target !== model.target;
    const [tunedFor, target] = [model.target, state.target].map(formatTarget);
    const note = `tuned values are those that are best for ${tunedFor}, not for ${target}; to tune for ${target}, write a report with this target`;
    $("notes").replaceChildren(
      ...notes.map((text, i) => h("li", {}, h("sup", {}, String(i + 1)), ` ${text}.`)),
      ...[...(targetDiffers ? [note] : []), ...model.notes].map((text) => h("li", {}, `${text}.`)),
    );
  }

  /* Show break-evens: first those at which the fastest visible method changes, then all others. */
  function showBreakEvens(model, breakEvens, { done = false, curves }) {
    const createItem = (one) =>
      h(
        "li",
        { "data-speed": one.speed },
        createBold(one.below.short),
        ` (${one.below.letter}) is faster than `,
        createBold(one.above.short),
        ` (${one.above.letter}) below ${P.formatRate(one.speed)} of uplink, and slower above.`,
      );
    const [leading, others] = [breakEvens.filter((one) => one.first), breakEvens.filter((one) => !one.first)];
    const racing = new Set([...curves].filter(([, curve]) => curve.some(Number.isFinite)).map(([index]) => index));
    const same = racing.size > 1 ? "The fastest method is the same at every speed." : "";
    const none = done ? same : "Computing break-evens …";
    const open = $("break-evens").querySelector("details")?.open;
    const head = leading.length
      ? h("ul", { "aria-label": "Speeds at which the fastest method changes" }, ...leading.map(createItem))
      : h("p", {}, model.methods.length > 1 ? none : "");
    const more = h(
      "details",
      { open },
      h("summary", {}, `${others.length} more between methods that are not the fastest`),
      h("ul", {}, ...others.map(createItem)),
    );
    $("break-evens").replaceChildren(head, ...(others.length ? [more] : []));
    $("break-evens").dataset.done = String(done);
  }

  return { h, createLegendKey, describeLink, showAnswer, showRanking, showBreakEvens };
})();
