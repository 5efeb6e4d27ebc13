/* Parts of the page that do not depend on the sliders: positions, pricing model, reproduction of the runs. */
"use strict";

const fedsgdFoundations = (() => {
  const P = fedsgdPricing;
  const { formatByteCount } = fedsgdDraw;
  const { h, createLegendKey } = fedsgdWords;
  const $ = (id) => document.getElementById(id);

  function showPositions(model) {
    const sparse = model.methods.filter((method) => method.runs[0].parts.index_bytes > 0);
    $("positions-box").hidden = !sparse.length;
    const heads = ["Method", "Positions", "Bound", "Positions / bound", "Bits per coordinate", "Bound"];
    $("positions").tHead.replaceChildren(
      h("tr", {}, ...heads.map((head, i) => h("th", { scope: "col", class: i ? null : "text" }, head))),
    );
    $("positions").tBodies[0].replaceChildren(
      ...sparse.map((method) => {
        const { index_bytes: index, bound_bytes: bound, kept } = method.runs[0].parts;
        const cells = [
          formatByteCount(index),
          formatByteCount(bound),
          bound ? (index / bound).toFixed(2) : "–",
          ...[index, bound].map((n) => (kept ? ((8 * n) / kept).toFixed(2) : "–")),
        ];
        return h(
          "tr",
          {},
          h("td", { class: "text" }, createLegendKey(method), method.short),
          ...cells.map((text) => h("td", {}, text)),
        );
      }),
    );
    const unpriced = model.methods.filter((method) => method.notPriced !== null).map((method) => method.letter);
    const verb = unpriced.length > 1 ? "have no bar, because they cannot" : "has no bar, because it cannot";
    const text = `${unpriced.join(", ")} ${verb} be priced; the notes below the ranking have the reason.`;
    $("unpriced").replaceChildren(...(unpriced.length ? [h("li", {}, text)] : []));
  }

  function showPricingModel(model) {
    const { terms } = model;
    const training =
      terms.training_seconds === null
        ? "Floating-point operations of training are counted"
        : `A client of median speed trains ${P.formatSeconds(terms.training_seconds)} a round`;
    const describeDevice = (one) => [
      one.title ? `${one.title}: ${one.text}.` : `${one.text}.`,
      one.source ? h("span", { class: "small" }, one.source) : null,
    ];
    const items = [
      [
        "Network of the report",
        [`${terms.title || terms.network}: ${terms.text}.`, terms.source ? h("span", { class: "small" }, terms.source) : null],
      ],
      [
        "Independent of the sliders",
        [
          "Differences between clients' links, jitter, limits of the server's link and overheads are those of the network of the report. Sliders and presets set only its speeds and latency.",
        ],
      ],
      [
        "Downlink",
        [
          model.broadcast
            ? "Broadcast: each distinct frame of a round is sent once, to all clients."
            : "Unicast: each client is sent its own frames.",
        ],
      ],
      ["Device of the clients", describeDevice(terms.device)],
      ["Device of the server", describeDevice(terms.server)],
      [
        "Deadline",
        [
          terms.deadline_seconds === null
            ? "None: a lost reply counts with the time that it would have taken. A client that never replied counts with its download only."
            : `${P.formatSeconds(terms.deadline_seconds)} for lost replies.`,
        ],
      ],
      ["Bytes", ["Counted frame by frame in the ledger of the run."]],
      ["Computation", [`${training}. ${model.coding}.`]],
      [
        "Not modelled",
        [
          "Transfers during training. Lost packets and retransmission, connection setup, links shared between clients, other traffic, devices that slow down or sleep. No bytes were sent over such a network.",
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
        h("summary", {}, createLegendKey(method), method.label),
        settings.length ? h("dl", {}, ...settings.flat()) : null,
        ...method.runs.map(createRunDetails),
      );
    });
    $("reproduction").replaceChildren(...each);
  }

  function createRunDetails(run) {
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
    const details = [
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
      h("dl", {}, ...details.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("code", {}, value))]), ...needs),
      h("details", { class: "scenario" }, h("summary", {}, "scenario.toml"), copy, text),
    );
  }

  function showFoundations(model) {
    if (model.broadcast)
      for (const id of ["parts", "traffic"])
        document.querySelector(`#${id} figcaption`).append(" Downlink: as unicast, with the frames of each client counted.");
    $("mixture").hidden = !model.mixture;
    $("mixture").textContent = model.mixture ? `${model.mixture[0].toUpperCase()}${model.mixture.slice(1)}.` : "";
    showPositions(model);
    showPricingModel(model);
    showReproduction(model);
  }

  return { showFoundations };
})();
