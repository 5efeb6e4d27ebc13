/* Figures of totals over runs. Each function takes (model, view) and returns {svg, columns, rows}: the drawing, and its values
   as a table. view: {state, ranking, width, speeds: {curves, breakEvens}}. */
"use strict";

const fedsgdTotals = (() => {
  const P = fedsgdPricing;
  const {
    NARROW,
    methodColour,
    formatPercent,
    methodName,
    visibleMethods,
    formatByteCount,
    measureText,
    truncateText,
    createPlot,
    emptyFigure,
    createScale,
    addLegend,
    methodLegendEntry,
  } = fedsgdDraw;
  const BREAKDOWN_PARTS = [
    ["header", "headers"],
    ["index", "positions"],
    ["value", "values"],
    ["side", "side information"],
  ];
  const FRONT_LINE = { label: "Pareto front", colour: "currentColor", width: 1.5, opacity: 0.45 };
  const ROUND_TIME_PHASES = [
    ["down", "downlink"],
    ["compute", "training"],
    ["coding", "coding"],
    ["up", "uplink"],
    ["serving", "server"],
    ["waiting", "waiting for lost replies"],
  ];

  /* Best value against the bytes of all clients up to this value, counted as in analysis/figures/accuracy.py. */
  function plotPareto(model, view) {
    const { state, width } = view;
    const { name, best, sign, format } = model.metric;
    const both = state.bytes === "all";
    const bytesToBest = (run) => run.up[run.bestRound] + (both ? run.down[run.bestRound] : 0);
    const points = visibleMethods(model, state).flatMap((method) => {
      const runs = method.runs.filter((run) => run.bestRound !== undefined);
      if (!runs.length) return [];
      return [
        { method, bytes: P.summarizeSeeds(runs.map(bytesToBest)), value: P.summarizeSeeds(runs.map((run) => run.best)) },
      ];
    });
    if (!points.length) return emptyFigure(`Nothing to draw: no method is shown, or ${name} was not measured.`);
    for (const p of points) {
      p.dominated = points.some(
        (q) =>
          q.bytes.median <= p.bytes.median &&
          sign * q.value.median >= sign * p.value.median &&
          (q.bytes.median < p.bytes.median || sign * q.value.median > sign * p.value.median),
      );
    }
    const front = points.filter((p) => !p.dominated).sort((a, b) => a.bytes.median - b.bytes.median);
    const height = width < NARROW ? 300 : 380;
    const bytesLabel = `uplink${both ? ` and ${model.broadcast ? "broadcast " : ""}downlink` : ""} bytes`;
    const [low, high] = d3.extent(points.flatMap((p) => [p.bytes.low, p.bytes.high]));
    const x = createScale([low / 1.15, high * 1.15], formatByteCount, width);
    const svg = createPlot(width, {
      height,
      x: { ...x, label: `${bytesLabel} until then, all clients`, labelAnchor: "right" },
      y: {
        label: best,
        grid: true,
        tickFormat: format,
        nice: true,
        inset: 6,
        ticks: 6,
        domain: d3.extent(points.flatMap((p) => [p.value.low, p.value.high])),
      },
      marks: [
        Plot.line(front, {
          x: (p) => p.bytes.median,
          y: (p) => p.value.median,
          curve: "step-after",
          stroke: FRONT_LINE.colour,
          strokeWidth: FRONT_LINE.width,
          strokeOpacity: FRONT_LINE.opacity,
        }),
        Plot.ruleX(points, {
          x: (p) => p.bytes.median,
          y1: (p) => p.value.low,
          y2: (p) => p.value.high,
          stroke: (p) => methodColour(p.method),
          strokeOpacity: 0.6,
        }),
        Plot.ruleY(points, {
          y: (p) => p.value.median,
          x1: (p) => p.bytes.low,
          x2: (p) => p.bytes.high,
          stroke: (p) => methodColour(p.method),
          strokeOpacity: 0.6,
        }),
        Plot.dot(points, {
          x: (p) => p.bytes.median,
          y: (p) => p.value.median,
          r: 5.5,
          strokeWidth: 2,
          stroke: (p) => methodColour(p.method),
          fill: (p) => (p.dominated ? "var(--paper)" : methodColour(p.method)),
        }),
        Plot.text(points, {
          x: (p) => p.bytes.median,
          y: (p) => p.value.median,
          text: (p) => p.method.letter,
          dy: -14,
          fontWeight: 600,
          fill: (p) => methodColour(p.method),
        }),
        Plot.tip(
          points,
          Plot.pointer({
            x: (p) => p.bytes.median,
            y: (p) => p.value.median,
            title: (p) => `${methodName(p.method)}\n${formatByteCount(p.bytes.median)}, ${format(p.value.median)}`,
          }),
        ),
      ],
    });
    const tableRows = () =>
      points.map((p) => [
        p.method.label,
        p.bytes.median,
        p.bytes.low,
        p.bytes.high,
        p.value.median,
        p.value.low,
        p.value.high,
        p.dominated,
      ]);
    const entries = points.map(({ method, dominated }) => methodLegendEntry(method, { dot: true, hollow: dominated }));
    return {
      svg: addLegend(svg, front.length > 1 ? [...entries, FRONT_LINE] : entries, width),
      columns: ["method", "bytes", "bytes_least", "bytes_most", name, `${name}_least`, `${name}_most`, "dominated"],
      rows: tableRows,
    };
  }

  const formatShare = (share) => formatPercent(Number(share.toPrecision(share > 0.99 && share < 1 ? 3 : 2)));

  /* Horizontal stacked bars. list: [{label, parts: [numbers], text}], with null between groups; names: [[key, label]] of the parts;
     tone: prefix of the CSS variables of their colours. */
  function plotBars(width, list, names, tone, options) {
    const endText = (bar) => bar.end || "";
    const labelWidth = (bar) => measureText(`${bar.label}  ${endText(bar)}`);
    const marginLeft = Math.min(width * 0.36, 16 + Math.max(...list.filter(Boolean).map(labelWidth)));
    const truncateLabel = (bar) =>
      `${truncateText(bar.label, marginLeft - 16 - measureText(`  ${endText(bar)}`))}  ${endText(bar)}`.trim();
    const keys = list.map((_, i) => i);
    const pieces = list.flatMap((bar, i) => {
      let from = 0;
      return bar ? bar.parts.map((value, part) => ({ i, part, value, from, to: (from += value) })) : [];
    });
    const usedParts = names
      .map((name, part) => ({ name, part }))
      .filter(({ part }) => pieces.some((piece) => piece.part === part && piece.value > 0));
    const most = Math.max(...pieces.map((piece) => piece.to), 1e-300);
    const room = 20 + Math.max(...list.filter(Boolean).map((bar) => measureText(bar.text)));
    const pixelWidth = (piece) => ((piece.to - piece.from) / most) * (width - marginLeft - room);
    const svg = createPlot(width, {
      height: 62 + list.length * 19,
      marginLeft,
      marginRight: room,
      marginTop: 6,
      x: { domain: [0, most], ...options.x },
      y: { type: "band", domain: keys, padding: 0.12, axis: null },
      marks: [
        Plot.gridX({ ticks: options.x.ticks }),
        ...usedParts.map(({ part }) =>
          Plot.barX(
            pieces.filter((piece) => piece.part === part),
            { y: "i", x1: "from", x2: "to", fill: `var(--${tone}${part})`, insetRight: 0.5 },
          ),
        ),
        Plot.text(
          pieces.filter((piece) => options.share && pixelWidth(piece) > 36),
          {
            y: "i",
            x: (piece) => (piece.from + piece.to) / 2,
            text: (piece) => formatShare(piece.value),
            fill: (piece) => `var(--on-${tone}${piece.part})`,
            fontSize: 11,
          },
        ),
        Plot.text(
          list.map((bar, i) => ({ bar, i })).filter(({ bar }) => bar),
          { y: "i", x: ({ bar }) => d3.sum(bar.parts), text: ({ bar }) => bar.text, textAnchor: "start", dx: 6 },
        ),
        Plot.text(
          list.map((bar, i) => ({ bar, i })).filter(({ bar }) => bar),
          { y: "i", frameAnchor: "left", text: ({ bar }) => truncateLabel(bar), textAnchor: "end", dx: -8 },
        ),
      ],
    });
    return addLegend(
      svg,
      usedParts.map(({ name, part }) => ({ label: name[1], fill: `var(--${tone}${part})` })),
      width,
    );
  }

  function plotByteBreakdown(model, view) {
    const { state, width } = view;
    const methods = visibleMethods(model, state);
    if (!methods.length) return emptyFigure("No method is shown.");
    const rows = [];
    const list = methods.flatMap((method, i) => [
      ...(i ? [null] : []),
      ...["up", "down"].map((way) => {
        const partBytes = BREAKDOWN_PARTS.map(([key]) => method.runs[0].parts[way][key]);
        const total = d3.sum(partBytes);
        const { index_bytes: index, bound_bytes: bound, kept } = method.runs[0].parts;
        rows.push([method.label, way, ...partBytes, ...(way === "up" ? [index, bound, kept] : ["", "", ""])]);
        return {
          label: way === "up" ? methodName(method) : "",
          end: way === "up" ? " up" : "down",
          parts: partBytes.map((n) => (total ? n / total : 0)),
          text: formatByteCount(total),
        };
      }),
    ]);
    const x = { label: null, tickFormat: formatPercent, ticks: width < NARROW ? 3 : 6 };
    return {
      svg: plotBars(width, list, BREAKDOWN_PARTS, "p", { x, share: true }),
      columns: [
        "method",
        "direction",
        ...BREAKDOWN_PARTS.map(([key]) => `${key}_bytes`),
        "positions_bytes",
        "bound_bytes",
        "kept",
      ],
      rows: () => rows,
    };
  }

  function plotRoundTime(model, view) {
    const { state, width } = view;
    const pricedMethods = new Set(view.ranking.filter((row) => row.racer).map((row) => row.method));
    const methods = visibleMethods(model, state).filter((method) => pricedMethods.has(method));
    if (!methods.length) return emptyFigure("No method that is shown can be priced.");
    const rows = [];
    const list = methods.map((method) => {
      const stack = P.computeBreakdown(method.runs[0].timeline, state.up, state.down, state.latency);
      const means = ROUND_TIME_PHASES.map(([key]) => d3.mean(stack[key]));
      rows.push([method.label, ...means]);
      return { label: methodName(method), parts: means, text: P.formatSeconds(d3.sum(means)) };
    });
    const x = {
      label: "mean time of a round",
      labelAnchor: "right",
      tickFormat: P.formatSeconds,
      ticks: width < NARROW ? 3 : 6,
    };
    return {
      svg: plotBars(width, list, ROUND_TIME_PHASES, "s", { x }),
      columns: ["method", ...ROUND_TIME_PHASES.map(([key]) => `${key}_seconds`)],
      rows: () => rows,
    };
  }

  return { pareto: plotPareto, parts: plotByteBreakdown, round: plotRoundTime };
})();
