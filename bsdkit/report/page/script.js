"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const n = D.ids.length;
const label = (c) => D.classes[c][0];
const full = (c) => D.classes[c][1] && D.classes[c][1] !== label(c) ? `${label(c)} (${D.classes[c][1]})` : label(c);
const percent = (mille) => (mille / 10).toFixed(1);
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** An element; text children become text nodes, so what strangers wrote stays text. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) made.style.setProperty(k, v);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The marker of a family; the only HTML made from text here, and none of it is a stranger's. */
function markerIcon(family) {
  const holder = el("template");
  holder.innerHTML = '<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">' +
    `<path class="mark" style="--c:var(--f${family})" d="${D.shapes[family % D.shapes.length]}" transform="scale(4.5)"/></svg>`;
  return holder.content.firstChild;
}

/* Sorting of the tables that came with the page. */
for (const table of $$("table.sortable")) {
  const heads = $$("thead th", table);
  heads.forEach((head, column) => {
    const text = head.textContent;
    head.textContent = "";
    head.append(el("button", { type: "button", onclick: () => {
      const isUp = head.getAttribute("aria-sort") === "descending" ||
        (!head.hasAttribute("aria-sort") && isText(column));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === "" ? 1 : b === "" ? -1 : (isUp ? 1 : -1) * order(a, b)));
      const numbers = rows.every(([k]) => k === "" || !Number.isNaN(Number(k)));
      if (numbers) rows.sort(([a], [b]) => (a === "" ? 1 : b === "" ? -1 : (isUp ? 1 : -1) * (a - b)));
      body.append(...rows.map(([, row]) => row));
    } }, text));
  });
  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent.trim();
  }
  function isText(column) {
    return [...table.tBodies[0].rows].some((row) => Number.isNaN(Number(key(row, column))));
  }
}

/* Playing: one player, and nothing is loaded before it is asked for. */
const player = { audio: null, clip: -1, isOn: false };
function play(clip) {
  const url = D.audio && D.audio[clip];
  if (!url) return;
  if (!player.audio) {
    player.audio = el("audio", { preload: "none", id: "player" });
    for (const event of ["ended", "pause", "play", "error"])
      player.audio.addEventListener(event, () => {
        player.isOn = event === "play";
        showPlaying(event === "error" ? "The sound cannot be played: " + player.audio.getAttribute("src") : "");
      });
    document.body.append(player.audio);
  }
  if (player.clip === clip && player.isOn) { player.audio.pause(); return; }
  if (player.clip !== clip) { player.audio.src = url; player.clip = clip; }
  player.audio.play().catch(() => {});
}
function showPlaying(problem) {
  for (const button of $$("button.play")) setPlay(button);
  if (problem) for (const table of tables) table.say(problem);
}
function setPlay(button) {
  const isThis = Number(button.dataset.clip) === player.clip && player.isOn;
  button.setAttribute("aria-pressed", isThis);
  button.textContent = isThis ? "❚❚" : "▶";
}
function playButton(clip) {
  if (!D.audio[clip]) return "";
  const button = el("button", { type: "button", class: "play", "data-clip": clip,
    "aria-label": `Play ${D.titles[clip] || D.ids[clip]}`, onclick: () => play(clip) });
  setPlay(button);
  return button;
}

/* The table of clips. */
const PAGE = 50;
const tables = [];
let texts = null;
function textOf(clip) {
  if (!texts) texts = new Array(n);
  texts[clip] ??= [D.ids[clip], D.titles[clip], D.tags[clip], D.uploaders[D.uploader[clip]]].join("\n").toLowerCase();
  return texts[clip];
}

class ClipTable {
  constructor(box) {
    this.box = box;
    const subset = box.dataset.subset;
    this.all = subset ? D.subsets[subset] : Array.from({ length: n }, (_, i) => i);
    this.page = 0;
    this.here = -1;
    this.sort = { column: "id", isUp: true };
    this.pair = null;
    const number = tables.length;
    const choice = (text, name) => {
      const select = el("select", { id: `${name}-${number}`, onchange: () => this.restart() }, el("option", { value: "" }, "all"));
      const isFlat = D.families.length === D.classes.length;
      if (!isFlat) {
        const group = el("optgroup", { label: "families" });
        D.families.forEach(([f, named], i) => group.append(el("option", { value: `f${i}` }, named && named !== f ? `${f} (${named})` : f)));
        select.append(group);
      }
      const group = isFlat ? select : el("optgroup", { label: "classes" });
      D.classes.forEach((_, i) => group.append(el("option", { value: `c${i}` }, full(i))));
      if (!isFlat) select.append(group);
      return [select, el("label", { for: select.id }, text, select)];
    };
    let waiting = 0;
    this.search = el("input", { type: "search", id: `search-${number}`, oninput: () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.restart(), 120);
    } });
    const [truth, truthLabel] = choice("true", "true");
    this.truth = truth;
    const chosen = D.runs.map((run, i) => choice(D.runs.length > 1 ? `predicted by ${run.name}` : "predicted", `predicted-${i}`));
    this.predicted = chosen.map(([select]) => select);
    this.errors = el("input", { type: "checkbox", id: `errors-${number}`, onchange: () => this.restart() });
    if (D.errorsOnly) this.errors.checked = true;
    this.count = el("p", { class: "status", role: "status" });
    this.head = el("tr");
    this.body = el("tbody");
    this.pager = el("div", { class: "pager" });
    box.append(
      el("div", { class: "controls", role: "search" },
        el("label", { for: this.search.id }, "search title, tags, id, uploader", this.search),
        truthLabel, ...chosen.map(([, one]) => one),
        D.errorsOnly ? el("label", { class: "check" }, this.errors, "errors only") : null,
        el("button", { type: "button", class: "plain", onclick: () => { this.clear(D.errorsOnly); this.restart(); } }, "Reset")),
      this.count,
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Clips" },
        el("table", { "aria-label": "Clips" }, el("thead", {}, this.head), this.body)),
      this.pager);
    this.makeHead();
    this.restart();
  }

  get columns() {
    const found = [];
    if (D.audio) found.push(["play", "", null]);
    found.push(["id", "id", (i) => D.ids[i], true], ["title", "title, tags", (i) => D.titles[i], true],
      ["true", "true", (i) => D.labels[i], true]);
    const several = D.runs.length > 1;
    D.runs.forEach((run, k) => found.push(
      [`predicted${k}`, several ? `${run.name}: predicted` : "predicted", (i) => run.decided[i], true],
      [`p${k}`, several ? "%" : "probability, %", (i) => run.p[i], false]));
    D.runs.forEach((run, k) => found.push([`top${k}`, several ? `${run.name}: most probable` : "most probable", null, true]));
    found.push(["uploader", "uploader", (i) => D.uploaders[D.uploader[i]], true], ["fold", "fold", (i) => D.folds[i], false]);
    return found;
  }

  makeHead() {
    for (const [name, title, value, isLeft] of this.columns) {
      const head = el("th", { scope: "col", class: isLeft ? "left" : null, "data-column": name });
      if (value)
        head.append(el("button", { type: "button", onclick: () => {
          const isSame = this.sort.column === name;
          this.sort = { column: name, isUp: isSame ? !this.sort.isUp : !/^p\d/.test(name) };
          this.restart();
        } }, title));
      else head.append(title || el("span", { class: "skip" }, "play"));
      this.head.append(head);
    }
  }

  clear(errorsOnly = false) {
    this.search.value = "";
    for (const select of [this.truth, ...this.predicted]) select.value = "";
    this.errors.checked = Boolean(errorsOnly);
  }

  restart() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (choice, c) => !choice || (choice[0] === "f" ? D.familyOf[c] === Number(choice.slice(1)) : c === Number(choice.slice(1)));
    const truth = this.truth.value;
    const predicted = this.predicted.map((select) => select.value);
    this.found = this.all.filter((i) =>
      fits(truth, D.labels[i]) && predicted.every((choice, k) => fits(choice, D.runs[k].decided[i])) &&
      (!this.errors.checked || D.runs[0].decided[i] !== D.labels[i]) &&
      words.every((word) => textOf(i).includes(word)));
    const { column, isUp } = this.sort;
    const value = this.columns.find(([name]) => name === column)[2];
    const keys = new Map(this.found.map((i) => [i, value(i)]));
    const isNumber = typeof value(0) === "number";
    const sign = isUp ? 1 : -1;
    this.found.sort((a, b) => sign * (isNumber ? keys.get(a) - keys.get(b) : order(keys.get(a), keys.get(b))) || a - b);
    for (const head of this.head.children) {
      if (head.dataset.column === column) head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    this.page = 0;
    this.draw();
  }

  say(text) { this.count.textContent = text; }

  draw() {
    const shown = this.found.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.body.replaceChildren(...shown.map((i) => this.row(i)));
    const pages = Math.max(1, Math.ceil(this.found.length / PAGE));
    this.say(`${this.found.length.toLocaleString("en")} of ${this.all.length.toLocaleString("en")} clips` +
      (this.found.length ? "" : "; none fits the filters"));
    const go = (text, named, page) => el("button", { type: "button", class: "plain", "aria-label": named,
      disabled: page < 0 || page >= pages || page === this.page, "data-go": named, onclick: () => {
        this.page = page;
        this.draw();
        const again = $(`[data-go="${named}"]`, this.pager);
        (again.disabled ? $("button:not(:disabled)", this.pager) : again)?.focus({ preventScroll: true });
      } }, text);
    this.pager.replaceChildren(
      go("«", "first page", 0), go("‹", "previous page", this.page - 1),
      el("span", {}, `page ${this.page + 1} of ${pages}`),
      go("›", "next page", this.page + 1), go("»", "last page", pages - 1));
    this.pager.hidden = pages === 1;
  }

  row(i) {
    const cells = [];
    if (D.audio) cells.push(el("td", {}, playButton(i)));
    cells.push(el("th", { scope: "row" }, D.ids[i]),
      el("td", { class: "words" }, D.titles[i], D.tags[i] ? el("small", {}, D.tags[i].split(/\s*,\s*/).join(", ")) : null),
      el("td", { class: "left" }, markerIcon(D.familyOf[D.labels[i]]), el("span", { title: full(D.labels[i]) }, label(D.labels[i]))));
    for (const run of D.runs) {
      const c = run.decided[i];
      cells.push(el("td", { class: c === D.labels[i] ? "left" : "left wrong", title: full(c) }, label(c)),
        el("td", {}, percent(run.p[i])));
    }
    for (const run of D.runs) {
      const top = el("div", { class: "top3" });
      for (let k = 0; k < run.nTop; k++) {
        const other = run.top[i * run.nTop + k];
        const mille = run.topP[i * run.nTop + k];
        top.append(el("span", { class: other === D.labels[i] ? "true" : null, title: full(other) }, label(other)),
          el("b", {}, el("i", { style: { "--v": mille / 1000, "--c": `var(--f${D.familyOf[other]})` } })),
          el("span", {}, percent(mille)));
      }
      cells.push(el("td", { class: "left" }, top));
    }
    cells.push(el("td", { class: "who" }, D.uploaders[D.uploader[i]]), el("td", {}, String(D.folds[i])));
    return el("tr", { "data-clip": i, tabindex: "-1", class: i === this.here ? "here" : null }, ...cells);
  }

  /** Shows a clip, whatever was filtered, and puts the focus on its row. */
  open(clip) {
    this.here = clip;
    if (!this.found.includes(clip)) { this.clear(); this.restart(); }
    const place = this.found.indexOf(clip);
    if (place < 0) return;
    this.page = Math.floor(place / PAGE);
    this.draw();
    const row = $(`tr[data-clip="${clip}"]`, this.body);
    row.scrollIntoView({ block: "center", behavior: calm() ? "auto" : "smooth" });
    row.focus({ preventScroll: true });
  }

  /** Shows the clips of one cell of the confusion matrix. */
  showPair(truth, predicted) {
    this.clear();
    this.truth.value = `c${truth}`;
    this.predicted[0].value = `c${predicted}`;
    this.restart();
    this.box.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
    this.search.focus({ preventScroll: true });
  }
}
for (const box of $$(".cliptable")) tables.push(new ClipTable(box));
for (const link of $$("[data-clip]", $("main")).filter((one) => one.tagName === "A"))
  link.addEventListener("click", (event) => { event.preventDefault(); tables[0].open(Number(link.dataset.clip)); });

/* Confusion matrices: one cell at a time is reached by Tab, the rest by the arrow keys. */
$$(".matrixbox").forEach((box, which) => {
  const place = box.dataset.order.split(" ").map(Number);
  const rows = $$("tbody tr", box).map((row) => $$("td", row));
  const isDifference = "difference" in box.dataset;
  const opens = which === 0 && !isDifference && tables.length;
  const counts = rows.map((row) => row.map((cell) => Number(cell.textContent)));
  const sums = counts.map((row) => row.reduce((a, b) => a + b, 0));
  const status = $(".status", box);
  $("table", box).classList.toggle("plain", !opens);
  const tell = (i, j) => {
    const k = counts[i][j];
    status.textContent = (i === j ? `${full(place[i])} predicted right: ` : `${full(place[i])} taken for ${full(place[j])}: `) +
      (isDifference ? `${k > 0 ? "+" : ""}${k} clips`
        : `${k} of ${sums[i]} clips` + (sums[i] ? ` (${(100 * k / sums[i]).toFixed(1)} %)` : ""));
  };
  let now = rows[0][0];
  rows.forEach((row, i) => row.forEach((cell, j) => {
    cell.tabIndex = -1;
    cell.addEventListener("mouseenter", () => tell(i, j));
    cell.addEventListener("focus", () => { now.tabIndex = -1; now = cell; cell.tabIndex = 0; tell(i, j); });
    if (opens) cell.addEventListener("click", () => tables[0].showPair(place[i], place[j]));
    cell.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) { event.preventDefault(); rows[i + step[0]]?.[j + step[1]]?.focus(); }
      else if (event.key === "Enter" && opens) tables[0].showPair(place[i], place[j]);
    });
  }));
  now.tabIndex = 0;
  for (const radio of $$("input[type=radio]", box))
    radio.addEventListener("change", () => rows.forEach((row, i) => row.forEach((cell, j) => {
      const k = counts[i][j];
      cell.textContent = !k ? "" : radio.value === "count" ? k : (100 * k / sums[i]).toFixed(100 * k < 9.5 * sums[i] ? 1 : 0);
    })));
});

/* The map. */
for (const box of $$(".mapbox")) {
  const run = D.runs[0];
  const off = new Set();
  let now = 0, marked = -1, wrongOnly = false, placed = [], scale = 1;
  const canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": "Map of the clips", "aria-describedby": "map-status" });
  const tip = el("div", { class: "tip", hidden: true });
  const status = el("p", { class: "status", role: "status", id: "map-status" }, "Point at a clip, or use the arrow keys.");
  const outlines = D.shapes.map((shape) => new Path2D(shape));
  const legend = el("div", { class: "legend", role: "group", "aria-label": "Families shown" });
  const sizes = D.families.map(() => 0);
  for (const c of D.labels) sizes[D.familyOf[c]]++;
  D.families.forEach(([f, named], k) => {
    if (!sizes[k]) return;
    legend.append(el("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
      const isOff = !off.has(k);
      if (isOff) off.add(k); else off.delete(k);
      event.currentTarget.setAttribute("aria-pressed", String(!isOff));
      draw();
    } }, markerIcon(k), `${named && named !== f ? named : f} ${sizes[k]}`));
  });
  const choose = el("div", { class: "controls" });
  if (D.maps.length > 1) {
    const set = el("fieldset", { class: "switch" }, el("legend", {}, "map by"));
    D.maps.forEach((map, k) => set.append(el("label", {}, el("input", { type: "radio", name: "map", checked: k === 0,
      onchange: () => { now = k; draw(); } }), ` ${map.method}`)));
    choose.append(set);
  }
  choose.append(el("label", { class: "check" }, el("input", { type: "checkbox", id: "map-errors",
    onchange: (event) => { wrongOnly = event.target.checked; draw(); } }), "wrong predictions only"));
  box.append(choose, legend, el("div", { class: "mapframe" }, canvas, tip), status);

  const isShown = (i) => D.maps[now].x[i] >= 0 && !off.has(D.familyOf[D.labels[i]]) && (!wrongOnly || run.decided[i] !== D.labels[i]);
  function draw() {
    const { x, y } = D.maps[now];
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    let right = 1, top = 1;
    for (let i = 0; i < n; i++) { if (x[i] > right) right = x[i]; if (y[i] > top) top = y[i]; }
    const margin = 16;
    scale = Math.min((width - 2 * margin) / right, (height - 2 * margin) / top);
    const left = (width - right * scale) / 2, down = (height + top * scale) / 2;
    const css = getComputedStyle(document.documentElement);
    const colours = D.families.map((_, k) => css.getPropertyValue(`--f${k}`).trim());
    const ink = css.getPropertyValue("--ink").trim();
    const size = n > 6000 ? 2.3 : n > 1500 ? 3 : 4.2;
    placed = [];
    for (let i = 0; i < n; i++) if (isShown(i)) placed.push([i, left + x[i] * scale, down - y[i] * scale]);
    pen.globalAlpha = n > 1500 ? 0.78 : 0.9;
    for (const [i, px, py] of placed) {
      const family = D.familyOf[D.labels[i]];
      pen.setTransform(dense * size, 0, 0, dense * size, dense * px, dense * py);
      pen.fillStyle = colours[family];
      pen.fill(outlines[family % outlines.length]);
    }
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.strokeStyle = ink;
    pen.lineWidth = n > 6000 ? 0.5 : 0.8;
    pen.globalAlpha = n > 6000 ? 0.4 : 0.6;
    if (!wrongOnly)
      for (const [i, px, py] of placed) if (run.decided[i] !== D.labels[i]) {
        pen.beginPath();
        pen.arc(px, py, size + 2.2, 0, 7);
        pen.stroke();
      }
    pen.globalAlpha = 1;
    const point = placed.find(([i]) => i === marked);
    if (point) {
      for (const [colour, wide] of [[css.getPropertyValue("--panel").trim(), 6], [ink, 2.4]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = wide;
        pen.beginPath();
        pen.arc(point[1], point[2], size + 6, 0, 7);
        pen.stroke();
      }
    }
    tell(point);
  }
  function tell(point) {
    tip.hidden = !point;
    if (!point) return;
    const [i, x, y] = point;
    const c = run.decided[i];
    const text = `${D.titles[i] || D.ids[i]}: ${full(D.labels[i])}` +
      (c === D.labels[i] ? ", predicted right" : `, predicted ${full(c)}`) + ` (${percent(run.p[i])} %)`;
    tip.textContent = text;
    status.textContent = text;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    tip.style.left = x < width / 2 ? `${x + 14}px` : "auto";
    tip.style.right = x < width / 2 ? "auto" : `${width - x + 14}px`;
    tip.style.top = y < height - 70 ? `${y + 10}px` : "auto";
    tip.style.bottom = y < height - 70 ? "auto" : `${height - y + 10}px`;
  }
  function nearest(x, y, reach) {
    let best = null, least = reach * reach;
    for (const point of placed) {
      const away = (point[1] - x) ** 2 + (point[2] - y) ** 2;
      if (away < least) { least = away; best = point; }
    }
    return best;
  }
  function mark(point) {
    const clip = point ? point[0] : -1;
    if (clip === marked) return;
    marked = clip;
    draw();
  }
  function at(event) {
    const frame = canvas.getBoundingClientRect();
    return nearest(event.clientX - frame.left, event.clientY - frame.top, 14);
  }
  function open(clip) {
    tables[0].open(clip);
    if (D.audio && D.audio[clip] && !(player.clip === clip && player.isOn)) play(clip);
  }
  let pending = 0;
  canvas.addEventListener("pointermove", (event) => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => {
      const point = at(event);
      canvas.style.cursor = point ? "pointer" : "default";
      mark(point);
    });
  });
  canvas.addEventListener("pointerleave", () => { cancelAnimationFrame(pending); if (document.activeElement !== canvas) mark(null); });
  canvas.addEventListener("click", (event) => { const point = at(event); if (point) { mark(point); open(point[0]); } });
  canvas.addEventListener("focus", () => { if (marked < 0 && canvas.matches(":focus-visible")) mark(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6)); });
  canvas.addEventListener("blur", () => mark(null));
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    const from = placed.find(([i]) => i === marked);
    if (event.key === "Enter" && from) { event.preventDefault(); open(from[0]); return; }
    if (event.key === "Escape") { mark(null); return; }
    if (!way) return;
    event.preventDefault();
    if (!from) { mark(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6)); return; }
    let best = null, least = Infinity;
    for (const point of placed) {
      const dx = point[1] - from[1], dy = point[2] - from[2];
      const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (along <= 0.01 || aside > along) continue;  // within 45 degrees of the arrow
      const cost = along + 2 * aside;
      if (cost < least) { least = cost; best = point; }
    }
    if (best) mark(best);
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

/* The contents say which section is in view. */
const links = new Map($$("nav a").map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const id of links.keys()) { const part = document.getElementById(id); if (part) seen.observe(part); }
})();
