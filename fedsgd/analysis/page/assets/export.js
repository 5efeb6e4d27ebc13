/* Files of figures: SVG and PNG in light colours, and the figures' values as CSV. */
"use strict";

const fedsgdExport = (() => {
  /* A copy of an SVG that does not depend on the page: light colours, named fonts, no tooltips. */
  function createStandaloneSvg(svg, title) {
    const paper = document.body.appendChild(Object.assign(document.createElement("div"), { className: "light", hidden: true }));
    const style = getComputedStyle(paper);
    const cssValue = (name) => style.getPropertyValue(name).trim();
    const copy = svg.cloneNode(true);
    for (const tip of copy.querySelectorAll("[aria-label=tip]")) tip.remove();
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.removeAttribute("class");
    copy.style.color = cssValue("--ink");
    copy.insertAdjacentElement(
      "afterbegin",
      createSvgElement("rect", { width: "100%", height: "100%", fill: cssValue("--paper") }),
    );
    copy.insertAdjacentElement("afterbegin", Object.assign(createSvgElement("title", {}), { textContent: title }));
    const text = new XMLSerializer()
      .serializeToString(copy)
      .replaceAll("var(--plot-background)", cssValue("--paper"))
      .replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => cssValue(name))
      .replaceAll("currentColor", cssValue("--ink"));
    paper.remove();
    return { text, width, height };
  }

  function createSvgElement(name, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  async function renderPng({ text, width, height }, times = 2) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: width * times, height: height * times });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const data = atob(canvas.toDataURL("image/png").split(",")[1]); // toBlob may wait seconds for idle time
    return new Blob([Uint8Array.from(data, (c) => c.charCodeAt(0))], { type: "image/png" });
  }

  /* CSV after RFC 4180, with numbers in full precision. */
  function formatCsv(columns, rows) {
    const quoteCell = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    return `${[columns, ...rows].map((row) => row.map(quoteCell).join(",")).join("\r\n")}\r\n`;
  }

  function downloadBlob(blob, name) {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* figure: {svg, columns, rows}; kind: "svg", "png" or "csv". */
  async function exportFigure(figure, kind, name, title) {
    if (kind === "csv")
      return downloadBlob(new Blob([formatCsv(figure.columns, figure.rows())], { type: "text/csv" }), `${name}.csv`);
    const drawing = createStandaloneSvg(figure.svg, title);
    const blob = kind === "svg" ? new Blob([drawing.text], { type: "image/svg+xml" }) : await renderPng(drawing);
    return downloadBlob(blob, `${name}.${kind}`);
  }

  return { exportFigure };
})();
