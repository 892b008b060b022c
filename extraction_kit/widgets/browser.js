// The page side of the feature browser; browser.py lists its questions. In front of this
// file stand page.js, browser_list.js and browser_feature.js.

const SEARCH_AFTER_MS = 250;
const LOST_AFTER_MS = 5000;
const GIVEN_UP = null; // the reason of a question in whose place another one is asked
const FIRST_ROWS = 120;
const perCent = (x) => (x == null ? null : Number((100 * x).toPrecision(12)));

function field(type, label, more = {}) {
  return attrs(el("input", "xk-input"), { ...KEEP, type, "aria-label": label, ...more });
}

function select(label, options) {
  const node = attrs(el("select", "xk-input"), { ...KEEP, "aria-label": label });
  for (const [value, text, title] of options)
    node.append(attrs(el("option", "", text), { value, title }));
  return node;
}

function press(cls, text, label) {
  return attrs(el("button", cls, text), { ...KEEP, type: "button", "aria-label": label });
}

// --- the parts -------------------------------------------------------------------------

function filterParts(facts) {
  const number = (label) => field("number", label, { min: 0, step: "any", placeholder: "any" });
  const f = {
    density: [number("least density, per cent"), number("largest density, per cent")],
    max_act: [number("least max activation"), number("largest max activation")],
    life: select("dead features", [
      ["all", "alive and dead"], ["alive", "alive only"], ["dead", "dead only"],
    ]),
    marked: field("checkbox", "marked features only"),
    label: field("text", "label contains", { placeholder: "any", maxlength: 200 }),
    clear: press("xk-small", "Clear filters"),
    box: details("xk-filters", "Filters"),
  };
  const line = (name, ...nodes) => [el("span", "xk-name-of", name), el("div", "xk-pair", ...nodes)];
  f.box.append(el("div", "xk-filter-grid",
    ...line("density %", f.density[0], "–", f.density[1]),
    ...line("max", f.max_act[0], "–", f.max_act[1]),
    ...line("show", f.life),
    ...(facts.labelled ? line("label", f.label) : []),
    ...line("marked", el("label", "", f.marked, " marked only"), f.clear)));
  return f;
}

function browserParts(facts) {
  const search = field("search", "token at the peak contains; # and a number goes to a feature", {
    placeholder: "peak token, or #1234", maxlength: 200, spellcheck: "false",
  });
  const measures = Object.entries(facts.measures).filter(([name]) => name !== "density");
  const p = {
    search,
    filters: filterParts(facts),
    byFeature: press("xk-sort", "feature"),
    byDensity: press("xk-sort", "density"),
    byMeasure: press("xk-sort", ""),
    measure: select("what the last column shows", measures.map(([name, says]) => [name, name, says])),
    status: attrs(el("div", "xk-status"), { role: "status" }),
    title: attrs(el("div", "xk-heading"), { role: "heading", "aria-level": 3 }),
    label: el("bdi", "xk-name"),
    back: press("xk-small", "‹", "previous feature of the list"),
    on: press("xk-small", "›", "next feature of the list"),
    mark: press("xk-small", "☆ Mark"),
    figures: el("div", "xk-stats"),
    weights: el("div", "xk-meta"),
    panels: el("div", "xk-panels"),
    dead: el("div", "xk-empty"),
    tabs: attrs(el("div", "xk-tabs"), { role: "tablist", "aria-label": "groups of examples" }),
    sizes: new Map(Object.entries(SIZES).map(([name, [text, title]]) =>
      [name, attrs(press("xk-size", text, null), { title })])),
    samples: el("ol", "xk-samples"),
    legend: el("div", "xk-legend"),
    further: el("div", "xk-panels"),
    absent: el("ul", "xk-absent"),
    note: el("div", "xk-note"),
    live: attrs(el("div", "xk-live"), { role: "status" }), // always there, else nobody hears it
  };
  if (facts.labelled) p.byLabel = press("xk-sort", "label");
  return p;
}

function assemble(facts, p, list) {
  const about = [facts.title, ...facts.about, `${count(facts.d_sae)} features`];
  about.push(`${short(facts.n_tokens)} tokens`);
  const peak = p.byLabel ?? el("span", "xk-peak-head", "peak token");
  const side = el("div", "xk-side",
    el("div", "xk-find", p.search, p.filters.box),
    el("div", "xk-columns", p.byFeature, peak, p.byDensity,
      el("span", "xk-chosen", p.byMeasure, p.measure)),
    list.box, p.status,
    attrs(el("div", "xk-keys", ...["↑↓ j k", "/ search", "m mark", "g group", "c context"].map(
      (text) => el("span", "", text))), { "aria-hidden": "true" }));
  const head = el("div", "xk-top", p.title, p.label, el("span", "xk-nav", p.back, p.on, p.mark));
  const sizes = attrs(el("div", "xk-sizes", ...p.sizes.values()), {
    role: "group", "aria-label": "how much of the context",
  });
  p.read = attrs(el("div", "xk-read", head, p.figures, p.weights, p.dead, p.panels,
    el("div", "xk-chooser", p.tabs, sizes), p.samples, p.legend, p.further, p.absent), {
    ...KEEP, role: "region", tabindex: 0, "aria-label": "feature",
  });
  const names = el("div", "xk-about", ...about.map((text) => el("bdi", "", text)));
  const panes = el("div", "xk-panes", side, p.read);
  const root = el("section", "xk-root xk-browser", names, panes, p.note, p.live);
  return attrs(root, { role: "group", "aria-label": `features of ${facts.title}` });
}

// --- questions -------------------------------------------------------------------------

// Returns ask(name, content): a promise of the answer. tell(text): a note for the person.
function questions(model, view, tell) {
  const open = new Map(); // id -> {name, done, fail, at}
  let [timer, since] = [0, 0]; // since: when what is waited for was asked, 0: nothing is
  const look = () => {
    clearTimeout(timer);
    if (!open.size) return tell("");
    const age = Date.now() - since;
    if (age >= BUSY_AFTER_MS) tell("waiting for the kernel (busy running a cell?)");
    else timer = setTimeout(look, BUSY_AFTER_MS - age + 10);
  };
  function ask(name, content) {
    const id = randomId();
    return new Promise((done, fail) => {
      open.set(id, { name, done, fail, at: Date.now() });
      since ||= Date.now();
      if (post(model, { kind: "ask", id, view, name, ...content })) return look();
      open.delete(id);
      fail("The kernel of this browser is gone: run the cell again.");
    });
  }
  ask.heard = (message) => {
    const one = open.get(message?.id);
    if (message?.kind !== "answer" || !one) return;
    open.delete(message.id);
    since = open.size ? Math.min(...[...open.values()].map((other) => other.at)) : 0;
    look();
    if (message.ok) one.done(message.content);
    else one.fail(message.reason);
  };
  // A kernel that was restarted answers nothing: who asks anew need not wait for it.
  ask.giveUp = (name) => {
    for (const [id, one] of open) {
      if (one.name !== name || Date.now() - one.at < LOST_AFTER_MS) continue;
      open.delete(id);
      one.fail(GIVEN_UP);
    }
  };
  ask.stop = () => {
    clearTimeout(timer);
    open.clear();
  };
  return ask;
}

// --- the browser -----------------------------------------------------------------------

function render({ model, el: host, signal }) {
  const facts = model.get("facts");
  const p = browserParts(facts);
  let [listing, revision] = [{}, 0];
  let [marks, settled, marking] = [[], [], 0]; // settled: as the kernel said last
  let page = null;
  let [group, size] = ["top", "line"]; // wanted; page.group is what is seen
  let [wanted, aim, searching, wantedRows] = [null, null, 0, null];
  let [asked, relisting] = [null, false];
  let trouble = "";

  const noted = (text = "") => {
    say(p.note, text || trouble);
    if (p.live.textContent !== p.note.textContent) p.live.textContent = p.note.textContent;
  };
  const failed = (reason) => {
    if (reason === GIVEN_UP) return;
    trouble = String(reason);
    noted();
  };
  const worked = () => failed("");
  const view = randomId();
  const ask = questions(model, view, noted);
  const list = makeList({
    pick: (row) => go({ revision, row }),
    rows: (start, count) => fetchRows({ start, count }),
  });
  const root = assemble(facts, p, list);
  host.append(root);

  // One question at a time, then the newest: a key that is held down never queues up.
  async function go(target) {
    wanted = target;
    if (aim) return ask.giveUp("feature");
    while (wanted) {
      [aim, wanted] = [wanted, null];
      const byRow = "row" in aim;
      try {
        const found = await ask("feature", { ...aim, group });
        worked();
        take(found, !byRow && !wanted); // the list shows what is wanted by now
      } catch (reason) {
        if (!byRow || aim.revision === revision) failed(reason);
      }
    }
    aim = null;
  }

  async function fetchRows(span) {
    const busy = wantedRows;
    wantedRows = span;
    if (busy) return ask.giveUp("rows");
    while (wantedRows) {
      const [{ start, count }, mine] = [wantedRows, revision];
      try {
        const found = await ask("rows", { revision, start, count });
        if (found.revision === revision) list.keep(found);
      } catch (reason) {
        if (mine === revision) failed(reason);
      }
      if (wantedRows.start === start) wantedRows = null;
    }
  }

  // What is asked for grows while an answer is on its way: no change gets lost.
  async function relist(changes) {
    asked = { ...(asked ?? listing), ...changes };
    if (relisting) return ask.giveUp("list");
    relisting = true;
    attrs(list.box, { "aria-busy": "true" });
    while (asked) {
      const next = asked;
      try {
        listed(await ask("list", { listing: next, rows: FIRST_ROWS }));
        worked();
      } catch (reason) {
        failed(reason);
      }
      if (asked === next) asked = null;
    }
    attrs(list.box, { "aria-busy": null });
    relisting = false;
  }

  function listed(found) {
    listing = found.listing;
    revision = found.revision;
    list.show(found);
    drawList();
  }

  function take(found, isJump) {
    page = found;
    if (isJump) list.place(found.at);
    draw();
  }

  function told(content) {
    if (content.list) {
      listed(content.list);
      fillFilters();
    }
    if (content.marks) marked((settled = content.marks));
    if (!content.feature) return;
    group = content.feature.group;
    take(content.feature, true);
  }

  function marked(features) {
    marks = features;
    list.mark(marks);
    drawMark();
    drawList();
  }

  // --- drawing ---

  function drawList() {
    const n = list.size();
    const some = n === facts.d_sae ? `${count(n)} features` : `${count(n)} of ${count(facts.d_sae)}`;
    say(p.status, marks.length ? `${some} · ${count(marks.length)} marked` : some);
    const columns = [[p.byFeature, "feature"], [p.byDensity, "density"], [p.byMeasure, listing.measure]];
    if (p.byLabel) columns.push([p.byLabel, "label"]);
    for (const [button, name] of columns) {
      const mine = listing.sort === name;
      const way = listing.descending ? "descending" : "ascending";
      const arrow = mine ? (listing.descending ? "▼" : "▲") : "";
      say(button, button === p.byMeasure ? arrow || "⇅" : `${name}${arrow && ` ${arrow}`}`);
      attrs(button, { "aria-label": `sort by ${name}${mine ? `, now ${way}` : ""}`, "aria-pressed": mine });
    }
    p.measure.value = listing.measure;
    const active = ["density", "max_act"].flatMap((name) => listing[name]).filter((x) => x != null).length
      + (listing.life !== "all") + (listing.among != null) + (listing.label !== "");
    say(p.filters.box.firstElementChild, active ? `Filters (${active})` : "Filters");
  }

  function drawMark() {
    if (!page) return;
    const on = marks.includes(page.feature);
    say(p.mark, on ? "★ Marked" : "☆ Mark");
    attrs(p.mark, { "aria-pressed": on, "aria-label": `mark feature ${page.feature}` });
  }

  const focused = () => root.getRootNode().activeElement;

  function draw() {
    const held = p.read.contains(focused()) ? focused() : null;
    say(p.title, `Feature ${page.feature}`);
    say(p.label, page.label ?? "");
    attrs(p.read, { "aria-label": `feature ${page.feature}` });
    drawMark();
    p.figures.replaceChildren(...figures(page));
    p.weights.replaceChildren(...weights(page));
    const never = `Never active on the ${count(facts.n_tokens)} tokens of this corpus: dead.`;
    say(p.dead, page.dead ? never : "");
    p.panels.replaceChildren(...panels(page, facts.bins, (feature) => go({ feature })));
    const further = furtherPanels(page, (feature) => go({ feature }));
    p.further.replaceChildren(...further);
    p.further.hidden = !further.length;
    const why = absences(page);
    p.absent.replaceChildren(...why);
    p.absent.hidden = !why.length;
    drawTabs();
    if (size === "context") showWhole();
    else drawSamples(page.examples);
    p.read.scrollTop = 0;
    // An element that is gone or hidden would give the keyboard to the notebook.
    if (held && !held.getClientRects().length && !p.tabs.contains(focused()))
      p.read.focus({ preventScroll: true });
    attrs(root, { "data-feature": page.feature });
  }

  function drawTabs() {
    const shown = facts.groups.filter((name) => page.groups[name] || name === page.group);
    const inTabs = p.tabs.contains(focused());
    p.tabs.replaceChildren(...shown.map((name) => {
      const [text, title] = GROUP_NAMES[name];
      const tab = press("xk-tab", text, null);
      tab.append(el("span", "xk-n", String(page.groups[name])));
      attrs(tab, { role: "tab", title, "aria-selected": name === page.group });
      attrs(tab, { tabindex: name === page.group ? 0 : -1 });
      tab.addEventListener("click", () => pickGroup(name));
      return tab;
    }));
    p.tabs.parentElement.hidden = page.dead;
    if (inTabs) p.tabs.querySelector("[aria-selected=true]")?.focus();
  }

  const drawSizes = () =>
    p.sizes.forEach((button, name) => attrs(button, { "aria-pressed": name === size }));

  function drawSamples(examples) {
    const scale = page.stats.max_act;
    p.samples.replaceChildren(...exampleRows(examples, size, scale));
    if (!examples.length && !page.dead)
      p.samples.replaceChildren(el("li", "xk-empty", "No example of this group was kept."));
    attrs(p.samples, { "data-size": size });
    say(p.legend, examples.some((one) => one.held_out) ? `◇ ${HELD_OUT}` : "");
  }

  async function showWhole() {
    drawSamples(page.examples);
    const { feature, group } = page;
    try {
      const found = await ask("examples", { feature, group, whole: true });
      if (page.feature === feature && page.group === group && size === "context")
        drawSamples(found.examples);
    } catch (reason) {
      failed(reason);
    }
  }

  // --- what a person does ---

  function pickGroup(name) {
    group = name;
    go(wanted ?? aim ?? { feature: page.feature });
  }

  function pickSize(name) {
    size = name;
    drawSizes();
    if (size === "context") showWhole();
    else drawSamples(page.examples);
  }

  const next = (names, name) => names[(names.indexOf(name) + 1) % names.length];

  // Seen at once; what the kernel says of the last press counts.
  async function toggleMark() {
    if (!page) return;
    const feature = list.chosen() ?? page.feature;
    const on = !marks.includes(feature);
    const mine = ++marking;
    marked(on ? [...marks, feature] : marks.filter((one) => one !== feature));
    try {
      const found = await ask("mark", { feature, on });
      settled = found.marks;
      if (found.list) listed(found.list); // marked features only
    } catch (reason) {
      failed(reason);
    }
    if (mine === marking) marked(settled);
  }

  function sortBy(name) {
    const now = asked ?? listing;
    const same = now.sort === name;
    relist({ sort: name, descending: same ? !now.descending : !["feature", "label"].includes(name) });
  }

  // What follows a # is no token: the list is whole again.
  const tokenAsked = () => (p.search.value.startsWith("#") ? "" : p.search.value);

  async function searchNow() {
    clearTimeout(searching);
    if (tokenAsked() !== (asked ?? listing).token) await relist({ token: tokenAsked() });
  }

  function search() {
    clearTimeout(searching);
    searching = setTimeout(searchNow, SEARCH_AFTER_MS);
  }

  function filter() {
    const number = (node, factor = 1) => (node.value === "" ? null : Number(node.value) * factor);
    const f = p.filters;
    relist({
      density: f.density.map((node) => number(node, 0.01)),
      max_act: f.max_act.map((node) => number(node)),
      life: f.life.value,
      label: f.label.value,
      among: f.marked.checked ? marks : null,
    });
  }

  // What a person is typing stays.
  function fillFilters(from = listing) {
    const f = p.filters;
    const put = (node, value) => node === focused() || (node.value = value ?? "");
    f.density.forEach((node, i) => put(node, perCent(from.density[i])));
    f.max_act.forEach((node, i) => put(node, from.max_act[i]));
    for (const name of ["life", "label"]) put(f[name], from[name]);
    f.marked.checked = from.among != null;
    put(p.search, from.token);
  }

  function clear() {
    clearTimeout(searching);
    const any = [null, null];
    const all = { density: any, max_act: any, life: "all", label: "", among: null, token: "" };
    fillFilters(all);
    relist(all);
  }

  async function typed(event) {
    if (event.key === "Escape") list.box.focus();
    if (event.key !== "Enter" || event.target !== p.search) return;
    const number = /^#\s*(\d+)$/.exec(p.search.value);
    await searchNow();
    if (number) go({ feature: Number(number[1]) });
    list.box.focus();
  }

  const keys = {
    "/": () => (p.search.focus(), p.search.select()),
    m: toggleMark,
    g: () => pickGroup(next(facts.groups.filter((name) => page.groups[name]), group)),
    c: () => pickSize(next(Object.keys(SIZES), size)),
  };

  function pressed(event) {
    event.stopPropagation(); // else the notebook takes the keys for its own
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) return typed(event);
    const inList = event.target === list.box;
    const inTabs = event.target.role === "tab";
    const letter = event.key.length === 1;
    let done = (inList || letter) && list.key(event.key);
    if (!done && page && Object.hasOwn(keys, event.key)) done = (keys[event.key](), true);
    if (!done && inList && event.key === "Enter") done = (p.read.focus(), true);
    if (!done && event.key === "Escape") done = (list.box.focus(), true);
    if (!done && inTabs && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const names = facts.groups.filter((name) => page.groups[name]);
      if (event.key === "ArrowLeft") names.reverse();
      done = (pickGroup(next(names, group)), true);
    }
    if (done) event.preventDefault();
  }

  root.addEventListener("keydown", pressed);
  p.search.addEventListener("input", search);
  for (const node of [...p.filters.density, ...p.filters.max_act, p.filters.life, p.filters.marked, p.filters.label])
    node.addEventListener("change", filter);
  p.filters.clear.addEventListener("click", clear);
  p.byFeature.addEventListener("click", () => sortBy("feature"));
  p.byDensity.addEventListener("click", () => sortBy("density"));
  p.byMeasure.addEventListener("click", () => sortBy(listing.measure));
  p.byLabel?.addEventListener("click", () => sortBy("label"));
  p.measure.addEventListener("change", () => {
    const measure = p.measure.value;
    relist({ measure, ...(listing.sort === listing.measure && listing.sort !== "density" ? { sort: measure } : {}) });
  });
  p.back.addEventListener("click", () => list.key("k"));
  p.on.addEventListener("click", () => list.key("j"));
  p.mark.addEventListener("click", toggleMark);
  p.sizes.forEach((button, name) => button.addEventListener("click", () => pickSize(name)));

  const heard = (message) => {
    if (message?.kind !== "told") ask.heard(message);
    else if (message.but !== view) told(message.content);
  };
  const bye = () => post(model, { kind: "bye", view });
  model.on("msg:custom", heard);
  noted();
  drawSizes();
  ask("open", { rows: FIRST_ROWS }).then(told, failed);

  addEventListener("pagehide", bye);
  const stop = () => {
    removeEventListener("pagehide", bye);
    bye();
    clearTimeout(searching);
    ask.stop();
    list.stop();
    model.off("msg:custom", heard);
    root.remove();
  };
  signal?.addEventListener("abort", stop);
  return stop;
}

export default { render };
