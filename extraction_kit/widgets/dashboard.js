// The page side of the dashboard: what a person does, and what the kernel says. dashboard_view.py
// puts the files that it is made of in front of it, and board.py lists the messages.

const MAX_NOTES = 4;
const SPEAK_MS = 3000; // news are gathered: two hundred runs may not speak each for itself
const RESORT_MS = 5000;

function render({ model, el: host, signal, host: widgets }) {
  const ui = dashboardParts();
  host.append(ui.root);
  const begin = exchange(model, ui.id);
  const store = makeStore(() => hello(-1));
  const look = { sort: { key: "run", down: true }, states: new Set(), attention: false, words: [], grouped: false, collapsed: new Set() };
  const selected = new Set();
  const pending = new Map(); // run id -> {id, name, at}
  let answers = []; // [{key, text, ok}]
  let items = [];
  let at = -1; // index of the active item
  let activeKey = null;
  let anchor = null;
  let wanted = null; // a run that was launched here, until it is in the table
  let frame = 0;
  let orderIsOld = false;
  let sortedAt = 0;
  let news = [];
  let spokenAt = 0;
  let greeting = 0;

  const ofAct = new Map(); // act id -> {runId, name}
  const rowId = (key) => `xk-${ui.id}-${Array.from(key, (c) => c.codePointAt(0).toString(36)).join("-")}`;
  const list = virtualRows(ui.grid, ui.body, bind);
  const detail = makeDetail({ model, ui, widgets, begin, announce, changed: () => invalidate() });
  const form = makeForm({
    ui, begin, announce, near: () => chosenRows()[0] ?? items[at]?.row, row: (runId) => store.rows.get(runId),
    launched: (runId) => ((wanted = runId), reveal()), show: (row) => (pick(row.run_id), detail.shows(row.run_id, "card") || detail.card(row)),
  });

  // --- talking to the kernel --------------------------------------------------------------

  function hello(seq = store.seq) {
    clearTimeout(greeting);
    if (document.visibilityState === "hidden") return;
    if (!post(model, { kind: "hello", id: randomId(), seq })) return;
    greeting = setTimeout(() => hello(), HELLO_MS);
  }
  const looked = () => hello();

  function ask(name, runIds) {
    answers = [];
    for (const runId of runIds) {
      const act = { id: randomId(), name, at: Date.now() };
      if (!post(model, { kind: "act", id: act.id, name, run_id: runId })) {
        answers = [{ key: "gone", ok: false, text: "The kernel of this dashboard is gone: run the cell again." }];
        break;
      }
      pending.set(runId, act);
      ofAct.set(act.id, { runId, name });
    }
    setTimeout(invalidate, BUSY_AFTER_MS + 10);
    invalidate();
  }

  function acknowledged(content) {
    const act = ofAct.get(content.id);
    if (act) {
      ofAct.delete(content.id);
      if (pending.get(act.runId)?.id === content.id) pending.delete(act.runId);
      const row = store.rows.get(act.runId);
      const text = content.reason || (content.ok ? "" : `${capital(act.name)} did not work.`);
      if (text) {
        const key = `${row?.training_id ?? act.runId}: ${text}`;
        answers.push({ key, ok: content.ok, text: key });
        if (!content.ok) announce(key);
      }
      invalidate();
    }
    detail.heard(content);
  }

  function received(content) {
    if (begin.heard(content)) return;
    if (content?.kind === "ack") acknowledged(content);
    else if (content?.kind === "card") detail.heard(content);
    else if (content?.kind === "full" || content?.kind === "delta") {
      const found = store.take(content);
      if (!found) return;
      for (const row of found.ended) news.push(row);
      for (const trainingId of found.moved) form.moved(trainingId);
      for (const [runId, act] of pending) if (!store.rows.has(runId)) (pending.delete(runId), ofAct.delete(act.id));
      for (const runId of selected) if (!store.rows.has(runId)) selected.delete(runId);
      if (found.order || (found.findings && look.attention)) relist();
      else if (found.findings) drawChips([...store.rows.values()]);
      invalidate();
      reveal();
      orderIsOld ||= !found.order;
    }
  }

  function announce(text) {
    ui.live.textContent = "";
    requestAnimationFrame(() => (ui.live.textContent = text));
  }

  function speak() {
    if (!news.length || Date.now() - spokenAt < SPEAK_MS) return;
    spokenAt = Date.now();
    const said = news.length === 1
      ? `${news[0].training_id}: ${news[0].state}`
      : `${count(news.length)} runs changed: ${tally(news).map(([state, n]) => `${n} ${state}`).join(", ")}`;
    news = [];
    announce(said);
  }

  // --- what is listed ------------------------------------------------------------------------

  const needsLook = (row) => row.findings.length > 0;

  const fits = (row) =>
    (!look.states.size || look.states.has(row.state)) && (!look.attention || needsLook(row)) &&
    look.words.every((word) => words(row).includes(word));

  function relist() {
    const rows = [...store.rows.values()];
    const found = rows.filter(fits);
    const sorted = ordered(found, look.sort, store.clock());
    items = look.grouped ? grouped(sorted, look.collapsed) : sorted.map(item);
    sortedAt = Date.now();
    orderIsOld = false;
    at = activeKey == null ? -1 : items.findIndex(({ key }) => key === activeKey);
    if (at < 0 && items.length) {
      at = Math.max(0, Math.min(items.length - 1, at));
      activeKey = items[at].key;
    }
    const all = found.length === rows.length;
    say(ui.shown, all ? `${count(rows.length)} run${rows.length === 1 ? "" : "s"}` : `${count(found.length)} of ${count(rows.length)} runs`);
    say(ui.empty, items.length ? "" : rows.length ? "No run fits search and filters." : "No runs yet: ws.launch(...) or New run… makes the first one.");
    attrs(ui.grid, { role: look.grouped ? "treegrid" : "grid", "aria-rowcount": items.length + 1 });
    // a table of three runs is small, and none jumps while a person types into the search
    ui.grid.style.setProperty("--xk-rows", Math.max(3, rows.length));
    drawChips(rows);
    drawColumns();
    list.show(items);
    invalidate();
  }

  function bind(made, one) {
    const { node } = made;
    node.id = rowId(one.key);
    node.classList.toggle("xk-active", one.key === activeKey);
    if (one.row) {
      fillRow(made, one.row, { now: store.clock(), pending: pending.get(one.row.run_id) });
      attrs(node, { "aria-selected": selected.has(one.key) ? "true" : "false", "aria-level": look.grouped ? 2 : null });
      node.classList.toggle("xk-is-open", detail.shows(one.key));
    } else {
      fillGroup(made, one, { isOpen: !look.collapsed.has(one.training) });
      attrs(node, { "aria-level": 1 });
    }
  }

  function drawChips(rows) {
    const counts = new Map(tally(rows));
    const attention = rows.filter(needsLook).length;
    const wanted = [...STATES.filter((state) => counts.has(state) || look.states.has(state)), ...(attention || look.attention ? ["attention"] : [])];
    for (const chip of [...ui.chips.children]) if (!wanted.includes(chip.dataset.chip)) chip.remove();
    wanted.forEach((name, i) => { // one that stays is not moved: it may have the focus
      const there = ui.chips.children[i];
      if (there?.dataset.chip !== name) ui.chips.insertBefore(newChip(name), there ?? null);
    });
    for (const chip of ui.chips.children) {
      const name = chip.dataset.chip;
      const pressed = name === "attention" ? look.attention : look.states.has(name);
      attrs(chip, { "aria-pressed": String(pressed) });
      say(chip.lastElementChild, count(name === "attention" ? attention : counts.get(name) ?? 0));
    }
  }

  function newChip(name) {
    const warn = () => attrs(el("span", "xk-warn", "⚠"), { "aria-hidden": "true" });
    const mark = name === "attention" ? warn() : shape(name);
    const word = name === "attention" ? "Needs a look" : capital(name);
    const chip = el("button", "xk-chip", mark, el("span", "", word), el("b", ""));
    attrs(chip, { ...KEEP, type: "button", "data-chip": name, "data-state": name });
    chip.addEventListener("click", () => {
      if (name === "attention") look.attention = !look.attention;
      else if (!look.states.delete(name)) look.states.add(name);
      refilter();
      ui.chips.querySelector(`[data-chip="${name}"]`)?.focus(); // it may be a new one
    });
    return chip;
  }

  function drawColumns() {
    if (!ui.columns.children.length) {
      ui.columns.append(attrs(el("div", "xk-cell"), { role: "columnheader", "aria-label": "selected" }));
      for (const { key, title, hint, down } of COLUMNS) {
        const arrow = attrs(el("span", "xk-arrow"), { "aria-hidden": "true" });
        const button = attrs(el("button", "xk-sort", el("span", "", title), arrow), { ...KEEP, type: "button", title: `Sort ${hint ?? `by ${title.toLowerCase()}`}` });
        button.addEventListener("click", () => {
          look.sort = { key, down: look.sort.key === key ? !look.sort.down : Boolean(down) };
          ui.grid.scrollTop = 0;
          relist();
        });
        ui.columns.append(attrs(el("div", `xk-cell xk-c-${key}`, button), { role: "columnheader", "data-column": key }));
      }
    }
    for (const head of ui.columns.querySelectorAll("[data-column]")) {
      const mine = head.dataset.column === look.sort.key;
      attrs(head, { "aria-sort": mine ? (look.sort.down ? "descending" : "ascending") : "none" });
      say(head.querySelector(".xk-arrow"), mine ? (look.sort.down ? "▼" : "▲") : "");
    }
  }

  function refilter() {
    ui.grid.scrollTop = 0;
    relist();
    announce(ui.shown.textContent);
  }

  // --- drawing -----------------------------------------------------------------------------

  function invalidate() {
    frame ||= requestAnimationFrame(() => ((frame = 0), draw()));
  }

  function draw() {
    const rows = [...store.rows.values()];
    list.draw();
    attrs(ui.grid, { "aria-activedescendant": at >= 0 && items[at] ? rowId(items[at].key) : null });
    say(ui.home, store.home);
    const facts = healthFacts(store.health, rows);
    fill(ui.facts, facts, () => facts.map(fact));
    const warning = [store.note && `${store.note} — trying again`, store.health?.warning].filter(Boolean).join(" · ");
    fill(ui.warning, warning || null, () => prose(warning));
    const age = (Date.now() - store.at) / 1000;
    const stale = rows.some(active) && age > STALE_BEATS * store.beat_s;
    ui.root.classList.toggle("xk-is-stale", stale);
    say(ui.stale, stale ? `No news for ${clock(age)} — the kernel may be busy or gone.` : "");
    drawFoot();
    drawNotes();
  }

  function drawNotes() {
    const waiting = [...pending.values()].filter((act) => Date.now() - act.at >= BUSY_AFTER_MS);
    const said = answers.slice(0, MAX_NOTES);
    if (answers.length > MAX_NOTES) said.push({ key: "more", ok: false, text: `and ${answers.length - MAX_NOTES} more answers` });
    if (waiting.length) {
      const n = waiting.length === 1 ? "" : ` for ${waiting.length} runs`;
      const first = Math.min(...waiting.map((act) => act.at));
      const waited = Date.now() - first >= 5000 ? ` ${clock((Date.now() - first) / 1000)} ago` : "";
      said.push({ key: "busy", ok: false, text: `${capital(waiting[0].name)} sent${n}${waited} — waiting for the kernel (busy running a cell?)` });
    }
    fill(ui.notes, said, () => said.map(({ text, ok }) => attrs(el("li", "xk-d-note", ...prose(text)), { "data-tone": ok ? "info" : "bad" })));
  }

  function drawFoot() {
    const rows = chosenRows();
    const hidden = rows.filter((row) => !fits(row)).length;
    const unseen = hidden ? `, ${count(hidden)} of them not shown` : "";
    say(ui.selected, rows.length ? `${count(rows.length)} selected${unseen}` : "");
    ui.hint.hidden = rows.length > 0;
    if (rows.length && !ui.acts.children.length) ui.acts.append(...ACTS.map(newAct));
    if (!rows.length && ui.acts.contains(document.activeElement)) ui.grid.focus({ preventScroll: true });
    if (!rows.length) ui.acts.replaceChildren();
    for (const button of ui.acts.children) {
      const name = button.dataset.act;
      if (name === "clear") continue;
      const fit = able(rows, name);
      const word = WORDS[name] ?? (fit.length ? `${capital(name)} ${count(fit.length)}` : capital(name));
      say(button, word);
      attrs(button, { "aria-disabled": fit.length ? null : "true", title: fit.length ? null : noneToAct(rows, name) });
    }
    const done = rows.filter((row) => row.state === "completed");
    const lines = rows.length === 2 && done.length === 2
      ? [`ws.compare("${rows[0].run_id}", "${rows[1].run_id}")`]
      : done.length === 1 && rows.length === 1 ? [`ws.run("${rows[0].run_id}").browse()`] : [];
    const said = detail.shows(rows.map((row) => row.run_id).join()); // the line stands there
    fill(ui.code, lines.length && !said ? lines : null, () => lines.map(snippet));
  }

  function chosenRows() {
    return [...selected].map((id) => store.rows.get(id)).filter(Boolean);
  }

  function able(rows, name) {
    if (name in NEEDS) return NEEDS[name].includes(rows.length) && rows.every((row) => legalActs(row).includes("features")) ? rows : [];
    return rows.filter((row) => legalActs(row).includes(name) && !whyNot(row, name) && !pending.has(row.run_id));
  }

  function newAct(name) {
    const button = attrs(el("button", "xk-d-act", name === "clear" ? "Clear" : ""), { ...KEEP, type: "button", "data-act": name });
    button.addEventListener("click", () => {
      const rows = chosenRows();
      if (name === "clear") return choose(() => selected.clear());
      const fit = able(rows, name);
      if (!fit.length) {
        answers = [{ key: name, ok: false, text: noneToAct(rows, name) }];
        announce(answers[0].text);
        invalidate();
      } else if (name === "features") detail.features(fit);
      else if (name === "compare") detail.comparison(fit);
      else ask(name, fit.map((row) => row.run_id));
    });
    return button;
  }

  // --- choosing and opening -------------------------------------------------------------------

  function choose(change) {
    change();
    answers = answers.filter(({ key }) => !ACTS.includes(key)); // why nothing was to be done before
    post(model, { kind: "select", id: randomId(), run_ids: [...selected] });
    announce(`${count(selected.size)} selected`);
    invalidate();
  }

  function toggle(one) {
    const runs = one.row ? [one.row] : one.runs;
    const on = !runs.every((row) => selected.has(row.run_id));
    anchor = one.key;
    choose(() => runs.forEach((row) => (on ? selected.add(row.run_id) : selected.delete(row.run_id))));
  }

  function extend(to) {
    const from = items.findIndex(({ key }) => key === (anchor ?? activeKey));
    const [first, last] = [Math.min(from < 0 ? to : from, to), Math.max(from, to)];
    anchor ??= items[from]?.key ?? null;
    choose(() => items.slice(first, last + 1).forEach(({ row }) => row && selected.add(row.run_id)));
  }

  function go(to) {
    if (!items.length) return;
    at = Math.max(0, Math.min(items.length - 1, to));
    activeKey = items[at].key;
    list.reveal(at);
    list.draw();
    attrs(ui.grid, { "aria-activedescendant": rowId(activeKey) });
  }

  function fold(training, folded) {
    if (folded) look.collapsed.add(training);
    else look.collapsed.delete(training);
    relist();
  }

  function pick(runId) {
    selected.clear();
    choose(() => selected.add(runId));
    activeKey = runId;
    const row = store.rows.get(runId);
    if (!fits(row)) {
      Object.assign(look, { attention: false, words: [] });
      look.states.clear();
      ui.find.value = "";
    }
    look.collapsed.delete(row.training_id);
    relist();
    list.reveal(at);
    list.draw();
  }

  // The run that was launched here is selected as soon as the kernel tells of it.
  function reveal() {
    if (wanted == null || !store.rows.has(wanted)) return;
    const runId = wanted;
    wanted = null;
    pick(runId);
  }

  function show(row) {
    detail.card(row);
    list.reveal(at);
  }

  // --- a person ---------------------------------------------------------------------------------

  function clicked(event) {
    const node = event.target.closest?.("[role=row]");
    const i = items.findIndex(({ key }) => node && rowId(key) === node.id);
    if (i < 0) return;
    const one = items[i];
    if (event.shiftKey) extend(i);
    go(i);
    if (event.shiftKey) return;
    if (event.ctrlKey || event.metaKey || event.target.closest(".xk-c-check")) toggle(one);
    else if (one.row) show(one.row);
    else fold(one.training, !look.collapsed.has(one.training));
  }

  function move(event) {
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + list.page(), PageUp: at - list.page(), Home: 0, End: items.length - 1 };
    if (!(event.key in steps)) return false;
    const to = Math.max(0, Math.min(items.length - 1, steps[event.key]));
    if (event.shiftKey && items.length) extend(to);
    else anchor = null;
    go(to);
    return true;
  }

  function pressed(event) {
    if (event.target !== ui.grid || event.altKey) return;
    const one = items[at];
    if (event.key === "a" && (event.ctrlKey || event.metaKey))
      choose(() => items.forEach(({ row }) => row && selected.add(row.run_id)));
    else if (event.ctrlKey || event.metaKey) return;
    else if (move(event)) invalidate();
    else if (event.key === " " && one) toggle(one);
    else if (event.key === "Enter" && one?.row) show(one.row);
    else if (["Enter", "ArrowLeft", "ArrowRight"].includes(event.key) && look.grouped && one) turn(one, event.key);
    else if (event.key === "/") ui.find.focus();
    else if (event.key === "Escape" && detail.isOpen()) detail.close();
    else if (event.key === "Escape" && selected.size) choose(() => selected.clear());
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function turn(one, key) {
    const training = one.training ?? one.row.training_id;
    const folded = key === "Enter" ? !look.collapsed.has(training) : key === "ArrowLeft";
    if (one.row && folded) activeKey = `group ${training}`;
    fold(training, folded);
  }

  let typing = 0;
  function typed() {
    clearTimeout(typing);
    typing = setTimeout(() => {
      look.words = ui.find.value.toLowerCase().split(/\s+/).filter(Boolean);
      refilter();
    }, 80);
  }

  function inFind(event) {
    if (event.key === "Escape" && ui.find.value) (ui.find.value = ""), typed();
    else if (["ArrowDown", "Enter", "Escape"].includes(event.key)) ui.grid.focus({ preventScroll: true });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function leave(event) {
    const ofBrowser = event.target.closest?.('[data-kind="features"]'); // it has uses of its own for this key
    if (event.key !== "Escape" || ofBrowser) return;
    detail.close();
    event.stopPropagation();
  }

  ui.find.addEventListener("input", typed);
  ui.find.addEventListener("keydown", inFind);
  ui.group.addEventListener("click", () => {
    look.grouped = !look.grouped;
    attrs(ui.group, { "aria-pressed": String(look.grouped) });
    refilter();
  });
  ui.grid.addEventListener("scroll", () => list.draw());
  ui.body.addEventListener("click", clicked);
  ui.grid.addEventListener("keydown", pressed);
  ui.detail.addEventListener("keydown", leave);
  const sized = new ResizeObserver(() => list.draw());
  sized.observe(ui.grid);

  // --- life -----------------------------------------------------------------------------------------

  function second() {
    const busy = ui.grid.matches(":hover") || ui.root.contains(document.activeElement);
    // rows must not jump under a pointer or a reader
    if (orderIsOld && !busy && Date.now() - sortedAt > RESORT_MS) relist();
    speak();
    invalidate();
  }

  model.on("msg:custom", received);
  document.addEventListener("visibilitychange", looked);
  const ticking = setInterval(second, 1000);
  received(model.get("state"));
  hello();
  const stop = () => {
    clearInterval(ticking);
    clearTimeout(greeting);
    clearTimeout(typing);
    cancelAnimationFrame(frame);
    sized.disconnect();
    document.removeEventListener("visibilitychange", looked);
    model.off("msg:custom", received);
    detail.stop();
    form.stop();
    begin.stop();
    ui.root.remove();
  };
  signal?.addEventListener("abort", stop);
  return stop;
}

export default { render };
