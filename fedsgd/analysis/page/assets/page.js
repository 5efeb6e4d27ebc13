/* The page: its state, its controls, its tables, and when which figure is drawn. The state is in the address, after the #. */
"use strict";

(() => {
  const P = fedsgdPricing;
  const D = fedsgdData;
  const W = fedsgdWords;
  const DRAW = { ...fedsgdCurves, ...fedsgdTotals };
  const { percent } = fedsgdDraw;
  const { h, linkText } = W;
  const STEPS = 100; // of a slider, to a decade
  const SLICE = 12; // milliseconds of work at a time
  const $ = (id) => document.getElementById(id);
  const three = (value) => Number(value.toPrecision(3));

  /* What each figure depends on; it is drawn again when one of these changes and it can be seen. */
  const FIGURES = {
    speed: ["up", "down", "latency", "target", "hidden", "speeds"],
    accuracy: ["time", "target", "hidden", "axis", "best"],
    pareto: ["hidden", "bytes"],
    parts: ["hidden"],
    round: ["up", "down", "latency", "hidden"],
    traffic: ["hidden"],
    missed: ["hidden"],
    residual: ["hidden"],
  };

  let model, state, rows, start;
  let speeds = { key: null, curves: new Map(), breakEvens: [] };
  const drawn = new Map(); // id: {svg, columns, rows}
  const stale = new Set(Object.keys(FIGURES));
  const visible = new Set();
  let frame = 0;
  let job = 0;
  let paper = 0; // width to draw at on paper, 0 on a screen

  /* --- State ----------------------------------------------------------------------------------------------------------------- */

  const LIMITS = { up: [100, 1e12], down: [100, 1e12], latency: [0, 2], target: [0.001, 1] };
  const CHOICES = { axis: ["up", "all", "rounds", "time"], bytes: ["all", "up"] };

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const made = { ...start, hidden: new Set() };
    for (const [name, [low, high]] of Object.entries(LIMITS)) {
      const value = Number(asked.get(name) || NaN);
      if (Number.isFinite(value)) made[name] = Math.min(high, Math.max(low, value));
    }
    for (const [name, known] of Object.entries(CHOICES)) if (known.includes(asked.get(name))) made[name] = asked.get(name);
    for (const name of ["best", "ratio"]) if (asked.has(name)) made[name] = asked.get(name) === "1";
    for (const letter of (asked.get("hide") || "").split(".")) {
      const method = model.methods.find((one) => one.letter === letter);
      if (method) made.hidden.add(method.index);
    }
    return made;
  }

  function toAddress() {
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

  /* Take on what changed, and draw it with the next frame. */
  function change(what) {
    Object.assign(state, what);
    const names = new Set(Object.keys(what));
    if (state.axis === "time" && ["up", "down", "latency"].some((name) => names.has(name))) names.add("time");
    for (const [id, needs] of Object.entries(FIGURES)) if (needs.some((name) => names.has(name))) stale.add(id);
    if (!frame) frame = requestAnimationFrame(present);
  }

  function present() {
    frame = 0;
    rows = D.ranking(model, state);
    showControls();
    W.showAnswer(model, state, rows, presetNow());
    W.showRanking(model, state, rows);
    drawVisible();
    wantSpeeds();
    clearTimeout(toAddress.timer);
    toAddress.timer = setTimeout(toAddress, 250);
  }

  /* --- Controls -------------------------------------------------------------------------------------------------------------- */

  const speedAt = (position) => three(10 ** (2 + position / STEPS));
  const positionOf = (speed) => Math.round((Math.log10(speed) - 2) * STEPS);
  const latencyAt = (position) => (position === 0 ? 0 : Math.min(2, three(10 ** (-4 + (position - 1) / STEPS))));
  const latencyPosition = (seconds) =>
    seconds < 1e-4 ? Number(seconds > 0) : Math.round((Math.log10(seconds) + 4) * STEPS) + 1;

  function setRange(id, position, text) {
    const slider = $(id);
    if (Number(slider.value) !== position) slider.value = position;
    slider.setAttribute("aria-valuetext", text);
    const output = $(`${id}-text`);
    if (output) output.textContent = text;
  }

  /* The network whose link this is, or null. */
  function presetNow() {
    const same = (link) => link.up === state.up && link.down === state.down && link.latency === state.latency;
    return presets.find((one) => same(one.link)) || null;
  }

  let presets = [];
  function makePresets() {
    const profile = Boolean(model.terms.title); // its own figures, none of them asked for otherwise
    const asked = { title: model.terms.title || "as asked for", link: D.bits(model.terms), named: profile };
    const others = model.networks.filter((one) => !profile || one.name !== model.terms.network);
    presets = [asked, ...others.map((one) => ({ title: one.title, link: D.bits(one), named: true }))];
    $("preset").append(
      ...presets.map((one, i) => h("option", { value: i }, one.title)),
      h("option", { value: "own", hidden: true }, "as set by the sliders"),
    );
  }

  function showControls() {
    setRange("up", positionOf(state.up), P.rateText(state.up));
    setRange("down", positionOf(state.down), P.rateText(state.down));
    setRange("latency", latencyPosition(state.latency), P.secondsText(state.latency));
    setRange("target", Math.round(state.target * 1000), percent(state.target));
    if (document.activeElement !== $("target-number")) $("target-number").value = Number((state.target * 100).toFixed(4));
    const preset = presetNow();
    $("preset").value = preset ? presets.indexOf(preset) : "own";
    $("ratio").checked = state.ratio;
    $("best").checked = state.best;
    for (const name of ["axis", "bytes"]) document.querySelector(`input[name=${name}][value=${state[name]}]`).checked = true;
    $("settings").textContent = `${linkText(state)}; target ${percent(state.target)}`;
    $("printed-settings").textContent =
      `${preset ? `${preset.title}: ` : ""}${linkText(state)}. Target: ${percent(state.target)} accuracy.` +
      (state.hidden.size ? ` Not shown: ${[...state.hidden].map((i) => model.methods[i].letter).join(", ")}.` : "");
    for (const button of $("legend").children)
      button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.method))));
  }

  function toggle(index) {
    const hidden = new Set(state.hidden);
    if (!hidden.delete(index)) hidden.add(index);
    change({ hidden });
  }

  function bindControls() {
    const on = (id, event, act) => $(id).addEventListener(event, (e) => act(e.target));
    let ratio = state.down / state.up; // kept from when it was set: rounding and the ends of the scale would wear it away
    on("up", "input", ({ valueAsNumber }) => {
      const up = speedAt(valueAsNumber);
      if (!state.ratio) ratio = state.down / up;
      const follows = Math.min(1e12, Math.max(100, three(up * ratio)));
      change(state.ratio ? { up, down: follows } : { up });
    });
    on("down", "input", ({ valueAsNumber }) => {
      ratio = speedAt(valueAsNumber) / state.up;
      change({ down: speedAt(valueAsNumber) });
    });
    on("latency", "input", ({ valueAsNumber }) => change({ latency: latencyAt(valueAsNumber) }));
    on("target", "input", ({ valueAsNumber }) => change({ target: valueAsNumber / 1000 }));
    on("target-number", "input", ({ valueAsNumber }) => {
      if (valueAsNumber > 0 && valueAsNumber <= 100) change({ target: Number((valueAsNumber / 100).toPrecision(12)) });
    });
    on("target-number", "blur", () => showControls());
    on("preset", "change", ({ value }) => {
      if (value === "own") return;
      ratio = presets[value].link.down / presets[value].link.up;
      change({ ...presets[value].link });
    });
    on("ratio", "change", ({ checked }) => {
      ratio = state.down / state.up;
      change({ ratio: checked });
    });
    on("best", "change", ({ checked }) => change({ best: checked }));
    for (const name of ["axis", "bytes"]) {
      for (const radio of document.querySelectorAll(`input[name=${name}]`))
        radio.addEventListener("change", () => change({ [name]: radio.value }));
    }
    on("reset", "click", () => change({ ...start, hidden: new Set() }));
    $("legend").append(
      ...model.methods.map((method) => {
        const button = h(
          "button",
          { type: "button", "data-method": method.index, title: method.label },
          W.key(method),
          method.short,
        );
        button.addEventListener("click", () => toggle(method.index));
        return button;
      }),
    );
    window.addEventListener("hashchange", () => change(fromAddress()));
  }

  /* --- Figures --------------------------------------------------------------------------------------------------------------- */

  function draw(id) {
    const place = document.querySelector(`#${id} .plot`);
    const width = Math.round(paper ? (place.closest(".halves") ? paper / 2 - 10 : paper) : place.clientWidth);
    const pending = id === "speed" && speeds.key !== speedsWanted();
    const made = DRAW[id](model, { state, ranking: rows, width, speeds, pending });
    place.classList.toggle("pending", pending);
    if (made.svg.tagName === "svg") {
      made.svg.setAttribute("role", "img");
      made.svg.setAttribute("aria-label", titleOf(id));
    }
    for (const button of document.querySelectorAll(`#${id} .save button`))
      button.disabled = made.svg.tagName !== "svg" || pending;
    place.replaceChildren(made.svg);
    drawn.set(id, made);
    stale.delete(id);
  }

  const titleOf = (id) => document.querySelector(`#${id} h3`).textContent;

  function drawVisible() {
    for (const id of visible) if (stale.has(id)) draw(id);
  }

  function drawAll(width) {
    paper = width;
    for (const id of Object.keys(FIGURES)) if (!$(id).hidden) draw(id);
    paper = 0;
  }

  function bindFigures() {
    const seen = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
        drawVisible();
      },
      { rootMargin: "300px" },
    );
    let width = 0;
    const resized = new ResizeObserver(([entry]) => {
      const now = Math.round(entry.contentRect.width);
      if (now === width) return;
      if (width) for (const id of Object.keys(FIGURES)) stale.add(id);
      width = now;
      requestAnimationFrame(drawVisible);
    });
    resized.observe(document.querySelector("#speed .plot"));
    const has = (name) =>
      model.methods.some((method) => method.runs.some((run) => run[name] && run[name].value.some((value) => value > 0)));
    for (const [id, name] of [
      ["missed", "missed"],
      ["residual", "residual"],
    ])
      $(id).hidden = !has(name);
    for (const id of Object.keys(FIGURES)) {
      if (!$(id).hidden) seen.observe($(id));
      $(id).addEventListener("click", ({ target }) => {
        const entry = target.closest(".entry");
        if (entry) toggle(Number(entry.dataset.method));
        const kind = target.dataset.save;
        if (!kind) return;
        if (stale.has(id)) draw(id);
        fedsgdExport.download(drawn.get(id), kind, `fedsgd-${id}`, `${model.title}: ${titleOf(id)}`);
      });
    }
    let closed = [];
    window.addEventListener("beforeprint", () => {
      drawAll(700);
      closed = [...document.querySelectorAll("details.method:not([open]), #break-evens details:not([open])")];
      for (const details of closed) details.open = true;
    });
    window.addEventListener("afterprint", () => {
      drawAll(0);
      for (const details of closed) details.open = false;
    });
  }

  /* --- Break-evens: some work, so it is done beside, and only when the sliders rest ------------------------------------------ */

  /* What the curves depend on. */
  const speedsWanted = () =>
    [state.down / state.up, state.latency, state.target, rows.map((row) => Boolean(row.racer))].join();

  function wantSpeeds() {
    const wanted = speedsWanted();
    clearTimeout(wantSpeeds.timer);
    job++; // whatever is under way is for sliders as they were
    if (wanted === speeds.key && speeds.done) return showBreakEvens();
    $("break-evens").dataset.done = "false";
    const steps = computing(wanted, { up: state.up, down: state.down, latency: state.latency }, rows);
    wantSpeeds.timer = setTimeout(() => work(steps, job), speeds.key === null ? 0 : 120);
  }

  /* Goes on with a generator in slices, until it is done or another one is wanted. */
  function work(steps, mine) {
    const until = performance.now() + SLICE;
    while (mine === job) {
      if (steps.next().done) return;
      if (performance.now() > until) {
        setTimeout(() => work(steps, mine), 0);
        return;
      }
    }
  }

  /* All of it is for this link and these rows, wherever the sliders go meanwhile. */
  function* computing(wanted, link, standing) {
    const racers = standing
      .filter((row) => row.racer)
      .sort((a, b) => a.method.index - b.method.index)
      .map((row) => ({ ...row.racer, method: row.method }));
    const made = { key: wanted, curves: new Map(), breakEvens: [], done: false };
    for (const racer of racers) {
      const curve = new Float64Array(model.speeds.length);
      for (const [i, speed] of model.speeds.entries()) {
        curve[i] = P.racerSeconds(racer, ...P.at(link, speed));
        yield;
      }
      made.curves.set(racer.method.index, curve);
    }
    publish(made);
    for (const [i, first] of racers.entries()) {
      for (const second of racers.slice(i + 1)) {
        const found = P.breakEvens(
          first,
          second,
          link,
          model.speeds,
          made.curves.get(first.method.index),
          made.curves.get(second.method.index),
        );
        for (const one of found) {
          const times = racers.map((racer) => [racer.method.index, P.racerSeconds(racer, ...P.at(link, one.speed))]);
          const [below, above] = [one.below, one.above].map((letter) => racers.find((racer) => racer.label === letter).method);
          made.breakEvens.push({
            below,
            above,
            speed: one.speed,
            times: new Map(times),
            seconds: new Map(times).get(below.index),
          });
        }
        yield;
      }
    }
    made.breakEvens.sort((a, b) => a.speed - b.speed);
    made.done = true;
    publish(made);
  }

  function publish(made) {
    speeds = made;
    stale.add("speed");
    showBreakEvens();
    drawVisible();
  }

  /* Marks those where the soonest of the methods shown changes, and says all of them in words. */
  function showBreakEvens() {
    for (const one of speeds.breakEvens) {
      one.first = [...one.times].every(([index, seconds]) => state.hidden.has(index) || seconds >= one.seconds * (1 - 1e-9));
    }
    const shown = speeds.breakEvens.filter((one) => !state.hidden.has(one.below.index) && !state.hidden.has(one.above.index));
    W.showBreakEvens(model, shown, speeds);
  }

  /* --- Start ----------------------------------------------------------------------------------------------------------------- */

  async function begin() {
    if (typeof DecompressionStream === "undefined")
      throw new Error(
        "this browser is too old to open the report: it needs Chrome or Edge 80, Firefox 113 or Safari 16.4, or later",
      );
    model = D.model(await D.open($("payload")));
    start = { ...D.bits(model.terms), target: model.target, axis: "up", bytes: "all", best: true, ratio: false };
    state = fromAddress();
    $("page").hidden = false;
    if (matchMedia("(max-width: 700px)").matches) document.querySelector("#controls details").open = false;
    makePresets();
    bindControls();
    fedsgdFoundations.show(model);
    bindFigures();
    change({});
  }

  begin().catch((error) => {
    $("answer").textContent = `The report cannot be shown: ${error.message}.`;
    $("answer").className = "problem";
    throw error;
  });
})();
