// What the dashboard's table says of a run, and the part of a long table that is in the page.

const ROW_PX = 30; // also in dashboard.css
const OVERSCAN = 8;
const collator = new Intl.Collator("en", { numeric: true });

// Those that a person waits for come first.
const STATES = [
  "extracting", "publishing", "queued", "requested", "failed", "interrupted", "cancelled",
  "completed",
];

// A shape for each state: colour alone would not reach everybody.
const SHAPES = {
  extracting: { d: "M4 2.2 11.6 7 4 11.8Z", full: true },
  publishing: { d: "M7 1.8 11.4 6.6H8.7v5.2H5.3V6.6H2.6Z", full: true },
  queued: { d: "M7 2.4a4.6 4.6 0 1 0 0 9.2a4.6 4.6 0 1 0 0-9.2M7 4.6V7l1.7 1.2" },
  requested: { d: "M7 2.4a4.6 4.6 0 1 0 0 9.2a4.6 4.6 0 1 0 0-9.2", dash: "2 1.6" },
  failed: { d: "M3.2 3.2l7.6 7.6M10.8 3.2l-7.6 7.6", wide: true },
  interrupted: { d: "M3.4 2.6h2.4v8.8H3.4ZM8.2 2.6h2.4v8.8H8.2Z", full: true },
  cancelled: { d: "M3.2 3.2h7.6v7.6H3.2Z" },
  completed: { d: "M2.6 7.4l3 3.1 5.8-6.9", wide: true },
};

function shape(state) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const { d, full, dash, wide } = SHAPES[state] ?? SHAPES.requested;
  attrs(path, { d, "stroke-dasharray": dash, "stroke-width": wide ? 2.1 : 1.4 });
  attrs(path, { fill: full ? "currentColor" : "none", stroke: full ? "none" : "currentColor" });
  attrs(svg, { viewBox: "0 0 14 14", class: "xk-shape", "aria-hidden": "true" });
  svg.append(path);
  return svg;
}

// --- what a run says ---------------------------------------------------------------------

const active = (row) => ACTIVE.includes(row.state);
const progress = (row) =>
  row.state === "completed" ? 1 : row.n_tokens ? Math.min(1, row.n_tokens_done / row.n_tokens) : 0;

function left(row, now) {
  if (row.state !== "extracting" || !(row.tokens_per_s > 0)) return null;
  const since = row.beat_at == null ? 0 : Math.max(0, now - row.beat_at);
  return Math.max(0, (row.n_tokens - row.n_tokens_done) / row.tokens_per_s - since);
}

// What it is doing, or why it is not: the short form of what its card says.
function doing(row) {
  if (row.findings.length) return row.findings[0];
  if (row.state === "failed") return row.error ?? "failed";
  if (active(row)) return phase(row);
  if (row.state === "completed") {
    const parts = [];
    if (row.l0 != null) parts.push(`L0 ${digits(row.l0)}`);
    if (row.fvu != null) parts.push(`FVU ${digits(row.fvu)}`);
    return parts.join(" · ");
  }
  if (!row.checkpoint_tokens) return "no checkpoint";
  return `checkpoint at ${Math.floor((100 * row.checkpoint_tokens) / row.n_tokens)} %`;
}

function since(s) {
  if (s < 60) return `${Math.max(0, Math.floor(s))} s`;
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([n]) => s >= n);
  return `${Math.floor(s / size)} ${unit}`;
}

const about = (row) =>
  [row.model, row.hook_name, row.d_sae == null ? null : `${count(row.d_sae)} features`]
    .filter(Boolean).join(" · ");

function tries(row) {
  const g = row.generation > 1 ? ` g${row.generation}` : "";
  return g + (row.attempt > 1 ? ` a${row.attempt}` : "");
}

// value: what is sorted by; down: whether the largest comes first at first.
const COLUMNS = [
  { key: "state", title: "State", value: (row) => STATES.indexOf(row.state) },
  { key: "training", title: "Training", value: (row) => row.training_id },
  { key: "run", title: "Run", hint: "by the time of launch", value: (row) => row.created_at, down: true },
  { key: "about", title: "Model · SAE", value: about },
  { key: "progress", title: "Progress", value: progress, down: true },
  { key: "rate", title: "Tokens/s", value: (row) => row.tokens_per_s, down: true },
  { key: "left", title: "Left", value: left },
  { key: "updated", title: "Updated", value: (row) => row.updated_at, down: true },
  { key: "worker", title: "Worker", value: (row) => row.worker },
];

// Runs in the order of a column; those that say nothing there come last, the newest first.
function ordered(rows, { key, down }, now) {
  const { value } = COLUMNS.find((column) => column.key === key);
  const sign = down ? -1 : 1;
  const keyed = rows.map((row) => [value(row, now), row]);
  const newest = (a, b) => b.created_at - a.created_at || (a.run_id < b.run_id ? -1 : 1);
  keyed.sort(([x, a], [y, b]) => {
    if (x == null || y == null) return x == null && y == null ? newest(a, b) : x == null ? 1 : -1;
    const by = typeof x === "string" ? collator.compare(x, y) : x - y;
    return sign * by || newest(a, b);
  });
  return keyed.map(([, row]) => row);
}

// Groups in the order of their first run.
function grouped(rows, collapsed) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row.training_id)) groups.set(row.training_id, []);
    groups.get(row.training_id).push(row);
  }
  return [...groups].flatMap(([training, runs]) => {
    const head = { key: `group ${training}`, training, runs };
    return collapsed.has(training) ? [head] : [head, ...runs.map(item)];
  });
}

const item = (row) => ({ key: row.run_id, row });

function tally(rows) {
  const counts = new Map();
  for (const { state } of rows) counts.set(state, (counts.get(state) ?? 0) + 1);
  return STATES.filter((state) => counts.has(state)).map((state) => [state, counts.get(state)]);
}

// --- one row ----------------------------------------------------------------------------

const cell = (key, ...children) => attrs(el("div", `xk-cell xk-c-${key}`, ...children), { role: "gridcell" });

function newRow() {
  const p = {
    word: el("span", "xk-word"),
    name: el("bdi", "xk-name"),
    mark: attrs(el("span", "xk-warn", "⚠"), { "aria-hidden": "true" }),
    id: el("code", ""),
    tries: el("span", "xk-tries"),
    about: el("bdi", ""),
    fill: el("span", "xk-fill"),
    percent: el("span", "xk-percent"),
    doing: el("bdi", "xk-doing"),
    rate: cell("rate"),
    left: cell("left"),
    updated: cell("updated"),
    worker: el("bdi", ""),
    state: cell("state"),
  };
  p.state.append(shape("requested"), p.word);
  const bar = attrs(el("span", "xk-bar", p.fill), { "aria-hidden": "true" });
  const node = el(
    "div", "xk-row", cell("check", attrs(el("span", "xk-check"), { "aria-hidden": "true" })),
    p.state, cell("training", p.mark, p.name), cell("run", p.id, p.tries), cell("about", p.about),
    cell("progress", bar, p.percent, p.doing), p.rate, p.left, p.updated, cell("worker", p.worker),
  );
  attrs(node, { role: "row" });
  return { node, p };
}

// Unlike `say` it hides nothing: an empty cell keeps its column.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const PENDING = { cancel: "Cancelling…", resume: "Resuming…", launch: "Sending…" };

function fillRow({ node, p }, row, { now, pending }) {
  attrs(node, { "data-run": row.run_id, "data-state": row.state });
  if (p.state.xkState !== row.state) {
    p.state.xkState = row.state;
    p.state.firstElementChild.replaceWith(shape(row.state));
  }
  const stopping = row.cancel_requested ? PENDING.cancel : null;
  put(p.word, pending ? PENDING[pending.name] : stopping ?? capital(row.state));
  node.classList.toggle("xk-pending", Boolean(pending || stopping));
  put(p.name, row.training_id);
  attrs(p.name, { title: row.training_id });
  p.mark.hidden = !row.findings.length;
  put(p.id, row.run_id.slice(0, 8));
  attrs(p.id, { title: row.run_id });
  put(p.tries, tries(row));
  put(p.about, [row.model.split("/").pop(), row.hook_name].filter(Boolean).join(" · "));
  attrs(p.about, { title: about(row) });
  const share = progress(row);
  p.fill.style.width = `${(100 * share).toFixed(1)}%`;
  const waits = ["requested", "queued"].includes(row.state) && row.n_tokens_done === 0;
  put(p.percent, waits ? "—" : `${Math.floor(100 * share)} %`);
  put(p.doing, doing(row));
  attrs(p.doing, { title: [...row.findings, row.error].filter(Boolean).join("\n") || null });
  put(p.rate, row.tokens_per_s > 0 && (active(row) || row.state === "completed") ? short(row.tokens_per_s) : "");
  const rest = left(row, now);
  put(p.left, rest == null ? "" : rest > 1 ? clock(rest) : "soon");
  put(p.updated, since(now - row.updated_at));
  attrs(p.updated, { title: moment(row.updated_at, true) });
  put(p.worker, row.worker ?? "");
  attrs(p.worker, { title: row.worker });
}

function newGroup() {
  const p = { name: el("bdi", "xk-name"), said: el("span", "xk-said") };
  const twist = attrs(el("span", "xk-twist"), { "aria-hidden": "true" });
  const node = attrs(el("div", "xk-row xk-group", cell("group", twist, p.name, p.said)), { role: "row" });
  return { node, p };
}

function fillGroup({ node, p }, group, { isOpen }) {
  attrs(node, { "data-training": group.training, "aria-expanded": isOpen ? "true" : "false" });
  put(p.name, group.training);
  const n = group.runs.length;
  const states = tally(group.runs).map(([state, k]) => `${count(k)} ${state}`);
  put(p.said, `${count(n)} run${n === 1 ? "" : "s"}: ${states.join(", ")}`);
}

// --- the part that is in the page ---------------------------------------------------------

// Items of equal height in a body as high as all of them; only what is near the view exists.
function virtualRows(scroller, body, bind) {
  const shown = new Map();
  const free = { row: [], group: [] };
  let items = [];

  function draw() {
    const top = Math.max(0, scroller.scrollTop - body.offsetTop);
    const first = Math.max(0, Math.floor(top / ROW_PX) - OVERSCAN);
    const last = Math.min(items.length, Math.ceil((top + scroller.clientHeight) / ROW_PX) + OVERSCAN);
    const near = new Set(items.slice(first, last).map(({ key }) => key));
    for (const [key, made] of shown) {
      if (near.has(key)) continue;
      made.node.remove();
      free[made.kind].push(made);
      shown.delete(key);
    }
    for (let i = first; i < last; i += 1) {
      const one = items[i];
      const kind = one.row ? "row" : "group";
      let made = shown.get(one.key);
      if (!made) {
        made = free[kind].pop() ?? { kind, ...(one.row ? newRow() : newGroup()) };
        shown.set(one.key, made);
        body.append(made.node);
      }
      made.node.style.transform = `translateY(${i * ROW_PX}px)`;
      attrs(made.node, { "aria-rowindex": i + 2 });
      bind(made, one);
    }
  }

  return {
    draw,
    show(found) {
      items = found;
      body.style.height = `${items.length * ROW_PX}px`;
      draw();
    },
    reveal(i) {
      const top = i * ROW_PX;
      const high = scroller.clientHeight - body.offsetTop;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top + ROW_PX > scroller.scrollTop + high) scroller.scrollTop = top + ROW_PX - high;
    },
    page: () => Math.max(1, Math.floor((scroller.clientHeight - body.offsetTop) / ROW_PX) - 1),
  };
}
