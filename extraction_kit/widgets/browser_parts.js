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
    edit: press("xk-small", "Label", "edit the label"),
    said: attrs(el("div", "xk-said"), { dir: "auto" }),
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

function assemble(facts, p, list, editor) {
  const about = [facts.title, ...facts.about, `${count(facts.d_sae)} features`];
  about.push(`${short(facts.n_tokens)} tokens`);
  const peak = p.byLabel ?? el("span", "xk-peak-head", "peak token");
  const side = el("div", "xk-side",
    el("div", "xk-find", p.search, p.filters.box),
    el("div", "xk-columns", p.byFeature, peak, p.byDensity,
      el("span", "xk-chosen", p.byMeasure, p.measure)),
    list.box, p.status,
    attrs(el("div", "xk-keys", ...["↑↓ j k", "/ search", "m mark", "l label", "g group", "c context"].map(
      (text) => el("span", "", text))), { "aria-hidden": "true" }));
  const head = el("div", "xk-top", p.title, p.label, el("span", "xk-nav", p.back, p.on, p.mark, p.edit));
  const sizes = attrs(el("div", "xk-sizes", ...p.sizes.values()), {
    role: "group", "aria-label": "how much of the context",
  });
  p.read = attrs(el("div", "xk-read", head, editor.box, p.said, p.figures, p.weights, p.dead, p.panels,
    el("div", "xk-chooser", p.tabs, sizes), p.samples, p.legend, p.further, p.absent), {
    ...KEEP, role: "region", tabindex: 0, "aria-label": "feature",
  });
  const names = el("div", "xk-about", ...about.map((text) => el("bdi", "", text)));
  const panes = el("div", "xk-panes", side, p.read);
  const root = el("section", "xk-root xk-browser", names, panes, p.note, p.live);
  return attrs(root, { role: "group", "aria-label": `features of ${facts.title}` });
}
