// The page side of the feature browser; browser.py lists its questions. In front of this
// file stand page.js and the other files of browser_view.py.

const SEARCH_AFTER_MS = 250;
const FIRST_ROWS = 120;
const perCent = (x) => (x == null ? null : Number((100 * x).toPrecision(12)));

// --- the browser -----------------------------------------------------------------------

function render({ model, el: host, signal }) {
  const facts = model.get("facts");
  const p = browserParts(facts);
  let [listing, revision] = [{}, 0];
  let [marks, settled, marking] = [[], [], 0]; // settled: as the kernel said last
  let page = null;
  let [group, size] = ["top", "line"]; // wanted; page.group is what is seen
  let [wanted, aim, searching, wantedRows] = [null, null, 0, null];
  let [asked, relisting, wantsFirst] = [null, false, false];
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
  }, facts.compare);
  const body = facts.compare ? makePair(facts) : makeBody(facts);
  const editor = makeEditor({
    read: (feature) => ask("said", { feature }),
    write: async (feature, texts) => told(await ask("label", { feature, group, texts })),
    giveUp: () => ask.giveUp("label"),
    failed: (reason) => failed(reason),
    closed: () => p.read.focus({ preventScroll: true }),
  });
  const root = assemble(facts, p, list, editor, body);
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
    if (wantsFirst) begin();
  }

  // Opens the first of what was asked for, once it is listed.
  function begin() {
    wantsFirst = relisting;
    if (!relisting) list.begin();
  }

  function listed(found) {
    listing = found.listing;
    revision = found.revision;
    list.show(found);
    drawList();
  }

  function take(found, isJump) {
    page = found;
    editor.shows(found.feature);
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
    if (p.byOther) columns.push([p.byOther, "density_b"]);
    for (const [button, name] of columns) {
      const mine = listing.sort === name;
      const way = listing.descending ? "descending" : "ascending";
      const arrow = mine ? (listing.descending ? "▼" : "▲") : "";
      const plain = { feature: "feature", label: "label / token" }; // without a label: the peak's token
      const shown = plain[name] ?? measureName(name, facts.compare);
      say(button, button === p.byMeasure ? arrow || "⇅" : `${shown}${arrow && ` ${arrow}`}`);
      attrs(button, { "aria-label": `sort by ${shown}${mine ? `, now ${way}` : ""}`, "aria-pressed": mine });
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
    say(p.said, page.description ?? "");
    attrs(p.read, { "aria-label": `feature ${page.feature}` });
    drawMark();
    body.draw(page, (feature) => go({ feature }));
    drawTabs();
    if (size === "context") showWhole();
    else drawSamples(page);
    p.read.scrollTop = 0;
    // An element that is gone or hidden would give the keyboard to the notebook.
    if (held && !held.getClientRects().length && !p.tabs.contains(focused()))
      p.read.focus({ preventScroll: true });
    attrs(root, { "data-feature": page.feature });
  }

  function drawTabs() {
    const shown = facts.groups.filter((name) => hasGroup(name) || name === page.group);
    const inTabs = p.tabs.contains(focused());
    p.tabs.replaceChildren(...shown.map((name) => {
      const [text, title] = GROUP_NAMES[name];
      const tab = press("xk-tab", text, null);
      tab.append(el("span", "xk-n", [...new Set(body.counts(page, name))].join(" · ")));
      attrs(tab, { role: "tab", title, "aria-selected": name === page.group });
      attrs(tab, { tabindex: name === page.group ? 0 : -1 });
      tab.addEventListener("click", () => pickGroup(name));
      return tab;
    }));
    p.tabs.parentElement.hidden = body.isDead(page);
    if (inTabs) p.tabs.querySelector("[aria-selected=true]")?.focus();
  }

  const drawSizes = () =>
    p.sizes.forEach((button, name) => attrs(button, { "aria-pressed": name === size }));

  // found: the page, or the answer to "examples"
  function drawSamples(found) {
    body.sample(page, found, size);
    const held = p.read.querySelector(".xk-held[role]") ? `◇ ${HELD_OUT}` : "";
    const legend = body.isDead(page) ? "" : body.legend(page);
    say(p.legend, [legend, held].filter(Boolean).join(" "));
  }

  async function showWhole() {
    drawSamples(page);
    const { feature, group } = page;
    try {
      const found = await ask("examples", { feature, group, whole: true });
      if (page.feature === feature && page.group === group && size === "context")
        drawSamples(found);
    } catch (reason) {
      failed(reason);
    }
  }

  const hasGroup = (name) => body.counts(page, name).some(Boolean);

  // --- what a person does ---

  function pickGroup(name) {
    group = name;
    go(wanted ?? aim ?? { feature: page.feature });
  }

  function pickSize(name) {
    size = name;
    drawSizes();
    if (size === "context") showWhole();
    else drawSamples(page);
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
    else begin(); // what is found is what the next key is about
    list.box.focus();
  }

  const keys = {
    "/": () => (p.search.focus(), p.search.select()),
    m: toggleMark,
    l: () => editor.open(page.feature),
    g: () => pickGroup(next(facts.groups.filter(hasGroup), group)),
    c: () => pickSize(next(Object.keys(SIZES), size)),
  };

  function pressed(event) {
    event.stopPropagation(); // else the notebook takes the keys for its own
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (editor.box.contains(event.target)) return editor.key(event);
    if (event.target.matches("input, select")) return typed(event);
    const inList = event.target === list.box;
    const inTabs = event.target.role === "tab";
    const letter = event.key.length === 1;
    let done = (inList || letter) && list.key(event.key);
    if (!done && page && Object.hasOwn(keys, event.key)) done = (keys[event.key](), true);
    if (!done && inList && event.key === "Enter") done = (p.read.focus(), true);
    if (!done && event.key === "Escape") done = (list.box.focus(), true);
    if (!done && inTabs && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const names = facts.groups.filter(hasGroup);
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
  p.byOther?.addEventListener("click", () => sortBy("density_b"));
  p.measure.addEventListener("change", () => {
    const measure = p.measure.value;
    relist({ measure, ...(listing.sort === listing.measure && listing.sort !== "density" ? { sort: measure } : {}) });
  });
  p.back.addEventListener("click", () => list.key("k"));
  p.on.addEventListener("click", () => list.key("j"));
  p.mark.addEventListener("click", toggleMark);
  p.edit.addEventListener("click", () => page && editor.open(page.feature));
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
