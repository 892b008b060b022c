// The features of a run in another widget: below its card, or below the table of the dashboard.

const CANNOT_EMBED = "This page cannot show a widget in another one";
const canEmbed = (widgets) => typeof widgets?.getWidget === "function";

// Shows a feature browser that the kernel made. widgets: anywidget's host.
async function embed(widgets, modelId, holder, signal) {
  const child = await widgets.getWidget(`anywidget:${modelId}`);
  await child.render({ el: holder, signal });
}

// What stands below a card while its features are open. shut(): a person closes them;
// failed(text): they cannot be shown. Returns {root, id, show}; show(null) closes.
function openedBelow({ widgets, shut, failed }) {
  const id = `xk-features-${randomId()}`;
  const title = attrs(el("strong", "xk-opened-title"), { id: `${id}-title` });
  const close = attrs(el("button", "xk-act", "Close"), { ...KEEP, type: "button", title: "Close (Escape)" });
  const head = el("div", "xk-opened-head", title, snippet("browser = run.browse()"), close);
  const root = attrs(el("section", "xk-root xk-opened", head), {
    role: "region", id, "aria-labelledby": title.id, hidden: "",
  });
  let shown = null; // {modelId, holder, abort}

  close.addEventListener("click", shut);
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || shown?.holder.contains(event.target)) return; // it has uses of its own
    event.stopPropagation();
    shut();
  });

  function show(modelId, name) {
    if (modelId === (shown?.modelId ?? null)) return;
    shown?.abort.abort();
    shown?.holder.remove();
    shown = null;
    root.hidden = modelId == null;
    if (modelId == null) return;
    say(title, `Features of ${name}`);
    const one = { modelId, holder: el("div", "xk-holder"), abort: new AbortController() };
    shown = one;
    root.append(one.holder);
    embed(widgets, modelId, one.holder, one.abort.signal).catch(
      (reason) => shown === one && failed(`The features cannot be shown: ${reason?.message ?? reason}`),
    );
  }

  return { root, id, show };
}

const VIEWS = new WeakMap(); // model of a card to the number of its views on this page

function countViews(model, change) {
  const n = (VIEWS.get(model) ?? 0) + change;
  VIEWS.set(model, n);
  return n;
}

// The button "Open features" of a card, and what it opens.
// openFeatures(): where the card is in a dashboard, which opens them in its place.
// card: {message(), pending(), send(name), button(), announce(text), failed(text), draw()}.
function makeFeatures({ model, widgets, openFeatures, card }) {
  let opened = null; // model of the feature browser that is open
  let acked = null; // the same, until the state tells of it too
  let closed = null; // what was closed here: a state on its way may still tell of it
  let greeting = null; // {id, at}: a hello that is not answered yet
  let gone = false; // the kernel that made the card
  const without = el("div", "xk-without");
  const below = openedBelow({ widgets, shut: close, failed });

  // A completed run has no news: whether the kernel is still there is asked for.
  function askKernel() {
    greeting = { id: randomId(), at: greeting?.at ?? Date.now() };
    gone = !post(model, { kind: "hello", id: greeting.id });
  }

  // Why they cannot be opened on this page, or not now; null where they can.
  function hindrance() {
    if (openFeatures || opened) return null;
    if (!canEmbed(widgets)) return `${CANNOT_EMBED}: the features open in a cell only.`;
    const act = card.pending();
    const unheard = act?.name === "features" && !act.text;
    const since = Math.min(greeting?.at ?? Infinity, unheard ? act.at : Infinity);
    const late = Date.now() - since > STALE_BEATS * 1000 * (card.message().beat_s ?? 4);
    if (!gone && !late) return null;
    return "Open features needs the kernel that made this card, which does not answer: it is busy or gone. In a cell:";
  }

  function failed(text) {
    card.failed(text);
    close();
  }

  function close() {
    if (!opened) return;
    const inside = below.root.contains(document.activeElement);
    closed = opened;
    opened = acked = null;
    post(model, { kind: "act", id: randomId(), name: "close" });
    if (inside) card.button()?.focus({ preventScroll: true });
    card.draw();
  }

  function press() {
    if (openFeatures) return openFeatures();
    if (opened) return close();
    const reason = hindrance();
    if (!reason) return card.send("features");
    if (!card.pending()) askKernel(); // it may be back
    card.announce(`${reason} run.browse()`);
    card.draw();
  }

  return {
    root: below.root, without, press,
    isOpen: () => opened != null,
    lost: () => (gone = true),

    draw(view) {
      const legal = legalActs(view).includes("features");
      if (opened && !legal) close(); // it was deleted
      below.show(opened, view.training_id);
      const reason = legal ? hindrance() : null;
      fill(without, reason, () => [el("div", "", reason), snippet("run.browse()")]);
    },

    drawButton(button) {
      const off = card.pending() || hindrance();
      attrs(button, { "aria-disabled": off ? "true" : null, title: hindrance() });
      if (openFeatures) return;
      attrs(button, { "aria-expanded": String(opened != null), "aria-controls": opened ? below.id : null });
    },

    // What the kernel says: the state of the card, an answer to a hello, that they are open.
    received(message) {
      gone = false;
      if (message.browser) acked = null;
      const told = message.browser ?? acked;
      opened = told === closed ? null : told;
    },
    heard(content) {
      if (content?.kind !== "ack" || content.id !== greeting?.id) return;
      greeting = null;
      card.draw();
    },
    acknowledged(browser) {
      opened = acked = browser;
      card.announce("The features are open below the card.");
    },

    start() {
      countViews(model, 1);
      if (card.message().view?.state === "completed" && !openFeatures) askKernel();
    },
    stop() {
      if (countViews(model, -1) === 0) close(); // nobody sees them any more
      below.show(null);
      below.root.remove();
    },
  };
}
