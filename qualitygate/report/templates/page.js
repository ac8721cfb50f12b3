(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const make = (tag, text, kind) => {
    // Texts are set as text, never as HTML: ids and labels are whatever a file was called.
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  // ---- colours: figures are drawn in the light ones, each exchanged for its dark one where wanted
  const exchange = read("exchange");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const dark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const coloured = (value) => {
    if (typeof value === "string") return (dark() && exchange[value]) || value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part)]));
    return value;
  };

  // ---- figures
  const paper = 620; // pixels of a figure's width that fit on A4 and Letter
  const narrow = () => !printing && innerWidth < 640;
  const touch = matchMedia("(pointer: coarse)").matches;
  const fitted = (figure) => {
    const layout = figure.layout;
    const kind = layout.meta?.kind;
    layout.dragmode = touch || kind === "heat" || kind === "small" ? false : "zoom";
    layout.autosize = !printing;
    // While the page is being laid out for paper its boxes still have the screen's sizes.
    if (printing) layout.width = kind === "small" ? 200 : paper;
    if (kind === "heat" && narrow()) {
      figure.data[0].showscale = false;
      figure.data[0].text = figure.data[0].text.map((line) => line.map((text) => text.split("<br>")[0]));
      layout.xaxis.tickangle = -60;
      layout.height += 70;
      layout.margin.t = 130;
    }
    if (kind === "panels" && narrow()) stack(figure);
    if (kind === "scatter" && narrow()) {
      layout.height = 430;
      layout.margin.l = 44;
    }
    if (narrow()) layout.font.size = 12;
    return figure;
  };
  const stack = (figure) => {
    // Panels side by side don't fit a phone: two columns instead of one row.
    const axes = Object.keys(figure.layout).filter((key) => key.startsWith("xaxis"));
    const lines = Math.ceil(axes.length / 2);
    axes.forEach((key, number) => {
      const left = number % 2 ? 0.56 : 0, line = Math.floor(number / 2);
      const top = 1 - line / lines, bottom = top - 1 / lines + 0.13;
      figure.layout[key].domain = [left, left + 0.44];
      figure.layout[key.replace("x", "y")].domain = [bottom, top - 0.07];
      const title = figure.layout.annotations[number];
      if (title) Object.assign(title, { x: left + 0.22, y: top - 0.06 });
    });
    figure.layout.height = 230 * lines + 110;
    figure.layout.legend.y = -0.1;
  };
  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    // Named one by one: plotly's own choice offers to upload the figure.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const figures = all(".plotted").map((holder) => ({
    plot: holder.querySelector(".plot"),
    source: holder.querySelector("script.figure").textContent,
    scatter: holder.closest(".scatter"),
    drawn: false,
  }));
  const draw = (figure) => {
    const spec = coloured(fitted(JSON.parse(figure.source)));
    const done = Plotly.react(figure.plot, spec.data, spec.layout, options);
    if (!figure.drawn) {
      figure.drawn = true;
      if (figure.scatter) listen(figure);
    }
    if (figure.shown !== undefined) ring(figure, figure.shown);
    return done;
  };
  const redraw = () => figures.filter((figure) => figure.drawn).forEach(draw);

  // ---- photographs
  const album = read("album");
  const digits = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));
  const wholeOf = (row) =>
    album.whole?.[row] ?? document.querySelector(`img[data-row="${row}"]`)?.dataset.whole ??
    document.querySelector(`img[data-row="${row}"]`)?.src;
  const picture = (row, source) => {
    if (!album.shown) return make("span", "photographs left out", "no-photo");
    if (!source) return make("span", album.problems?.[row] ?? "left out, to keep the page small", "no-photo");
    const image = make("img");
    image.src = source;
    image.alt = "";
    return image;
  };
  const facts = (list, row, full) => {
    const one = album.photographs[row];
    const lines = [
      ["prediction", one.correct ? "● right" : "✕ wrong", one.correct ? "right" : "wrong"],
      ["confidence", digits(one.confidence)],
      ...album.methods.map((method, number) => {
        const score = one.scores[number];
        const low = score !== null && method.cutoff !== null &&
          (method.direction === "lower" ? score > method.cutoff : score < method.cutoff);
        return [method.name + (method.untrained ? " ⚠ untrained" : ""), digits(score) + (low ? " low" : ""), low ? "low" : ""];
      }),
      ["gate", one.passed === null ? "–" : one.passed ? "passed" : `rejected, ${one.votes} low`],
    ];
    if (one.label !== null) lines.push(["label", one.label]);
    if (one.predicted !== null && (full || !one.correct)) lines.push(["predicted", one.predicted]);
    if (full) {
      for (const [title, value] of [["top-1", one.top1], ["group", one.group], ["stratum", one.stratum], ["file", one.uri]])
        if (value !== null && value !== undefined) lines.push([title, typeof value === "number" ? digits(value) : value]);
    } else lines.push(["id", one.image_id]);
    list.replaceChildren(...lines.flatMap(([term, value, kind]) => [make("dt", term), make("dd", value, kind)]));
  };
  const show = (scatter, row) => {
    const panel = scatter.querySelector(".panel"), open = panel.querySelector(".panel-open");
    open.hidden = false;
    open.dataset.row = row;
    open.setAttribute("aria-label", `Open ${album.photographs[row].image_id} larger`);
    panel.querySelector(".panel-picture").replaceChildren(picture(row, wholeOf(row)));
    facts(panel.querySelector(".facts"), row, false);
  };
  const ring = (figure, row) => {
    // The figure's last trace is a ring around the photograph that the panel shows.
    figure.shown = row;
    const one = album.photographs[row], at = album.methods.findIndex((method) => method.key === figure.scatter.dataset.method);
    Plotly.restyle(figure.plot, { x: [[one.scores[at]]], y: [[one.confidence]] }, [figure.plot.data.length - 1]);
  };
  const walkOf = (scatter) => (scatter.dataset.walk ? scatter.dataset.walk.split(",").map(Number) : []);
  const point = (figure, row) => {
    show(figure.scatter, row);
    ring(figure, row);
    const slider = figure.scatter.querySelector(".walk input");
    if (slider) slider.value = String(walkOf(figure.scatter).indexOf(row));
  };
  const listen = (figure) => {
    const { plot, scatter } = figure;
    const row = (event) => event.points?.find((found) => found.customdata !== undefined)?.customdata;
    plot.on("plotly_hover", (event) => row(event) !== undefined && point(figure, row(event)));
    plot.on("plotly_click", (event) => {
      if (row(event) === undefined) return;
      point(figure, row(event));
      if (!touch) view(row(event), walkOf(scatter));
    });
  };
  if (album) {
    for (const figure of figures.filter((one) => one.scatter)) {
      const { scatter } = figure, walk = walkOf(scatter);
      scatter.querySelector(".panel").hidden = false;
      if (!walk.length) continue;
      figure.shown = walk[Number(scatter.dataset.start)];
      show(scatter, figure.shown);
      scatter.querySelector(".panel-open").addEventListener("click", (event) =>
        view(Number(event.currentTarget.dataset.row), walk));
      const label = scatter.querySelector(".walk");
      label.hidden = false;
      label.querySelector("input").addEventListener("input", (event) => {
        const found = walk[Number(event.target.value)];
        show(scatter, found);
        if (figure.drawn) ring(figure, found);
      });
    }
  }

  // ---- the dialog: Escape and its button close it, arrow keys leaf through what it was opened from
  const viewer = document.getElementById("viewer");
  let leaves = [], place = 0;
  const leaf = (step) => {
    place = (place + step + leaves.length) % leaves.length;
    const row = leaves[place], one = album.photographs[row];
    viewer.querySelector("h2").textContent = one.image_id;
    const pictures = viewer.querySelector(".viewer-pictures");
    pictures.replaceChildren();
    for (const [source, title] of [[wholeOf(row), "whole"], [album.detail?.[row], "middle at full size"]]) {
      if (!source && title !== "whole") continue;
      const figure = make("figure");
      figure.append(picture(row, source));
      if (source) {
        figure.firstChild.alt = `${one.image_id}, ${title}`;
        figure.append(make("figcaption", title));
      }
      pictures.append(figure);
    }
    facts(viewer.querySelector(".facts"), row, true);
    document.getElementById("viewer-place").textContent = `${place + 1} of ${leaves.length}`;
  };
  const view = (row, rows) => {
    leaves = rows.length ? rows : [row];
    place = Math.max(0, leaves.indexOf(row));
    leaf(0);
    viewer.showModal();
  };
  if (viewer) {
    viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
    viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
    viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") leaf(1);
      if (event.key === "ArrowLeft") leaf(-1);
    });
    for (const button of all("[data-step]", viewer)) button.addEventListener("click", () => leaf(Number(button.dataset.step)));
    for (const tiles of all(".tiles")) {
      const buttons = all(".tile", tiles);
      const rows = buttons.map((button) => Number(button.dataset.row));
      buttons.forEach((button, number) => button.addEventListener("click", () => view(rows[number], rows)));
    }
  }
  const part = document.getElementById("part");
  if (part) {
    part.hidden = false;
    part.addEventListener("change", (event) => {
      for (const image of all(".tile img")) {
        image.dataset.whole ??= image.src;
        image.src = (event.target.value === "detail" && album.detail[image.dataset.row]) || image.dataset.whole;
      }
    });
  }

  // ---- theme
  const button = document.getElementById("theme");
  const themes = ["", "light", "dark"];
  const keep = (name) => {
    // A browser may deny storage to files: then the choice lasts as long as the page.
    try { localStorage.setItem("qualitygate-theme", name); } catch { /* not kept */ }
  };
  const choose = (name) => {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    button.textContent = `Theme: ${name || "system"}`;
  };
  let kept = "";
  try { kept = localStorage.getItem("qualitygate-theme") ?? ""; } catch { /* not kept */ }
  choose(themes.includes(kept) ? kept : "");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    choose(next);
    keep(next);
    redraw();
  });
  system.addEventListener("change", redraw);

  // ---- when to draw: what comes into sight at once, the rest when there is time, all of it before printing
  const ready = () => {
    if (figures.every((figure) => figure.drawn)) root.dataset.figures = "drawn";
  };
  const rest = () => {
    const next = figures.find((figure) => !figure.drawn);
    if (next) {
      draw(next);
      setTimeout(rest, 30);
    }
    ready();
  };
  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      const figure = figures.find((one) => one.plot === entry.target);
      if (!figure.drawn) draw(figure);
      sight.unobserve(entry.target);
    }
    ready();
  }, { rootMargin: "300px" });
  const unpack = async () => {
    // Inserted as text, whose hash the page's policy allows; no address is asked.
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", await new Response(stream).text()));
  };
  const start = () => {
    figures.forEach((figure) => sight.observe(figure.plot));
    setTimeout(rest, 120);
  };
  addEventListener("load", () => (figures.length ? unpack() : Promise.resolve()).then(start, () => {
    document.getElementById("no-figures").hidden = false;
    root.dataset.figures = "none";
  }));
  const print = (on) => {
    if (printing === on || !window.Plotly) return;
    printing = on;
    figures.forEach(draw);
    ready();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  let wasNarrow = narrow();
  addEventListener("resize", () => {
    if (narrow() !== wasNarrow && !printing) {
      wasNarrow = narrow();
      redraw();
    }
  });
})();
