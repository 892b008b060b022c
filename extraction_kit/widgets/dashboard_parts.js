// What the dashboard keeps of the runs, what it says of them, and what it is made of.

// --- what the kernel said ------------------------------------------------------------------

// The runs by id, kept by numbered messages; `onGap` asks for everything again.
function makeStore(onGap) {
  const store = { rows: new Map(), home: "", health: null, note: null, now: 0, at: 0, beat_s: 4, seq: -1 };
  let waiting = false;

  store.take = (message) => {
    const news = { order: false, findings: false, ended: [], moved: new Set() };
    if (message.kind === "full") {
      waiting = false;
      store.beat_s = message.beat_s;
      store.home = message.home;
      const before = store.rows;
      store.rows = new Map(message.rows.map((values) => {
        const row = Object.fromEntries(message.fields.map((name, i) => [name, values[i]]));
        const known = before.get(row.run_id);
        news.order ||= known?.state !== row.state;
        news.findings ||= known?.findings.join() !== row.findings.join();
        return [row.run_id, known ? Object.assign(known, row, { words: undefined }) : row];
      }));
      news.order ||= store.seq < 0 || store.rows.size !== before.size;
    } else {
      if (message.seq <= store.seq) return null; // overtaken by everything
      if (message.seq !== store.seq + 1) {
        if (!waiting) onGap();
        waiting = true;
        return null;
      }
      for (const [id, changes] of Object.entries(message.rows)) {
        const row = store.rows.get(id);
        if (row && changes.state && changes.state !== row.state) news.ended.push({ ...row, ...changes });
        if (!row || changes.state) news.order = true;
        if (changes.findings) news.findings = true;
        if (!row || changes.state) news.moved.add(row?.training_id ?? changes.training_id);
        if (row) Object.assign(row, changes);
        else store.rows.set(id, changes);
        delete store.rows.get(id).words;
      }
      for (const id of message.gone) {
        news.moved.add(store.rows.get(id)?.training_id);
        news.order = store.rows.delete(id) || news.order;
      }
    }
    store.seq = message.seq;
    store.health = message.health ?? store.health;
    store.note = message.note;
    store.now = message.now;
    store.at = Date.now();
    return news;
  };
  store.clock = () => store.now + (Date.now() - store.at) / 1000;
  return store;
}

function words(row) {
  row.words ??= [row.training_id, row.run_id, row.model, row.hook_name, row.worker, row.state,
    row.error, row.created_by, ...row.findings].filter(Boolean).join("\n").toLowerCase();
  return row.words;
}

// --- what is said above and below the table -----------------------------------------------

function bytes(n) {
  const [unit, size] = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20]].find(([, s]) => n >= s)
    ?? ["KiB", 1024];
  return `${(n / size).toFixed(n / size < 10 ? 1 : 0)} ${unit}`;
}

// Each is {text, tone, title}; a tone that is not good has a word and a shape for it.
function healthFacts(health, rows) {
  if (!health || health.server === "unknown") return [{ text: "looking at server and workers…", tone: "idle" }];
  const works = rows.some(active);
  const facts = [{
    answers: { text: "server answers", tone: "good" },
    away: { text: "server does not answer", tone: "bad" },
    stopped: { text: "server not running: a launch starts it", tone: works ? "bad" : "idle" },
  }[health.server]];
  const counts = ["busy", "idle", "suspended", "gone"]
    .map((state) => [state, health.workers.filter((one) => one.state === state).length])
    .filter(([, n]) => n);
  const alive = health.workers.some(({ state }) => state !== "gone");
  const said = counts.map(([state, n]) => `${count(n)} ${state}`).join(", ");
  const title = health.workers.map((one) => `${one.where} ${one.state}`).join("\n") || null;
  if (health.server === "answers" || alive)
    facts.push({
      text: said ? `workers: ${said}` : "no worker is alive",
      tone: health.workers.some(({ state }) => state === "gone") || (!alive && works) ? "bad" : alive ? "good" : "idle",
      title,
    });
  const results = rows.reduce((sum, row) => sum + (row.results_bytes ?? 0), 0);
  facts.push({
    text: `${bytes(health.free_bytes)} free, results ${bytes(results)}`,
    tone: health.warning ? "bad" : "good", title: health.warning || null,
  });
  return facts;
}

function fact({ text, tone, title }) {
  const mark = attrs(el("span", "xk-dot", tone === "bad" ? "⚠" : ""), { "aria-hidden": "true" });
  return attrs(el("span", "xk-fact", mark, text), { "data-tone": tone, title });
}

// The card speaks of `run`: the first line makes it.
function codeFor(row) {
  const run = `run = ws.run("${row.run_id}")`;
  if (row.state === "completed") return [run, "run.browse()"];
  return active(row) ? [run, "await run"] : [run, "run.resume()", "print(run.explain())"];
}

// --- what can be done with the runs that are selected --------------------------------------------

const ACTS = ["features", "compare", "cancel", "resume", "clear"];
const WORDS = { features: "Open features", compare: "Compare" };
const NEEDS = { features: [1, 2], compare: [2] }; // so many runs, of which all have features

function noneToAct(rows, name) {
  const states = tally(rows).map(([state, n]) => `${n} ${state}`).join(", ");
  const can = {
    cancel: "a run that waits or extracts can be cancelled",
    resume: "a run that failed, was cancelled or interrupted can be resumed",
    features: "the features of one completed run are opened, or those of two side by side",
    compare: "two completed runs can be compared",
  }[name];
  const nothing = { features: "No features to open", compare: "Nothing to compare" };
  return `${nothing[name] ?? `Nothing to ${name}`}: ${states} selected, ${can}.`;
}

// --- the card of the run that is open --------------------------------------------------------

// What a run card takes for its model: messages go through the dashboard's, with the run's id.
function cardModel(model, runId) {
  const heard = new Map();
  let state = null;
  return {
    get: (name) => (name === "state" ? state : undefined),
    send: (content) => model.send({ ...content, run_id: runId }),
    on: (name, call) => heard.set(name, [...(heard.get(name) ?? []), call]),
    off: (name, call) => heard.set(name, (heard.get(name) ?? []).filter((one) => one !== call)),
    tell(name, content) {
      if (name === "change:state") state = content;
      for (const call of heard.get(name) ?? []) call(content);
    },
  };
}

// --- what it is made of -----------------------------------------------------------------------

function dashboardParts() {
  const id = randomId();
  const p = {
    title: attrs(el("strong", "xk-d-title", "Runs"), { id: `xk-${id}` }),
    home: el("bdi", "xk-home"),
    facts: el("div", "xk-facts"),
    warning: el("div", "xk-d-note"),
    stale: el("div", "xk-d-note xk-d-stale"),
    find: attrs(el("input", "xk-input"), { ...KEEP, type: "search", placeholder: "Search runs  /", "aria-label": "search runs", spellcheck: "false", autocomplete: "off" }),
    chips: attrs(el("div", "xk-chips"), { role: "group", "aria-label": "states shown" }),
    group: attrs(el("button", "xk-chip", "Group by training"), { ...KEEP, type: "button", "aria-pressed": "false" }),
    launch: attrs(el("button", "xk-d-act xk-new", "New run…"), { ...KEEP, type: "button", "aria-expanded": "false", "aria-controls": `xk-form-${id}` }),
    form: attrs(el("div", "xk-form"), { role: "form", "aria-label": "launch a run", id: `xk-form-${id}` }),
    shown: el("span", "xk-shown"),
    columns: attrs(el("div", "xk-columns"), { role: "row", "aria-rowindex": 1 }),
    body: attrs(el("div", "xk-body"), { role: "rowgroup" }),
    empty: el("div", "xk-empty"),
    selected: el("span", "xk-selected"),
    acts: el("span", "xk-d-acts"),
    hint: el("span", "xk-hint", "Enter opens a run, Space selects, arrows move, / searches"),
    code: el("div", "xk-d-code"),
    notes: attrs(el("ul", "xk-notes"), { "aria-label": "answers" }),
    detail: attrs(el("div", "xk-detail"), { role: "region", "aria-label": "the open run" }),
    live: attrs(el("div", "xk-live"), { role: "status" }),
  };
  p.head = attrs(el("div", "", p.columns), { role: "rowgroup", class: "xk-sticky" });
  p.grid = attrs(el("div", "xk-grid", p.head, p.body, p.empty), {
    ...KEEP, role: "grid", tabindex: 0, "aria-label": "runs", "aria-multiselectable": "true",
    "aria-colcount": COLUMNS.length + 1,
  });
  const foot = el("div", "xk-foot", p.selected, p.acts, p.hint);
  p.root = el(
    "section", "xk-root xk-dash", el("header", "xk-d-head", p.title, p.home, p.facts), p.warning, p.stale,
    el("div", "xk-tools", p.launch, p.find, p.group, p.shown, p.chips), p.form, p.grid, foot, p.code, p.notes, p.detail, p.live,
  );
  attrs(p.root, { role: "region", "aria-labelledby": p.title.id });
  return { ...p, id };
}
