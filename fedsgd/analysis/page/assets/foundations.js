/* What does not change as the sliders move: positions, the terms of the price, what is needed to make the runs again. */
"use strict";

const fedsgdFoundations = (() => {
  const P = fedsgdPricing;
  const { size } = fedsgdDraw;
  const { h, key } = fedsgdWords;
  const $ = (id) => document.getElementById(id);

  function showPositions(model) {
    const known = model.methods.filter((method) => method.runs[0].parts.index_bytes > 0);
    $("positions-box").hidden = !known.length;
    const heads = ["Method", "Positions", "Bound", "Positions / bound", "Bits a kept coordinate", "Bound"];
    $("positions").tHead.replaceChildren(
      h("tr", {}, ...heads.map((head, i) => h("th", { scope: "col", class: i ? null : "text" }, head))),
    );
    $("positions").tBodies[0].replaceChildren(
      ...known.map((method) => {
        const { index_bytes: index, bound_bytes: bound, kept } = method.runs[0].parts;
        const cells = [
          size(index),
          size(bound),
          bound ? (index / bound).toFixed(2) : "–",
          ...[index, bound].map((n) => (kept ? ((8 * n) / kept).toFixed(2) : "–")),
        ];
        return h("tr", {}, h("td", { class: "text" }, key(method), method.short), ...cells.map((text) => h("td", {}, text)));
      }),
    );
    $("unpriced").replaceChildren(
      ...model.methods
        .filter((method) => method.notPriced !== null)
        .map((method) => h("li", {}, `${method.letter}, ${method.short}, has no bar: ${method.notPriced}.`)),
    );
  }

  function showTerms(model) {
    const { terms } = model;
    const machine = (one) => [
      one.title ? `${one.title}: ${one.text}.` : `${one.text}.`,
      one.source ? h("span", { class: "small" }, one.source) : null,
    ];
    const items = [
      [
        "Network asked for",
        [`${terms.title || terms.network}: ${terms.text}.`, terms.source ? h("span", { class: "small" }, terms.source) : null],
      ],
      [
        "Kept by the sliders",
        [
          "How clients' links differ, jitter, limits of the server's own link and overheads stay as in the network asked for; the sliders and presets set its rates and latency.",
        ],
      ],
      [
        "Downlink",
        [
          model.broadcast
            ? "Broadcast: each distinct frame of a round goes once, to all."
            : "Unicast: each client is sent its frames by itself.",
        ],
      ],
      ["Clients compute on", machine(terms.device)],
      ["Server", machine(terms.server)],
      [
        "Deadline",
        [
          terms.deadline_seconds === null
            ? "None: a reply that never came costs what it would have taken, a client of which nothing was heard its download alone."
            : `${P.secondsText(terms.deadline_seconds)} for replies that never came.`,
        ],
      ],
      ["Bytes", ["Counted, frame by frame, in the run's ledger."]],
      [
        "Work",
        [`Floating-point operations of training are counted. ${model.coding}.`],
      ],
      [
        "Not modelled",
        [
          "Lost packets and retransmission, connections being set up, links shared between clients, other traffic, phones that slow down or sleep. Nothing was sent over such a network.",
        ],
      ],
    ];
    $("terms").replaceChildren(...items.flatMap(([name, words]) => [h("dt", {}, name), h("dd", {}, ...words)]));
  }

  function showReproduction(model) {
    const each = model.methods.map((method) => {
      const settings = Object.entries(method.settings || {}).map(([name, value]) => [
        h("dt", {}, name),
        h("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
      ]);
      return h(
        "details",
        { class: "method" },
        h("summary", {}, key(method), method.label),
        settings.length ? h("dl", {}, ...settings.flat()) : null,
        ...method.runs.map(runDetails),
      );
    });
    $("reproduction").replaceChildren(...each);
  }

  function runDetails(run) {
    const copy = h("button", { type: "button" }, "Copy");
    const text = h("pre", { tabindex: 0, "aria-label": "Scenario" }, run.scenario);
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(run.scenario).then(
        () => (copy.textContent = "Copied"),
        () => getSelection().selectAllChildren(text),
      );
    });
    const versions = Object.entries(run.versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(", ");
    const facts = [
      ["seed", String(run.seed)],
      ["folder", run.folder],
      ["size", `${run.rounds} rounds, ${run.clients} clients, ${run.parameters} parameters`],
      ["params_sha256", run.digests.params_sha256],
      ["ledger_sha256", run.digests.ledger_sha256],
      ["versions", versions],
    ];
    const needs = run.needs ? [h("dt", {}, "needs"), h("dd", {}, `${run.needs}.`)] : [];
    return h(
      "div",
      { class: "run" },
      h("dl", {}, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("code", {}, value))]), ...needs),
      h("details", { class: "scenario" }, h("summary", {}, "scenario.toml"), copy, text),
    );
  }

  function show(model) {
    if (model.broadcast)
      for (const id of ["parts", "traffic"])
        document.querySelector(`#${id} figcaption`).append(" Downlink: as if each client were sent its frames by itself.");
    $("mixture").hidden = !model.mixture;
    $("mixture").textContent = model.mixture ? `${model.mixture[0].toUpperCase()}${model.mixture.slice(1)}.` : "";
    showPositions(model);
    showTerms(model);
    showReproduction(model);
  }

  return { show };
})();
