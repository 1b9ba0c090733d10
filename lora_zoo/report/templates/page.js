"use strict";
(async () => {
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger on a figure scrolls the page

  const unpacked = (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const { config, charts } = JSON.parse(await unpacked("charts"));
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);

  const specs = (view) => charts[view.dataset.group][view.dataset.view];
  const zoom = { name: "zoom", select: { type: "interval", zoom: "wheel![event.shiftKey]" }, bind: "scales" };
  const zoomable = (spec) => {
    const marks = spec.layer.at(-1).layer;
    return coarse || !marks ? spec : { ...spec, layer: [...spec.layer.slice(0, -1),
      { ...spec.layer.at(-1), layer: [{ ...marks[0], params: [zoom] }, ...marks.slice(1)] }] };
  };
  const padding = { left: 5, right: 15, top: 12, bottom: 5 }; // words at the last number and the highest point
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config, padding };
  const draw = (view) => {
    if (view.classList.contains("drawn")) return [];
    view.classList.add("drawn");
    const plots = every(".plot", view);
    return specs(view).map(async (spec, i) => {
      plots[i].result = await vegaEmbed(plots[i], zoomable(spec), options);
      plots[i].style.minHeight = 0;
    });
  };

  const show = (group, index) => {
    every(`.view[data-group="${group}"]`).forEach((view) => {
      view.hidden = view.dataset.view !== String(index);
      if (!view.hidden) draw(view);
    });
    every(`button[data-choice="${group}"]`).forEach((button) =>
      button.setAttribute("aria-pressed", button.value === String(index)));
  };
  const toggle = (button) => {
    const view = button.closest(".view");
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const hidden = every("button[aria-pressed=false]", view).map((each) => each.dataset.series);
    every(".plot", view).forEach((plot) => plot.result.view.signal("hidden", hidden).runAsync());
  };

  const row = (cells, kind) => {
    const line = document.createElement("tr");
    line.append(...cells.map((text) => {
      const cell = document.createElement(kind);
      cell.textContent = typeof text === "number" ? Number(text.toPrecision(5)) : text ?? "";
      return cell;
    }));
    return line;
  };
  const tabulate = (details) => {
    const view = details.closest(".view"), box = details.querySelector(".scroll");
    if (box.childElementCount) return;
    specs(view).forEach((spec, i) => {
      const table = document.createElement("table");
      const title = every(".panel", view)[i].querySelector(".panel-title");
      if (title) table.createCaption().textContent = title.textContent;
      const { x, y } = spec.encoding, shown = { x: x.axis.title, y: y.axis.title, column: x.axis.title, row: y.axis.title };
      const rows = [...spec.layer.slice(0, -1).flatMap((layer) => layer.mark?.type === "line" ? layer.data.values : []),
        ...spec.data.values];
      const names = Object.keys(spec.data.values[0] ?? {}).filter((name) => name !== "foot" &&
        rows.some((one) => one[name] !== null && one[name] !== ""));
      table.createTHead().append(row(names.map((name) => shown[name] ?? name), "th"));
      table.createTBody().append(...rows.filter((one) => "series" in one || "row" in one)
        .map((one) => row(names.map((name) => one[name]), "td")));
      box.append(table);
    });
  };

  every("button[data-choice]").forEach((button) =>
    button.addEventListener("click", () => show(button.dataset.choice, button.value)));
  every("select[data-choice]").forEach((select) =>
    select.addEventListener("change", () => show(select.dataset.choice, select.value)));
  every("button[data-series]").forEach((button) => button.addEventListener("click", () => toggle(button)));
  every("details.numbers").forEach((details) =>
    details.addEventListener("toggle", () => details.open && tabulate(details)));
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !entry.target.hidden) draw(entry.target);
  }), { rootMargin: "600px" });
  every(".view").forEach((view) => near.observe(view));

  const aim = () => { // a run that a link leads to lies in a list that is folded
    const folded = document.getElementById(location.hash.slice(1))?.closest("details");
    if (folded) folded.open = true;
  };
  addEventListener("hashchange", aim);
  aim();

  const views = every(".view"); // all of them go on paper
  addEventListener("beforeprint", () => {
    every(".table details").forEach((notes) => { notes.open = true; });
    views.forEach((view) => {
      view.wasHidden = view.hidden;
      view.hidden = false;
      draw(view);
    });
  });
  addEventListener("afterprint", () => views.forEach((view) => { view.hidden = view.wasHidden; }));
  document.documentElement.dataset.ready = "true";
})();
