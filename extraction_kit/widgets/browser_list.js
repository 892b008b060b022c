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

// events: pick(row), rows(start, count)
function makeList(events) {
  const sizer = el("div", "xk-sizer");
  const box = attrs(el("div", "xk-rows", sizer), {
    ...KEEP, role: "listbox", tabindex: 0, "aria-label": "Features",
  });
  const id = `xk-${randomId()}`;
  const nodes = new Map(); // row -> element
  const rows = new Map(); // row -> what is shown in it
  let [n, at, marks, drawing] = [0, -1, new Set(), 0];

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
    const node = el("div", "xk-row", el("span", "xk-mark"), el("span", "xk-id"),
      el("bdi", "xk-peak-token"), el("span", "xk-density"), el("span", "xk-measure"));
    attrs(node, { role: "option", id: `${id}-${row}` });
    node.addEventListener("mousedown", (event) => {
      event.preventDefault(); // the focus goes to the list, not to a text selection
      box.focus({ preventScroll: true });
      choose(row);
    });
    return node;
  }

  function fillRow(node, row) {
    const item = rows.get(row);
    const [mark, name, token, density, measure] = node.children;
    attrs(node, { "aria-posinset": row + 1, "aria-setsize": n });
    attrs(node, { "aria-selected": row === at, "aria-busy": item ? null : "true" });
    say(mark, item && marks.has(item.feature) ? "★" : "");
    mark.hidden = false;
    say(name, item ? String(item.feature) : "…");
    const text = item?.label ?? (item?.token == null ? "" : visible(item.token));
    say(token, text);
    token.hidden = false;
    token.classList.toggle("xk-labelled", item?.label != null);
    attrs(token, { title: text || null });
    node.classList.toggle("xk-dead", item?.density === 0);
    say(density, item ? (item.density === 0 ? "dead" : share(item.density)) : "");
    density.style.setProperty("--d", densityBar(item?.density).toFixed(3));
    say(measure, item?.measure == null || !item.density ? "" : digits(item.measure));
    density.hidden = measure.hidden = false;
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
      at = listed.at;
      sizer.style.height = `${height()}px`;
      if (at >= 0) scrollTo(Math.max(0, Math.min(room(), at - Math.floor(inSight() / 2))));
      else box.scrollTop = 0;
      keep(listed.rows);
      draw();
    },
    keep,
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
