"use strict";
// Asks the server every second, and draws what has changed since it asked before. What was before the page was opened
// is not known here: that is what Prometheus is for.

const SECOND = 1000;
const KEPT = 300; // points of a curve
const FEWEST = 60; // that it has room for
const STATES = { o: "held", s: "shared", r: "releasing", e: "evictable", f: "free", q: "quarantined" };
const NAMES = {
  held: "owned by a session", shared: "committed, held", releasing: "in use by a copy", evictable: "evictable",
  free: "free", quarantined: "quarantined",
};
const USAGE = [["held", "held"], ["releasing", "releasing"], ["evictable", "evictable"], ["free", "free"]];

const history = [];
let last = null;

const byId = (id) => document.getElementById(id);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function seconds(value) {
  if (value === null) return "—";
  if (value >= 1) return `${number(value, 2)} s`;
  return value >= 0.001 ? `${number(value * 1e3, 1)} ms` : `${number(value * 1e6)} µs`;
}

function bytes(value) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024 || unit === "GiB") return `${number(value, unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
}

function colour(name) {
  const probe = document.createElement("i");
  probe.className = name;
  probe.style.color = name.startsWith("--") ? `var(${name})` : "var(--colour)";
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// A canvas in device pixels, cleared.
function board(id) {
  const canvas = byId(id), scale = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, canvas.clientWidth, canvas.clientHeight];
}

function grid(cells, width, height) {
  let columns = Math.max(1, Math.ceil(Math.sqrt((cells * width) / height)));
  const rows = Math.ceil(cells / columns);
  return { columns, rows, w: width / columns, h: height / rows };
}

function drawMap(map) {
  const [pen, width, height] = board("map");
  const { columns, w, h } = grid(map.cells.length, width, height);
  const colours = Object.fromEntries(Object.entries(STATES).map(([letter, name]) => [letter, colour(name)]));
  const gap = Math.min(w, h) > 4 ? 1 : 0;
  [...map.cells].forEach((letter, index) => {
    pen.fillStyle = colours[letter];
    pen.fillRect((index % columns) * w, Math.floor(index / columns) * h, Math.max(1, w - gap), Math.max(1, h - gap));
  });
}

function drawLegend(map) {
  const counts = {};
  for (const letter of map.cells) counts[letter] = (counts[letter] || 0) + 1;
  const what = map.blocks_per_cell > 1 ? ` cells of ${map.blocks_per_cell}` : "";
  byId("legend").replaceChildren(...Object.entries(STATES).map(([letter, name]) => {
    const item = document.createElement("li");
    item.className = name;
    item.textContent = `${NAMES[name]} ${number(counts[letter] || 0)}${what}`;
    return item;
  }));
}

const places = () => Math.max(FEWEST, history.length);

// Curves from the right edge to the left, one per key; `most` is the upper end of the scale, which is written on it.
function drawLines(id, lines, format, most) {
  const [pen, width, height] = board(id);
  const top = most ?? Math.max(1e-9, ...lines.flatMap(([key]) => history.map((point) => point[key] ?? 0))) * 1.1;
  pen.strokeStyle = colour("--line");
  pen.strokeRect(0.5, 0.5, width - 1, height - 1);
  pen.fillStyle = colour("--quiet");
  pen.font = "11px system-ui, sans-serif";
  pen.fillText(format(top), 6, 14);
  for (const [key, name] of lines) {
    pen.strokeStyle = colour(name);
    pen.lineWidth = 2;
    pen.beginPath();
    let isDown = false;
    history.forEach((point, index) => {
      if (point[key] == null) { isDown = false; return; }
      const x = width - ((history.length - 1 - index) / places()) * width, y = height - (point[key] / top) * (height - 4) - 2;
      isDown ? pen.lineTo(x, y) : pen.moveTo(x, y);
      isDown = true;
    });
    pen.stroke();
  }
}

function drawUsage() {
  const [pen, width, height] = board("usage");
  const w = width / places();
  const colours = USAGE.map(([, name]) => colour(name));
  history.forEach((point, index) => {
    let y = height;
    USAGE.forEach(([key], place) => {
      const h = (point.usage[key] / point.capacity) * height;
      y -= h;
      pen.fillStyle = colours[place];
      pen.fillRect(width - (history.length - index) * w, y, Math.ceil(w), h);
    });
  });
}

function quantile(share, bounds, counts) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!all) return null;
  let below = 0;
  for (let place = 0; place < bounds.length; place++) {
    const lower = place ? bounds[place - 1] : 0;
    if (counts[place] && below + counts[place] >= share * all) {
      return lower + (bounds[place] - lower) * ((share * all - below) / counts[place]);
    }
    below += counts[place];
  }
  return bounds.at(-1);
}

// What has happened since the look before; null after a restart, whose counters begin anew.
function compare(before, now) {
  if (!before || before.incarnation !== now.incarnation || now.time <= before.time) return null;
  const elapsed = now.time - before.time, rates = {};
  for (const key in now.totals) rates[key] = (now.totals[key] - before.totals[key]) / elapsed;
  const counts = now.steps.counts.map((count, place) => count - before.steps.counts[place]);
  const [p50, p99] = [0.5, 0.99].map((share) => quantile(share, now.steps.bounds, counts));
  const hits = rates["prompt tokens"] ? rates["hit tokens"] / rates["prompt tokens"] : null;
  return { rates, p50, p99, hits, steps: rates.steps, usage: now.usage, capacity: now.capacity };
}

function rows(id, lines) {
  byId(id).replaceChildren(...lines.map((cells, index) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => {
      const cell = document.createElement(lines.head && !index ? "th" : "td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

function drawState(now) {
  const troubles = Object.entries(now.dead_parts).map(([name, why]) => `${name} died: ${why}`);
  if (now.is_draining) troubles.push("draining");
  if (now.condemned) troubles.push(`${now.condemned} blocks have changed`);
  if (now.fences) troubles.push(`${now.fences} fences wait for a worker`);
  const state = byId("state");
  state.textContent = troubles.join(" · ") || "serving";
  state.className = troubles.length ? "bad" : "";
  byId("model").textContent = `${now.model_type}, ${number(now.capacity)} blocks of ${bytes(now.block_bytes)}`;
  byId("server").textContent = `statepool ${now.version}, ${now.incarnation}, up ${number(now.uptime_seconds)} s`;
}

function drawTables(now, seen) {
  if (seen) {
    rows("totals", Object.entries(seen.rates).map(([key, rate]) => [key, key.endsWith("bytes") ? bytes(rate) : number(rate, 1)]));
  }
  const { sessions, sequences, committed, busy, quarantined } = now.usage;
  const counts = { sessions, sequences, "findable blocks": committed, "busy blocks": busy, "quarantined blocks": quarantined };
  const attached = { "attached processes": now.attachments, ...now.queues };
  rows("now", [
    ...Object.entries({ ...counts, ...attached }).map(([key, count]) => [key, number(count)]),
    ["loop lag", seconds(now.loop_lag_seconds)],
  ]);
  const listed = now.sessions.map((each) => [
    each.session_id, each.epoch, number(each.blocks), seconds(Math.max(0, each.seconds_left)),
  ]);
  const lines = [["session", "epoch", "blocks", "lease ends in"], ...listed];
  lines.head = true;
  rows("sessions", lines);
}

function drawCurves() {
  const seen = history.at(-1);
  if (!seen) return;
  byId("step-rate").textContent = `${number(seen.steps, 1)} / s`;
  byId("latency").textContent = `${seconds(seen.p50)} p50 · ${seconds(seen.p99)} p99`;
  byId("hit-rate").textContent = seen.hits === null ? "—" : `${number(seen.hits * 100, 1)} %`;
  drawUsage();
  drawLines("hits", [["hits", "evictable"]], (share) => `${number(share * 100)} %`, 1);
  drawLines("rates", [["steps", "held"]], (rate) => `${number(rate, 1)} / s`);
  drawLines("latencies", [["p50", "evictable"], ["p99", "releasing"]], seconds);
}

function show(now) {
  const seen = compare(last, now);
  last = now;
  if (seen) history.push(seen);
  if (history.length > KEPT) history.shift();
  document.body.dataset.looks = history.length;
  drawState(now);
  drawLegend(now.map);
  drawMap(now.map);
  drawTables(now, seen);
  drawCurves();
}

async function look() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    byId("state").textContent = `no answer: ${error.message}`;
    byId("state").className = "bad";
  }
  setTimeout(look, SECOND);
}

byId("map").addEventListener("mousemove", (event) => {
  if (!last) return;
  const box = byId("map").getBoundingClientRect(), { cells, blocks_per_cell } = last.map;
  const { columns, w, h } = grid(cells.length, box.width, box.height);
  const index = Math.floor((event.clientY - box.top) / h) * columns + Math.floor((event.clientX - box.left) / w);
  const first = 1 + index * blocks_per_cell, end = Math.min(first + blocks_per_cell - 1, last.capacity);
  const which = end > first ? `blocks ${first} to ${end}` : `block ${first}`;
  byId("cell").textContent = cells[index] ? `${which}: ${NAMES[STATES[cells[index]]]}` : "";
});

look();
