// Plots on a static page: draw every figure.vm-plot with the Plotly that the page brings along.
//
// Colours come from the page's theme and follow it; without Plotly the data table is opened. Plotly's
// own slider can't be worked by keyboard and says nothing to a screen reader: a figure that has one
// gets the browser's instead, under the picture.
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
    // Plotly leaves room above for a title, which is the caption's here, and puts the legend beside
    // the picture, where a phone has no room for it.
    const themed = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      autosize: true, font: { ...layout.font, color: text, family: font }, margin: { t: 30, r: 20, ...layout.margin },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", ...layout.legend } };
    for (const axis of axes(layout)) {
      const own = { minexponent: 6, ...layout[axis] }; // 16384, not 16.384k
      if (own.type === "log") own.nticks ??= 4; // decades, where there are some
      // What stands in brackets may take a line of its own: a phone cuts off a long title.
      if (own.title?.text && axis[0] === "x") own.title = { ...own.title, text: own.title.text.replace(" (", "<br>(") };
      themed[axis] = { ...own, gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
    }
    delete themed.width;
    return themed;
  }

  const settings = { displayModeBar: false, responsive: true };
  const react = ({ place, data, shown }) =>
    window.Plotly.react(place, shown || data.data, theme(data.layout || {}), settings);

  // Take the slider out of a layout and put the browser's after the picture.
  function knob(plot, figure) {
    const { sliders, ...layout } = plot.data.layout || {};
    if (!sliders || !sliders.every(({ steps }) => steps.every(({ method }) => method === "animate"))) return;
    plot.data = { ...plot.data, layout };
    const { steps, active = 0, currentvalue = {} } = sliders[0];
    const box = document.createElement("label"), range = document.createElement("input"), said = document.createElement("output");
    box.className = "vm-plot-knob";
    Object.assign(range, { type: "range", min: 0, max: steps.length - 1, step: 1, value: active });
    const show = () => {
      const step = steps[Number(range.value)];
      said.textContent = step.label;
      range.setAttribute("aria-valuetext", step.label);
      return step;
    };
    range.addEventListener("input", () => {
      const frame = plot.data.frames.find(({ name }) => name === show().args[0][0]);
      plot.shown = plot.data.data.map((trace, i) => ({ ...trace, ...frame.data[i] }));
      react(plot);
    });
    show();
    box.append((currentvalue.prefix || "").replace(/[:\s]*$/, ": "), range, said);
    figure.querySelector(".vm-plot-place").after(box);
  }

  function draw(figure) {
    const script = figure.querySelector("script.vm-data");
    const place = figure.querySelector(".vm-plot-place");
    if (!script || !place || figure.dataset.vmReady) return;
    const plot = { place, data: JSON.parse(script.textContent), shown: null };
    figure.dataset.vmReady = "yes";
    knob(plot, figure);
    const { data, layout } = plot.data;
    window.Plotly.newPlot(place, { data, layout: theme(layout || {}), config: settings })
      .then(() => window.Plotly.Plots.resize(place));  // an empty place has no width to go by
    drawn.add(plot);
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
