"use strict";
(() => {
const POLL_MS = 1000, MOST_MS = 15000, TIMEOUT_MS = 5000, PAGE_SIZE = 25, STALE_S = 5;
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// Every text goes through textContent or an attribute of a fixed name: names of symbols come from outside.
const make = (tag, options = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") element.textContent = value; else if (name === "class") element.className = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const draw = (tag, attributes, ...children) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const number = value => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e9 || size < 1e-4)) return value.toExponential(3);
  const places = size >= 1000 ? 2 : size >= 1 ? 4 : 6;
  return value.toLocaleString("en-US", { maximumFractionDigits: places });
};
const count = value => value >= 1e7 ? (value / 1e6).toFixed(1) + " M" : value.toLocaleString("en-US");
const span = seconds => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.95) return Math.max(0, Math.round(seconds * 1000)) + " ms";
  if (seconds < 60) return Math.round(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor(seconds % 86400 / 3600) + " h";
};
// Times near 1970 are indices, not dates.
const timeOf = ns => {
  if (Math.abs(ns) < 3155328e11) return number(ns / 1e9) + " s";
  return new Date(ns / 1e6).toISOString().slice(0, 19).replace("T", " ");
};
const words = labels => labels.map(label => label.replaceAll("_", " ")).join(", ");
const keyOf = symbol => symbol.partition + "/" + symbol.symbol;
const linkTo = symbol => "#symbol=" + encodeURIComponent(keyOf(symbol));

const state = { status: null, receivedAt: 0, paused: false, failures: 0, timer: 0, sort: "symbol", down: false, page: 0, shown: [], announced: "", opened: null };
const rows = new Map();

// --- fetching

async function poll() {
  clearTimeout(state.timer);
  if (state.paused || document.hidden) return;
  if (state.isAsking) { state.askAgain = true; return; }
  state.isAsking = true;
  const asked = state.status ? state.shown.length ? state.shown.join(",") : "none" : "all";
  let delay = POLL_MS;
  try {
    const answer = await fetch("status.json?history=" + asked, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    const status = await answer.json();
    if (status.schema_version !== 1) throw new Error("another version of the daemon; reload the page");
    state.failures = 0;
    state.status = status;
    state.receivedAt = Date.now();
  } catch (error) {
    state.failures += 1;
    delay = Math.min(POLL_MS * 2 ** state.failures, MOST_MS);
    state.why = error.message;
  }
  state.isAsking = false;
  if (state.askAgain && !state.failures) delay = 0;
  state.askAgain = false;
  state.nextAt = Date.now() + delay;
  if (!state.paused) { render(); state.timer = setTimeout(poll, delay); }
}

function renderLink() {
  const age = (Date.now() - state.receivedAt) / 1000;
  let kind = "ok", text = "Live";
  if (state.paused) [kind, text] = ["warn", "Paused"];
  else if (state.failures) {
    const wait = Math.max(0, Math.ceil((state.nextAt - Date.now()) / 1000));
    [kind, text] = ["bad", (state.failures > 1 || !state.status ? "Disconnected" : "Stale") + ", next try in " + wait + " s"];
  } else if (age > STALE_S) [kind, text] = ["warn", "Stale for " + span(age)];
  $("link").className = "pill live " + kind;
  setText($("link-text"), text);
  document.body.classList.toggle("stale", kind === "bad" || (kind === "warn" && !state.paused));
  announce(text.split(",")[0].replace(/ for .*/, ""), "link");
}

// What a screen reader says: that the connection or the health has changed, nothing of the numbers.
const said = {};
function announce(text, topic) {
  if (said[topic] === text) return;
  const isFirst = said[topic] === undefined;
  said[topic] = text;
  if (!isFirst) setText($("announce"), text);
}

// --- drawing

function chart(history, options) {
  const { width, height, left = 0, right = 0, top = 3, bottom = 3, label, axes = false } = options;
  const n = history.ts.length;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: axes ? "big" : "spark", preserveAspectRatio: "none" });
  if (!n) return svg;
  // The forecast that was standing when a tick came is the one of the row before; the last one is for the next tick.
  const steps = n + 1;
  const standing = name => [null, ...history[name]];
  const values = [...history.value, null], prediction = standing("prediction");
  const l80 = standing("lower_80"), u80 = standing("upper_80"), l95 = standing("lower_95"), u95 = standing("upper_95");
  const finite = history.value.filter(value => value !== null);
  let low = Math.min(...finite), high = Math.max(...finite);
  // The first bands may be very wide: the axis follows the values and the middle of the bounds.
  const quantile = (array, share) => { const sorted = array.filter(value => value !== null).sort((a, b) => a - b); return sorted[Math.floor(share * (sorted.length - 1))]; };
  low = Math.min(low, quantile(l95, 0.15)); high = Math.max(high, quantile(u95, 0.85));
  if (!(high > low)) { const pad = Math.abs(low) * 1e-3 || 1; low -= pad; high += pad; }
  const pad = (high - low) * 0.05; low -= pad; high += pad;
  const x = index => left + (steps === 1 ? 0 : index / (steps - 1)) * (width - left - right);
  const y = value => Math.min(Math.max(top + (high - value) / (high - low) * (height - top - bottom), top), height - bottom);
  const at = (index, value) => x(index).toFixed(1) + " " + y(value).toFixed(1);
  const band = (lower, upper, kind) => {
    const points = [];
    for (let i = 1; i < steps; i++) if (upper[i] !== null) points.push(at(i, upper[i]));
    for (let i = steps - 1; i > 0; i--) if (lower[i] !== null) points.push(at(i, lower[i]));
    if (points.length > 2) svg.append(draw("path", { d: "M" + points.join("L") + "Z", class: kind }));
  };
  const line = (array, kind) => {
    let d = "", broken = true;
    array.forEach((value, i) => { if (value === null) { broken = true; return; } d += (broken ? "M" : "L") + at(i, value); broken = false; });
    if (d) svg.append(draw("path", { d, class: kind }));
  };
  if (axes) for (let k = 0; k <= 4; k++) {
    const value = low + (high - low) * k / 4;
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "axis" }));
  }
  band(l95, u95, "b95"); band(l80, u80, "b80");
  history.alarm.forEach((bits, i) => { if (bits) svg.append(draw("line", { x1: x(i), x2: x(i), y1: top, y2: height - bottom, class: "mark-alarm" })); });
  line(prediction, "forecast"); line(values, "value");
  if (axes) {
    history.value.forEach((value, i) => { if (value !== null) svg.append(draw("circle", { cx: x(i).toFixed(1), cy: y(value).toFixed(1), r: 2.2, class: "dot" })); });
    svg.append(draw("circle", { cx: x(n).toFixed(1), cy: y(prediction[n]).toFixed(1), r: 3.4, class: "dot-next" }));
    for (let k = 0; k <= 4; k++) {
      const value = low + (high - low) * k / 4;
      const text = draw("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" });
      text.textContent = number(+value.toPrecision(5));
      svg.append(text);
    }
    const marks = width < 500 ? [0, n - 1] : [0, Math.floor((n - 1) / 2), n - 1];
    marks.forEach((index, k) => {
      const text = draw("text", { x: x(index), y: height - 5, "text-anchor": k === 0 ? "start" : index === n - 1 ? "end" : "middle" });
      text.textContent = timeOf(history.ts[index]);
      svg.append(text);
    });
  }
  return svg;
}

const summaryOf = symbol => {
  const history = symbol.history, finite = history ? history.value.filter(value => value !== null) : [];
  const range = finite.length ? `, between ${number(Math.min(...finite))} and ${number(Math.max(...finite))}` : "";
  return `Last ${history ? history.ts.length : 0} ticks${range}; next expected ${number(symbol.prediction)}, 80 % from ${number(symbol.interval_80[0])} to ${number(symbol.interval_80[1])}`;
};

function weightsBar(symbol) {
  const label = state.status.kernels.map((name, k) => name.replaceAll("_", " ") + " " + Math.round(100 * symbol.weights[k]) + " %").join(", ");
  const svg = draw("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "weights", role: "img", "aria-label": "Weights: " + label });
  let x = 0;
  symbol.weights.forEach((weight, k) => { svg.append(draw("rect", { x: (100 * x).toFixed(2), y: 0, width: (100 * weight).toFixed(2), height: 10, class: "w" + k })); x += weight; });
  return svg;
}

const bar = (share, kind) => draw("svg", { viewBox: "0 0 100 9", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { x: 0, y: 0, height: 9, width: (100 * Math.min(Math.max(share, 0), 1)).toFixed(2), class: kind }));

const modeKind = symbol => symbol.mode === "Emergency" ? "bad" : symbol.mode === "Robust" ? "warn" : "ok";
function modePill(symbol, kind) {
  const quiet = ["reference_ready", "warming_up", "degraded", "emergency"];
  const why = [...symbol.flags.filter(flag => !quiet.includes(flag)), ...symbol.gate_reasons];
  const text = symbol.flags.includes("warming_up") && symbol.mode === "Standard" ? "Warming up" : symbol.mode;
  const pill = make("span", { class: "pill " + (text === "Warming up" ? "" : modeKind(symbol)), text });
  const parts = [pill];
  if (why.length) parts.push(make("span", { class: "small soft", text: " " + words(why) }));
  return make("span", { class: kind }, ...parts);
}

const alarmAge = event => state.status.generated_ns - event.ts;
const whenOf = event => {
  const age = alarmAge(event) / 1e9;
  return age >= 0 && age < 86400 * 30 ? span(age) + " ago" : timeOf(event.ts);
};

// --- the parts of the page

function figures(status) {
  const totals = status.totals, lag = status.partitions.map(each => each.lag_records).filter(each => each !== null);
  const all = [
    ["rate", "Ticks a second", count(Math.round(totals.ticks_per_s * 10) / 10), count(totals.predictions) + " in all", totals.ticks_by_second],
    ["symbols", "Symbols", count(Math.max(totals.symbols, totals.watched)), totals.watched < totals.symbols ? count(totals.watched) + " watched here" : "all watched here"],
    ["alarms", "Alarms", count(totals.alarms), topOf(totals.alarms_by_kind) || "none yet"],
    ["lag", "Lag", lag.length ? count(lag.reduce((a, b) => a + b, 0)) : "–", lag.length ? "records, all partitions" : "not known yet"],
    ["refused", "Refused by the gate", count(totals.rejected), topOf(totals.rejected_by_reason) || "none"],
    ["dead", "Dead letters", count(totals.dead_letters), topOf(totals.dead_letters_by_reason) || "none"],
  ];
  // A demonstration reads files, which have no lag.
  const boxes = all.filter(([id]) => id !== "lag" || status.service.kind !== "demo");
  const parent = $("figures");
  boxes.forEach(([id, name, value, note, series], index) => {
    let box = parent.children[index];
    if (!box) {
      box = make("div", { class: "figure" }, make("span", { class: "soft small", text: name }), make("b"), make("small", { class: "soft" }));
      parent.append(box);
    }
    setText(box.children[1], value);
    setText(box.children[2], note);
    if (series) {
      // One burst must not flatten all the rest.
      const busy = series.filter(Boolean).sort((a, b) => a - b), most = Math.max(Math.min(3 * (busy[busy.length >> 1] || 1), Math.max(...series)), 1);
      const d = "M0 18" + series.map((each, i) => `L${i} ${(18 - 17 * Math.min(each / most, 1)).toFixed(1)}`).join("") + `L${series.length - 1} 18Z`;
      const svg = draw("svg", { viewBox: `0 0 ${series.length - 1} 18`, preserveAspectRatio: "none", "aria-hidden": "true" }, draw("path", { d, class: "area" }));
      if (box.children[3]) box.children[3].replaceWith(svg); else box.append(svg);
    }
  });
}
const topOf = counts => Object.entries(counts).sort((a, b) => b[1] - a[1]).slice(0, 2).map(([name, value]) => name.replaceAll("_", " ") + " " + count(value)).join(", ");

const SORTS = {
  symbol: (a, b) => a.symbol < b.symbol ? -1 : a.symbol > b.symbol ? 1 : a.partition - b.partition,
  alarm: (a, b) => (b.last_alarm ? b.last_alarm.ts : -Infinity) - (a.last_alarm ? a.last_alarm.ts : -Infinity) || SORTS.symbol(a, b),
  mode: (a, b) => ["Standard", "Robust", "Emergency"].indexOf(b.mode) - ["Standard", "Robust", "Emergency"].indexOf(a.mode) || SORTS.symbol(a, b),
  error: (a, b) => Math.abs(b.forecast_error || 0) - Math.abs(a.forecast_error || 0) || SORTS.symbol(a, b),
  seq: (a, b) => b.seq - a.seq || SORTS.symbol(a, b),
};

function chosen(status) {
  const wanted = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const textOf = symbol => [symbol.symbol, symbol.mode, words(symbol.flags), words(symbol.gate_reasons), symbol.last_alarm ? "alarm " + words(symbol.last_alarm.kinds) : ""].join(" ").toLowerCase();
  const found = status.symbols.filter(symbol => { const text = textOf(symbol); return wanted.every(word => text.includes(word)); });
  const sign = state.down ? -1 : 1;
  return found.sort((a, b) => sign * SORTS[state.sort](a, b));
}

function symbolRow(symbol) {
  const key = keyOf(symbol);
  let row = rows.get(key);
  if (!row) {
    const link = make("a", { href: linkTo(symbol) });
    // A long name breaks where it has joints, if it must.
    symbol.symbol.split(/(?<=[_\-./: ])/).forEach((part, index) => link.append(...(index ? [make("wbr")] : []), part));
    row = { link, tr: make("tr", {}, make("th", { scope: "row" }, link, make("div", { class: "soft small" })),
      make("td", { class: "chart" }), make("td", { class: "number wide" }), make("td", { class: "number" }),
      make("td", { class: "wide" }), make("td", { class: "wide" }), make("td", { class: "wide small" }), make("td", { class: "number wide" })) };
    rows.set(key, row);
  }
  const [name, drawn, value, next, mode, weights, alarm, ticks] = row.tr.children;
  row.tr.classList.toggle("open", state.opened === key);
  const under = name.lastChild;
  const alarmText = symbol.last_alarm ? words(symbol.last_alarm.kinds) + ", " + whenOf(symbol.last_alarm) : "";
  under.replaceChildren(make("span", { class: "narrow" }, modePill(symbol, ""), ...(alarmText ? [make("span", { class: "alarm-text small", text: " " + alarmText })] : [])));
  if (symbol.history) drawn.replaceChildren(chart(symbol.history, { width: 200, height: 44, label: summaryOf(symbol) }));
  setText(value, number(symbol.value));
  next.replaceChildren(make("span", { text: number(symbol.prediction) }), make("div", { class: "soft small", text: number(symbol.interval_80[0]) + " to" }), make("div", { class: "soft small", text: number(symbol.interval_80[1]) }));
  mode.replaceChildren(modePill(symbol, ""));
  weights.replaceChildren(weightsBar(symbol));
  alarm.replaceChildren(...(symbol.last_alarm ? [make("span", { class: "alarm-text", text: words(symbol.last_alarm.kinds) }), make("div", { class: "soft", text: whenOf(symbol.last_alarm) })] : [make("span", { class: "soft", text: "none" })]));
  setText(ticks, count(symbol.seq));
  return row.tr;
}

function table(status) {
  const found = chosen(status), pages = Math.max(Math.ceil(found.length / PAGE_SIZE), 1);
  state.page = Math.min(state.page, pages - 1);
  const part = found.slice(state.page * PAGE_SIZE, (state.page + 1) * PAGE_SIZE);
  const opened = status.symbols.find(symbol => keyOf(symbol) === state.opened);
  state.shown = [...part.map(symbol => symbol.id), ...(opened ? [opened.id] : [])];
  const body = $("rows"), trs = part.map(symbolRow);
  // Rows that stay are not moved, so that the focus stays as well.
  trs.forEach((tr, index) => { if (body.children[index] !== tr) body.insertBefore(tr, body.children[index] || null); });
  while (body.children.length > trs.length) body.lastChild.remove();
  const alive = new Set(status.symbols.map(keyOf));
  for (const key of rows.keys()) if (!alive.has(key)) rows.delete(key);
  $("empty").hidden = part.length > 0;
  setText($("empty"), status.symbols.length ? "No watched symbol fits the filter." : "No tick has been answered yet.");
  $("pages").hidden = pages === 1;
  setText($("page-text"), `Page ${state.page + 1} of ${pages}, ${count(found.length)} symbols`);
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
  for (const button of document.querySelectorAll("th button")) {
    const th = button.parentElement;
    if (button.dataset.sort === state.sort) th.setAttribute("aria-sort", (state.sort === "symbol") === state.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  $("order").value = state.sort;
}

function sideLists(status) {
  const list = $("alarms");
  const signature = JSON.stringify(status.recent_alarms.slice(0, 20).map(each => [each.symbol, each.seq]));
  setText($("alarms-count"), status.totals.alarms ? count(status.totals.alarms) + " since the start" : "");
  if (list.dataset.signature !== signature) {
    list.dataset.signature = signature;
    const watched = new Set(status.symbols.map(keyOf));
    list.replaceChildren(...status.recent_alarms.slice(0, 20).map(event => make("li", {},
      watched.has(keyOf(event)) ? make("a", { href: linkTo(event), text: event.symbol }) : make("b", { text: event.symbol }),
      make("span", { class: "alarm-text small", text: words(event.kinds) }),
      make("span", { class: "soft small", text: `${timeOf(event.ts)}, ${number(event.statistic)} over ${number(event.threshold)}` }))));
    if (!status.recent_alarms.length) list.replaceChildren(make("li", { class: "soft", text: "No regime change has been declared." }));
    // A list that scrolls must be reachable by keyboard.
    if (list.scrollHeight > list.clientHeight) list.setAttribute("tabindex", "0"); else list.removeAttribute("tabindex");
  }
  const stateKind = each => each.state === "RUNNING" ? "ok" : ["FAILED", "LOST"].includes(each.state) ? "bad" : "warn";
  $("partitions").replaceChildren(...status.partitions.map(each => {
    const snapshot = each.snapshot_error ? make("span", { class: "alarm-text", text: "failed: " + each.snapshot_error })
      : make("span", { text: each.snapshot ? span((status.generated_ns - each.snapshot.time_ns) / 1e9) + " ago" : "–" });
    const left = each.replay_left ? ` ${count(each.replay_left)} left` : "";
    return make("tr", {}, make("th", { scope: "row", text: `${each.topic}/${each.partition}` }),
      make("td", {}, make("span", { class: "pill " + stateKind(each), text: each.state.toLowerCase() + left })),
      make("td", { class: "number" }, make("span", { text: each.lag_records === null ? "–" : count(each.lag_records) }), ...(each.lag_s ? [make("div", { class: "soft small", text: span(each.lag_s) })] : [])),
      make("td", { class: "number", text: count(each.queued) + (each.paused ? " paused" : "") }), make("td", { class: "number small" }, snapshot));
  }));
  if (!status.partitions.length) $("partitions").replaceChildren(make("tr", {}, make("td", { class: "soft", colspan: 5, text: "None is held." })));
}

const diffList = (changes, label) => changes.length ? make("ul", { class: "diff", tabindex: 0, "aria-label": label }, ...changes.map(change => make("li", {},
  make("span", { class: "code", text: change.path }), make("div", { class: "small" }, make("span", { class: "soft", text: String(change.old) + " → " }), make("b", { text: String(change.new) }), make("span", { class: "soft", text: "  " + change.parameter_class })))))
  : make("p", { class: "soft small", text: "None." });

function configuration(status) {
  const config = status.config;
  $("config").hidden = !config;
  if (!config) return;
  const signature = JSON.stringify(config);
  if ($("config").dataset.signature === signature) return;
  $("config").dataset.signature = signature;
  setText($("epoch"), config.epoch ? "epoch " + config.epoch : "");
  const facts = make("dl", { class: "stats" });
  const fact = (name, value) => facts.append(make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
  fact("Predictor hash", config.config_hash.slice(0, 12));
  fact("In force since", timeOf(config.adopted_ns));
  const body = [facts];
  if (config.last_reload) {
    fact("Last reload", config.last_reload.outcome + ", " + timeOf(config.last_reload.time_ns));
    if (config.last_reload.problems.length) body.push(make("ul", { class: "small alarm-text" }, ...config.last_reload.problems.map(text => make("li", { text }))));
  }
  body.push(make("h3", { text: "Since the last epoch" }), diffList(config.changes_to_last_epoch, "Changes since the last epoch"));
  body.push(make("h3", { text: "Other than the defaults" }), diffList(config.changes_to_defaults, "Changes to the defaults"));
  $("config-body").replaceChildren(...body);
}

function tuner(status) {
  const found = status.tuner;
  $("tuner").hidden = !found;
  if (!found) return;
  setText($("tuner-phase"), found.phase);
  $("tuner-phase").className = "pill " + (["applied", "probation"].includes(found.phase) ? "warn" : found.phase === "campaign" ? "ok" : "");
  const facts = make("dl", { class: "stats" });
  const fact = (name, value) => facts.append(make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
  fact("Mode", found.mode);
  if (found.phase !== "off") {
    fact("Campaigns", count(found.campaigns));
    fact("Leads the group", found.leads ? "yes" : "no");
    if (found.since_ns) fact("In this phase for", span((status.generated_ns - found.since_ns) / 1e9));
  }
  if (found.trigger) fact("Trigger", found.trigger);
  if (found.best_ratio !== null) fact("Best ratio", number(found.best_ratio));
  if (found.verdict) fact("Verdict", found.verdict);
  const body = [facts];
  if (found.trials_total) body.push(make("p", { class: "small soft", text: `Trial ${found.trials} of ${found.trials_total}` }), make("progress", { max: found.trials_total, value: found.trials, "aria-label": "Trials of the campaign" }));
  for (const [path, value] of Object.entries(found.change)) body.push(make("p", { class: "code", text: `${path} = ${value}` }));
  $("tuner-body").replaceChildren(...body);
}

function detail(status) {
  const key = state.opened, section = $("detail");
  if (key === null) { section.hidden = true; return; }
  const symbol = status.symbols.find(each => keyOf(each) === key);
  const isNew = section.hidden || section.dataset.key !== key;
  section.hidden = false;
  section.dataset.key = key;
  setText($("detail-name"), key.slice(key.indexOf("/") + 1));
  if (!symbol) {
    setText($("detail-note"), "This symbol is not watched: it is less busy than those that are, or nothing of it has come yet.");
    $("detail-body").replaceChildren();
  } else {
    setText($("detail-note"), `Partition ${symbol.partition}, last tick ${timeOf(symbol.ts)}`);
    const width = Math.max(Math.min($("detail-body").clientWidth - (innerWidth > 1180 ? 356 : 0), 1200), 280);
    const height = innerWidth > 760 ? 260 : 210;
    const parts = [];
    if (symbol.history) parts.push(chart(symbol.history, { width, height, left: 66, right: 12, top: 8, bottom: 24, axes: true, label: summaryOf(symbol) }));
    const facts = make("dl", { class: "stats" });
    const fact = (name, ...content) => facts.append(make("div", {}, make("dt", { text: name }), make("dd", {}, ...content)));
    fact("Value", number(symbol.value) + (symbol.accepted ? "" : " (refused)"));
    fact("Next", number(symbol.prediction));
    fact("80 %", number(symbol.interval_80[0]) + " to " + number(symbol.interval_80[1]));
    fact("95 %", number(symbol.interval_95[0]) + " to " + number(symbol.interval_95[1]));
    fact("Scale", number(symbol.scale));
    fact("Last error, in scales", number(symbol.forecast_error));
    fact("Mode", modePill(symbol, ""));
    fact("Sequence", count(symbol.seq));
    fact("Grace", symbol.grace_counter ? symbol.grace_counter + " ticks left" : "over");
    fact("ε", number(symbol.epsilon));
    fact("Kurtosis", number(symbol.kurtosis));
    fact("Hölder exponent", number(symbol.holder_exponent));
    fact("Season", symbol.season_length ? symbol.season_length + " ticks" : "none found");
    const side = make("div");
    side.append(make("h3", { text: "Weights" }));
    const weights = make("div", { class: "weight-rows" });
    status.kernels.forEach((name, k) => weights.append(make("span", { text: name.replaceAll("_", " ") }), bar(symbol.weights[k], "w" + k), make("span", { class: "number", text: (100 * symbol.weights[k]).toFixed(1) + " %" })));
    side.append(weights, make("h3", { text: "Detector, threshold " + number(symbol.h_t) }));
    const sums = make("div", { class: "weight-rows" });
    for (const [name, value] of [["up", symbol.cusum_up], ["down", symbol.cusum_down]]) sums.append(make("span", { text: "CUSUM " + name }), bar(value / symbol.h_t, "w3"), make("span", { class: "number", text: number(value) }));
    side.append(sums, make("h3", { text: "Last alarm" }));
    const event = symbol.last_alarm;
    side.append(event ? make("p", {}, make("span", { class: "alarm-text", text: words(event.kinds) }), make("span", { text: `, ${timeOf(event.ts)}` }),
      make("br"), make("span", { class: "soft", text: `statistic ${number(event.statistic)} over ${number(event.threshold)}; began about ${event.start_ts === null ? "at tick " + count(event.start_seq) : timeOf(event.start_ts)}; ${count(symbol.alarms)} since it is watched` })) : make("p", { class: "soft", text: "None since it is watched." }));
    const was = $("detail-body").querySelector("details");
    const last = make("details", was && was.open ? { open: "" } : {}, make("summary", { text: "The last ticks as a table" }));
    if (symbol.history) {
      const h = symbol.history, body = make("tbody");
      for (let i = h.ts.length - 1; i >= Math.max(h.ts.length - 12, 1); i--) body.append(make("tr", {}, make("th", { scope: "row", class: "small", text: timeOf(h.ts[i]) }), make("td", { class: "number", text: number(h.value[i]) }), make("td", { class: "number", text: number(h.prediction[i - 1]) }), make("td", { class: "number wide", text: number(h.lower_95[i - 1]) + " to " + number(h.upper_95[i - 1]) })));
      last.append(make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "Tick" }), make("th", { scope: "col", class: "number", text: "Value" }), make("th", { scope: "col", class: "number", text: "Forecast" }), make("th", { scope: "col", class: "number wide", text: "95 %" }))), body));
    }
    const old = document.activeElement && document.activeElement.tagName === "SUMMARY";
    $("detail-body").replaceChildren(make("div", { class: "detail-grid" }, make("div", {}, ...parts, facts, last), side));
    if (old) $("detail-body").querySelector("summary").focus({ preventScroll: true });
  }
  if (isNew) { $("detail-name").focus({ preventScroll: true }); section.scrollIntoView({ block: "start" }); }
}

function render() {
  const status = state.status;
  renderLink();
  const notices = [];
  if (state.failures && (!status || state.failures > 1)) notices.push(make("div", { class: "notice bad" }, make("b", { text: "The daemon does not answer." }), make("span", { text: status ? ` What is shown is ${span((Date.now() - state.receivedAt) / 1000)} old. It is asked again by itself.` : " It is asked again by itself." })));
  if (status && !status.health.ready) notices.push(make("div", { class: "notice" + (status.health.live ? "" : " bad") }, make("b", { text: status.health.live ? "Not ready" : "Not alive" }), make("ul", {}, ...status.health.reasons.map(text => make("li", { text })))));
  const signature = notices.map(each => each.textContent).join("|");
  if ($("notices").dataset.signature !== signature) { $("notices").dataset.signature = signature; $("notices").replaceChildren(...notices); }
  if (!status) return;
  const service = status.service;
  setText($("instance"), service.instance);
  document.title = `${status.health.ready ? "" : "! "}${service.instance} – usp-daemon`;
  const health = status.health.ready ? "Ready" : status.health.live ? "Not ready" : "Not alive";
  setText($("health"), health);
  $("health").className = "pill " + (status.health.ready ? "ok" : status.health.live ? "warn" : "bad");
  announce(health, "health");
  setText($("about"), [service.kind === "demo" ? "Demonstration" : service.group && "group " + service.group, "version " + service.version, service.device, "up " + span(service.uptime_s)].filter(Boolean).join(" · "));
  setText($("versions"), Object.entries(service.versions).map(each => each.join(" ")).join(" · "));
  if (!$("kernels").childElementCount) status.kernels.forEach((name, k) => $("kernels").append(make("span", {}, make("i", { class: "w" + k }), make("span", { text: name.replaceAll("_", " ") }))));
  figures(status); table(status); sideLists(status); configuration(status); tuner(status); detail(status);
}

// --- what the visitor does

function follow() {
  const found = /^#symbol=(.*)$/.exec(location.hash);
  let key = null;
  try { if (found) key = decodeURIComponent(found[1]); } catch { key = null; }
  const former = state.opened;
  state.opened = key;
  if (state.status) render();
  if (key === null && former !== null) {
    const row = rows.get(former);
    if (row && row.tr.isConnected) row.link.focus({ preventScroll: true }); else $("symbols").focus({ preventScroll: true });
  }
  if (key !== null && !state.paused) poll();
}
const close = () => { history.pushState(null, "", location.pathname + location.search); follow(); };
const sortBy = (name, isButton) => {
  state.down = isButton && state.sort === name ? !state.down : false;
  state.sort = name; state.page = 0;
  if (state.status) { render(); refresh(); }
};
const refresh = () => { if (!state.paused && !state.failures) poll(); };
addEventListener("hashchange", follow);
addEventListener("popstate", follow);
addEventListener("keydown", event => {
  if (event.key === "Escape" && state.opened !== null && document.activeElement !== $("filter")) close();
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); $("filter").focus(); }
});
$("close").addEventListener("click", event => { event.preventDefault(); close(); });
$("filter").addEventListener("input", () => { state.page = 0; if (state.status) { render(); refresh(); } });
$("order").addEventListener("change", event => sortBy(event.target.value, false));
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortBy(button.dataset.sort, true));
$("previous").addEventListener("click", () => { state.page -= 1; render(); refresh(); });
$("next").addEventListener("click", () => { state.page += 1; render(); refresh(); });
$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  $("pause").setAttribute("aria-pressed", String(state.paused));
  if (state.paused) { clearTimeout(state.timer); renderLink(); } else poll();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); else clearTimeout(state.timer); });
setInterval(renderLink, 1000);
follow();
poll();
})();
