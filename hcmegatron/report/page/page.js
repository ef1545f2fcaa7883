"use strict";
(() => {
  const PALETTES = {
    light: ["#0072b2", "#d55e00", "#00805c", "#aa3f94", "#a86a00", "#3a8fc7", "#7a1f4d", "#666666"],
    dark: ["#62b6ea", "#ff9a57", "#3ad6a6", "#e58fd6", "#f2c14e", "#a5dcf7", "#e388ac", "#b4b4b4"],
  };
  // From the paper's lightness to the ink's, so that more is always further from the page.
  const RISING = {
    light: [[0, "#ffffd9"], [0.25, "#a9d9b8"], [0.5, "#41a5b8"], [0.75, "#2262a0"], [1, "#0a1f5c"]],
    dark: [[0, "#10203f"], [0.25, "#1f4f86"], [0.5, "#2b8ba3"], [0.75, "#86cba3"], [1, "#fbffcf"]],
  };
  const DIVERGING = {
    light: [[0, "#8c3800"], [0.25, "#e8a36b"], [0.5, "#f7f7f7"], [0.75, "#7fb4dc"], [1, "#05417a"]],
    dark: [[0, "#ffb27a"], [0.25, "#b4602a"], [0.5, "#20262e"], [0.75, "#2f74ad"], [1, "#9ed4ff"]],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let figures = JSON.parse(document.getElementById("figures").textContent);
  let axis = "step";
  let step = Infinity;

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A copy with the palette's colours for "@3", and those of the theme for "@ink" and the scales.
  function coloured(value) {
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inside]) => [key, coloured(inside)]));
    }
    if (typeof value !== "string" || value[0] !== "@") return value;
    const theme = dark.matches ? "dark" : "light";
    if (value === "@rising") return RISING[theme];
    if (value === "@diverging") return DIVERGING[theme];
    if (value === "@paper") return variable("--paper");
    return value === "@ink" ? variable("--ink") : PALETTES[theme][Number(value.slice(1))];
  }

  function layoutOf(drawing, width, axes) {
    const narrow = width < 600;
    const lines = { gridcolor: variable("--grid"), zerolinecolor: variable("--line"), linecolor: variable("--line") };
    const labels = drawing.traces.filter((trace) => trace.mode === "text").map((trace) => trace.text[0].length);
    const names = drawing.traces.filter((trace) => trace.showlegend !== false && trace.name).map((trace) => trace.name);
    const legend = names.length > 1;
    // As plotly sets a legend: in one row, or else in columns as wide as the longest name.
    const widths = names.map((name) => 50 + 6.6 * name.length);
    const room = width - 80;
    const fits = widths.reduce((sum, each) => sum + each, 0) <= room;
    const columns = Math.max(1, Math.floor(room / Math.max(1, ...widths)));
    const rows = legend ? (fits ? 1 : Math.ceil(names.length / columns)) : 0;
    const below = 48 + 20 * rows;
    const layout = {
      ...coloured(drawing.layout),
      font: { color: variable("--ink"), family: "system-ui, sans-serif", size: narrow ? 11 : 12 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: narrow ? 40 : 56, r: 14 + 7 * Math.max(0, ...labels), t: 14, b: below },
      showlegend: legend,
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", traceorder: "normal" },
      hoverlabel: { align: "left" },
      uirevision: axis,
      height: 280 + below,
    };
    layout.xaxis = { ...lines, ...layout.xaxis };
    layout.yaxis = { ...lines, automargin: true, ...layout.yaxis };
    if (axes && axes[axis]) layout.xaxis.title = { text: axes[axis] };
    if (drawing.aspect) {
      layout.margin = { ...layout.margin, t: 22, b: 40 };
      layout.height = Math.max(130, Math.min(900, (width - 140) * drawing.aspect + 66));
    }
    if (drawing.rows) layout.height = 24 + 34 * drawing.rows + below;
    return layout;
  }

  function draw(div) {
    const figure = figures[div.dataset.figure];
    if (!figure) return;
    let drawing = figure;
    if (figure.slides) {
      const before = figure.slides.filter((slide) => slide.step <= step);
      drawing = before.length ? before[before.length - 1] : figure.slides[0];
      div.dataset.step = drawing.step;
    }
    div.classList.toggle("wide", Boolean(drawing.wide));
    const narrow = div.clientWidth < 600;
    // What does not fit beside a curve on a phone is in the legend.
    const shown = drawing.traces.filter((trace) => !(narrow && trace.mode === "text" && trace.text[0].length > 10));
    const traces = coloured(shown);
    for (const trace of traces) {
      if (trace.over && trace.over[axis]) trace.x = trace.over[axis];
      delete trace.over;
    }
    const layout = layoutOf({ ...drawing, traces: shown }, div.clientWidth, figure.axes);
    div.style.minHeight = `${layout.height}px`;
    Plotly.react(div, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }

  const plots = () => [...document.querySelectorAll(".plot")];

  // One figure at a time, so that a page of many can be scrolled and answers while it draws.
  let turn = 0;
  function drawAll(which = () => true) {
    const own = ++turn;
    const waiting = plots().filter(which);
    const next = () => {
      if (own !== turn) return;
      const div = waiting.shift();
      if (!div) {
        document.documentElement.dataset.drawn = String(own);
        return;
      }
      draw(div);
      setTimeout(next);
    };
    next();
  }

  function listen() {
    for (const radio of document.querySelectorAll("input[name=axis]")) {
      radio.checked = radio.value === axis;
      radio.addEventListener("change", () => {
        axis = radio.value;
        drawAll();
      });
    }
    const slider = document.getElementById("slider");
    if (!slider) return;
    const steps = JSON.parse(slider.dataset.steps);
    const last = steps.length - 1;
    const place = step === Infinity ? last : Math.max(0, steps.filter((s) => s <= step).length - 1);
    slider.value = place;
    const say = () => {
      const found = steps[Number(slider.value)];
      document.getElementById("shown").textContent = found;
      slider.setAttribute("aria-valuetext", `step ${found}`);
      return found;
    };
    say();
    slider.addEventListener("input", () => {
      const found = say();
      step = Number(slider.value) === last ? Infinity : found;
      drawAll((div) => (figures[div.dataset.figure] || {}).slides);
    });
  }

  // What a server has that is new. Figures keep their elements, and with them what a reader has zoomed into.
  function replace(content) {
    const main = document.getElementById("main");
    const kept = Object.fromEntries(plots().map((div) => [div.dataset.figure, div]));
    const open = [...main.querySelectorAll("details[open]")].map((element) => element.id);
    main.innerHTML = content.body;
    figures = content.figures;
    for (const div of plots()) {
      const old = kept[div.dataset.figure];
      if (old) div.replaceWith(old);
    }
    for (const id of open) {
      const element = document.getElementById(id);
      if (element) element.open = true;
    }
    listen();
    drawAll();
  }

  async function follow(seconds) {
    let stamp = "";
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      if (document.hidden) continue;
      try {
        const answer = await fetch(`content.json?since=${stamp}`);
        document.title = document.title.replace(/^\(lost\) /, "");
        if (answer.status !== 200) continue;
        const content = await answer.json();
        stamp = content.stamp;
        replace(content);
      } catch (error) {
        document.title = document.title.replace(/^(\(lost\) )?/, "(lost) ");
      }
    }
  }

  listen();
  drawAll();
  dark.addEventListener("change", () => drawAll());
  if ("live" in document.body.dataset) follow(2);
})();
