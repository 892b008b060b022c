// The page side of a run card; card.py puts the files that it is made of in front of it, and
// lists the messages.

const ACTIVE = ["requested", "queued", "extracting", "publishing"];
const HELLO_MS = 10_000;
const STALE_BEATS = 3;
const TWICE_MS = 500; // between the two clicks of a double click
const WINDOW_S = 60; // what "recent" means for speed and time left
const DOING = { cancel: "Cancelling…", resume: "Resuming…", launch: "Sending…", features: "Opening…" };
const DONE = { cancel: "Cancel", resume: "Resume", launch: "Launch", features: "Open features" };

// --- one hello for all views of a model ------------------------------------------------

// Tells the kernel that somebody looks: it sends less often to nobody.
function greet({ model, signal }) {
  let timer = 0;
  const hello = () => {
    clearTimeout(timer);
    if (document.visibilityState === "hidden") return;
    if (!post(model, { kind: "hello", id: randomId() })) return;
    const final = model.get("state")?.view?.state === "completed";
    if (!final) timer = setTimeout(hello, HELLO_MS);
  };
  document.addEventListener("visibilitychange", hello);
  hello();
  const stop = () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", hello);
  };
  signal?.addEventListener("abort", stop);
  return stop;
}

// --- what a state means ----------------------------------------------------------------

function legalActs(view) {
  if (view.state === "completed") return view.deleted_at ? ["launch"] : ["features", "launch"]; // launch refuses, and says why
  if (view.state === "publishing") return []; // too late to cancel
  if (view.state === "requested" && view.findings.length) return ["launch", "cancel"];
  return ACTIVE.includes(view.state) ? ["cancel"] : ["resume"];
}

function label(view, name) {
  if (name === "launch" && view.state !== "completed") return "Send again";
  return name === "features" ? DONE[name] : capital(name);
}

function whyNot(view, name) {
  if (name === "launch" && view.state === "completed")
    return `Refused: completed ${moment(seconds(view.completed_at) ?? 0)}`;
  if (name === "cancel" && view.cancel_requested)
    return "Cancel is on its way: the worker stops within one batch.";
  return null;
}

function phase(view) {
  if (view.cancel_requested) return "stopping after this batch";
  const waiting = {
    requested: "waiting to be accepted by the queue",
    queued: "waiting for a worker",
    publishing: "writing the results",
  };
  return waiting[view.state] ?? view.phase ?? "";
}

// Tokens per second over the last minute, from the times at which beats were written.
function measure(samples, view, now) {
  const at = now - (view.beat_age_s ?? 0);
  const last = samples.at(-1);
  if (last && (last.attempt !== view.attempt || view.n_tokens_done < last.done))
    samples.length = 0;
  if (!samples.length || view.n_tokens_done > samples[samples.length - 1].done)
    samples.push({ at, done: view.n_tokens_done, attempt: view.attempt });
  while (samples.length > 2 && at - samples[0].at > WINDOW_S) samples.shift();
  const [first, newest] = [samples[0], samples[samples.length - 1]];
  const long = newest.at - first.at >= 3;
  return long ? (newest.done - first.done) / (newest.at - first.at) : view.tokens_per_s;
}

// --- the card --------------------------------------------------------------------------

function skeleton() {
  const id = randomId();
  const parts = {
    pill: el("span", "xk-pill"),
    name: attrs(el("bdi", "xk-name"), { id: `xk-${id}` }),
    about: el("div", "xk-about"),
    acts: el("div", "xk-acts"),
    fill: el("div", "xk-fill"),
    mark: el("div", "xk-mark"),
    stats: el("div", "xk-stats"),
    preview: attrs(el("div", "xk-preview"), { role: "group", "aria-label": "found so far" }),
    over: el("strong", ""),
    drawn: el("span", "xk-drawn"),
    shown: el("div", "xk-sofar"),
    meta: el("div", "xk-meta"),
    findings: el("ul", "xk-findings"),
    error: el("div", "xk-error"),
    story: el("div", "xk-story"),
    note: el("div", "xk-note"),
    stale: el("div", "xk-stale"),
    refusal: attrs(el("div", "xk-refusal"), { id: `xk-why-${id}` }),
    features: el("div", "xk-features"),
    trace: details("xk-trace", "Traceback"),
    timeline: details("xk-timeline", "What happened"),
    live: attrs(el("div", "xk-live"), { role: "status" }),
  };
  const bar = el("div", "xk-bar", parts.fill, parts.mark);
  attrs(bar, { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 });
  attrs(bar, { "aria-label": "valid tokens measured" });
  const title = el("div", "xk-title", el("div", "xk-top", parts.pill, parts.name), parts.about);
  parts.trace.append(el("pre", ""));
  parts.timeline.append(el("ol", ""));
  const p = parts;
  p.preview.append(el("div", "xk-preview-head", p.over, p.drawn), p.shown);
  const root = el(
    "section", "xk-root xk-card", el("header", "xk-head", title, p.acts), bar, p.stats, p.meta,
    p.error, p.findings, p.story, p.refusal, p.note, p.stale, p.preview, p.features,
    p.trace, p.timeline, p.live,
  );
  attrs(root, { role: "group", "aria-labelledby": p.name.id });
  return { ...parts, bar, root };
}

const stat = (value, name, kind = "") => ({ value, name, kind });
const tile = ({ name, kind }) =>
  el("div", `xk-stat ${kind}`, el("div", "xk-value"), el("div", "xk-label", name));

function qualityStats(view) {
  const soFar = view.state === "completed" ? "" : " so far";
  const list = [];
  if (view.l0 != null) list.push(stat(digits(view.l0), `L0${soFar}`, "xk-first"));
  if (view.fvu != null) list.push(stat(digits(view.fvu), `FVU${soFar}`));
  if (view.n_dead != null) {
    const part = view.d_sae ? ` (${share(view.n_dead / view.d_sae)})` : "";
    list.push(stat(count(view.n_dead) + part, `dead${soFar}`));
  }
  return list;
}

function exampleOf(item) {
  const peak = Math.max(0, ...item.acts);
  return heat(item.tokens, item.acts, peak, item.acts.indexOf(peak));
}

const factsOf = (item) => `${share(item.density)} of tokens · max ${digits(item.max_act)}`;

function featureRow(item, facts) {
  const head = el("div", "xk-feature-head", el("strong", "", `feature ${item.feature}`));
  head.append(" ", el("span", "", facts));
  return el("div", "xk-feature", head, el("div", "xk-example", ...exampleOf(item)));
}

function eventRow(event) {
  const times = event.count > 1 ? ` (${event.count} times)` : "";
  return el("li", "", el("time", "", moment(event.at, true)),
    el("strong", "", `${event.kind}${times}`), el("span", "", ...prose(event.text)));
}

function refusalParts(view, now) {
  const since = seconds(view.completed_at);
  const when = since == null ? "" : ` since ${moment(since)} (${ago(now - since)})`;
  const first = el(
    "div", "", el("strong", "", "Launch refused. "), `Completed${when}, launched by `,
    el("bdi", "", view.created_by), ". A completed run is never computed again.",
  );
  const id = view.training_id;
  const where = view.results_dir && el("code", "", view.results_dir);
  return [
    first,
    where ? el("div", "", "The results are in ", where) : null,
    ...(view.deleted_at
      ? [el("div", "xk-want", "It was deleted. Bring it back:"), snippet(`ws.restore("${view.run_id}")`)]
      : [el("div", "xk-want", "Look at what was found: Open features, or in a cell"), snippet("run.browse()")]),
    el("div", "xk-want", "Compute it anew, as a further generation:"),
    snippet(`run = ws.launch("${id}", ..., generation=${view.generation + 1})`),
  ].filter((part) => part != null);
}

function renderCard({ model, el: host, signal, host: widgets, openFeatures }) {
  const ui = skeleton();
  const samples = [];
  const buttons = new Map();
  let message = model.get("state") ?? {};
  let receivedAt = Date.now();
  let skew = (message.now ?? receivedAt / 1000) - receivedAt / 1000;
  let pending = null; // {id, name, at}
  let sentAt = -Infinity; // what changes the run, unless it was refused
  let answer = null; // {text, ok, state}
  let rate = null;
  let insisted = false; // the refusal was asked for
  let spoken = message.view?.state;
  const now = () => Date.now() / 1000 + skew;
  const features = makeFeatures({
    model, widgets, openFeatures,
    card: { message: () => message, pending: () => pending, send, button: () => buttons.get("features"), announce, failed, draw },
  });
  ui.stale.after(features.without);
  host.append(ui.root, features.root);

  function announce(text) {
    ui.live.textContent = "";
    requestAnimationFrame(() => (ui.live.textContent = text));
  }

  // A double click is one: its second click may meet the button that took the place of the first.
  function press(name, { detail: byMouse }) {
    if (byMouse && Date.now() - sentAt < TWICE_MS) return;
    const view = message.view;
    if (name === "features") return features.press();
    const reason = whyNot(view, name);
    if (reason) {
      insisted = name === "launch";
      answer = insisted ? null : { text: reason, ok: true, state: view.state };
      draw();
      ui.refusal.classList.remove("xk-again");
      void ui.refusal.offsetWidth; // restart the flash
      ui.refusal.classList.add("xk-again");
      announce(insisted ? ui.refusal.firstChild?.textContent ?? reason : reason);
      return;
    }
    send(name);
  }

  function send(name) {
    if (pending) return;
    answer = null;
    if (name !== "features") sentAt = Date.now();
    pending = { id: randomId(), name, at: Date.now(), text: "" };
    setTimeout(draw, BUSY_AFTER_MS + 10);
    if (!post(model, { kind: "act", id: pending.id, name })) {
      pending = null;
      features.lost();
      failed("The kernel of this card is gone: run the cell again, then press.");
    }
    draw();
  }

  function failed(text) {
    answer = { text, ok: false, state: message.view.state };
    announce(text);
  }

  function drawButtons(view) {
    const legal = legalActs(view);
    for (const [name, button] of buttons) {
      if (legal.includes(name)) continue;
      const focused = button === document.activeElement;
      button.remove();
      buttons.delete(name);
      if (focused) attrs(ui.root, { tabindex: -1, ...KEEP }).focus({ preventScroll: true });
    }
    for (const name of legal) {
      if (!buttons.has(name)) {
        const button = attrs(el("button", "xk-act"), { ...KEEP, type: "button" });
        button.addEventListener("click", (event) => press(name, event));
        buttons.set(name, button);
        ui.acts.append(button);
      }
      const button = buttons.get(name);
      const mine = pending?.name === name;
      const stopping = name === "cancel" && view.cancel_requested;
      const refuses = name === "launch" && view.state === "completed";
      const shows = name === "features" && features.isOpen();
      say(button, mine || stopping ? DOING[name] : shows ? "Close features" : label(view, name));
      button.classList.toggle("xk-main", name === "resume" || name === "features");
      button.classList.toggle("xk-pending", mine || stopping);
      if (name === "features") {
        features.drawButton(button);
        continue;
      }
      const off = pending || whyNot(view, name);
      attrs(button, {
        "aria-disabled": off ? "true" : null,
        "aria-describedby": refuses ? ui.refusal.id : null,
        title: whyNot(view, name),
      });
    }
  }

  function drawBar(view) {
    const percent = 100 * view.progress;
    const waiting = view.state === "extracting" && view.n_tokens_done === 0;
    ui.fill.style.width = `${percent.toFixed(2)}%`;
    ui.bar.classList.toggle("xk-waiting", waiting || view.state === "publishing");
    const saved = view.state === "completed" ? 0 : view.checkpoint_tokens;
    ui.mark.hidden = !saved;
    if (saved) ui.mark.style.left = `${Math.min(100, (100 * saved) / view.n_tokens)}%`;
    const done = Math.floor(percent);
    const words = [`${done} %`, `${count(view.n_tokens_done)} of ${count(view.n_tokens)} tokens`];
    words.push(phase(view));
    attrs(ui.bar, {
      "aria-valuenow": done,
      "aria-valuetext": words.filter(Boolean).join(", "),
    });
  }

  function stats(view) {
    const list = [];
    const whole = count(view.n_tokens);
    if (view.state === "completed") list.push(stat(whole, "tokens"));
    else {
      list.push(stat(`${Math.floor(100 * view.progress)} %`, "done"));
      list.push(stat(`${count(view.n_tokens_done)} / ${whole}`, "tokens"));
    }
    const start = seconds(view.started_at);
    if (view.state === "extracting") {
      if (rate > 0) {
        const age = (Date.now() - receivedAt) / 1000 + (view.beat_age_s ?? 0);
        const left = (view.n_tokens - view.n_tokens_done) / rate - age;
        list.push(stat(short(rate), "tokens/s"));
        list.push(stat(left > 1 ? clock(left) : "any moment", "left"));
      }
    }
    const end = seconds(view.ended_at) ?? (ACTIVE.includes(view.state) ? now() : null);
    if (start != null && end != null)
      list.push(stat(clock(end - start), ACTIVE.includes(view.state) ? "elapsed" : "taken"));
    return [...list, ...qualityStats(view)];
  }

  function meta(view) {
    const parts = [];
    if (ACTIVE.includes(view.state)) parts.push(phase(view));
    if (view.worker && view.state !== "completed") parts.push(`worker ${view.worker}`);
    if (view.state !== "completed" || view.attempt > 1) parts.push(`attempt ${view.attempt}`);
    if (view.checkpoint_tokens && view.state !== "completed") {
      const saved = Math.floor((100 * view.checkpoint_tokens) / view.n_tokens);
      parts.push(`checkpoint at ${saved} %`);
    }
    return parts.filter(Boolean);
  }

  function story(view) {
    const since = seconds(view.completed_at);
    if (view.state === "completed") {
      const when = since == null ? "" : ` ${moment(since)} (${ago(now() - since)})`;
      const who = el("bdi", "", view.created_by);
      const line = el("div", "", `Completed${when} · launched by `, who);
      if (view.results_dir) line.append(" · results in ", el("code", "", view.results_dir));
      return [line];
    }
    const no = el("strong", "", "Launch refused. ");
    return [
      view.refusal ? el("div", "", no, ...prose(view.refusal)) : null,
      view.advice ? el("div", "", ...prose(view.advice)) : null,
    ].filter((line) => line != null);
  }

  function notes(view) {
    let text = message.note ? `${message.note} — trying again` : "";
    let tone = "warn";
    if (pending?.text) {
      text = Date.now() - pending.at >= BUSY_AFTER_MS ? pending.text : ""; // most are quicker
      tone = "info";
    } else if (pending && Date.now() - pending.at >= BUSY_AFTER_MS) {
      const waited = (Date.now() - pending.at) / 1000;
      const since = waited >= 5 ? ` ${clock(waited)} ago` : "";
      text = `${DONE[pending.name]} sent${since} — waiting for the kernel`;
      text += " (busy running a cell?)";
    } else if (answer) {
      text = answer.text;
      tone = answer.ok ? "info" : "bad";
    }
    say(ui.note, text);
    attrs(ui.note, { "data-tone": tone });
    const age = (Date.now() - receivedAt) / 1000;
    const stale = ACTIVE.includes(view.state) && age > STALE_BEATS * (message.beat_s ?? 4);
    ui.root.classList.toggle("xk-is-stale", stale);
    const news = `No news for ${clock(age)} — kernel or worker may be busy or gone.`;
    say(ui.stale, stale ? news : "");
  }

  // A row stays while its feature does: only a new maximum is painted again.
  function drawPreview(view) {
    const seen = view.preview;
    ui.preview.hidden = !seen;
    if (!seen) return fill(ui.shown, null, () => []);
    say(ui.over, `So far, over ${count(seen.n_tokens)} tokens`);
    const n = seen.features.length;
    const many = n > 1 ? `${n} features` : "a feature";
    say(ui.drawn, n ? `the top example of ${many} drawn by lot` : "");
    const numbers = seen.features.map(({ feature }) => feature);
    fill(ui.shown, numbers, () => seen.features.map((item) => featureRow(item, "")));
    seen.features.forEach((item, i) => {
      const [head, example] = ui.shown.children[i].children;
      say(head.lastElementChild, factsOf(item));
      fill(example, [item.tokens, item.acts], () => exampleOf(item));
    });
  }

  function draw() {
    const view = message.view;
    if (!view) return;
    attrs(ui.root, { "data-state": view.state });
    say(ui.pill, capital(view.state));
    say(ui.name, view.training_id);
    const size = view.d_sae == null ? "" : `${count(view.d_sae)} features`;
    const about = [view.model, view.hook_name, size, `generation ${view.generation}`];
    fill(ui.about, about, () => about.filter(Boolean).map((text) => el("bdi", "", text)));
    features.draw(view);
    drawButtons(view);
    drawBar(view);
    const figures = stats(view);
    fill(ui.stats, figures.map(({ name }) => name), () => figures.map(tile));
    figures.forEach(({ value }, i) => say(ui.stats.children[i].firstElementChild, value));
    const facts = meta(view);
    fill(ui.meta, facts, () => facts.map((text) => el("bdi", "", text)));
    fill(ui.findings, view.findings, () =>
      view.findings.map((text) => el("li", "", ...prose(text))),
    );
    fill(ui.error, view.error, () => [el("strong", "", view.error)]);
    drawPreview(view);
    const refused = view.state === "completed" && (insisted || Boolean(view.refusal));
    const lines = refused ? [] : story(view);
    fill(ui.story, lines.map((line) => line.textContent), () => lines);
    const minute = refused && Math.floor(now() / 60); // "2 minutes ago"
    const refusal = view.state === "completed" ? [view.completed_at, minute] : null;
    fill(ui.refusal, refusal, () => refusalParts(view, now()));
    ui.refusal.hidden = !refused;
    fill(ui.features, message.highlights ?? null, () =>
      message.highlights.map((item) => featureRow(item, `fires on ${factsOf(item)}`)),
    );
    ui.trace.hidden = !view.error_traceback;
    say(ui.trace.lastElementChild, view.error_traceback ?? "");
    const events = message.events ?? [];
    ui.timeline.hidden = !events.length;
    say(ui.timeline.firstElementChild, `What happened (${events.length})`);
    fill(ui.timeline.lastElementChild, events, () => events.map(eventRow));
    notes(view);
    if (view.state !== spoken) {
      spoken = view.state;
      announce(`${view.training_id}: ${view.state}`);
    }
  }

  function receive() {
    message = model.get("state") ?? {};
    receivedAt = Date.now();
    skew = (message.now ?? receivedAt / 1000) - receivedAt / 1000;
    features.received(message);
    const view = message.view;
    if (answer?.ok && answer.state !== view?.state) answer = null;
    if (view?.state === "extracting") rate = measure(samples, view, message.now);
    draw();
  }

  function heard(content) {
    features.heard(content);
    if (!pending || content?.id !== pending.id) return;
    if (content.kind === "progress") {
      pending.text = content.text;
      draw();
    } else if (content.kind === "ack") acknowledged(content);
  }

  function acknowledged(content) {
    const { name } = pending;
    const shown = name === "features" && content.ok; // that needs no words
    const text = content.reason || (content.ok ? `${DONE[name]} accepted.` : `${DONE[name]} did not work.`);
    answer = shown ? null : { text, ok: content.ok, state: message.view.state };
    pending = null;
    if (!content.ok) sentAt = -Infinity; // it may be tried again
    if (shown) features.acknowledged(content.browser);
    else if (!content.ok) announce(text);
    draw();
  }

  model.on("change:state", receive);
  model.on("msg:custom", heard);
  const ticking = setInterval(draw, 1000);
  receive();
  features.start();
  const stop = () => {
    clearInterval(ticking);
    model.off("change:state", receive);
    model.off("msg:custom", heard);
    features.stop();
    ui.root.remove();
  };
  signal?.addEventListener("abort", stop);
  return stop;
}

export default { initialize: greet, render: renderCard };
