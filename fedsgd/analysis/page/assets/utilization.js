/* Compute utilization against the link speed: computation, figure and table. Same arithmetic as analysis/utilization.py. */
"use strict";

const fedsgdUtilization = (() => {
  const P = fedsgdPricing;
  const {
    NARROW,
    methodColour,
    formatPercent,
    methodName,
    visibleMethods,
    lineStyle,
    createPlot,
    emptyFigure,
    addLegend,
    lineLegendEntries,
    addMethodLetters,
    logTicks,
  } = fedsgdDraw;
  const { h, createLegendKey } = fedsgdWords;
  const $ = (id) => document.getElementById(id);

  /* Add {curve, speeds} of each method to a map by the index of the method: medians over seeds of the utilization at each of
     the model's speeds, and seeds' summaries of the speed of each level. Yields between two speeds. */
  function* computeUtilizations(utilizations, methods, link, model) {
    for (const method of methods) {
      const curves = method.runs.map(() => new Float64Array(model.speeds.length));
      for (const [i, speed] of model.speeds.entries()) {
        const at = P.linkAtSpeed(link, speed);
        for (const [seed, run] of method.runs.entries()) curves[seed][i] = P.utilization(run.timeline, ...at);
        yield;
      }
      const speeds = new Map();
      for (const level of model.utilization_levels) {
        const speedsOfSeeds = [];
        for (const [seed, run] of method.runs.entries()) {
          speedsOfSeeds.push(P.findUtilizationSpeed(run.timeline, link, level, model.speeds, curves[seed]));
          yield;
        }
        speeds.set(level, P.summarizeSeeds(speedsOfSeeds));
      }
      const curve = Float64Array.from(model.speeds, (_, i) => P.median(curves.map((one) => one[i])));
      utilizations.set(method.index, { curve, speeds });
    }
  }

  function plotUtilization(model, view) {
    const { state, width, speeds } = view;
    const lines = visibleMethods(model, state).flatMap((method) => {
      const one = speeds.utilizations.get(method.index);
      return one ? [{ method, ...one, points: Array.from(one.curve, (share, i) => ({ method, x: model.speeds[i], y: share })) }] : [];
    });
    if (!lines.length && view.pending) return emptyFigure("The curves are being computed …");
    if (!lines.length) return emptyFigure("No method that is shown can be priced.");
    const height = width < NARROW ? 300 : 360;
    const domain = d3.extent(model.speeds);
    const marks = lines.flatMap(({ method, speeds: levels }) =>
      [...levels].filter(([, seeds]) => seeds.median < Infinity).map(([level, seeds]) => ({ method, x: seeds.median, y: level })),
    );
    const svg = createPlot(width, {
      height,
      marginLeft: 68,
      marginRight: 34,
      x: {
        type: "log",
        domain,
        label: "uplink",
        labelAnchor: "right",
        tickFormat: P.formatRate,
        ticks: logTicks(domain, Math.max(3, Math.floor(width / 98))),
      },
      y: { domain: [0, 1], ticks: [0, ...model.utilization_levels], tickFormat: formatPercent, label: "compute utilization", grid: true },
      marks: [
        Plot.ruleX([state.up], { stroke: "currentColor", strokeOpacity: 0.55 }),
        Plot.text([state.up], { x: (d) => d, text: (d) => P.formatRate(d), frameAnchor: "top", dy: -12, fill: "currentColor" }),
        ...lines.map(({ method, points }) => Plot.line(points, { x: "x", y: "y", ...lineStyle(method) })),
        Plot.dot(marks, { x: "x", y: "y", r: 3, fill: (d) => methodColour(d.method), stroke: "none" }),
        Plot.tip(
          lines.flatMap((line) => line.points),
          Plot.pointer({
            x: "x",
            y: "y",
            title: (d) => `${methodName(d.method)}\n${P.formatRate(d.x)} up: ${formatPercent(d.y)}`,
          }),
        ),
      ],
    });
    const [px, py] = [svg.scale("x"), svg.scale("y")];
    const ends = lines.map(({ method, points }) => ({ method, x: px.apply(points.at(-1).x), y: py.apply(points.at(-1).y) }));
    addMethodLetters(svg, ends, height - 40);
    const rows = () =>
      Array.from(model.speeds, (s, i) => [s, s * (state.down / state.up), ...lines.map(({ curve }) => curve[i])]);
    return {
      svg: addLegend(svg, lineLegendEntries(lines), width),
      columns: ["uplink_bits_per_second", "downlink_bits_per_second", ...lines.map(({ method }) => method.label)],
      rows,
    };
  }

  /* Show the utilization on this network, and the speeds of the levels, of the visible methods. */
  function showUtilizations(model, state, speeds) {
    const shown = visibleMethods(model, state).filter((method) => speeds.utilizations.has(method.index));
    $("utilization-box").hidden = !shown.length;
    const heads = ["Method", "On this network", ...model.utilization_levels.map((level) => `${formatPercent(level)} from`)];
    $("utilization-table").tHead.replaceChildren(
      h("tr", {}, ...heads.map((head, i) => h("th", { scope: "col", class: i ? null : "text" }, head))),
    );
    $("utilization-table").tBodies[0].replaceChildren(
      ...shown.map((method) => {
        const { curve, speeds: levels } = speeds.utilizations.get(method.index);
        const here = P.median(method.runs.map((run) => P.utilization(run.timeline, state.up, state.down, state.latency)));
        const limit = `at most ${formatPercent(curve.at(-1))}`;
        const cells = [...levels.values()].map((seeds) => {
          if (seeds.median < Infinity) return `${seeds.median <= model.speeds[0] ? "≤ " : ""}${P.formatRate(seeds.median)}`;
          return seeds.reached ? `${seeds.reached} of ${seeds.n} seeds` : limit;
        });
        return h(
          "tr",
          { "data-method": method.index },
          h("td", { class: "text" }, createLegendKey(method), method.short),
          ...[formatPercent(here), ...cells].map((text) => h("td", {}, text)),
        );
      }),
    );
  }

  return { computeUtilizations, showUtilizations, utilization: plotUtilization };
})();
