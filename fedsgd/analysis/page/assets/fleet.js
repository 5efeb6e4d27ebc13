/* Bytes and money a month of a fleet: the operations of analysis/fleet.py and analysis/cap_limits.py, in the same order, on the
   same doubles, and the section of the page that shows them. */
"use strict";

const fedsgdFleet = (() => {
  const P = fedsgdPricing;
  const { formatByteCount } = fedsgdDraw;
  const { h, createLegendKey } = fedsgdWords;
  const $ = (id) => document.getElementById(id);
  const LIMITS = { clients: [1, 2 ** 31 - 1], rounds: [1, 1e6], price: [0, 1e9], cap: [0, 1e15] }; // 0: no price, no cap
  const SHARE_TOLERANCE = 1e-9;
  const HIGH_PERCENTILE = 0.95;
  const GIGABYTE = 1e9;

  /* --- Arithmetic ------------------------------------------------------------------------------------------------------------ */

  const binomialShares = { key: null, shares: null }; // the last result, because most methods sample the same share

  /* Probabilities [n + 1] of at most 0, 1, ..., n participations in n independent rounds. */
  function computeBinomialShares(n, probability) {
    const key = `${n} ${probability}`;
    if (binomialShares.key !== key) Object.assign(binomialShares, { key, shares: addBinomial(n, probability) });
    return binomialShares.shares;
  }

  function addBinomial(n, probability) {
    const shares = new Float64Array(n + 1).fill(probability <= 0 ? 1 : 0);
    shares[n] = 1;
    if (probability <= 0 || probability >= 1) return shares;
    const [base, odds] = [n * Math.log1p(-probability), Math.log(probability / (1 - probability))];
    let [logarithm, sum] = [0, 0];
    for (let i = 0; i <= n; i++) {
      sum += Math.exp(base + logarithm);
      shares[i] = Math.min(1, sum);
      logarithm += Math.log((n - i) / (i + 1)) + odds;
    }
    return shares;
  }

  /* Distribution of the bytes of a client in a month: {values, cumulative}, both ascending. */
  function modelClientBytes(traffic, rounds, share) {
    const mean = traffic.up + traffic.down;
    if (traffic.sampler === "uniform") {
      const values = Float64Array.from({ length: rounds + 1 }, (_, i) => i * mean);
      return { values, cumulative: computeBinomialShares(rounds, share) };
    }
    if (traffic.sampler === "cyclic") {
      const turns = rounds * share;
      const fewest = Math.floor(turns + SHARE_TOLERANCE);
      return { values: [fewest * mean, (fewest + 1) * mean], cumulative: [1 - Math.max(0, turns - fewest), 1] };
    }
    const scale = (rounds / traffic.rounds) * (share / (traffic.sampled_share || 1));
    const n = traffic.client_bytes.length;
    return {
      values: traffic.client_bytes.map((bytes) => bytes * scale),
      cumulative: Float64Array.from({ length: n }, (_, i) => (i + 1) / n),
    };
  }

  function percentile({ values, cumulative }, share) {
    return values[Math.min(d3.bisectLeft(cumulative, share - SHARE_TOLERANCE), values.length - 1)];
  }

  function shareWithin({ values, cumulative }, cap) {
    const index = d3.bisectRight(values, cap);
    return index ? cumulative[index - 1] : 0;
  }

  function getSampledShare(traffic, fleet, state) {
    return fleet.cohort === null ? traffic.sampled_share : Math.min(1, fleet.cohort / state.clients);
  }

  /* Figures of a method over its seeds. each: traffic of each seed. */
  function evaluateFleet(each, fleet, state) {
    const shares = each.map((traffic) => getSampledShare(traffic, fleet, state));
    const clients = each.map((traffic, i) => modelClientBytes(traffic, state.rounds, shares[i]));
    const participations = shares.map((share) => state.clients * state.rounds * share);
    const summarize = (figure) => P.summarizeSeeds(each.map((traffic, i) => figure(traffic, i)));
    return {
      share: P.summarizeSeeds(shares),
      participation: summarize(({ up, down }) => up + down),
      up: summarize(({ up }, i) => participations[i] * up),
      down: summarize(({ down }, i) => participations[i] * down),
      both: summarize(({ up, down }, i) => participations[i] * (up + down)),
      median: summarize((_, i) => percentile(clients[i], 0.5)),
      high: summarize((_, i) => percentile(clients[i], HIGH_PERCENTILE)),
      within: summarize((_, i) => shareWithin(clients[i], state.cap)),
    };
  }

  /* y at x on the line through two points [x, y], on linear scales or on two logarithmic scales. */
  function interpolate([x0, y0], [x1, y1], x, scale) {
    if (scale === "linear") return y0 + ((x - x0) / (x1 - x0)) * (y1 - y0);
    const share = (Math.log(x) - Math.log(x0)) / (Math.log(x1) - Math.log(x0));
    return Math.exp(Math.log(y0) + share * (Math.log(y1) - Math.log(y0)));
  }

  function chooseScale(points) {
    if (points.some(([value, bytes]) => value <= 0 || bytes <= 0)) return "linear";
    const error = (scale) =>
      d3.sum(points.slice(1, -1), ([value, bytes], i) =>
        Math.abs(Math.log(interpolate(points[i], points[i + 2], value, scale) / bytes)),
      );
    return error("logarithmic") < error("linear") - 1e-9 ? "logarithmic" : "linear";
  }

  /* Limit of a setting under a cap: {outcome, value, isLargest, scale, points}. */
  function findCapLimit({ values, whole }, clientBytes, cap) {
    const points = values.map((value, i) => [value, clientBytes[i]]);
    const isLargest = clientBytes[0] <= clientBytes.at(-1);
    const rising = isLargest ? points : [...points].reverse();
    const result = { isLargest, points, scale: null };
    if (rising.some(([, bytes], i) => i && bytes < rising[i - 1][1])) return { ...result, outcome: "unordered", value: null };
    if (rising.at(-1)[1] <= cap) return { ...result, outcome: "all", value: rising.at(-1)[0] };
    if (rising[0][1] > cap) return { ...result, outcome: "none", value: rising[0][0] };
    const i = rising.findIndex(([, bytes]) => bytes > cap);
    const [below, above] = [rising[i - 1], rising[i]];
    if (below[1] === cap) return { ...result, outcome: "within", value: below[0] };
    const scale = chooseScale(points);
    let value = interpolate([below[1], below[0]], [above[1], above[0]], cap, scale);
    if (whole) {
      value = isLargest ? Math.floor(value) : Math.ceil(value);
      if (value === below[0]) return { ...result, outcome: "within", value };
    }
    return { ...result, outcome: "within", value, scale };
  }

  /* --- Texts ----------------------------------------------------------------------------------------------------------------- */

  function formatShare(share) {
    const hundredths = Math.round(1e4 * share);
    if (share > 0 && !hundredths) return "<0.01 %";
    return share < 1 && hundredths === 10000 ? ">99.99 %" : `${Number((hundredths / 100).toFixed(2))} %`;
  }

  const formatCap = (cap) => `${formatByteCount(cap)}/month`;

  function describeCapLimit({ label, setting, whole }, limit, fleet, state) {
    const [share, cap] = [`${formatShare(fleet.share)} of the clients`, formatCap(state.cap)];
    if (limit.value === null) {
      return `${label}: the bytes do not change in one direction with ${setting}, so ${cap} gives no limit`;
    }
    const value = whole ? String(limit.value) : P.formatSignificant(limit.value);
    if (limit.outcome === "within") {
      const tried = limit.points.map(([one]) => one);
      const below = Math.max(...tried.filter((one) => one <= limit.value));
      const above = Math.min(...tried.filter((one) => one >= limit.value));
      const source = limit.scale
        ? `${limit.scale === "linear" ? "linear" : "log-log"} interpolation between ${below} and ${above}`
        : "a value that was run";
      const bound = limit.isLargest ? `up to ${value}` : `from ${value} up`;
      return `${label}: with ${setting} ${bound}, ${share} stay within ${cap} (${source})`;
    }
    const bytes = formatByteCount(limit.points.find(([one]) => one === limit.value)[1]);
    const edge = limit.isLargest === (limit.outcome === "all") ? "largest" : "smallest";
    if (limit.outcome === "all") {
      const verdict = `${share} stay within ${cap} with every ${setting} that was run`;
      return `${label}: ${verdict}; ${value}, the ${edge} value that was run, needs ${bytes}`;
    }
    return `${label}: no ${setting} that was run keeps ${share} within ${cap}; ${value}, the ${edge}, needs ${bytes}`;
  }

  /* Each text once, after the names of its methods unless it applies to all methods. */
  function joinNames(rows, describe) {
    const groups = d3.rollup(rows, (members) => members.map(({ method }) => method.short), describe);
    return [...groups].map(([text, names]) => (groups.size > 1 ? `${names.join(", ")}: ${text}` : text));
  }

  /* Lower bounds: methods whose clients miss more rounds than in the run, as in analysis/fleet_result.py. */
  function describeLowerBounds(model, rows) {
    const texts = rows.map(({ method, share }) => {
      const { sampled_share: measured, whole_model_bytes: size } = model.fleet.traffic[method.index][0];
      if (size === null || !(share.median < measured)) return null;
      const bound = `clients miss more rounds than in the run, and a download may have up to ${formatByteCount(size)}, the whole model`;
      return `lower bound for ${method.short}: ${bound}; for an upper bound, add a run with downlink.policy = "model"`;
    });
    return texts.filter((text) => text !== null);
  }

  function describeSampling(model, rows, state) {
    const { fleet } = model;
    const modelled = {
      uniform: `a client's participations in ${P.formatSignificant(state.rounds)} rounds are binomial`,
      cyclic: "clients take part in turn",
    };
    const scaled = "the clients' shares of the bytes are those of the run's clients";
    const samplerOf = ({ method }) => fleet.traffic[method.index][0].sampler;
    const source = fleet.cohort === null ? ", as in the run" : "";
    return [
      ...joinNames(rows, ({ share }) => `each round samples ${formatShare(share.median)} of the clients${source}`),
      ...joinNames(rows, (row) => `sampler ${samplerOf(row)}: ${modelled[samplerOf(row)] || scaled}`),
    ];
  }

  /* --- Section of the page --------------------------------------------------------------------------------------------------- */

  const CONTROLS = { clients: 1, rounds: 1, price: 1, cap: 1e6 }; // value of the state for 1 in the control
  let shownKey = null;

  /* Show the figures of the state, unless they are shown already, as after a step of a slider. */
  function showFleet(model, state) {
    const { fleet } = model;
    const key = Object.keys(CONTROLS)
      .map((name) => state[name])
      .join(" ");
    if (!fleet || key === shownKey) return;
    shownKey = key;
    showControls(state);
    const rows = model.methods.map((method) => ({ method, ...evaluateFleet(fleet.traffic[method.index], fleet, state) }));
    const describeCost = (bytes) => `costs ${P.formatSignificant((bytes / GIGABYTE) * state.price)}`;
    const createCell = ({ median }, hasCost) =>
      h("td", {}, formatByteCount(median), hasCost && state.price ? h("span", { class: "small" }, describeCost(median)) : null);
    const columns = [
      ["All clients, up", (row) => createCell(row.up)],
      ["Down", (row) => createCell(row.down)],
      ["Both ways", (row) => createCell(row.both, true)],
      ["Participation", (row) => createCell(row.participation)],
      ["Median client", (row) => createCell(row.median, true)],
      ["95 %", (row) => createCell(row.high, true)],
      ...(state.cap ? [[`Within ${formatCap(state.cap)}`, (row) => h("td", {}, formatShare(row.within.median))]] : []),
    ];
    $("fleet-table").tHead.replaceChildren(
      h(
        "tr",
        {},
        h("th", { scope: "col", class: "text" }, "Method"),
        ...columns.map(([head]) => h("th", { scope: "col" }, head)),
      ),
    );
    $("fleet-table").tBodies[0].replaceChildren(
      ...rows.map((row) =>
        h(
          "tr",
          { "data-method": row.method.index },
          h("td", { class: "text" }, createLegendKey(row.method), row.method.short),
          ...columns.map(([, create]) => create(row)),
        ),
      ),
    );
    const limits = (state.cap ? fleet.settings : []).map((setting) => {
      const bytes = setting.traffic.map((each) => {
        const clients = each.map((one) => modelClientBytes(one, state.rounds, getSampledShare(one, fleet, state)));
        return P.median(clients.map((one) => percentile(one, fleet.share)));
      });
      return describeCapLimit(setting, findCapLimit(setting, bytes, state.cap), fleet, state);
    });
    const assumption = "a participation has the mean bytes of the run's ledger, first downloads of the whole model included";
    const notes = [...describeLowerBounds(model, rows), ...describeSampling(model, rows, state), assumption];
    $("cap-limits").replaceChildren(...limits.map((text) => h("li", {}, `${text}.`)));
    $("fleet-notes").replaceChildren(...notes.map((text) => h("li", {}, `${text}.`)));
  }

  function showControls(state) {
    for (const [name, unit] of Object.entries(CONTROLS)) {
      const input = $(`fleet-${name}`);
      if (document.activeElement !== input) input.value = state[name] ? Number((state[name] / unit).toPrecision(12)) : "";
    }
  }

  /* Bind the controls. update: function that applies changes to the state. */
  function bindFleet(model, getState, update) {
    $("fleet").hidden = !model.fleet;
    for (const [name, unit] of Object.entries(CONTROLS)) {
      const [low, high] = LIMITS[name];
      $(`fleet-${name}`).addEventListener("input", ({ target }) => {
        const value = Number((Number(target.value || 0) * unit).toPrecision(12));
        if (target.validity.badInput || !(value >= low && value <= high)) return;
        if (low === 1 && !Number.isInteger(value)) return;
        update({ [name]: value });
      });
      $(`fleet-${name}`).addEventListener("blur", () => showControls(getState()));
    }
  }

  /* State with which the page starts. */
  function startOf(model) {
    const { fleet } = model;
    if (!fleet) return { price: model.price_per_gigabyte ?? 0 };
    return { clients: fleet.clients, rounds: fleet.rounds_per_month, price: fleet.price_per_gigabyte, cap: fleet.cap_bytes };
  }

  return { LIMITS, startOf, bindFleet, showFleet };
})();
