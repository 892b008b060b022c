// What the feature browser is made of, and how it is put together.

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

function filterParts(facts) {
  const number = (label) => field("number", label, { min: 0, step: "any", placeholder: "any" });
  const f = {
    density: [number("least density, per cent"), number("largest density, per cent")],
    max_act: [number("least max activation"), number("largest max activation")],
    life: select("dead features", facts.compare ? [
      ["all", "alive and dead"], ["alive", "alive in both"], ["dead", "dead in both"],
      ["only_a", "alive in A only"], ["only_b", "alive in B only"],
    ] : [["all", "alive and dead"], ["alive", "alive only"], ["dead", "dead only"]]),
    marked: field("checkbox", "marked features only"),
    label: field("text", "label contains", { placeholder: "any", maxlength: 200 }),
    clear: press("xk-small", "Clear filters"),
    box: details("xk-filters", "Filters"),
  };
  const of = facts.compare ? " A" : "";
  const line = (name, ...nodes) => [el("span", "xk-name-of", name), el("div", "xk-pair", ...nodes)];
  f.box.append(el("div", "xk-filter-grid",
    ...line(`density${of} %`, f.density[0], "–", f.density[1]),
    ...line(`max${of}`, f.max_act[0], "–", f.max_act[1]),
    ...line("show", f.life),
    ...(facts.labelled ? line("label", f.label) : []),
    ...line("marked", el("label", "", f.marked, " marked only"), f.clear)));
  return f;
}

function browserParts(facts) {
  const search = field("search", "token at the peak contains; # and a number goes to a feature", {
    placeholder: "peak token, or #1234", maxlength: 200, spellcheck: "false",
  });
  const { compare } = facts;
  const shown = compare ? ["density", "density_b"] : ["density"];
  const measures = Object.entries(facts.measures).filter(([name]) => !shown.includes(name));
  const p = {
    search,
    filters: filterParts(facts),
    byFeature: press("xk-sort", "feature"),
    byDensity: press("xk-sort", "density"),
    byMeasure: press("xk-sort", ""),
    measure: select("what the last column shows", measures.map(
      ([name, says]) => [name, measureName(name, compare), says])),
    status: attrs(el("div", "xk-status"), { role: "status" }),
    title: attrs(el("div", "xk-heading"), { role: "heading", "aria-level": 3 }),
    label: el("bdi", "xk-name"),
    back: press("xk-small", "‹", "previous feature of the list"),
    on: press("xk-small", "›", "next feature of the list"),
    mark: press("xk-small", "☆ Mark"),
    edit: press("xk-small", "Label", "edit the label"),
    said: attrs(el("div", "xk-said"), { dir: "auto" }),
    tabs: attrs(el("div", "xk-tabs"), { role: "tablist", "aria-label": "groups of examples" }),
    sizes: new Map(Object.entries(SIZES).map(([name, [text, title]]) =>
      [name, attrs(press("xk-size", text, null), { title })])),
    legend: el("div", "xk-legend"),
    note: el("div", "xk-note"),
    live: attrs(el("div", "xk-live"), { role: "status" }), // always there, else nobody hears it
  };
  if (compare) p.byOther = press("xk-sort", "density B");
  if (facts.labelled) p.byLabel = attrs(press("xk-sort", "label / token"),
    { title: "your label; where there is none, the token at the largest peak" });
  return p;
}

function aboutRow(facts) {
  const { compare } = facts;
  const row = (cls, title, about, dSae, nTokens) =>
    el("div", cls, ...[title, ...about, `${count(dSae)} features`, `${short(nTokens)} tokens`]
      .map((text) => el("bdi", "", text)));
  const mine = [facts.about, facts.d_sae, facts.n_tokens];
  if (!compare) return row("xk-about", facts.title, ...mine);
  const [a, b] = compare.names;
  const other = [compare.about, compare.d_sae, compare.n_tokens];
  return el("div", "xk-about",
    el("div", "xk-about-of", badge(0), row("xk-about-line", a, ...mine)),
    el("div", "xk-about-of", badge(1), row("xk-about-line", b, ...other)));
}

function assemble(facts, p, list, editor, body) {
  const { compare } = facts;
  const peak = p.byLabel ?? el("span", "xk-peak-head", "peak token");
  const match = compare?.matched ? attrs(el("span", "xk-match", "→ B"), { title: "the feature of B" }) : null;
  const side = el("div", "xk-side",
    el("div", "xk-find", p.search, p.filters.box),
    el("div", "xk-columns", p.byFeature, match, peak, p.byDensity, p.byOther,
      el("span", "xk-chosen", p.byMeasure, p.measure)),
    list.box, p.status,
    attrs(el("div", "xk-keys", ...["↑↓ j k", "/ search", "m mark", "l label", "g group", "c context"].map(
      (text) => el("span", "", text))), { "aria-hidden": "true" }));
  const head = el("div", "xk-top", p.title, p.label, el("span", "xk-nav", p.back, p.on, p.mark, p.edit));
  const sizes = attrs(el("div", "xk-sizes", ...p.sizes.values()), {
    role: "group", "aria-label": "how much of the context",
  });
  p.read = attrs(el("div", "xk-read", head, editor.box, p.said, ...body.above,
    el("div", "xk-chooser", p.tabs, sizes), ...body.middle, p.legend, ...body.below), {
    ...KEEP, role: "region", tabindex: 0, "aria-label": "feature",
  });
  const panes = el("div", "xk-panes", side, p.read);
  const root = el("section", "xk-root xk-browser", aboutRow(facts), panes, p.note, p.live);
  root.classList.toggle("xk-comparing", Boolean(compare));
  root.classList.toggle("xk-matched", Boolean(compare?.matched));
  const whose = compare ? compare.names.join(" and ") : facts.title;
  return attrs(root, { role: "group", "aria-label": `features of ${whose}` });
}
