/* Parts of figures: scales, axes, legends, letters at the ends of lines. Colours are CSS variables, which are resolved when a
   figure is saved. */
"use strict";

const fedsgdDraw = (() => {
  const P = fedsgdPricing;
  const DASHES = [null, "7 3", "2 2.5", "10 3 2 3", "14 4", "4 2 1 2"];
  const COLOURS = 8;
  const NARROW = 560;
  const FONT = "system-ui, sans-serif";

  const methodColour = (method) => `var(--m${method.index % COLOURS})`;
  const methodDash = (method) => DASHES[method.index % DASHES.length];
  const formatPercent = (share) => (Number.isNaN(share) ? "not measured" : `${Number((share * 100).toFixed(2))} %`);
  const formatMetric = (value) => (Number.isNaN(value) ? "not measured" : String(Number(value.toPrecision(4))));
  const methodName = (method) => `${method.letter}  ${method.short}`;
  const visibleMethods = (model, state) => model.methods.filter((method) => !state.hidden.has(method.index));
  const formatByteCount = (bytes) => P.formatBytes(Math.round(bytes));

  const pen = document.createElement("canvas").getContext("2d");
  function measureText(text, pixels = 12, weight = 400) {
    pen.font = `${weight} ${pixels}px ${FONT}`;
    return pen.measureText(text).width;
  }
  function truncateText(text, width) {
    if (measureText(text) <= width) return text;
    let n = text.length;
    while (n > 1 && measureText(`${text.slice(0, n).trimEnd()}…`) > width) n--;
    return `${text.slice(0, n).trimEnd()}…`;
  }

  /* Attributes of a mark for the line of a method. */
  const lineStyle = (method, width = 2, opacity = 1) => ({
    stroke: methodColour(method),
    strokeWidth: width,
    strokeOpacity: opacity,
    strokeDasharray: methodDash(method),
    strokeLinejoin: "round",
  });

  /* A plot with explicit axes: Plot omits the texts of ticks between powers of ten. */
  function createPlot(width, { x, y, marks, ...options }) {
    const axes = [
      ["axisX", "gridX", x],
      ["axisY", "gridY", y],
    ].flatMap(([axis, grid, own]) => {
      if (!Array.isArray(own.ticks)) return [];
      return [
        ...(own.grid ? [Plot[grid](own.ticks)] : []),
        Plot[axis](own.ticks, { text: own.tickFormat, label: own.label, labelAnchor: own.labelAnchor }),
      ];
    });
    const withoutAxis = (own) => (Array.isArray(own.ticks) ? { ...own, axis: null, grid: false } : own);
    return Plot.plot({
      x: withoutAxis(x),
      y: withoutAxis(y),
      marks: [...axes, ...marks],
      width,
      marginLeft: 56,
      marginRight: 30,
      marginBottom: 40,
      marginTop: 28,
      style: { fontSize: "12px", fontFamily: FONT, overflow: "visible" },
      ...options,
    });
  }

  const emptyFigure = (text) => ({
    svg: d3.create("p").attr("class", "nothing").text(text).node(),
    columns: [],
    rows: () => [],
  });

  /* Add a legend below a figure, with as many entries on a line as fit. entries: [{label, colour, dash, width, opacity | dot,
     hollow | fill, method}]. The mark of an entry looks like the mark in the figure. */
  function addLegend(svg, entries, width) {
    const [height, gap, lead] = [20, 18, 34];
    const below = Number(svg.getAttribute("height"));
    const root = d3
      .select(svg)
      .append("g")
      .attr("class", "legend")
      .attr("transform", `translate(0,${below})`)
      .attr("text-anchor", "start");
    let [x, y] = [4, 14];
    for (const entry of entries) {
      const label = truncateText(entry.label, Math.min(340, width - lead - 8));
      const entryWidth = lead + measureText(label);
      if (x > 4 && x + entryWidth > width) [x, y] = [4, y + height];
      const one = root.append("g").attr("transform", `translate(${x},${y})`);
      if (entry.method) one.attr("class", "entry").attr("data-method", entry.method.index);
      if (entry.dot)
        one
          .append("circle")
          .attr("r", 5)
          .attr("cx", 20)
          .attr("fill", entry.hollow ? "var(--paper)" : entry.colour)
          .attr("stroke", entry.colour)
          .attr("stroke-width", 2);
      else if (entry.fill)
        one.append("rect").attr("width", 14).attr("height", 10).attr("x", 12).attr("y", -5).attr("fill", entry.fill);
      else
        one
          .append("line")
          .attr("x2", 28)
          .attr("stroke", entry.colour)
          .attr("stroke-width", entry.width || 2.5)
          .attr("stroke-opacity", entry.opacity || null)
          .attr("stroke-dasharray", entry.dash);
      one.append("text").attr("x", lead).attr("dy", "0.32em").text(label).append("title").text(entry.label);
      x += entryWidth + gap;
    }
    const total = below + y + 12;
    d3.select(svg).attr("height", total).attr("viewBox", `0 0 ${width} ${total}`);
    return svg;
  }

  const methodLegendEntry = (method, options = {}) => ({
    label: `${methodName(method)}${method.diverged.length ? " (diverged)" : ""}`,
    colour: methodColour(method),
    dash: methodDash(method),
    method,
    ...options,
  });

  /* Legend entries of lines: [{method, points}]. A line of one point is a dot. */
  const lineLegendEntries = (lines) =>
    lines.map(({ method, points }) => methodLegendEntry(method, { dot: points.length === 1 }));

  /* Mark for lines of one point, which Plot.line does not show. */
  const singlePointMark = (lines) =>
    Plot.dot(
      lines.filter(({ points }) => points.length === 1).map(({ method, points }) => ({ ...points[0], method })),
      { x: "x", y: "y", r: 5, fill: (d) => methodColour(d.method) },
    );

  /* Letters of methods at the ends of their lines, moved so that they do not overlap. ends: [{method, x, y}] in pixels. */
  function addMethodLetters(svg, ends, bottom, towards = 1) {
    const apart = 13;
    const areNear = (a, b) => Math.abs(a.x - b.x) < 26;
    ends.sort((a, b) => a.y - b.y);
    ends.forEach(
      (end, i) =>
        (end.at = Math.max(
          end.y,
          ...ends
            .slice(0, i)
            .filter((one) => areNear(one, end))
            .map((one) => one.at + apart),
        )),
    );
    for (let i = ends.length - 1; i >= 0; i--) {
      ends[i].at = Math.min(
        ends[i].at,
        bottom,
        ...ends
          .slice(i + 1)
          .filter((one) => areNear(one, ends[i]))
          .map((one) => one.at - apart),
      );
    }
    const root = d3
      .select(svg)
      .append("g")
      .attr("font-weight", 600)
      .attr("stroke-width", 3)
      .attr("paint-order", "stroke")
      .attr("text-anchor", towards > 0 ? "start" : "end");
    for (const { method, x, y, at } of ends) {
      if (Math.abs(at - y) > 3) {
        root
          .append("line")
          .attr("x1", x + 2 * towards)
          .attr("y1", y)
          .attr("x2", x + 9 * towards)
          .attr("y2", at)
          .attr("stroke", methodColour(method))
          .attr("stroke-opacity", 0.6)
          .attr("stroke-width", 1);
      }
      root
        .append("text")
        .attr("x", x + (Math.abs(at - y) > 3 ? 11 : 6) * towards)
        .attr("y", at)
        .attr("dy", "0.32em")
        .attr("fill", methodColour(method))
        .attr("stroke", "var(--paper)")
        .text(method.letter);
    }
  }

  function logTicks(domain, most) {
    const [low, high] = domain.map(Math.log10);
    const every = Math.max(1, Math.ceil((high - low) / most));
    return d3
      .range(Math.ceil(low - 1e-9), Math.floor(high + 1e-9) + 1)
      .filter((n) => n % every === 0)
      .map((n) => 10 ** n);
  }

  /* Ticks for a range below two decades: as many of the steps 1, 2 and 5 in each decade as fit. */
  function subdecadeTicks([low, high], most) {
    const powers = d3.range(Math.floor(Math.log10(low)), Math.log10(high)).map((n) => 10 ** n);
    for (const steps of [[1, 2, 5], [1, 5], [1]]) {
      const inside = powers.flatMap((power) => steps.map((step) => step * power)).filter((tick) => tick >= low && tick <= high);
      if (inside.length > 1 && inside.length <= most) return inside;
    }
    return d3.ticks(low, high, Math.min(4, most));
  }

  const TIME_TICKS = [
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 60, 600, 3600, 36000, 345600, 3456000, 34560000, 345600000, 3456000000,
    34560000000,
  ];
  const timeTicks = ([low, high], most = 9) => {
    const inside = TIME_TICKS.filter((seconds) => seconds >= low && seconds <= high);
    const few = inside.filter((_, i) => (inside.length - 1 - i) % Math.ceil(inside.length / most) === 0);
    return few.length > 1 ? few : d3.ticks(low, high, 4);
  };

  /* Options of an axis of bytes, seconds or rounds. text: function that formats a value. */
  function createScale(values, text, width, logarithmic = true) {
    const [low, high] = d3.extent(values);
    const most = Math.max(3, Math.floor(width / 105));
    if (!logarithmic) return { domain: [low, high], ticks: most, tickFormat: text };
    const domain = low === high ? [low / 2, high * 2] : [low, high];
    const ticks = Math.log10(domain[1] / domain[0]) < 2 ? subdecadeTicks(domain, most) : logTicks(domain, most);
    return { type: "log", domain, ticks, tickFormat: text };
  }

  function createTimeScale(values, width) {
    const scale = createScale(values, P.formatSeconds, width);
    return { ...scale, ticks: timeTicks(scale.domain, Math.max(3, Math.floor(width / 100))) };
  }

  return {
    NARROW,
    FONT,
    methodColour,
    methodDash,
    formatPercent,
    formatMetric,
    methodName,
    visibleMethods,
    formatByteCount,
    measureText,
    truncateText,
    lineStyle,
    createPlot,
    emptyFigure,
    addLegend,
    methodLegendEntry,
    lineLegendEntries,
    singlePointMark,
    addMethodLetters,
    logTicks,
    createScale,
    createTimeScale,
  };
})();
