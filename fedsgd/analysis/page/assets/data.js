/* Payload: decoding, and figures of the methods at a target and on a link. No DOM except the element of the payload. */
"use strict";

const fedsgdData = (() => {
  const P = fedsgdPricing;
  const MAX_POINTS = 600; // of a line; a screen cannot show more

  function decodeBase64(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  const decodeArray = (packed) => new Float64Array(decodeBase64(packed.f8).buffer);
  const decodeColumn = (packed) => (typeof packed === "number" ? packed : decodeArray(packed));
  const decodeSeries = (packed) => packed && { round: decodeArray(packed.round), value: decodeArray(packed.value) };

  /* The payload: JSON, compressed by gzip, in base64. */
  async function readPayload(element) {
    const stream = new Blob([decodeBase64(element.textContent.trim())]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  function buildRun(plain, broadcast, sign) {
    const line = plain.timeline;
    const columns =
      line &&
      Object.fromEntries(
        Object.entries(line)
          .filter(([name]) => name !== "work")
          .map(([k, v]) => [k, decodeColumn(v)]),
      );
    const [round, value] = [decodeArray(plain.measured.round), decodeArray(plain.measured.value)];
    const bestSoFar = P.bestSoFar(value, sign);
    const best = value.length ? bestSoFar.at(-1) : NaN;
    return {
      ...plain,
      measured: { round, value },
      best,
      bestRound: round[value.indexOf(best)], // the first round with this value, undefined if none was measured
      bestSoFar,
      up: decodeArray(plain.up),
      down: decodeArray(broadcast ? plain.broadcast : plain.down),
      paid: plain.paid && decodeArray(plain.paid),
      residual: decodeSeries(plain.residual_norm),
      missed: decodeSeries(plain.rounds_missed),
      traffic: { up: decodeArray(plain.clients_bytes.up), down: decodeArray(plain.clients_bytes.down) },
      timeline: line && P.buildRoundTimeModel(columns),
    };
  }

  /* The shortest beginning of a label that distinguishes it from the other labels, cut at a comma. */
  function shortenLabel(label, others) {
    const words = label.split(", ");
    for (let n = 1; n < words.length; n++) {
      const start = words.slice(0, n).join(", ");
      if (!others.some((other) => other === start || other.startsWith(`${start}, `))) return start;
    }
    return label;
  }

  const methodLetter = (i) => (i < 26 ? "" : String.fromCharCode(64 + Math.floor(i / 26))) + String.fromCharCode(65 + (i % 26));

  /* The fleet's traffic, with arrays of the clients' bytes. */
  function decodeFleet(fleet) {
    if (!fleet) return null;
    const decodeTraffic = (one) => ({ ...one, client_bytes: one.client_bytes && decodeArray(one.client_bytes) });
    const decodeAll = (each) => each.map((seeds) => seeds.map(decodeTraffic));
    const settings = fleet.settings.map((one) => ({ ...one, traffic: decodeAll(one.traffic) }));
    return { ...fleet, traffic: decodeAll(fleet.traffic), settings };
  }

  /* The metric of the target, with the functions that format its values and the target. */
  function buildMetric({ name, direction, best }) {
    const isAccuracy = name === "accuracy";
    const format = isAccuracy ? fedsgdDraw.formatPercent : fedsgdDraw.formatMetric;
    const comparison = direction === "above" ? ">" : "<";
    const formatTarget = isAccuracy && direction === "above" ? format : (value) => `${name} ${comparison} ${format(value)}`;
    return { name, direction, best, isAccuracy, sign: direction === "above" ? 1 : -1, format, formatTarget };
  }

  /* The data of the page. Each method has a letter and an index, which gives its colour and dash pattern. */
  function buildModel(payload) {
    const broadcast = payload.terms.downlink === "broadcast";
    const metric = buildMetric(payload.metric);
    const labels = payload.methods.map((method) => method.label);
    const methods = payload.methods.map((method, index) => ({
      ...method,
      index,
      letter: methodLetter(index),
      short: shortenLabel(
        method.label,
        labels.filter((_, other) => other !== index),
      ),
      runs: method.runs.map((each) => buildRun(each, broadcast, metric.sign)),
    }));
    for (const method of methods) method.notPriced = (method.runs.find((each) => !each.timeline) || {}).not_priced || null;
    const fleet = decodeFleet(payload.fleet);
    const first = methods.find((method) => method.label === payload.baseline) || methods[0];
    const speeds = decodeArray(payload.speeds);
    return { ...payload, metric, fleet, notes: payload.notes || [], methods, baseline: first, broadcast, speeds };
  }

  const linkOf = (terms) => ({
    up: terms.up_bits_per_second,
    down: terms.down_bits_per_second,
    latency: terms.latency_seconds,
  });

  /* True if an accepted reply would arrive after the deadline, so that other clients would have taken part. */
  function missesDeadline(run, deadline, link) {
    return deadline !== null && !P.roundSeconds(run.timeline, link.up, link.down, link.latency).every(Number.isFinite);
  }

  /* Figures of a method at the target, over its seeds. A seed that failed counts as one that does not reach the target. */
  function evaluateMethod(method, model, state) {
    const crossings = method.runs.map((each) =>
      P.firstReached(each.measured.round, each.measured.value, state.target, model.metric.sign),
    );
    const failures = new Array(method.failed_seeds).fill(null);
    const summarize = (figure) =>
      P.summarizeSeeds([...crossings.map((one, i) => (one ? figure(one, method.runs[i]) : null)), ...failures]);
    const isLate =
      method.notPriced === null && method.runs.some((each) => missesDeadline(each, model.terms.deadline_seconds, state));
    const reaches = method.notPriced === null &&
      !isLate && [...crossings.map((one, i) => one && { timeline: method.runs[i].timeline, crossing: one }), ...failures];
    return {
      method,
      racer: reaches && { label: method.letter, reaches },
      late: isLate,
      rounds: summarize((one) => one.rounds),
      up: summarize((one, each) => P.valueAtTarget(one, each.up)),
      down: summarize((one, each) => P.valueAtTarget(one, each.down)),
      bytes: summarize((one, each) =>
        each.paid ? P.valueAtTarget(one, each.paid) : P.valueAtTarget(one, each.up) + P.valueAtTarget(one, each.down),
      ),
      best: P.summarizeSeeds(method.runs.map((each) => each.best)),
      seconds:
        reaches &&
        P.summarizeSeeds(reaches.map((reach) => reach && P.secondsToTarget(reach, state.up, state.down, state.latency))),
    };
  }

  /* Figures of all methods: first methods that reach the target, by time; then methods that miss it, by best value; then
     methods without a time, by uplink bytes. */
  function rankMethods(model, state) {
    const sortKey = (one) =>
      !one.seconds ? [2, one.up.median] : one.seconds.median < Infinity ? [0, one.seconds.median] : [1, -model.metric.sign * one.best.median];
    const rows = model.methods.map((method) => ({ ...evaluateMethod(method, model, state) }));
    for (const row of rows) row.key = sortKey(row);
    rows.sort(
      (a, b) => a.key[0] - b.key[0] || (a.key[1] === b.key[1] ? 0 : a.key[1] - b.key[1]) || a.method.index - b.method.index,
    );
    return rows;
  }

  /* Indices of at most maxPoints points that show a line of x, y without visible loss: the ends and extremes of each bin of x.
     x ascending; logarithmic: bins of equal width in log x. */
  function downsampleLine(x, y, logarithmic, maxPoints = MAX_POINTS) {
    const n = x.length;
    if (n <= maxPoints) return d3.range(n);
    const scaleX = logarithmic ? Math.log : (value) => value;
    const start = x.findIndex((value) => !logarithmic || value > 0);
    const [low, high] = [scaleX(x[start]), scaleX(x[n - 1])];
    const indices = [];
    let [bin, from] = [-1, start];
    const closeBin = (to) => {
      let [least, greatest] = [from, from];
      for (let i = from; i < to; i++) {
        if (y[i] < y[least]) least = i;
        if (y[i] > y[greatest]) greatest = i;
      }
      indices.push(...[...new Set([from, least, greatest, to - 1])].sort((a, b) => a - b));
    };
    for (let i = start; i < n; i++) {
      const now = Math.floor(((scaleX(x[i]) - low) / (high - low || 1)) * (maxPoints / 4));
      if (now === bin) continue;
      if (i > from) closeBin(i);
      [bin, from] = [now, i];
    }
    closeBin(n);
    return indices;
  }

  /* One line for several runs: the medians of x and of y at each round that all runs have, downsampled for long runs.
     each: {round, x, y} for each run. */
  function medianCurve(each, logarithmic) {
    const [first] = each;
    if (each.length === 1) return { x: first.x, y: first.y, round: first.round };
    const isAligned = each.every(
      ({ round }) => round.length === first.round.length && round.every((r, i) => r === first.round[i]),
    );
    const places = each.map(({ round }) => (isAligned ? null : new Map(Array.from(round, (r, i) => [r, i]))));
    const indexAt = (run, i) => (isAligned ? i : places[run].get(first.round[i]));
    const commonIndices = downsampleLine(first.x, first.y, logarithmic).filter((i) =>
      each.every((_, run) => indexAt(run, i) !== undefined),
    );
    const medianOf = (name) => commonIndices.map((i) => P.median(each.map((one, run) => one[name][indexAt(run, i)])));
    return { round: commonIndices.map((i) => first.round[i]), x: medianOf("x"), y: medianOf("y") };
  }

  return { readPayload, buildModel, linkOf, rankMethods, downsampleLine, medianCurve };
})();
