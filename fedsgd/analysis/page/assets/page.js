/* The page: state, controls, tables and the drawing of figures. The state is in the fragment of the address. */
"use strict";

(() => {
  const P = fedsgdPricing;
  const D = fedsgdData;
  const W = fedsgdWords;
  const { computeUtilizations, showUtilizations, ...utilizationFigure } = fedsgdUtilization;
  const PLOT_FUNCTIONS = { ...fedsgdCurves, ...fedsgdTotals, ...utilizationFigure };
  const { h, describeLink } = W;
  const STEPS_PER_DECADE = 100; // of a slider
  const SLICE_MILLISECONDS = 12; // duration of a slice of computation
  const $ = (id) => document.getElementById(id);
  const roundToThreeFigures = (value) => Number(value.toPrecision(3));

  /* Parts of the state that each figure depends on. A visible figure is drawn again if one of these parts changes. */
  const FIGURES = {
    speed: ["up", "down", "latency", "target", "hidden", "speeds"],
    accuracy: ["time", "target", "hidden", "axis", "best"],
    pareto: ["hidden", "bytes"],
    parts: ["hidden"],
    round: ["up", "down", "latency", "hidden"],
    utilization: ["up", "down", "latency", "hidden", "speeds"],
    traffic: ["hidden"],
    missed: ["hidden"],
    residual: ["hidden"],
  };

  let model, state, rows, start, targetScale;
  let speeds = { key: null, curves: new Map(), breakEvens: [], utilizations: new Map() };
  const drawnFigures = new Map(); // id: {svg, columns, rows}
  const staleFigures = new Set(Object.keys(FIGURES));
  const visibleFigures = new Set();
  let frame = 0;
  let job = 0;
  let paper = 0; // width of figures in print, 0 on a screen

  /* --- State ----------------------------------------------------------------------------------------------------------------- */

  const LIMITS = { up: [100, 1e12], down: [100, 1e12], latency: [0, 2], target: null, ...fedsgdFleet.LIMITS }; // target: by the metric
  const CHOICES = { axis: ["up", "all", "rounds", "time"], bytes: ["all", "up"] };

  function readAddress() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    const newState = { ...start, hidden: new Set() };
    for (const [name, [low, high]] of Object.entries(LIMITS)) {
      const value = Number(parameters.get(name) || NaN);
      if (Number.isFinite(value)) newState[name] = Math.min(high, Math.max(low, value));
    }
    for (const [name, choices] of Object.entries(CHOICES)) {
      if (choices.includes(parameters.get(name))) newState[name] = parameters.get(name);
    }
    for (const name of ["best", "ratio"]) if (parameters.has(name)) newState[name] = parameters.get(name) === "1";
    for (const letter of (parameters.get("hide") || "").split(".")) {
      const method = model.methods.find((one) => one.letter === letter);
      if (method) newState.hidden.add(method.index);
    }
    return newState;
  }

  function writeAddress() {
    const words = new URLSearchParams();
    for (const name of [...Object.keys(LIMITS), ...Object.keys(CHOICES)])
      if (state[name] !== start[name]) words.set(name, state[name]);
    for (const name of ["best", "ratio"]) if (state[name] !== start[name]) words.set(name, state[name] ? "1" : "0");
    if (state.hidden.size)
      words.set(
        "hide",
        [...state.hidden]
          .sort(d3.ascending)
          .map((i) => model.methods[i].letter)
          .join("."),
      );
    history.replaceState(null, "", `#${words}`);
  }

  /* Apply changes to the state, and render the page in the next frame. */
  function updateState(changes) {
    Object.assign(state, changes);
    const names = new Set(Object.keys(changes));
    if (state.axis === "time" && ["up", "down", "latency"].some((name) => names.has(name))) names.add("time");
    for (const [id, needs] of Object.entries(FIGURES)) if (needs.some((name) => names.has(name))) staleFigures.add(id);
    if (!frame) frame = requestAnimationFrame(renderPage);
  }

  function renderPage() {
    frame = 0;
    rows = D.rankMethods(model, state);
    showControls();
    W.showAnswer(model, state, rows, findCurrentPreset());
    W.showRanking(model, state, rows);
    fedsgdFleet.showFleet(model, state);
    drawVisible();
    scheduleCurves();
    clearTimeout(writeAddress.timer);
    writeAddress.timer = setTimeout(writeAddress, 250);
  }

  /* --- Controls -------------------------------------------------------------------------------------------------------------- */

  const speedAtPosition = (position) => roundToThreeFigures(10 ** (2 + position / STEPS_PER_DECADE));
  const positionOfSpeed = (speed) => Math.round((Math.log10(speed) - 2) * STEPS_PER_DECADE);
  const latencyAtPosition = (position) =>
    position === 0 ? 0 : Math.min(2, roundToThreeFigures(10 ** (-4 + (position - 1) / STEPS_PER_DECADE)));
  const positionOfLatency = (seconds) =>
    seconds < 1e-4 ? Number(seconds > 0) : Math.round((Math.log10(seconds) + 4) * STEPS_PER_DECADE) + 1;

  /* Scales of the target's controls, for the number that a reader types and for the slider. An accuracy is a percentage; for
     other metrics the slider has the measured range, logarithmic from a factor of ten on. */
  function buildTargetScale() {
    if (model.metric.isAccuracy) {
      return {
        limits: [0.001, 1],
        toNumber: (target) => Number((target * 100).toFixed(4)),
        fromNumber: (number) => Number((number / 100).toPrecision(12)),
        isValid: (number) => number > 0 && number <= 100,
        atPosition: (position) => position / 1000,
        positionOf: (target) => Math.round(target * 1000),
      };
    }
    const values = model.methods.flatMap((method) => method.runs.flatMap((run) => Array.from(run.measured.value)));
    const [low, high] = d3.extent([...values, start.target]);
    const scale = (low > 0 && high >= 10 * low ? d3.scaleLog() : d3.scaleLinear()).domain([low, high]).range([1, 1000]);
    return {
      limits: [-Number.MAX_VALUE, Number.MAX_VALUE],
      toNumber: (target) => target,
      fromNumber: (number) => number,
      isValid: Number.isFinite,
      atPosition: (position) => roundToThreeFigures(scale.invert(position)),
      positionOf: (target) => (low < high ? Math.round(scale.clamp(true)(target)) : 1),
    };
  }

  function setSlider(id, position, text) {
    const slider = $(id);
    if (Number(slider.value) !== position) slider.value = position;
    slider.setAttribute("aria-valuetext", text);
    const output = $(`${id}-text`);
    if (output) output.textContent = text;
  }

  /* The preset with the link of the state, or null. */
  function findCurrentPreset() {
    const matchesState = (link) => link.up === state.up && link.down === state.down && link.latency === state.latency;
    return presets.find((one) => matchesState(one.link)) || null;
  }

  let presets = [];
  function buildPresets() {
    const profile = Boolean(model.terms.title); // a title means a profile without changed figures
    const reportPreset = { title: model.terms.title || "network of the report", link: D.linkOf(model.terms), named: profile };
    const others = model.networks.filter((one) => !profile || one.name !== model.terms.network);
    presets = [reportPreset, ...others.map((one) => ({ title: one.title, link: D.linkOf(one), named: true }))];
    $("preset").append(
      ...presets.map((one, i) => h("option", { value: i }, one.title)),
      h("option", { value: "own", hidden: true }, "as set by the sliders"),
    );
  }

  function showControls() {
    setSlider("up", positionOfSpeed(state.up), P.formatRate(state.up));
    setSlider("down", positionOfSpeed(state.down), P.formatRate(state.down));
    setSlider("latency", positionOfLatency(state.latency), P.formatSeconds(state.latency));
    const { metric } = model;
    setSlider("target", targetScale.positionOf(state.target), metric.format(state.target));
    if (document.activeElement !== $("target-number")) $("target-number").value = targetScale.toNumber(state.target);
    const preset = findCurrentPreset();
    $("preset").value = preset ? presets.indexOf(preset) : "own";
    $("ratio").checked = state.ratio;
    $("best").checked = state.best;
    for (const name of ["axis", "bytes"]) document.querySelector(`input[name=${name}][value=${state[name]}]`).checked = true;
    $("settings").textContent = `${describeLink(state)}; target ${metric.formatTarget(state.target)}`;
    $("printed-settings").textContent =
      `${preset ? `${preset.title}: ` : ""}${describeLink(state)}. Target: ${metric.formatTarget(state.target)}${metric.isAccuracy ? " accuracy" : ""}.` +
      (state.hidden.size ? ` Not shown: ${[...state.hidden].map((i) => model.methods[i].letter).join(", ")}.` : "");
    for (const button of $("legend").children)
      button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.method))));
  }

  function toggleMethod(index) {
    const hidden = new Set(state.hidden);
    if (!hidden.delete(index)) hidden.add(index);
    updateState({ hidden });
  }

  function bindControls() {
    const addListener = (id, event, act) => $(id).addEventListener(event, (e) => act(e.target));
    let ratio = state.down / state.up; // stored, because rounding and the ends of the scale would change the ratio
    addListener("up", "input", ({ valueAsNumber }) => {
      const up = speedAtPosition(valueAsNumber);
      if (!state.ratio) ratio = state.down / up;
      const newDown = Math.min(1e12, Math.max(100, roundToThreeFigures(up * ratio)));
      updateState(state.ratio ? { up, down: newDown } : { up });
    });
    addListener("down", "input", ({ valueAsNumber }) => {
      ratio = speedAtPosition(valueAsNumber) / state.up;
      updateState({ down: speedAtPosition(valueAsNumber) });
    });
    addListener("latency", "input", ({ valueAsNumber }) => updateState({ latency: latencyAtPosition(valueAsNumber) }));
    addListener("target", "input", ({ valueAsNumber }) => updateState({ target: targetScale.atPosition(valueAsNumber) }));
    addListener("target-number", "input", ({ valueAsNumber }) => {
      if (targetScale.isValid(valueAsNumber)) updateState({ target: targetScale.fromNumber(valueAsNumber) });
    });
    addListener("target-number", "blur", () => showControls());
    addListener("preset", "change", ({ value }) => {
      if (value === "own") return;
      ratio = presets[value].link.down / presets[value].link.up;
      updateState({ ...presets[value].link });
    });
    addListener("ratio", "change", ({ checked }) => {
      ratio = state.down / state.up;
      updateState({ ratio: checked });
    });
    addListener("best", "change", ({ checked }) => updateState({ best: checked }));
    for (const name of ["axis", "bytes"]) {
      for (const radio of document.querySelectorAll(`input[name=${name}]`))
        radio.addEventListener("change", () => updateState({ [name]: radio.value }));
    }
    addListener("reset", "click", () => updateState({ ...start, hidden: new Set() }));
    $("legend").append(
      ...model.methods.map((method) => {
        const button = h(
          "button",
          { type: "button", "data-method": method.index, title: method.label },
          W.createLegendKey(method),
          method.short,
        );
        button.addEventListener("click", () => toggleMethod(method.index));
        return button;
      }),
    );
    fedsgdFleet.bindFleet(model, () => state, updateState);
    window.addEventListener("hashchange", () => updateState(readAddress()));
  }

  /* --- Figures --------------------------------------------------------------------------------------------------------------- */

  function drawFigure(id) {
    const place = document.querySelector(`#${id} .plot`);
    const width = Math.round(paper ? (place.closest(".halves") ? paper / 2 - 10 : paper) : place.clientWidth);
    const isComplete = { speed: true, utilization: speeds.hasUtilizations }[id];
    const pending = id === "speed" || id === "utilization" ? speeds.key !== curvesKey() || !isComplete : false;
    const figure = PLOT_FUNCTIONS[id](model, { state, ranking: rows, width, speeds, pending });
    place.classList.toggle("pending", pending);
    if (figure.svg.tagName === "svg") {
      figure.svg.setAttribute("role", "img");
      figure.svg.setAttribute("aria-label", figureTitle(id));
    }
    for (const button of document.querySelectorAll(`#${id} .save button`))
      button.disabled = figure.svg.tagName !== "svg" || pending;
    place.replaceChildren(figure.svg);
    drawnFigures.set(id, figure);
    staleFigures.delete(id);
  }

  const figureTitle = (id) => document.querySelector(`#${id} h3`).textContent;

  function drawVisible() {
    for (const id of visibleFigures) if (staleFigures.has(id)) drawFigure(id);
  }

  function drawAll(width) {
    paper = width;
    for (const id of Object.keys(FIGURES)) if (!$(id).hidden) drawFigure(id);
    paper = 0;
  }

  function bindFigures() {
    const visibilityObserver = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) visibleFigures[entry.isIntersecting ? "add" : "delete"](entry.target.id);
        drawVisible();
      },
      { rootMargin: "300px" },
    );
    let width = 0;
    const sizeObserver = new ResizeObserver(([entry]) => {
      const now = Math.round(entry.contentRect.width);
      if (now === width) return;
      if (width) for (const id of Object.keys(FIGURES)) staleFigures.add(id);
      width = now;
      requestAnimationFrame(drawVisible);
    });
    sizeObserver.observe(document.querySelector("#speed .plot"));
    const hasPositiveValues = (name) =>
      model.methods.some((method) => method.runs.some((run) => run[name] && run[name].value.some((value) => value > 0)));
    for (const name of ["missed", "residual"]) $(name).hidden = !hasPositiveValues(name);
    for (const id of Object.keys(FIGURES)) {
      if (!$(id).hidden) visibilityObserver.observe($(id));
      $(id).addEventListener("click", ({ target }) => {
        const entry = target.closest(".entry");
        if (entry) toggleMethod(Number(entry.dataset.method));
        const kind = target.dataset.save;
        if (!kind) return;
        if (staleFigures.has(id)) drawFigure(id);
        fedsgdExport.exportFigure(drawnFigures.get(id), kind, `fedsgd-${id}`, `${model.title}: ${figureTitle(id)}`);
      });
    }
    let closedDetails = [];
    window.addEventListener("beforeprint", () => {
      drawAll(700);
      closedDetails = [...document.querySelectorAll("details.method:not([open]), #break-evens details:not([open])")];
      for (const details of closedDetails) details.open = true;
    });
    window.addEventListener("afterprint", () => {
      drawAll(0);
      for (const details of closedDetails) details.open = false;
    });
  }

  /* --- Break-evens: computed in slices while the sliders are at rest --------------------------------------------------------- */

  /* A text of all values that the curves depend on. */
  const curvesKey = () => [state.down / state.up, state.latency, state.target, rows.map((row) => Boolean(row.racer))].join();

  function scheduleCurves() {
    const key = curvesKey();
    clearTimeout(scheduleCurves.timer);
    job++; // cancels the computation for the previous state
    if (key === speeds.key && speeds.done) return showBreakEvens();
    $("break-evens").dataset.done = "false";
    const steps = computeCurvesAndBreakEvens(key, { up: state.up, down: state.down, latency: state.latency }, rows);
    scheduleCurves.timer = setTimeout(() => runInSlices(steps, job), speeds.key === null ? 0 : 120);
  }

  /* Run a generator in slices until it is done or a newer job has started. */
  function runInSlices(steps, ownJob) {
    const until = performance.now() + SLICE_MILLISECONDS;
    while (ownJob === job) {
      if (steps.next().done) return;
      if (performance.now() > until) {
        setTimeout(() => runInSlices(steps, ownJob), 0);
        return;
      }
    }
  }

  /* Compute curves and break-evens for this link and these rows, independent of later changes of the state. */
  function* computeCurvesAndBreakEvens(key, link, currentRows) {
    const timings = currentRows
      .filter((row) => row.racer)
      .sort((a, b) => a.method.index - b.method.index)
      .map((row) => ({ ...row.racer, method: row.method }));
    const result = { key, curves: new Map(), breakEvens: [], utilizations: new Map(), hasUtilizations: false, done: false };
    for (const timing of timings) {
      const curve = new Float64Array(model.speeds.length);
      for (const [i, speed] of model.speeds.entries()) {
        curve[i] = P.medianSecondsToTarget(timing, ...P.linkAtSpeed(link, speed));
        yield;
      }
      result.curves.set(timing.method.index, curve);
    }
    publishCurves(result);
    yield* computeUtilizations(result.utilizations, timings.map((timing) => timing.method), link, model);
    result.hasUtilizations = true;
    publishCurves(result);
    for (const [i, first] of timings.entries()) {
      for (const second of timings.slice(i + 1)) {
        const points = P.findBreakEvens(
          first,
          second,
          link,
          model.speeds,
          result.curves.get(first.method.index),
          result.curves.get(second.method.index),
        );
        for (const point of points) {
          const at = P.linkAtSpeed(link, point.speed);
          const times = timings.map((timing) => [timing.method.index, P.medianSecondsToTarget(timing, ...at)]);
          const [below, above] = [point.below, point.above].map(
            (letter) => timings.find((timing) => timing.label === letter).method,
          );
          result.breakEvens.push({
            below,
            above,
            speed: point.speed,
            times: new Map(times),
            seconds: new Map(times).get(below.index),
          });
        }
        yield;
      }
    }
    result.breakEvens.sort((a, b) => a.speed - b.speed);
    result.done = true;
    publishCurves(result);
  }

  function publishCurves(result) {
    speeds = result;
    for (const id of ["speed", "utilization"]) staleFigures.add(id);
    showBreakEvens();
    drawVisible();
  }

  /* Mark the break-evens at which the fastest visible method changes, and list the break-evens of all visible methods. */
  function showBreakEvens() {
    for (const one of speeds.breakEvens) {
      one.first = [...one.times].every(([index, seconds]) => state.hidden.has(index) || seconds >= one.seconds * (1 - 1e-9));
    }
    const isVisible = (method) => !state.hidden.has(method.index);
    const breakEvens = speeds.breakEvens.filter((one) => isVisible(one.below) && isVisible(one.above));
    W.showBreakEvens(model, breakEvens, speeds);
    showUtilizations(model, state, speeds);
  }

  /* --- Start ----------------------------------------------------------------------------------------------------------------- */

  async function startPage() {
    if (typeof DecompressionStream === "undefined")
      throw new Error(
        "this browser is too old to open the report: it needs Chrome or Edge 80, Firefox 113 or Safari 16.4, or later",
      );
    model = D.buildModel(await D.readPayload($("payload")));
    start = { ...D.linkOf(model.terms), target: model.target, axis: "up", bytes: "all", best: true, ratio: false, ...fedsgdFleet.startOf(model) };
    targetScale = buildTargetScale();
    LIMITS.target = targetScale.limits;
    state = readAddress();
    $("page").hidden = false;
    if (matchMedia("(max-width: 700px)").matches) document.querySelector("#controls details").open = false;
    buildPresets();
    bindControls();
    fedsgdFoundations.showFoundations(model);
    bindFigures();
    fedsgdTables.showStatistics(model);
    fedsgdTables.watchTables();
    updateState({});
  }

  startPage().catch((error) => {
    $("answer").textContent = `The report cannot be shown: ${error.message}.`;
    $("answer").className = "problem";
    throw error;
  });
})();
