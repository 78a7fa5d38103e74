/* Draws every chart of the page. Lines and letters take the colour of the text, so that light and dark need no redrawing. */
const ink = "currentColor", quiet = "#8a8a8a";
const config = {
  background: "transparent", font: "system-ui, DejaVu Sans, sans-serif", view: { stroke: quiet, strokeOpacity: 0.35 },
  axis: { labelColor: ink, titleColor: ink, domainColor: quiet, tickColor: quiet, gridColor: quiet, gridOpacity: 0.25, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
};
const specs = JSON.parse(document.getElementById("charts").textContent);
await Promise.all(Object.entries(specs).map(([key, spec]) =>
  window.vegaEmbed(document.getElementById(`chart-${key}`), spec, { renderer: "svg", actions: false, config, mode: "vega-lite" })));
document.documentElement.dataset.drawn = Object.keys(specs).length;
