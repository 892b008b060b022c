// Two runs side by side, A and B: the page of a feature, and what a list says of both.

const SIDES = ["A", "B"];
const CHANGES = {
  log2_ratio: "change", abs_log2_ratio: "size of change", max_log2_ratio: "change of max",
};
const WIDEST = 4; // octaves of a change that fill its bar

// A measure as a person reads it: what is of one run has its letter.
function measureName(name, compare) {
  if (!compare) return name;
  if (name === "cosine") return name;
  return CHANGES[name] ?? (name.endsWith("_b") ? `${name.slice(0, -2)} B` : `${name} A`);
}

const isChange = (measure) => measure === "log2_ratio" || measure === "max_log2_ratio";

// What stands in the last column of a row of the list.
function measured(item, measure, compare) {
  if (!compare) return item.measure == null || !item.density ? "" : digits(item.measure);
  const [a, b] = [item.density > 0, item.density_b > 0];
  if (measure.endsWith("log2_ratio") && a !== b) return `only ${SIDES[a ? 0 : 1]}`;
  if (item.measure == null || !(measure.endsWith("_b") ? b : a || measure === "cosine")) return "";
  return isChange(measure) ? ratio(item.measure) : digits(item.measure);
}

function badge(i) {
  return attrs(el("span", "xk-badge", SIDES[i]), { "data-side": SIDES[i] });
}

// Why a feature of B stands beside that of A.
function pairingOf(other, compare) {
  const said = [];
  if (compare.matched) said.push(`feature ${other.feature}`);
  if (other.label && compare.matched) said.push(visible(other.label));
  if (other.cosine != null) said.push(`cosine ${other.cosine.toFixed(3)}`);
  if (other.mutual != null) said.push(other.mutual ? "mutual" : "one way");
  return said.join(" · ");
}
const MUTUAL = "the decoder row with the largest cosine; mutual: it is so in both directions";

// A row of two columns; what: the names of elements of makeSide that it holds, one below the other.
function columns(what, sides, compare, about) {
  const says = compare.names.map((name) => el("div", "", el("bdi", "xk-side-name", name)));
  const heads = says.map((said, i) =>
    attrs(el("div", "xk-side-head", badge(i), said), { role: "heading", "aria-level": 4 }));
  const made = sides.map((side, i) =>
    attrs(el("div", "xk-of", heads[i], ...what.map((name) => side[name])), {
      role: "group", "aria-label": `${about} of ${SIDES[i]}, ${compare.names[i]}`,
      "data-side": SIDES[i], "data-rows": what.length + 1,
    }));
  return { row: el("div", "xk-both", ...made), says };
}

// As makeBody, of two runs.
function makePair(facts) {
  const { compare } = facts;
  const sides = [makeSide(facts, facts.n_tokens), makeSide(facts, compare.n_tokens)];
  const top = columns(["figures", "weights", "dead", "panels"], sides, compare, "statistics");
  const middle = columns(["samples"], sides, compare, "examples");
  const bottom = columns(["further", "absent"], sides, compare, "more");
  const why = attrs(el("span", "xk-why"), { title: compare.matched ? MUTUAL : null });
  top.says[1].append(why);
  const shared = el("div", "xk-panels");
  const pair = (page) => [page, page.other];
  const max = (page) => page.stats.max_act;
  const scales = (page) => {
    const both = pair(page).map(max);
    return compare.one_sae ? both.map(() => Math.max(...both)) : both;
  };
  return {
    above: [top.row],
    middle: [middle.row],
    below: [shared, bottom.row],
    draw(page, go) {
      const [a, b] = pair(page);
      const units = compare.one_sae;
      const goes = [go, units ? go : null]; // another SAE's numbers lead nowhere in this list
      const filled = pair(page).map((one) => one.hist).filter((hist) => hist.counts.length);
      pair(page).forEach((one, i) => sides[i].draw(one, goes[i], {
        units, than: i ? a.stats : null, ...(units ? { whole: filled } : {}),
        then: compare.one_lens ? [] : lens(one, goes[i]),
      }));
      const once = {
        logits: a.logits.top.length ? a.logits : b.logits,
        similar: a.similar.length ? a.similar : b.similar,
      };
      const said = compare.one_lens ? lens(once, go) : [];
      shared.replaceChildren(...said);
      shared.hidden = !said.length;
      const dead = pair(page).every((one) => one.dead);
      middle.row.hidden = dead;
      bottom.row.hidden = sides.every((side) => side.further.hidden && side.absent.hidden);
      say(why, pairingOf(b, compare));
    },
    sample(page, found, size) {
      const lists = [found.examples, found.others ?? found.other.examples];
      const scale = scales(page);
      pair(page).forEach((one, i) =>
        sides[i].sample(lists[i], size, scale[i], one.dead ? "None: it is dead here." : NONE_KEPT));
    },
    counts: (page, name) => pair(page).map((one) => one.groups[name]),
    isDead: (page) => pair(page).every((one) => one.dead),
    legend(page) {
      const [a, b] = pair(page).map((one) => (one.dead ? "dead" : digits(max(one))));
      if (compare.one_sae)
        return `Heat: in both columns relative to ${digits(scales(page)[0])}, the larger maximum.`;
      return `Heat: in each column relative to its own maximum (A ${a}, B ${b}); activations of two SAEs have different units.`;
    },
  };
}
