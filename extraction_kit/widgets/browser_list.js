// The list of the feature browser: only the rows in sight exist, and the page asks for them
// by number. 131,072 rows cost what 30 cost.

const ROW = 26; // px
const MAX_HEIGHT = 8_000_000; // px: browsers end at 17 million; beyond, a scrollbar's px is more
const AHEAD = 60; // rows asked for before they are in sight
const KEPT_ROWS = 4000;
const LOG_LOWEST = -6; // density 1e-6: an empty bar

function densityBar(density) {
  if (!(density > 0)) return 0;
  return Math.min(1, Math.max(0.02, 1 - Math.log10(density) / LOG_LOWEST));
}

// events: pick(row), rows(start, count); compare: what a browser of two runs knows of them
function makeList(events, compare = null) {
  const sizer = el("div", "xk-sizer");
  const box = attrs(el("div", "xk-rows", sizer), {
    ...KEEP, role: "listbox", tabindex: 0, "aria-label": "Features",
  });
  const id = `xk-${randomId()}`;
  const nodes = new Map(); // row -> element
  const rows = new Map(); // row -> what is shown in it
  let [n, at, marks, drawing, measure] = [0, -1, new Set(), 0, ""];

  const inSight = () => Math.max(1, Math.floor(box.clientHeight / ROW));
  const room = () => Math.max(0, n - inSight());
  const height = () => Math.min(MAX_HEIGHT, n * ROW);
  const travel = () => Math.max(1, height() - box.clientHeight);
  const stretched = () => n * ROW > MAX_HEIGHT;
  const first = () =>
    stretched() ? (box.scrollTop / travel()) * (n - box.clientHeight / ROW) : box.scrollTop / ROW;
  const scrollTo = (row) => {
    const whole = n - box.clientHeight / ROW;
    box.scrollTop = stretched() ? (row / Math.max(1, whole)) * travel() : row * ROW;
  };

  function rowNode(row) {
    const cells = {
      mark: el("span", "xk-mark"), name: el("span", "xk-id"),
      match: compare?.matched ? el("span", "xk-match") : null,
      token: el("bdi", "xk-peak-token"), density: el("span", "xk-density"),
      other: compare ? el("span", "xk-density xk-density-b") : null,
      measure: el("span", "xk-measure"),
    };
    const node = el("div", "xk-row", ...Object.values(cells));
    node.xkCells = cells;
    attrs(node, { role: "option", id: `${id}-${row}` });
    node.addEventListener("mousedown", (event) => {
      event.preventDefault(); // the focus goes to the list, not to a text selection
      box.focus({ preventScroll: true });
      choose(row);
    });
    return node;
  }

  // An empty cell keeps its place.
  function write(cell, text) {
    say(cell, text);
    cell.hidden = false;
  }

  function fillDensity(cell, item, density) {
    write(cell, item ? (density === 0 ? "dead" : share(density)) : "");
    cell.style.setProperty("--d", densityBar(density).toFixed(3));
    cell.classList.toggle("xk-none", density === 0);
  }

  function fillMeasure(cell, item) {
    write(cell, item ? measured(item, measure, compare) : "");
    if (!compare) return;
    const octaves = isChange(measure) ? item?.measure ?? 0 : 0;
    cell.style.setProperty("--c", Math.min(1, Math.abs(octaves) / WIDEST).toFixed(3));
    attrs(cell, { "data-way": octaves > 0 ? "up" : octaves < 0 ? "down" : null });
  }

  function fillRow(node, row) {
    const item = rows.get(row);
    const { mark, name, match, token, density, other, measure } = node.xkCells;
    attrs(node, { "aria-posinset": row + 1, "aria-setsize": n });
    attrs(node, { "aria-selected": row === at, "aria-busy": item ? null : "true" });
    write(mark, item && marks.has(item.feature) ? "★" : "");
    say(name, item ? String(item.feature) : "…");
    if (match) write(match, item ? `→ ${item.feature_b}` : "");
    const text = item?.label ?? (item?.token == null ? "" : visible(item.token));
    write(token, text);
    token.classList.toggle("xk-labelled", item?.label != null);
    attrs(token, { title: text || null });
    node.classList.toggle("xk-dead", item?.density === 0 && !(item.density_b > 0));
    fillDensity(density, item, item?.density);
    if (other) fillDensity(other, item, item?.density_b);
    fillMeasure(measure, item);
  }

  function draw() {
    drawing = 0;
    sizer.style.height = `${height()}px`;
    const from = Math.max(0, Math.min(first(), n - box.clientHeight / ROW));
    const begin = Math.floor(from);
    const end = Math.min(n, begin + inSight() + 2);
    for (const [row, node] of nodes) {
      if (row >= begin && row < end) continue;
      node.remove();
      nodes.delete(row);
    }
    for (let row = begin; row < end; row++) {
      let node = nodes.get(row);
      if (!node) {
        node = rowNode(row);
        nodes.set(row, node);
      }
      const here = sizer.children[row - begin]; // in the order in which they are seen
      if (here !== node) sizer.insertBefore(node, here ?? null);
      fillRow(node, row);
      node.style.transform = `translateY(${Math.round(box.scrollTop + (row - from) * ROW)}px)`;
    }
    attrs(box, { "aria-activedescendant": nodes.has(at) ? `${id}-${at}` : null });
    askFor(begin, end);
  }

  const later = () => (drawing ||= requestAnimationFrame(draw));

  function askFor(begin, end) {
    let missing = false;
    for (let row = begin; row < end && !missing; row++) missing = !rows.has(row);
    if (missing) events.rows(Math.max(0, begin - AHEAD), end - begin + 2 * AHEAD);
  }

  function keep(part) {
    if (rows.size > KEPT_ROWS) rows.clear();
    part.feature.forEach((feature, i) => {
      rows.set(part.start + i, {
        feature, token: part.token[i], density: part.density[i], measure: part.measure[i],
        label: part.label?.[i] ?? null,
        feature_b: part.feature_b?.[i], density_b: part.density_b?.[i],
      });
    });
    later();
  }

  function reveal(row) {
    const top = first();
    if (row < top) scrollTo(row);
    else if (row > top + inSight() - 1) scrollTo(Math.min(room(), row - inSight() + 1));
  }

  function choose(row) {
    if (!n) return;
    at = Math.max(0, Math.min(n - 1, row));
    reveal(at);
    draw();
    events.pick(at);
  }

  const steps = {
    ArrowDown: () => at + 1, j: () => at + 1, ArrowUp: () => at - 1, k: () => at - 1,
    Home: () => 0, End: () => n - 1,
    PageDown: () => at + inSight(), PageUp: () => at - inSight(),
  };

  box.addEventListener("scroll", later, { passive: true });
  const watch = new ResizeObserver(later);
  watch.observe(box);

  return {
    box,
    // Moves by one of the keys; false for any other key.
    key(name) {
      if (!Object.hasOwn(steps, name)) return false;
      choose(at < 0 && name !== "End" ? 0 : steps[name]());
      return true;
    },
    // Another list: its rows, and where the feature shown is in it.
    show(listed) {
      rows.clear();
      for (const node of nodes.values()) node.remove();
      nodes.clear();
      n = listed.n;
      measure = listed.listing.measure;
      at = listed.at;
      sizer.style.height = `${height()}px`;
      if (at >= 0) scrollTo(Math.max(0, Math.min(room(), at - Math.floor(inSight() / 2))));
      else box.scrollTop = 0;
      keep(listed.rows);
      draw();
    },
    keep,
    // Opens the first row, unless the feature shown is in the list.
    begin() {
      if (at < 0) choose(0);
    },
    // Where the feature shown is, -1: not in this list.
    place(row) {
      at = row;
      if (row >= 0) reveal(row);
      draw();
    },
    mark(features) {
      marks = new Set(features);
      draw();
    },
    size: () => n,
    // The feature of the chosen row: it may be painted a moment later.
    chosen: () => rows.get(at)?.feature ?? null,
    stop() {
      watch.disconnect();
      if (drawing) cancelAnimationFrame(drawing);
    },
  };
}
