/* Figures with a line for each method. Each function takes (model, view) and returns {svg, columns, rows}: the drawing, and its
   values as a table. view: {state, ranking, width, speeds: {curves, breakEvens}, pending}; pending: the curves of this state
   are not computed yet. */
"use strict";

const fedsgdCurves = (() => {
  const P = fedsgdPricing;
  const D = fedsgdData;
  const {
    NARROW,
    methodColour,
    formatPercent,
    methodName,
    visibleMethods,
    formatByteCount,
    lineStyle,
    createPlot,
    emptyFigure,
    addLegend,
    lineLegendEntries,
    singlePointMark,
    addMethodLetters,
    logTicks,
    createScale,
    createTimeScale,
  } = fedsgdDraw;

  const selectPoints = (line, logarithmic) =>
    D.downsampleLine(line.x, line.y, logarithmic)
      .map((i) => ({ x: line.x[i], y: line.y[i], round: line.round[i] }))
      .filter((p) => !logarithmic || p.x > 0);

  function plotLinkSpeed(model, view) {
    const { state, width, speeds } = view;
    const lines = visibleMethods(model, state).flatMap((method) => {
      const points = Array.from(speeds.curves.get(method.index) || [], (seconds, i) => ({
        method,
        x: model.speeds[i],
        y: seconds,
      }));
      const finitePoints = points.filter((point) => Number.isFinite(point.y));
      return finitePoints.length ? [{ method, points: finitePoints }] : [];
    });
    if (!lines.length && view.pending) return emptyFigure("The curves are being computed …");
    if (!lines.length) return emptyFigure("No method that is shown reaches the target in a time that can be computed.");
    const [height, marginLeft, marginRight] = [width < NARROW ? 320 : 430, 68, 34];
    const all = lines.flatMap((line) => line.points);
    const y = createTimeScale(
      d3.extent(all, (point) => point.y).map((seconds, i) => seconds * [0.75, 1.2][i]),
      800,
    );
    const x = { type: "log", domain: d3.extent(model.speeds), label: "uplink", labelAnchor: "right", tickFormat: P.formatRate };
    const changes = speeds.breakEvens.filter(
      (one) => one.first && lines.some((line) => line.method === one.below) && lines.some((line) => line.method === one.above),
    );
    const now = lines.map(({ method }) => ({ method, y: view.ranking.find((row) => row.method === method).seconds }));
    const svg = createPlot(width, {
      height,
      marginLeft,
      marginRight,
      x: { ...x, ticks: logTicks(x.domain, Math.max(3, Math.floor(width / 98))) },
      y: { ...y, label: "time to the target", grid: true },
      marks: [
        Plot.ruleX([state.up], { stroke: "currentColor", strokeOpacity: 0.55 }),
        Plot.text([state.up], { x: (d) => d, text: (d) => P.formatRate(d), frameAnchor: "top", dy: -12, fill: "currentColor" }),
        ...lines.map(({ method, points }) => Plot.line(points, { x: "x", y: "y", ...lineStyle(method), clip: true })),
        Plot.dot(
          now.filter((one) => one.y && Number.isFinite(one.y.median)),
          {
            x: () => state.up,
            y: (d) => d.y.median,
            r: 3,
            fill: (d) => methodColour(d.method),
            stroke: "none",
          },
        ),
        Plot.dot(changes, { x: "speed", y: "seconds", r: 5, fill: "var(--paper)", stroke: "currentColor", strokeWidth: 1.5 }),
        Plot.tip(
          all,
          Plot.pointer({
            x: "x",
            y: "y",
            title: (d) => `${methodName(d.method)}\n${P.formatRate(d.x)} up: ${P.formatSeconds(d.y)}`,
          }),
        ),
      ],
    });
    const [px, py] = [svg.scale("x"), svg.scale("y")];
    const lineEndsAt = (i) =>
      lines.map(({ method, points }) => ({ method, x: px.apply(points.at(i).x), y: py.apply(points.at(i).y) }));
    addMethodLetters(svg, lineEndsAt(-1), height - 40);
    const columns = ["uplink_bits_per_second", "downlink_bits_per_second", ...lines.map(({ method }) => method.label)];
    const tableRows = () =>
      Array.from(model.speeds, (s, i) => [
        s,
        s * (state.down / state.up),
        ...lines.map(({ method }) => blankIfInfinite(speeds.curves.get(method.index)[i])),
      ]);
    return { svg: addLegend(svg, lineLegendEntries(lines), width), columns, rows: tableRows };
  }

  const blankIfInfinite = (value) => (Number.isFinite(value) ? value : "");

  const AXES = {
    up: { label: "uplink bytes, all clients", column: "uplink_bytes", valuesOf: (run) => run.up, format: formatByteCount },
    all: {
      label: "bytes in both directions, all clients",
      column: "bytes",
      valuesOf: (run) => run.up.map((n, i) => n + run.down[i]),
      format: formatByteCount,
    },
    rounds: { label: "rounds", column: "rounds", valuesOf: null, format: (n) => P.formatSignificant(n), linear: true },
    time: { label: "time on this network", column: "seconds", format: P.formatSeconds, time: true },
  };

  /* Lines of a method on an axis: one for each seed, and their median. */
  function buildMetricLines(method, axis, state, ranking) {
    if (axis.time && !ranking.find((row) => row.method === method).racer) return null;
    const each = method.runs.map((run) => {
      const along = axis.time
        ? P.cumulativeSeconds(run.timeline, state.up, state.down, state.latency)
        : axis.valuesOf && axis.valuesOf(run);
      const { round, value } = run.measured;
      const y = state.best ? run.bestSoFar : value;
      return { seed: run.seed, round, x: axis.valuesOf === null ? round : round.map((r) => along[r]), y };
    });
    return { method, each, middle: D.medianCurve(each, !axis.linear) };
  }

  /* At most about 80 points of a line for tooltips, because each of these points needs a text. */
  const samplePoints = (points) => points.filter((_, i) => i % Math.ceil(points.length / 80) === 0 || i === points.length - 1);

  const TARGET_LINE = { colour: "currentColor", dash: "4 3", width: 1, opacity: 0.7 };

  function plotMetric(model, view) {
    const { state, width } = view;
    const { name, format, formatTarget } = model.metric;
    const axis = AXES[state.axis];
    const lines = visibleMethods(model, state)
      .map((method) => buildMetricLines(method, axis, state, view.ranking))
      .filter((line) => line && line.each.some((one) => one.x.length));
    if (!lines.length) return emptyFigure(`Nothing to draw: no method is shown, or ${name} was not measured.`);
    const height = width < NARROW ? 320 : 430;
    const curves = lines.map((line) => ({
      method: line.method,
      points: selectPoints(line.middle, !axis.linear),
      thin: line.each.length > 1 ? line.each.map((one) => selectPoints(one, !axis.linear)) : [],
    }));
    const all = curves.flatMap((line) => [line.points, ...line.thin].flat());
    const xs = all.map((point) => point.x);
    const x = axis.time ? createTimeScale(xs, width) : createScale(xs, axis.format, width, !axis.linear);
    const svg = createPlot(width, {
      height,
      x: { ...x, label: axis.label, labelAnchor: "right" },
      y: {
        domain: d3.extent([...all.map((p) => p.y), state.target]),
        nice: true,
        grid: true,
        label: name,
        tickFormat: format,
        ticks: 8,
      },
      marks: [
        Plot.ruleY([state.target], {
          stroke: "currentColor",
          strokeOpacity: TARGET_LINE.opacity,
          strokeDasharray: TARGET_LINE.dash,
        }),
        Plot.line(
          curves.flatMap(({ method, thin }) =>
            thin.flatMap((points, i) =>
              points.map((p) => ({ ...p, tone: methodColour(method), run: `${method.letter} ${i}` })),
            ),
          ),
          {
            x: "x",
            y: "y",
            z: "run",
            stroke: "tone",
            strokeWidth: 1,
            strokeOpacity: 0.35,
            strokeLinejoin: "round",
          },
        ),
        ...curves.map(({ method, points }) => Plot.line(points, { x: "x", y: "y", ...lineStyle(method) })),
        singlePointMark(curves),
        Plot.tip(
          curves.flatMap(({ method, points }) => samplePoints(points).map((p) => ({ ...p, method }))),
          Plot.pointer({
            x: "x",
            y: "y",
            title: (d) =>
              `${methodName(d.method)}\nround ${d.round}, ${axis.format(d.x)}${axis.linear ? " rounds" : ""}: ${format(d.y)}`,
          }),
        ),
      ],
    });
    const [px, py] = [svg.scale("x"), svg.scale("y")];
    addMethodLetters(
      svg,
      curves
        .filter((line) => line.points.length)
        .map(({ method, points }) => ({ method, x: px.apply(points.at(-1).x), y: py.apply(points.at(-1).y) })),
      height - 40,
    );
    const tableRows = () =>
      lines.flatMap(({ method, each }) =>
        each.flatMap((one) => Array.from(one.round, (r, i) => [method.label, one.seed, r, one.x[i], one.y[i]])),
      );
    return {
      svg: addLegend(
        svg,
        [...lineLegendEntries(curves), { ...TARGET_LINE, label: `target ${formatTarget(state.target)}` }],
        width,
      ),
      columns: ["method", "seed", "round", axis.column, state.best ? `best_${name}_so_far` : name],
      rows: tableRows,
    };
  }

  function plotClientTraffic(model, view) {
    const { state, width } = view;
    const methods = visibleMethods(model, state);
    const lines = methods.flatMap((method) =>
      ["up", "down"].map((way) => {
        const each = method.runs.map((run) => run.traffic[way]);
        const points = Array.from(each[0], (_, q) => ({
          x: q / (each[0].length - 1),
          y: P.median(each.map((one) => one[q])),
          way,
        }));
        return { method, way, points };
      }),
    );
    const curves = lines
      .map((line) => ({ ...line, points: line.points.filter((p) => p.y > 0) }))
      .filter((line) => line.points.length);
    if (!curves.length) return emptyFigure("The methods that are shown sent no bytes.");
    const narrow = width < NARROW;
    const titles = { up: "uplink", down: "downlink" };
    const facet = narrow ? "fy" : "fx";
    const height = narrow ? 480 : 330;
    const y = createScale(
      curves.flatMap((line) => line.points.map((p) => p.y)),
      formatByteCount,
      400,
    );
    const svg = createPlot(width, {
      height,
      marginTop: narrow ? 48 : 36,
      marginRight: narrow ? 30 : 34,
      [facet]: {
        domain: ["up", "down"],
        label: null,
        axis: narrow ? null : "top",
        tickFormat: (way) => titles[way],
        padding: narrow ? 0.18 : 0.12,
      },
      x: {
        domain: [0, 1],
        label: "share of clients, by their bytes",
        labelAnchor: "right",
        tickFormat: formatPercent,
        ticks: narrow ? 4 : 5,
      },
      y: { ...y, grid: true, label: "bytes of a client" },
      marks: [
        ...(narrow
          ? [
              Plot.text(["up", "down"], {
                fy: (d) => d,
                text: (d) => titles[d],
                frameAnchor: "top-left",
                dy: -13,
                fontWeight: 600,
              }),
            ]
          : []),
        ...curves.map(({ method, way, points }) =>
          Plot.line(points, { x: "x", y: "y", [facet]: () => way, ...lineStyle(method) }),
        ),
      ],
    });
    const [px, py, pf] = [svg.scale("x"), svg.scale("y"), svg.scale(facet)];
    for (const way of ["up", "down"]) {
      const shift = pf.apply(way) - pf.apply("up");
      const ends = curves
        .filter((line) => line.way === way)
        .map(({ method, points }) => ({
          method,
          x: px.apply(points.at(-1).x) + (narrow ? 0 : shift),
          y: py.apply(points.at(-1).y) + (narrow ? shift : 0),
        }));
      addMethodLetters(svg, ends, narrow ? Infinity : height - 40);
    }
    const tableRows = () => lines.flatMap(({ method, way, points }) => points.map((p) => [method.label, way, p.x, p.y]));
    const entries = methods.map((method) => curves.find((line) => line.method === method)).filter(Boolean);
    return {
      svg: addLegend(svg, lineLegendEntries(entries), width),
      columns: ["method", "direction", "share_of_clients", "bytes"],
      rows: tableRows,
    };
  }

  /* Create the plot function for a quantity over rounds. Only some methods have such a quantity. */
  function createRoundPlot(key, label, column) {
    return (model, view) => {
      const { state, width } = view;
      const lines = visibleMethods(model, state).flatMap((method) => {
        const each = method.runs.map((run) => run[key]).filter((one) => one && one.round.length);
        return each.length
          ? [{ method, each, middle: D.medianCurve(each.map((one) => ({ round: one.round, x: one.round, y: one.value }))) }]
          : [];
      });
      if (!lines.length) return emptyFigure("The methods that are shown have no such values.");
      const curves = lines
        .map(({ method, middle }) => ({ method, points: selectPoints(middle, false) }))
        .filter((line) => line.points.length);
      const height = 280;
      const svg = createPlot(width, {
        height,
        x: { label: "round", labelAnchor: "right", ticks: 5, domain: [0, d3.max(curves, (line) => line.points.at(-1).x)] },
        y: { label, grid: true, zero: true, ticks: 5, tickFormat: (n) => P.formatSignificant(Math.max(0, n)) },
        marks: [
          Plot.ruleY([0]),
          ...curves.map(({ method, points }) => Plot.line(points, { x: "x", y: "y", ...lineStyle(method, 1.5) })),
          singlePointMark(curves),
        ],
      });
      const [px, py] = [svg.scale("x"), svg.scale("y")];
      addMethodLetters(
        svg,
        curves.map(({ method, points }) => ({ method, x: px.apply(points.at(-1).x), y: py.apply(points.at(-1).y) })),
        height - 40,
      );
      const tableRows = () =>
        lines.flatMap(({ method, middle }) => Array.from(middle.round, (r, i) => [method.label, r, middle.y[i]]));
      return {
        svg: addLegend(svg, lineLegendEntries(curves), width),
        columns: ["method", "round", column],
        rows: tableRows,
      };
    };
  }

  const plotRoundsMissed = createRoundPlot("missed", "rounds missed", "rounds_missed");
  const plotResidualNorm = createRoundPlot("residual", "residual norm", "residual_norm");

  return {
    speed: plotLinkSpeed,
    accuracy: plotMetric,
    traffic: plotClientTraffic,
    missed: plotRoundsMissed,
    residual: plotResidualNorm,
  };
})();
