/* Figures as files: SVG and PNG on white paper, and the numbers as CSV. */
"use strict";

const fedsgdExport = (() => {
  /* A copy that needs no page around it: colours as they are on paper, fonts named, nothing that only a pointer shows. */
  function standing(svg, title) {
    const paper = document.body.appendChild(Object.assign(document.createElement("div"), { className: "light", hidden: true }));
    const style = getComputedStyle(paper);
    const value = (name) => style.getPropertyValue(name).trim();
    const copy = svg.cloneNode(true);
    for (const tip of copy.querySelectorAll("[aria-label=tip]")) tip.remove();
    const { width, height } = svg.viewBox.baseVal;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.removeAttribute("class");
    copy.style.color = value("--ink");
    copy.insertAdjacentElement("afterbegin", element("rect", { width: "100%", height: "100%", fill: value("--paper") }));
    copy.insertAdjacentElement("afterbegin", Object.assign(element("title", {}), { textContent: title }));
    const text = new XMLSerializer()
      .serializeToString(copy)
      .replaceAll("var(--plot-background)", value("--paper"))
      .replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => value(name))
      .replaceAll("currentColor", value("--ink"));
    paper.remove();
    return { text, width, height };
  }

  function element(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  async function png({ text, width, height }, times = 2) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: width * times, height: height * times });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const data = atob(canvas.toDataURL("image/png").split(",")[1]); // toBlob waits for an idle moment that may be seconds away
    return new Blob([Uint8Array.from(data, (c) => c.charCodeAt(0))], { type: "image/png" });
  }

  /* RFC 4180; numbers in full. */
  function csv(columns, rows) {
    const cell = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    return `${[columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
  }

  function save(blob, name) {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* figure: {svg, columns, rows}; kind: "svg", "png" or "csv". */
  async function download(figure, kind, name, title) {
    if (kind === "csv") return save(new Blob([csv(figure.columns, figure.rows())], { type: "text/csv" }), `${name}.csv`);
    const made = standing(figure.svg, title);
    const blob = kind === "svg" ? new Blob([made.text], { type: "image/svg+xml" }) : await png(made);
    return save(blob, `${name}.${kind}`);
  }

  return { download };
})();
