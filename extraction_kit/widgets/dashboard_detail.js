// What is open below the table: the card of a run, its features, or two runs compared.

// ui: parts of the dashboard; widgets: anywidget's host, which shows another widget in this one.
// Returns {card, features, comparison, close, heard, key}.
function makeDetail({ model, ui, widgets, begin, announce, changed }) {
  let open = null; // {kind, key, stop, abort, note, holder, code, card, asked}

  function place(kind, key, name) {
    const inside = ui.detail.contains(document.activeElement);
    leave();
    const code = el("div", "xk-d-code");
    const note = el("div", "xk-d-note");
    const close = attrs(el("button", "xk-d-act xk-close", "Close"), { ...KEEP, type: "button", title: "Close (Escape)" });
    close.addEventListener("click", shut);
    const holder = attrs(el("div", "xk-holder"), { "data-kind": kind });
    ui.detail.replaceChildren(el("div", "xk-detail-head", code, close), note, holder);
    attrs(ui.detail, { "aria-label": name });
    ui.root.classList.add("xk-has-open");
    if (inside) close.focus({ preventScroll: true }); // what had it is gone
    say(note, "Asking the kernel…");
    open = { kind, key, abort: new AbortController(), stop: null, code, note, holder };
    changed();
    return open;
  }

  function leave() {
    open?.stop?.();
    open?.abort.abort();
    if (open) post(model, { kind: "open", id: randomId(), view: ui.id, run_id: null });
    open = null;
  }

  function shut() {
    if (!open) return;
    const inside = ui.detail.contains(document.activeElement);
    leave();
    ui.detail.replaceChildren();
    ui.root.classList.remove("xk-has-open");
    if (inside) ui.grid.focus({ preventScroll: true });
    changed();
  }

  const sayIn = (one) => (text) => open === one && say(one.note, text);

  function failed(one, reason) {
    if (open !== one) return;
    fill(one.note, String(reason), () => prose(String(reason)));
    attrs(one.note, { "data-tone": "bad" });
    announce(String(reason));
  }

  function card(row) {
    if (open?.kind === "card" && open.key === row.run_id) return shut();
    const one = place("card", row.run_id, "the open run");
    one.card = cardModel(model, row.run_id);
    one.asked = randomId();
    post(model, { kind: "open", id: one.asked, view: ui.id, run_id: row.run_id });
    announce(`${row.training_id}: ${row.state}, details opened below the table`);
  }

  function showCard(state) {
    const one = open;
    one.card.tell("change:state", state);
    if (!one.stop) {
      say(one.note, "");
      const openFeatures = () => features([state.view]);
      one.stop = renderCard({ model: one.card, el: one.holder, signal: one.abort.signal, openFeatures });
    }
    const lines = codeFor(state.view);
    fill(one.code, lines, () => lines.map(snippet));
  }

  async function features(rows) {
    const [run, other] = rows;
    const one = place("features", run.run_id, other ? "the features of two runs side by side" : "the features of a run");
    const beside = other ? `compare=ws.run("${other.run_id}")` : "";
    one.code.append(snippet(`browser = ws.run("${run.run_id}").browse(${beside})`));
    if (!canEmbed(widgets)) return failed(one, `${CANNOT_EMBED}: run the line above in a cell.`);
    announce(`${rows.map((row) => row.training_id).join(" and ")}: features opened below the table`);
    try {
      say(one.note, "Opening the features…");
      const question = { name: "browse", run_id: run.run_id, other: other?.run_id ?? null };
      const { model_id } = await begin("ask", question, (text) => sayIn(one)(text || "Opening the features…"));
      if (open !== one) return;
      await embed(widgets, model_id, one.holder, one.abort.signal);
      sayIn(one)("");
    } catch (reason) {
      failed(one, reason?.message ?? reason);
    }
  }

  async function comparison(rows) {
    const ids = rows.map((row) => row.run_id);
    const one = place("comparison", ids.join(), "two runs compared");
    one.code.append(snippet(`ws.compare("${ids[0]}", "${ids[1]}")`));
    try {
      say(one.note, "Comparing…");
      const found = await begin("ask", { name: "compare", run_ids: ids }, (text) => sayIn(one)(text || "Comparing…"));
      if (open !== one) return;
      say(one.note, "");
      one.holder.append(...compared(rows, found));
      announce(`compared: ${differs(found)}`);
    } catch (reason) {
      failed(one, reason?.message ?? reason);
    }
  }

  return {
    card, features, comparison, close: shut,
    shows: (key, kind = open?.kind) => open?.key === key && open.kind === kind,
    isOpen: () => open != null,
    heard(content) {
      if (content.kind === "card") {
        if (open?.kind === "card" && content.view === ui.id && content.state.view.run_id === open.key) showCard(content.state);
        return;
      }
      if (open?.asked === content.id && !content.ok) failed(open, content.reason);
      open?.card?.tell("msg:custom", content);
    },
    stop: leave,
  };
}

// --- two runs side by side ---------------------------------------------------------------------

function differs(found) {
  const pairs = found.n === found.n_paired
    ? `${count(found.n)} features`
    : `${count(found.n_paired)} of ${count(found.n)} features have a counterpart`;
  return `${pairs}; ${count(found.n_dead_a)} dead in A only, ${count(found.n_dead_b)} in B only; the density of ${count(found.n_doubled)} differs by a factor of 2 or more`;
}

function ratio(row) {
  if (row.dead_a !== row.dead_b) return row.dead_a ? "B only" : "A only";
  if (row.log2_ratio == null) return "—";
  return row.log2_ratio >= 0 ? `× ${digits(2 ** row.log2_ratio)}` : `÷ ${digits(2 ** -row.log2_ratio)}`;
}

function compared(rows, found) {
  const who = rows.map((row, i) => el("span", "", el("b", "", "AB"[i]), " ", el("bdi", "", row.training_id), " ",
    el("code", "", row.run_id.slice(0, 8)), ` · ${count(row.n_tokens)} tokens`));
  const twice = "feature_a" in (found.rows[0] ?? {});
  const value = (x, shown) => (x == null ? "—" : shown(x));
  const columns = [
    ...(twice
      ? [["Feature of A", (row) => row.feature_a], ["Feature of B", (row) => row.feature_b], ["Cosine", (row) => value(row.cosine, digits)]]
      : [["Feature", (row) => row.feature]]),
    ["Density in A", (row) => share(row.density_a)], ["Density in B", (row) => share(row.density_b)], ["B against A", ratio],
    ["Max in A", (row) => value(row.max_act_a, digits)], ["Max in B", (row) => value(row.max_act_b, digits)],
  ];
  const head = el("tr", "", ...columns.map(([name]) => attrs(el("th", "", name), { scope: "col" })));
  const lines = found.rows.map((row) => el("tr", "", ...columns.map(([, text]) => el("td", "", String(text(row))))));
  const table = el("table", "xk-compared", el("caption", "", "The largest differences"), el("thead", "", head), el("tbody", "", ...lines));
  return [
    el("div", "xk-who", ...who), el("div", "xk-differs", `${differs(found)}.`),
    lines.length ? el("div", "xk-wide", table) : el("div", "", "No density differs at all."),
  ];
}
