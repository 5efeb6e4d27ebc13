/* Arithmetic of the report's page: the operations of network/round_times.py, experiment/time_to_target.py, analysis/pricing.py,
   analysis/utilization.py and config/quantities.py, in the same order, on the same doubles. No DOM, no state. Python and this file must both reproduce
   tests/golden/pricing.json. */
"use strict";

const fedsgdPricing = (() => {
  const CANDIDATE_COLUMNS = ["messages", "delay", "down", "compute", "coding", "up"];
  const ROUND_TIME_COLUMNS = ["shared_down", "shared_up", "serving", "waiting", "due"];
  const N_BISECTIONS = 50;
  const RELATIVE_TOLERANCE = 1e-12;

  /* Model of the round times of a run: the columns of the payload, in which a constant column is one number, as arrays. */
  function buildRoundTimeModel(columns) {
    const offsets = Float64Array.from(columns.offsets);
    const rounds = offsets.length - 1;
    const expandColumn = (column, n) =>
      typeof column === "number" ? new Float64Array(n).fill(column) : Float64Array.from(column);
    const timeModel = { offsets, rounds };
    for (const name of CANDIDATE_COLUMNS) timeModel[name] = expandColumn(columns[name], offsets[rounds]);
    for (const name of ROUND_TIME_COLUMNS) timeModel[name] = expandColumn(columns[name], rounds);
    return timeModel;
  }

  /* Seconds of candidate i of round r on the network: [latency and jitter, download, upload]. */
  function transferSeconds(line, i, r, up, down, latency) {
    return [
      Math.max(0, line.messages[i] * latency + line.delay[i]),
      Math.max(line.down[i] / down, line.shared_down[r]),
      Math.max(line.up[i] / up, line.shared_up[r]),
    ];
  }

  /* Seconds until the slowest client of round r has finished. transferSeconds is inlined, because sliders and curves call this
     function most often. */
  function slowestClientSeconds(line, r, up, down, latency) {
    let slowest = -Infinity;
    for (let i = line.offsets[r]; i < line.offsets[r + 1]; i++) {
      const delay = Math.max(0, line.messages[i] * latency + line.delay[i]);
      const wayDown = Math.max(line.down[i] / down, line.shared_down[r]);
      const wayUp = Math.max(line.up[i] / up, line.shared_up[r]);
      const total = delay + wayDown + line.compute[i] + line.coding[i] + wayUp;
      if (total > slowest) slowest = total;
    }
    return slowest;
  }

  /* Duration of each round [R] in seconds, infinite if an accepted reply would arrive after the deadline. up, down: speed of
     the median link in bits per second; latency: one-way latency in seconds. */
  function roundSeconds(line, up, down, latency, rounds = line.rounds) {
    const out = new Float64Array(rounds);
    for (let r = 0; r < rounds; r++) {
      const slowest = slowestClientSeconds(line, r, up, down, latency);
      out[r] = line.due[r] > 0 && slowest > line.due[r] ? Infinity : Math.max(slowest, line.waiting[r]) + line.serving[r];
    }
    return out;
  }

  /* Seconds after each round [R + 1]; entry 0 is 0. */
  function cumulativeSeconds(line, up, down, latency, rounds = line.rounds) {
    const each = roundSeconds(line, up, down, latency, rounds);
    const out = new Float64Array(rounds + 1);
    for (let r = 0; r < rounds; r++) out[r + 1] = out[r] + each[r];
    return out;
  }

  /* Phases of each round in seconds: {down, compute, coding, up, serving, waiting}, each [R]. */
  function computeBreakdown(line, up, down, latency) {
    const parts = {};
    for (const name of ["down", "compute", "coding", "up", "serving", "waiting"]) parts[name] = new Float64Array(line.rounds);
    for (let r = 0; r < line.rounds; r++) {
      let slowest = -Infinity;
      for (let i = line.offsets[r]; i < line.offsets[r + 1]; i++) {
        const [delay, wayDown, wayUp] = transferSeconds(line, i, r, up, down, latency);
        const total = delay + wayDown + line.compute[i] + line.coding[i] + wayUp;
        if (total <= slowest) continue;
        slowest = total;
        parts.down[r] = wayDown + delay / 2;
        parts.compute[r] = line.compute[i];
        parts.coding[r] = line.coding[i];
        parts.up[r] = wayUp + delay / 2;
      }
      parts.serving[r] = line.serving[r];
      parts.waiting[r] = Math.max(slowest, line.waiting[r]) - slowest;
    }
    return parts;
  }

  /* Point between two rounds at which a run first reaches the target: {before, after, share, rounds}, or null. A value that was
     not measured is NaN. sign: 1 if the metric is to rise to the target, -1 if it is to fall. */
  function firstReached(rounds, values, target, sign = 1) {
    const signedTarget = sign * target;
    let before = 0;
    let best = -Infinity;
    for (let j = 0; j < rounds.length; j++) {
      const [round, value] = [rounds[j], sign * values[j]];
      if (value >= signedTarget) {
        if (!before) return { before: round, after: round, share: 0, rounds: round };
        const share = (signedTarget - best) / (value - best);
        return { before, after: round, share, rounds: before + share * (round - before) };
      }
      if (!Number.isNaN(value)) [before, best] = [round, Math.max(best, value)];
    }
    return null;
  }

  /* Value of an axis at the point of firstReached, by linear interpolation. axis: values after rounds [0, ..., R]. */
  function valueAtTarget(crossing, axis) {
    const [start, end] = [axis[crossing.before], axis[crossing.after]];
    return start + crossing.share * (end - start);
  }

  /* Running maximum, or for sign -1 running minimum; NaN is ignored. */
  function bestSoFar(values, sign = 1) {
    let best = -Infinity;
    return Float64Array.from(values, (value) => sign * (best = Number.isNaN(value) ? best : Math.max(best, sign * value)));
  }

  function median(values) {
    const sorted = Float64Array.from(values).sort();
    const middle = Math.floor(sorted.length / 2);
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  /* {median, low, high, reached, n} of figures over seeds. A figure of null (not reached) is larger than all others. */
  function summarizeSeeds(figures) {
    const values = figures.map((figure) => (figure === null ? Infinity : figure));
    const reached = values.filter(Number.isFinite).length;
    return { median: median(values), low: Math.min(...values), high: Math.max(...values), reached, n: values.length };
  }

  /* Seconds of a run to the target. reach: {timeline, crossing}, or null if the target is not reached. */
  function secondsToTarget(reach, up, down, latency) {
    if (reach === null) return Infinity;
    const seconds = cumulativeSeconds(reach.timeline, up, down, latency, reach.crossing.after);
    return seconds[reach.crossing.after] < Infinity ? valueAtTarget(reach.crossing, seconds) : Infinity;
  }

  /* Median over seeds of the seconds to the target, infinite if half of the seeds do not reach it. timing: {label, reaches}. */
  function medianSecondsToTarget(timing, up, down, latency) {
    return median(timing.reaches.map((reach) => secondsToTarget(reach, up, down, latency)));
  }

  /* [up, down, latency] of a link at another uplink speed, with equal latency and ratio of downlink to uplink. */
  function linkAtSpeed(link, speed) {
    return [speed, speed * (link.down / link.up), link.latency];
  }

  /* Seconds to the target at each uplink speed. link: {up, down, latency}. */
  function computeCurve(timing, link, speeds) {
    return Float64Array.from(speeds, (speed) => medianSecondsToTarget(timing, ...linkAtSpeed(link, speed)));
  }

  /* Uplink speeds at which the order of two methods changes, ascending: [{below, above, speed}]. a, b: their curves. */
  function findBreakEvens(
    first,
    second,
    link,
    speeds,
    a = computeCurve(first, link, speeds),
    b = computeCurve(second, link, speeds),
  ) {
    const points = [];
    let previous = null;
    for (let i = 0; i < speeds.length; i++) {
      const [x, y] = [a[i], b[i]];
      if (!(Number.isFinite(x) && Number.isFinite(y)) || Math.abs(x - y) <= RELATIVE_TOLERANCE * Math.max(x, y)) continue;
      const firstIsFaster = x < y;
      if (previous !== null && previous.firstIsFaster !== firstIsFaster) {
        let [low, high] = [Math.log10(speeds[previous.i]), Math.log10(speeds[i])];
        for (let n = 0; n < N_BISECTIONS; n++) {
          const middle = (low + high) / 2;
          const at = linkAtSpeed(link, 10 ** middle);
          const isSame = medianSecondsToTarget(first, ...at) < medianSecondsToTarget(second, ...at) === previous.firstIsFaster;
          [low, high] = isSame ? [middle, high] : [low, middle];
        }
        const [below, above] = previous.firstIsFaster ? [first, second] : [second, first];
        points.push({ below: below.label, above: above.label, speed: 10 ** high });
      }
      previous = { i, firstIsFaster };
    }
    return points;
  }

  /* Share of the slowest clients' training in the time of all rounds; 0 if the rounds take no time. */
  function utilization(line, up, down, latency) {
    let training = 0;
    let seconds = 0;
    for (let r = 0; r < line.rounds; r++) {
      let slowest = -Infinity;
      let compute = 0;
      for (let i = line.offsets[r]; i < line.offsets[r + 1]; i++) {
        const [delay, wayDown, wayUp] = transferSeconds(line, i, r, up, down, latency);
        const total = delay + wayDown + line.compute[i] + line.coding[i] + wayUp;
        if (total > slowest) [slowest, compute] = [total, line.compute[i]];
      }
      training += compute;
      seconds += line.due[r] > 0 && slowest > line.due[r] ? Infinity : Math.max(slowest, line.waiting[r]) + line.serving[r];
    }
    return seconds ? training / seconds : 0;
  }

  /* The lowest uplink speed at which the utilization reaches a level; null if it stays lower. curve: utilization at each of
     the speeds. */
  function findUtilizationSpeed(line, link, level, speeds, curve) {
    const index = curve.findIndex((share) => share >= level);
    if (index <= 0) return index ? null : speeds[0];
    let [low, high] = [Math.log10(speeds[index - 1]), Math.log10(speeds[index])];
    for (let n = 0; n < N_BISECTIONS; n++) {
      const middle = (low + high) / 2;
      const isReached = utilization(line, ...linkAtSpeed(link, 10 ** middle)) >= level;
      [low, high] = isReached ? [low, middle] : [middle, high];
    }
    return 10 ** high;
  }

  const groupThousands = (text) => text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");

  /* A non-negative number with three significant figures, without trailing zeros: "0.0123", "1.5", "250", "1,240". */
  function formatSignificant(value) {
    if (value >= 999.5) return groupThousands(BigInt(Math.floor(value + 0.5)).toString());
    if (value < 1e-3) return value === 0 ? "0" : value.toExponential(2).replace(/e-(\d)$/, "e-0$1");
    const digits = [100, 10, 1, 0.1, 0.01].filter((bound) => value < bound).length;
    const text = (Math.floor(value * 10 ** digits + 0.5) / 10 ** digits).toFixed(digits);
    return text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
  }

  function formatRate(bitsPerSecond) {
    const units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let power = 0;
    while (power < units.length - 1 && bitsPerSecond >= 999.5 * 1000 ** power) power++;
    return `${formatSignificant(bitsPerSecond / 1000 ** power)} ${units[power]}`;
  }

  /* A duration: "340 ms", "12.3 s", "4 min 10 s", "3 h 25 min", "2 d 4 h". */
  function formatSeconds(value) {
    if (value < 0.9995) return `${formatSignificant(value * 1000)} ms`;
    if (value < 59.95) return `${formatSignificant(value)} s`;
    const steps = [
      ["min", 60, "s", 1, 3600],
      ["h", 3600, "min", 60, 86400],
      ["d", 86400, "h", 3600, Infinity],
    ];
    for (const [large, long, small, short, most] of steps) {
      const whole = Math.floor(value / short + 0.5) * short;
      if (whole >= most) continue;
      const rest = whole % long;
      const first = groupThousands(BigInt(Math.round((whole - rest) / long)).toString());
      return `${first} ${large}${rest ? ` ${Math.round(rest / short)} ${small}` : ""}`;
    }
    throw new RangeError(`no text for ${value} seconds`);
  }

  /* A number with a fixed number of digits; exact halves are rounded to the even digit, as in Python. */
  function roundHalfToEven(value, digits) {
    const tie = value * 2 ** (digits + 1);
    if (digits > 2 || !Number.isInteger(tie) || tie % 2 === 0 || (value * 10 ** digits) % 1 !== 0.5)
      return value.toFixed(digits);
    const lower = Math.floor(value * 10 ** digits);
    return ((lower % 2 ? lower + 1 : lower) / 10 ** digits).toFixed(digits);
  }

  /* A whole number of bytes with three significant figures, in powers of 1000: "62.8 kB". */
  function formatBytes(bytes) {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let power = 0;
    while (power < units.length - 1 && bytes >= 999.5 * 1000 ** power) power++;
    const value = bytes / 1000 ** power;
    if (!power || value >= 100) return `${groupThousands(roundHalfToEven(value, 0))} ${units[power]}`;
    const text = roundHalfToEven(value, value < 10 ? 2 : 1);
    return `${text.replace(/\.?0+$/, "")} ${units[power]}`;
  }

  return {
    buildRoundTimeModel,
    roundSeconds,
    cumulativeSeconds,
    computeBreakdown,
    firstReached,
    valueAtTarget,
    bestSoFar,
    median,
    summarizeSeeds,
    secondsToTarget,
    medianSecondsToTarget,
    linkAtSpeed,
    computeCurve,
    findBreakEvens,
    utilization,
    findUtilizationSpeed,
    formatSignificant,
    formatRate,
    formatSeconds,
    formatBytes,
  };
})();
