// Words and elements for all widgets: put in front of a widget's own file, as one module.
// Text from outside reaches the page as text only, never as markup.

const BUSY_AFTER_MS = 700; // an answer usually takes 20 ms
const KEEP = { "data-lm-suppress-shortcuts": "true" }; // else pressing x deletes the cell

// --- words -----------------------------------------------------------------------------

const count = (n) => (n == null ? "—" : Math.round(n).toLocaleString("en-US"));
const digits = (x) => (Math.abs(x) >= 1000 ? count(x) : String(Number(x.toPrecision(3))));
const short = (x) =>
  x >= 1e6 ? `${(x / 1e6).toFixed(2)} M` : x >= 1e4 ? `${(x / 1e3).toFixed(1)} k` : count(x);
const share = (x) => `${digits(100 * x)} %`;
const seconds = (iso) => (iso ? Date.parse(iso) / 1000 : null);
const two = (n) => String(n).padStart(2, "0");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function clock(s) {
  const all = Math.max(0, Math.round(s));
  const [h, m, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return h ? `${h}:${two(m)}:${two(rest)}` : `${m}:${two(rest)}`;
}

function moment(epoch, withSeconds = false) {
  const at = new Date(epoch * 1000);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const end = withSeconds ? `:${two(at.getSeconds())}` : "";
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}${end}`;
}

function ago(s) {
  if (s < 60) return "just now";
  const steps = [[86400, "day"], [3600, "hour"], [60, "minute"]];
  const [size, unit] = /** @type {[number, string]} */ (steps.find(([n]) => s >= Number(n)));
  const n = Math.floor(s / size);
  return `${n} ${unit}${n > 1 ? "s" : ""} ago`;
}

function visible(token) {
  const named = { "\n": "↵", "\r": "␍", "\t": "⇥" };
  return Array.from(token, (char) => {
    const code = char.codePointAt(0) ?? 0;
    if (named[char]) return named[char];
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code >= 0x7f && code < 0xa0) return "␦";
    return char;
  }).join("");
}

// --- elements --------------------------------------------------------------------------

function el(tag, cls, ...children) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  node.append(...children.filter((child) => child != null));
  return node;
}

function attrs(node, values) {
  for (const [name, value] of Object.entries(values)) {
    if (value == null) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
  return node;
}

// Writing equal text again would lose a selection and make a screen reader repeat itself.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

// Build again only when what is shown changed: focus and selection stay.
function fill(node, key, build) {
  const text = JSON.stringify(key);
  if (node.xkKey === text) return;
  node.xkKey = text;
  const children = key == null ? [] : build();
  node.replaceChildren(...children);
  node.hidden = children.length === 0;
}

const prose = (text) =>
  text.split(/`([^`\n]+)`/).map((part, i) => el(i % 2 ? "code" : "bdi", "", part));

function randomId() {
  return globalThis.crypto?.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
}

function details(cls, title) {
  const summary = attrs(el("summary", "", title), KEEP);
  return el("details", cls, summary);
}

// A line of code with a button that copies it (or selects it where copying is forbidden).
function snippet(code) {
  const shown = el("code", "xk-snippet-code", code);
  const button = attrs(el("button", "xk-copy", "Copy"), { ...KEEP, type: "button" });
  attrs(button, { "aria-label": `Copy ${code}` });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch {
      getSelection()?.selectAllChildren(shown);
    }
  });
  return el("div", "xk-snippet", shown, button);
}

// Returns false where the kernel that made the widget is gone: JupyterLab then throws.
function post(model, message) {
  try {
    model.send(message);
    return true;
  } catch {
    return false;
  }
}

// Tokens as elements: the warmer, the nearer to `scale`; `at` is the index of the peak.
// What stands between two warm tokens is one element: fewer of them paint faster.
function heat(tokens, acts, scale, at = -1) {
  const found = [];
  let quiet = "";
  const flush = () => {
    if (quiet) found.push(attrs(el("bdi", "xk-token", quiet), { dir: "ltr" }));
    quiet = "";
  };
  tokens.forEach((text, i) => {
    const act = acts[i];
    if (!(act > 0) && i !== at) {
      quiet += visible(text);
      return;
    }
    flush();
    const node = el("bdi", "xk-token", visible(text));
    if (act > 0 && scale > 0) {
      node.classList.add("xk-on");
      node.style.setProperty("--a", Math.min(1, act / scale).toFixed(3));
      node.title = digits(act);
    }
    node.classList.toggle("xk-peak", i === at && act > 0);
    found.push(node);
  });
  flush();
  return found;
}
