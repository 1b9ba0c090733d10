
"use strict";
(async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = { responsive: true, displayModeBar: false };
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger on a figure scrolls the page

  const theme = () => {
    const axis = { gridcolor: of("--rule"), linecolor: of("--rule"), zeroline: false };
    return { font: { color: of("--ink"), family: "system-ui, sans-serif", size: 12 }, axis };
  };
  const layout = (own) => {
    const { font, axis } = theme();
    const quiet = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false };
    const margin = { l: 8, r: 8, t: 8, b: 8 };
    return { ...quiet, font, margin, hovermode: "closest", dragmode: coarse ? false : "zoom",
             ...own, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis } };
  };

  const unpacked = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return window.Plotly;
  };

  const draw = async (view) => {
    if (view.classList.contains("drawn")) return;
    view.classList.add("drawn");
    const plots = view.querySelectorAll(".plot");
    await Promise.all(charts[view.dataset.chart].map(
      (panel, i) => Plotly.newPlot(plots[i], panel.data, layout(panel.layout), config)));
  };
  const drawn = () => document.querySelectorAll(".drawn .plot");

  const show = (group, index) => {
    document.querySelectorAll(`[id^="view-${group}-"]`).forEach((view) => {
      view.hidden = view.id !== `view-${group}-${index}`;
      if (!view.hidden) draw(view);
    });
    document.querySelectorAll(`button[data-choice="${group}"]`).forEach((button) =>
      button.setAttribute("aria-pressed", button.value === String(index)));
  };

  const toggle = (button) => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    button.closest(".view").querySelectorAll(".plot").forEach((plot) => {
      const own = plot.data.flatMap((trace, i) => (trace.legendgroup === button.dataset.series ? [i] : []));
      if (own.length) Plotly.restyle(plot, { visible: on }, own);
    });
  };

  const row = (cells, kind) => {
    const line = document.createElement("tr");
    line.append(...cells.map((text) => {
      const cell = document.createElement(kind);
      cell.textContent = text ?? "";
      return cell;
    }));
    return line;
  };
  const unescaped = (text) => String(text ?? "").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const lines = (trace) => trace.type === "heatmap"
    ? trace.z.flatMap((values, r) => values.map((z, c) => [unescaped(trace.y[r]), unescaped(trace.x[c]), z, ""]))
    : trace.x.map((x, i) => {
        const bars = trace.error_y;
        const whole = bars && (bars.array[i] || bars.arrayminus[i]);
        const ends = whole ? `${(trace.y[i] - bars.arrayminus[i]).toPrecision(4)} to ${(trace.y[i] + bars.array[i]).toPrecision(4)}` : "";
        return [unescaped(trace.hovertext?.[i] ?? trace.name), x, trace.y[i], ends];
      });
  const tabulate = (details) => {
    const view = details.closest(".view");
    const box = details.querySelector(".scroll");
    if (box.childElementCount) return;
    charts[view.dataset.chart].forEach((panel, i) => {
      const table = document.createElement("table");
      const title = view.querySelectorAll(".panel")[i].querySelector(".panel-title");
      if (title) table.createCaption().textContent = title.textContent;
      const heat = panel.data.some((trace) => trace.type === "heatmap");
      const [x, y] = [panel.layout.xaxis, panel.layout.yaxis].map((axis) => unescaped(axis.title.text));
      table.createTHead().append(row(heat ? [y, x, "value", ""] : ["series", x, y, "interval"], "th"));
      table.createTBody().append(...panel.data.filter((trace) => trace.name !== "Pareto front" && (trace.name || heat))
        .flatMap(lines).map((cells) => row(cells, "td")));
      box.append(table);
    });
  };

  document.querySelectorAll("button[data-choice]").forEach((button) =>
    button.addEventListener("click", () => show(button.dataset.choice, button.value)));
  document.querySelectorAll("select[data-choice]").forEach((select) =>
    select.addEventListener("change", () => show(select.dataset.choice, select.value)));
  document.querySelectorAll("button[data-series]").forEach((button) =>
    button.addEventListener("click", () => toggle(button)));
  document.querySelectorAll("details.numbers").forEach((details) =>
    details.addEventListener("toggle", () => details.open && tabulate(details)));

  await unpacked();
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !entry.target.hidden) draw(entry.target);
  }), { rootMargin: "600px" });
  document.querySelectorAll(".view").forEach((view) => near.observe(view));
  dark.addEventListener("change", () => drawn().forEach((plot) => {
    const { font, axis } = theme();
    Plotly.relayout(plot, { font, "xaxis.gridcolor": axis.gridcolor, "xaxis.linecolor": axis.linecolor,
                            "yaxis.gridcolor": axis.gridcolor, "yaxis.linecolor": axis.linecolor });
  }));
  document.documentElement.dataset.ready = "true";
})();
