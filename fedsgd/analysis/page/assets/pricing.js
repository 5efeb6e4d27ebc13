/* The arithmetic of the report's page: what fedsgd/network/round_times.py, target.py, report/price.py, units.py and sizes.py do,
   in the same order of operations on the same doubles. No DOM, no state. tests/golden/pricing.json holds both sides to it. */
"use strict";

const fedsgdPricing = (() => {
  const COLUMNS = ["messages", "delay", "down", "compute", "coding", "up"];
  const SHARED = ["shared_down", "shared_up", "serving", "waiting", "due"];
  const BISECTIONS = 50;
  const EQUAL = 1e-12;

  /* A timeline as the payload has it, where a column that is the same throughout is one number, with whole columns. */
  function timeline(columns) {
    const offsets = Float64Array.from(columns.offsets);
    const rounds = offsets.length - 1;
    const whole = (column, n) => (typeof column === "number" ? new Float64Array(n).fill(column) : Float64Array.from(column));
    const made = { offsets, rounds };
    for (const name of COLUMNS) made[name] = whole(columns[name], offsets[rounds]);
    for (const name of SHARED) made[name] = whole(columns[name], rounds);
    return made;
  }

  /* When candidate i of round r is done: [on the way beside the bytes, down, up] add up to it with compute and coding. */
  function legs(line, i, r, up, down, latency) {
    return [
      Math.max(0, line.messages[i] * latency + line.delay[i]),
      Math.max(line.down[i] / down, line.shared_down[r]),
      Math.max(line.up[i] / up, line.shared_up[r]),
    ];
  }

  /* When the last client of round r is done. Written out, since the sliders and the curves live on it. */
  function last(line, r, up, down, latency) {
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

  /* The duration of each round [R], infinite where a reply that was taken would come after the deadline. up, down: bits per
     second of the link in the middle; latency: seconds, one way. */
  function seconds(line, up, down, latency, rounds = line.rounds) {
    const out = new Float64Array(rounds);
    for (let r = 0; r < rounds; r++) {
      const end = last(line, r, up, down, latency);
      out[r] = line.due[r] > 0 && end > line.due[r] ? Infinity : Math.max(end, line.waiting[r]) + line.serving[r];
    }
    return out;
  }

  /* Seconds after each round, 0 before the first [R + 1]. */
  function cumulative(line, up, down, latency, rounds = line.rounds) {
    const each = seconds(line, up, down, latency, rounds);
    const out = new Float64Array(rounds + 1);
    for (let r = 0; r < rounds; r++) out[r + 1] = out[r] + each[r];
    return out;
  }

  /* Where the time of each round goes: {down, compute, coding, up, serving, waiting}, each [R]. */
  function stack(line, up, down, latency) {
    const parts = {};
    for (const name of ["down", "compute", "coding", "up", "serving", "waiting"]) parts[name] = new Float64Array(line.rounds);
    for (let r = 0; r < line.rounds; r++) {
      let most = -Infinity;
      for (let i = line.offsets[r]; i < line.offsets[r + 1]; i++) {
        const [delay, wayDown, wayUp] = legs(line, i, r, up, down, latency);
        const total = delay + wayDown + line.compute[i] + line.coding[i] + wayUp;
        if (total <= most) continue;
        most = total;
        parts.down[r] = wayDown + delay / 2;
        parts.compute[r] = line.compute[i];
        parts.coding[r] = line.coding[i];
        parts.up[r] = wayUp + delay / 2;
      }
      parts.serving[r] = line.serving[r];
      parts.waiting[r] = Math.max(most, line.waiting[r]) - most;
    }
    return parts;
  }

  /* Where a run first meets the target: {before, after, share, rounds}, or null: not reached. NaN counts as not measured. */
  function crossing(rounds, accuracies, target) {
    let before = 0;
    let best = -Infinity;
    for (let j = 0; j < rounds.length; j++) {
      const [round, accuracy] = [rounds[j], accuracies[j]];
      if (accuracy >= target) {
        if (!before) return { before: round, after: round, share: 0, rounds: round };
        const share = (target - best) / (accuracy - best);
        return { before, after: round, share, rounds: before + share * (round - before) };
      }
      if (!Number.isNaN(accuracy)) [before, best] = [round, Math.max(best, accuracy)];
    }
    return null;
  }

  /* The place of a crossing on an axis that has a figure for after each round [0, ..., R]. */
  function on(found, axis) {
    const [start, end] = [axis[found.before], axis[found.after]];
    return start + found.share * (end - start);
  }

  /* Of each value and all before it the largest, NaN left out. */
  function bestSoFar(values) {
    let best = -Infinity;
    return Float64Array.from(values, (value) => (best = Number.isNaN(value) ? best : Math.max(best, value)));
  }

  function median(values) {
    const sorted = Float64Array.from(values).sort();
    const middle = Math.floor(sorted.length / 2);
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  /* {median, low, high, reached, n} of the figures of several seeds; null: not reached, which is more than any figure. */
  function overSeeds(figures) {
    const values = figures.map((figure) => (figure === null ? Infinity : figure));
    const reached = values.filter(Number.isFinite).length;
    return { median: median(values), low: Math.min(...values), high: Math.max(...values), reached, n: values.length };
  }

  /* Seconds to the target of one run. reach: {timeline, crossing} or null: not reached. */
  function reachSeconds(reach, up, down, latency) {
    if (reach === null) return Infinity;
    const spent = cumulative(reach.timeline, up, down, latency, reach.crossing.after);
    return spent[reach.crossing.after] < Infinity ? on(reach.crossing, spent) : Infinity;
  }

  /* Seconds to the target, the median over seeds; infinite: not reached by half of them. racer: {label, reaches}. */
  function racerSeconds(racer, up, down, latency) {
    return median(racer.reaches.map((reach) => reachSeconds(reach, up, down, latency)));
  }

  /* (up, down, latency) of a link that is so fast, its ratio of down to up and its latency kept. */
  function at(link, speed) {
    return [speed, speed * (link.down / link.up), link.latency];
  }

  /* Seconds to the target at each of the speeds. link: {up, down, latency}. */
  function curve(racer, link, speeds) {
    return Float64Array.from(speeds, (speed) => racerSeconds(racer, ...at(link, speed)));
  }

  /* Where the order of two changes as links get faster, ascending: [{below, above, speed}]. a, b: their curves. */
  function breakEvens(first, second, link, speeds, a = curve(first, link, speeds), b = curve(second, link, speeds)) {
    const found = [];
    let previous = null;
    for (let i = 0; i < speeds.length; i++) {
      const [x, y] = [a[i], b[i]];
      if (!(Number.isFinite(x) && Number.isFinite(y)) || Math.abs(x - y) <= EQUAL * Math.max(x, y)) continue;
      const sooner = x < y;
      if (previous !== null && previous.sooner !== sooner) {
        let [low, high] = [Math.log10(speeds[previous.i]), Math.log10(speeds[i])];
        for (let n = 0; n < BISECTIONS; n++) {
          const middle = (low + high) / 2;
          const there = at(link, 10 ** middle);
          const same = racerSeconds(first, ...there) < racerSeconds(second, ...there) === previous.sooner;
          [low, high] = same ? [middle, high] : [low, middle];
        }
        const [below, above] = previous.sooner ? [first, second] : [second, first];
        found.push({ below: below.label, above: above.label, speed: 10 ** high });
      }
      previous = { i, sooner };
    }
    return found;
  }

  const grouped = (text) => text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");

  /* A number from 0 on with three significant figures, trailing zeros left out: "0.0123", "1.5", "250", "1,240". */
  function threeFigures(value) {
    if (value >= 999.5) return grouped(BigInt(Math.floor(value + 0.5)).toString());
    if (value < 1e-3) return value === 0 ? "0" : value.toExponential(2).replace(/e-(\d)$/, "e-0$1");
    const digits = [100, 10, 1, 0.1, 0.01].filter((bound) => value < bound).length;
    const text = (Math.floor(value * 10 ** digits + 0.5) / 10 ** digits).toFixed(digits);
    return text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
  }

  function rateText(bitsPerSecond) {
    const units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let power = 0;
    while (power < units.length - 1 && bitsPerSecond >= 999.5 * 1000 ** power) power++;
    return `${threeFigures(bitsPerSecond / 1000 ** power)} ${units[power]}`;
  }

  /* A duration as people say it: "340 ms", "12.3 s", "4 min 10 s", "3 h 25 min", "2 d 4 h". */
  function secondsText(value) {
    if (value < 0.9995) return `${threeFigures(value * 1000)} ms`;
    if (value < 59.95) return `${threeFigures(value)} s`;
    const steps = [
      ["min", 60, "s", 1, 3600],
      ["h", 3600, "min", 60, 86400],
      ["d", 86400, "h", 3600, Infinity],
    ];
    for (const [large, long, small, short, most] of steps) {
      const whole = Math.floor(value / short + 0.5) * short;
      if (whole >= most) continue;
      const rest = whole % long;
      const first = grouped(BigInt(Math.round((whole - rest) / long)).toString());
      return `${first} ${large}${rest ? ` ${Math.round(rest / short)} ${small}` : ""}`;
    }
    throw new RangeError(`no text for ${value} seconds`);
  }

  /* With so many digits, halves that are exact to the even digit, as Python rounds. */
  function rounded(value, digits) {
    const tie = value * 2 ** (digits + 1);
    if (digits > 2 || !Number.isInteger(tie) || tie % 2 === 0 || (value * 10 ** digits) % 1 !== 0.5)
      return value.toFixed(digits);
    const lower = Math.floor(value * 10 ** digits);
    return ((lower % 2 ? lower + 1 : lower) / 10 ** digits).toFixed(digits);
  }

  /* A whole number of bytes in three figures, in powers of 1000: "62.8 kB". */
  function sizeText(bytes) {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let power = 0;
    while (power < units.length - 1 && bytes >= 999.5 * 1000 ** power) power++;
    const value = bytes / 1000 ** power;
    if (!power || value >= 100) return `${grouped(rounded(value, 0))} ${units[power]}`;
    const text = rounded(value, value < 10 ? 2 : 1);
    return `${text.replace(/\.?0+$/, "")} ${units[power]}`;
  }

  return {
    timeline,
    seconds,
    cumulative,
    stack,
    crossing,
    on,
    bestSoFar,
    median,
    overSeeds,
    reachSeconds,
    racerSeconds,
    at,
    curve,
    breakEvens,
    threeFigures,
    rateText,
    secondsText,
    sizeText,
  };
})();
