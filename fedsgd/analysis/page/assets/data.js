/* The payload, opened and turned into what the page works with; and what follows from it at a target, on a link. No DOM but the
   element that holds the payload. */
"use strict";

const fedsgdData = (() => {
  const P = fedsgdPricing;
  const POINTS = 600; // of a line: more than a screen can show

  function bytesOf(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  const numbers = (packed) => new Float64Array(bytesOf(packed.f8).buffer);
  const column = (packed) => (typeof packed === "number" ? packed : numbers(packed));
  const series = (packed) => packed && { round: numbers(packed.round), value: numbers(packed.value) };

  /* The payload's JSON, which is gzipped and in base64. */
  async function open(element) {
    const stream = new Blob([bytesOf(element.textContent.trim())]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  function run(plain, broadcast) {
    const line = plain.timeline;
    const columns =
      line &&
      Object.fromEntries(
        Object.entries(line)
          .filter(([name]) => name !== "work")
          .map(([k, v]) => [k, column(v)]),
      );
    const [round, accuracy] = [numbers(plain.measured.round), numbers(plain.measured.accuracy)];
    const best = accuracy.length ? P.bestSoFar(accuracy).at(-1) : NaN;
    return {
      ...plain,
      measured: { round, accuracy },
      best,
      bestRound: round[accuracy.indexOf(best)], // the first round with this accuracy, undefined if none was measured
      bestSoFar: P.bestSoFar(accuracy),
      up: numbers(plain.up),
      down: numbers(broadcast ? plain.broadcast : plain.down),
      paid: plain.paid && numbers(plain.paid),
      residual: series(plain.residual_norm),
      missed: series(plain.rounds_missed),
      traffic: { up: numbers(plain.clients_bytes.up), down: numbers(plain.clients_bytes.down) },
      timeline: line && P.timeline(columns),
    };
  }

  /* As few of a label's words, from the first on, as tell it from the others. */
  function shortLabel(label, others) {
    const words = label.split(", ");
    for (let n = 1; n < words.length; n++) {
      const start = words.slice(0, n).join(", ");
      if (!others.some((other) => other === start || other.startsWith(`${start}, `))) return start;
    }
    return label;
  }

  const letter = (i) => (i < 26 ? "" : String.fromCharCode(64 + Math.floor(i / 26))) + String.fromCharCode(65 + (i % 26));

  /* What the page works with. Each method has a letter, a colour and a dash pattern of its own. */
  function model(payload) {
    const broadcast = payload.terms.downlink === "broadcast";
    const labels = payload.methods.map((method) => method.label);
    const methods = payload.methods.map((method, index) => ({
      ...method,
      index,
      letter: letter(index),
      short: shortLabel(
        method.label,
        labels.filter((_, other) => other !== index),
      ),
      runs: method.runs.map((each) => run(each, broadcast)),
    }));
    for (const method of methods) method.notPriced = (method.runs.find((each) => !each.timeline) || {}).not_priced || null;
    const first = methods.find((method) => method.uncompressed) || methods[0];
    return { ...payload, notes: payload.notes || [], methods, baseline: first, broadcast, speeds: numbers(payload.speeds) };
  }

  const bits = (terms) => ({ up: terms.up_bits_per_second, down: terms.down_bits_per_second, latency: terms.latency_seconds });

  /* Whether a reply that was taken would come after the deadline: then others would have taken part. */
  function late(run, deadline, link) {
    return deadline !== null && !P.seconds(run.timeline, link.up, link.down, link.latency).every(Number.isFinite);
  }

  /* Of one method: where its runs meet the target, and what that takes, over its seeds. */
  function standing(method, model, state) {
    const found = method.runs.map((each) => P.crossing(each.measured.round, each.measured.accuracy, state.target));
    const lost = new Array(method.failed_seeds).fill(null);
    const over = (figure) => P.overSeeds([...found.map((one, i) => (one ? figure(one, method.runs[i]) : null)), ...lost]);
    const outside = method.notPriced === null && method.runs.some((each) => late(each, model.terms.deadline_seconds, state));
    const reaches = method.notPriced === null &&
      !outside && [...found.map((one, i) => (one ? { timeline: method.runs[i].timeline, crossing: one } : null)), ...lost];
    return {
      method,
      found,
      racer: reaches && { label: method.letter, reaches },
      late: outside,
      rounds: over((one) => one.rounds),
      up: over((one, each) => P.on(one, each.up)),
      down: over((one, each) => P.on(one, each.down)),
      bytes: over((one, each) => (each.paid ? P.on(one, each.paid) : P.on(one, each.up) + P.on(one, each.down))),
      best: P.overSeeds(method.runs.map((each) => each.best)),
      seconds:
        reaches && P.overSeeds(reaches.map((reach) => reach && P.reachSeconds(reach, state.up, state.down, state.latency))),
    };
  }

  /* All methods, the soonest first; then those that do not get there, by accuracy; then those without a time, by bytes. */
  function ranking(model, state) {
    const key = (one) =>
      !one.seconds ? [2, one.up.median] : one.seconds.median < Infinity ? [0, one.seconds.median] : [1, -one.best.median];
    const rows = model.methods.map((method) => ({ ...standing(method, model, state) }));
    for (const row of rows) row.key = key(row);
    rows.sort(
      (a, b) => a.key[0] - b.key[0] || (a.key[1] === b.key[1] ? 0 : a.key[1] - b.key[1]) || a.method.index - b.method.index,
    );
    return rows;
  }

  /* Positions of at most so many points that show a line of x, y as well as all would: of each stretch of x the ends and
     extremes. x ascending; logarithmic: equal stretches of log x. */
  function thinned(x, y, logarithmic, most = POINTS) {
    const n = x.length;
    if (n <= most) return d3.range(n);
    const place = logarithmic ? Math.log : (value) => value;
    const start = x.findIndex((value) => !logarithmic || value > 0);
    const [low, high] = [place(x[start]), place(x[n - 1])];
    const kept = [];
    let [bin, from] = [-1, start];
    const close = (to) => {
      let [least, greatest] = [from, from];
      for (let i = from; i < to; i++) {
        if (y[i] < y[least]) least = i;
        if (y[i] > y[greatest]) greatest = i;
      }
      kept.push(...[...new Set([from, least, greatest, to - 1])].sort((a, b) => a - b));
    };
    for (let i = start; i < n; i++) {
      const now = Math.floor(((place(x[i]) - low) / (high - low || 1)) * (most / 4));
      if (now === bin) continue;
      if (i > from) close(i);
      [bin, from] = [now, i];
    }
    close(n);
    return kept;
  }

  /* One line through several runs: at each round that all have, the median of either coordinate; of long runs at as many rounds
     as a line can show. each: {round, x, y} by run. */
  function medianLine(each, logarithmic) {
    const [first] = each;
    if (each.length === 1) return { x: first.x, y: first.y, round: first.round };
    const alike = each.every(({ round }) => round.length === first.round.length && round.every((r, i) => r === first.round[i]));
    const places = each.map(({ round }) => (alike ? null : new Map(Array.from(round, (r, i) => [r, i]))));
    const at = (run, i) => (alike ? i : places[run].get(first.round[i]));
    const shown = thinned(first.x, first.y, logarithmic).filter((i) => each.every((_, run) => at(run, i) !== undefined));
    const along = (name) => shown.map((i) => P.median(each.map((one, run) => one[name][at(run, i)])));
    return { round: shown.map((i) => first.round[i]), x: along("x"), y: along("y") };
  }

  return { open, model, bits, ranking, thinned, medianLine };
})();
