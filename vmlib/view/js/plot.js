// Plots on a static page: draw every figure.vm-plot with the Plotly that the page brings along.
//
// Colours come from the page's theme and follow it; without Plotly the data table is opened.
(() => {
  "use strict";
  const drawn = new Set();

  const colour = (name, otherwise) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim() || otherwise;

  // Every axis of the layout, however many there are.
  const axes = (layout) =>
    [...new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xyz]axis\d*$/.test(key))])];

  function theme(layout) {
    const dark = document.documentElement.dataset.theme === "dark";
    const text = colour("--pst-color-text-base", dark ? "#e6e6e6" : "#1f2328");
    const grid = colour("--pst-color-border", dark ? "#4a4f57" : "#d0d5da");
    const font = getComputedStyle(document.body).fontFamily;
    const themed = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      autosize: true, font: { ...layout.font, color: text, family: font } };
    for (const axis of axes(layout)) {
      themed[axis] = { ...layout[axis], gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    }
    delete themed.width;
    return themed;
  }

  const settings = { displayModeBar: false, responsive: true };
  const react = ({ place, data }) =>
    window.Plotly.react(place, data.data, theme(data.layout || {}), settings);

  function draw(figure) {
    const script = figure.querySelector("script.vm-data");
    const place = figure.querySelector(".vm-plot-place");
    if (!script || !place || figure.dataset.vmReady) return;
    const data = JSON.parse(script.textContent);
    figure.dataset.vmReady = "yes";
    const frames = data.frames && data.frames.length ? { frames: data.frames } : {};
    window.Plotly.newPlot(place, { data: data.data, layout: theme(data.layout || {}), config: settings, ...frames })
      .then(() => window.Plotly.Plots.resize(place));  // an empty place has no width to go by
    drawn.add({ place, data });
  }

  function start() {
    const figures = [...document.querySelectorAll("figure.vm-plot")];
    if (window.Plotly) return figures.forEach(draw);
    for (const figure of figures) figure.querySelector("details").open = true;
  }

  new MutationObserver(() => {
    if (window.Plotly) drawn.forEach(react);
  }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  if (document.readyState === "complete") start();
  else addEventListener("load", start);
})();
