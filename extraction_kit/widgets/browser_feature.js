// One feature in the feature browser: figures, histogram, ranked lists, examples.

const GROUP_NAMES = {
  top: ["Top", "the largest activations, one of each context"],
  band_1: ["½–1", "drawn from the contexts whose peak is above half of the maximum"],
  band_2: ["¼–½", "drawn from the contexts whose peak is a quarter to half of the maximum"],
  band_3: ["⅛–¼", "drawn from the contexts whose peak is an eighth to a quarter of it"],
  band_4: ["1⁄16–⅛", "drawn from the contexts whose peak is a sixteenth to an eighth of it"],
  random: ["Random", "drawn from all contexts in which the feature is active"],
  silent: ["Silent", "drawn from the contexts in which it is active on no token"],
};
const SIZES = {
  line: ["Line", "one line around the peak, the peaks below each other"],
  window: ["Window", "all tokens whose activations are kept"],
  context: ["Context", "the whole context; activations are kept in the window only"],
};
const HELD_OUT = "held out: explain the feature with the others, score with these";

// --- figures ---------------------------------------------------------------------------

const orDash = (x) => (x == null ? "—" : digits(x));
// A change that is given by its logarithm to base 2.
const ratio = (octaves) =>
  octaves < 0 ? `÷${digits(2 ** -octaves)}` : `×${digits(2 ** octaves)}`;

// than: the statistics of the other run, of which the change is told; units: whether the
// activations of both have one unit.
function figures(page, than = null, units = true) {
  const s = page.stats;
  const spread = s.mean_act == null ? "—" : `${digits(s.mean_act)} ± ${digits(s.std_act)}`;
  return [
    [share(s.density), "of tokens", "density"],
    [orDash(page.dead ? null : s.max_act), "max", "max_act"],
    [spread, "mean ± std", "mean_act"],
    [orDash(s.q50), "median", "q50"],
    [orDash(s.q99), "99 %", "q99"],
    [share(s.context_density), "of contexts", "context_density"],
  ].map(([value, name, key]) => {
    const told = than && (units || key.endsWith("density"));
    const change = told && than[key] > 0 && s[key] > 0 ? ratio(Math.log2(s[key] / than[key])) : "";
    return el("div", "xk-stat", el("div", "xk-value", value),
      el("div", "xk-label", name, change && el("span", "xk-change", ` ${change}`)));
  });
}

function weights(page) {
  const s = page.stats;
  return [
    `${count(s.n_active)} tokens in ${count(s.n_contexts)} contexts`,
    s.decoder_norm == null ? null : `decoder norm ${digits(s.decoder_norm)}`,
    s.encoder_norm == null ? null : `encoder norm ${digits(s.encoder_norm)}`,
    s.enc_dec_cos == null ? null : `encoder · decoder ${digits(s.enc_dec_cos)}`,
  ].filter(Boolean).map((text) => el("bdi", "", text));
}

// --- histogram -------------------------------------------------------------------------

const atMost = (x) => (x >= 1 ? digits(x) : String(Number(x.toPrecision(2))));

// bins: {per_octave, log2_low, n}; the first one reaches down to 0, the last one has no end.
// whole: histograms that have the same axis as this one.
function histogram(page, bins, whole = [page.hist]) {
  const { first, counts } = page.hist;
  const perOctave = bins.per_octave;
  const edge = (bin) => (bin <= 0 ? 0 : 2 ** (bins.log2_low + (bin - 1) / perOctave));
  const span = (bin) => bin === bins.n - 1
    ? `above ${digits(edge(bin))}` : `${digits(edge(bin))} to ${digits(edge(bin + 1))}`;
  // whole octaves, so that the ticks of two features can be compared
  const octave = (bin) => Math.floor((bin - 1) / perOctave);
  const from = octave(Math.min(...whole.map((one) => one.first))) * perOctave + 1;
  const last = Math.max(...whole.map((one) => one.first + one.counts.length - 1));
  const to = (octave(last) + 1) * perOctave + 1;
  const most = Math.max(...counts);
  const bars = [];
  for (let bin = from; bin < to; bin++) {
    const n = counts[bin - first] ?? 0;
    const bar = el("i", n ? "xk-bin" : "");
    bar.style.height = `${(100 * n) / most}%`;
    if (n) bar.title = `${span(bin)}: ${count(n)} tokens`;
    bars.push(bar);
  }
  const s = page.stats;
  const says =
    `Activations of ${count(s.n_active)} tokens: half of them up to ${orDash(s.q50)}, ` +
    `90 % up to ${orDash(s.q90)}, the largest ${orDash(s.max_act)}`;
  const picture = attrs(el("div", "xk-plot", ...bars), { role: "img", "aria-label": says });
  const octaves = (to - from) / perOctave;
  const every = Math.ceil((octaves + 1) / 7);
  const ticks = [];
  for (let i = 0; i <= octaves; i += every) {
    const tick = el("span", "", atMost(edge(from + i * perOctave)));
    tick.style.left = `${(100 * i) / octaves}%`;
    ticks.push(tick);
  }
  const axis = attrs(el("div", "xk-ticks", ...ticks), { "aria-hidden": "true" });
  return panel("Activations", `log scale · to ${count(most)}`, picture, axis);
}

// --- ranked lists ----------------------------------------------------------------------

function panel(title, hint, ...children) {
  const head = attrs(el("div", "xk-panel-title", title), { role: "heading", "aria-level": 4 });
  if (hint) head.append(el("span", "xk-hint", hint));
  return el("div", "xk-panel", head, ...children);
}

// rows: [name, value, text of the value, title]; go(row): what a click on a name does
function ranked(rows, kind, go = null) {
  const most = Math.max(1e-9, ...rows.map(([, value]) => Math.abs(value)));
  const lines = rows.map(([name, value, text, title], i) => {
    const shown = go
      ? attrs(el("button", "xk-go", name), { ...KEEP, type: "button", title })
      : attrs(el("bdi", "xk-chip", name), { title });
    if (go) shown.addEventListener("click", () => go(i));
    const line = el("li", `xk-line ${kind}`, shown, el("span", "xk-number", text));
    line.style.setProperty("--w", (Math.abs(value) / most).toFixed(3));
    return line;
  });
  return el("ol", "xk-ranked", ...lines);
}

// A token that is nothing but spaces is shown by dots, else it cannot be seen.
const chip = (text) => (/^ +$/.test(text) ? "·".repeat(Math.min(text.length, 12)) : visible(text));
const three = (x) => x.toPrecision(3).replace("-", "−");
const tokenRows = (rows) =>
  rows.map(([text, value]) => [chip(text), value, three(value), visible(text)]);

function likeRows(rows, jump) {
  return rows.map(([feature, value, name]) => [
    name == null ? String(feature) : `${feature} ${visible(name)}`, value, value.toFixed(3),
    jump && `go to feature ${feature}`,
  ]);
}

// What is looked at first stands above the examples, the rest below them.
function activations(page, bins, whole) {
  return page.hist.counts.length ? [histogram(page, bins, whole)] : [];
}

// What the weights alone say.
function lens(page, go) {
  const { top, bottom } = page.logits;
  const list = like("Similar", "cosine", page.similar, go);
  if (!top.length) return list;
  return [
    panel("Promotes", "logit lens", ranked(tokenRows(top), "xk-up")),
    panel("Suppresses", "", ranked(tokenRows(bottom), "xk-down")),
    ...list,
  ];
}

// go: what a click on a feature does; null where its number means another feature here.
function like(title, hint, rows, go) {
  if (!rows.length) return [];
  const jump = go && ((i) => go(rows[i][0]));
  return [panel(title, hint, ranked(likeRows(rows, jump), "xk-near", jump))];
}

function furtherPanels(page, go) {
  const list = like("Fires with", "Jaccard", page.partners, go);
  if (page.tokens.length) {
    const rows = page.tokens.map(([text, n, mean]) => [
      chip(text), n, count(n), `${visible(text)}: ${count(n)} tokens, mean ${digits(mean)}`,
    ]);
    list.push(panel("Fires on", "tokens", ranked(rows, "xk-near")));
  }
  return list;
}

function absences(page) {
  return Object.values(page.absent).map((why) => el("li", "", ...prose(why)));
}

// --- examples --------------------------------------------------------------------------

// A line: what comes before the peak ends where what follows begins, in every example.
function lineOf(example, scale) {
  const { tokens, acts, peak } = example;
  const [left, right] = [el("div", "xk-left"), el("div", "xk-right")];
  left.append(el("span", "", ...heat(tokens.slice(0, peak), acts.slice(0, peak), scale)));
  right.append(...heat(tokens.slice(peak), acts.slice(peak), scale, 0));
  return el("div", "xk-kwic", left, right);
}

function blockOf(example, scale) {
  const { before, tokens, acts, peak, after } = example;
  const far = (texts) =>
    texts.length
      ? [attrs(el("bdi", "xk-far", texts.map(visible).join("")), { dir: "ltr" })]
      : [];
  return el("div", "xk-block", ...far(before), ...heat(tokens, acts, scale, peak), ...far(after));
}

function exampleRows(examples, size, scale) {
  return examples.map((example) => {
    const text = size === "line" ? lineOf(example, scale) : blockOf(example, scale);
    const value = attrs(el("span", "xk-act-value", example.act > 0 ? digits(example.act) : "0"), {
      title: `context ${example.context}, token ${example.pos}`,
    });
    const held = attrs(el("span", "xk-held", example.held_out ? "◇" : ""), {
      role: example.held_out ? "img" : null,
      "aria-label": example.held_out ? "held out" : null,
      title: example.held_out ? HELD_OUT : null,
    });
    return el("li", "xk-sample", held, value, text);
  });
}

// --- put together ----------------------------------------------------------------------

const NONE_KEPT = "No example of this group was kept.";

// One run's part of the page: its elements, and what fills them.
function makeSide(facts, nTokens) {
  const s = {
    figures: el("div", "xk-stats"), weights: el("div", "xk-meta"), dead: el("div", "xk-empty"),
    panels: el("div", "xk-panels"), samples: el("ol", "xk-samples"),
    further: el("div", "xk-panels"), absent: el("ul", "xk-absent"),
  };
  const fillUp = (node, children) => {
    node.replaceChildren(...children);
    node.hidden = !children.length;
  };
  // go: see like(); of a comparison, than, units and whole: see figures() and histogram();
  // first: what stands beside the histogram, then: what stands below the examples
  s.draw = (page, go, { than = null, units = true, whole = [page.hist], first = [], then = [] } = {}) => {
    s.figures.replaceChildren(...figures(page, than, units));
    s.weights.replaceChildren(...weights(page));
    const never = `Never active on the ${count(nTokens)} tokens of this corpus: dead.`;
    say(s.dead, page.dead ? never : "");
    fillUp(s.panels, [...activations(page, facts.bins, whole), ...first]);
    fillUp(s.further, [...then, ...furtherPanels(page, go)]);
    fillUp(s.absent, absences(page));
  };
  // none: what is said where there is no example
  s.sample = (examples, size, scale, none) => {
    s.samples.replaceChildren(...exampleRows(examples, size, scale));
    if (!examples.length && none) s.samples.replaceChildren(el("li", "xk-empty", none));
    attrs(s.samples, { "data-size": size });
  };
  return s;
}

// The page of one run: what stands above its examples, the examples, and what stands below.
function makeBody(facts) {
  const side = makeSide(facts, facts.n_tokens);
  return {
    above: [side.figures, side.weights, side.dead, side.panels],
    middle: [side.samples],
    below: [side.further, side.absent],
    draw: (page, go) => side.draw(page, go, { first: lens(page, go) }),
    sample: (page, found, size) =>
      side.sample(found.examples, size, page.stats.max_act, page.dead ? "" : NONE_KEPT),
    // Examples of a group, of each run.
    counts: (page, name) => [page.groups[name]],
    isDead: (page) => page.dead,
    legend: () => "",
  };
}
