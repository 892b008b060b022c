// The form that launches a run of a registered training: what it would come to is seen before.

const FIELDS = [
  { name: "n_tokens", title: "Tokens", usual: "all", hint: "n_tokens: valid tokens to measure" },
  { name: "context_size", title: "Context size", usual: "128", hint: "context_size: tokens that the model sees at once" },
  { name: "top_k", title: "Top k", usual: "20", hint: "top_k: top activating examples kept per feature" },
];
const A_FILE = "";
const AGAIN_AFTER_MS = 400; // several runs may change at once

// What a launch would come to: a tone and a headline for each answer of the kernel.
function headline({ answer, kind, run_id }) {
  const id = run_id.slice(0, 8);
  if (kind === "TrainingBusy") return ["warn", "Refused: the training is busy"];
  return {
    new_run: ["new", `A new run, ${id}`],
    attach: ["info", `Attaches to run ${id}, which is under way`],
    return: ["done", `Refused: run ${id} is completed`],
    rest: ["warn", `Refused: run ${id} waits for a person`],
    deleted: ["warn", `Refused: run ${id} is deleted`],
  }[answer];
}

const launches = (found) => found != null && found.kind == null;

function size(n) {
  return n >= 2 ** 20 ? bytes(n) : "under 1 MiB";
}

function takes(found) {
  const facts = [`${count(found.n_tokens)} tokens in ${count(found.n_contexts)} contexts`];
  const known = found.estimate;
  if (!known) return facts;
  facts.push(known.seconds == null ? "time not known" : `about ${lasts(known.seconds)}`);
  facts.push(`${size(known.memory_bytes)} memory`, `${size(known.disk_bytes)} disk`);
  return facts;
}

function lasts(s) {
  if (s < 90) return `${Math.max(1, Math.round(s))} s`;
  return s < 7200 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

function labelled(title, control, hint) {
  const id = `xk-${randomId()}`;
  attrs(control, { ...KEEP, id, title: hint });
  return el("div", "xk-field", attrs(el("label", "", title), { for: id }), control);
}

const entry = (placeholder) =>
  attrs(el("input", "xk-input"), { type: "text", placeholder, spellcheck: "false", autocomplete: "off" });

function formParts() {
  const p = {
    training: el("select", "xk-input xk-select"),
    about: el("bdi", "xk-about-training"),
    corpus: el("select", "xk-input xk-select"),
    path: entry("texts.jsonl, .txt, .parquet or .npy"),
    column: entry("text, or the only one"),
    entries: new Map(FIELDS.map(({ name, usual }) => [name, entry(usual)])),
    generation: entry("as it is"),
    more: attrs(el("textarea", "xk-input xk-more"), { rows: 2, placeholder: 'packing = "document"', spellcheck: "false" }),
    outcome: el("div", "xk-outcome"),
    launch: attrs(el("button", "xk-d-act xk-main", "Launch"), { ...KEEP, type: "button", "aria-disabled": "true" }),
    close: attrs(el("button", "xk-d-act", "Close"), { ...KEEP, type: "button", title: "Close (Escape)" }),
    said: el("span", "xk-hint"),
  };
  p.pathField = labelled("File", p.path, "path of a file, as the kernel sees it");
  p.columnField = labelled("Text column", p.column, "text_column: the column of a .jsonl or .parquet file that holds the texts");
  const others = details("xk-others", "More");
  others.append(el("div", "xk-line",
    labelled("Generation", p.generation, "the next number computes completed content anew"),
    labelled("Other fields of ExtractionConfig, as TOML", p.more)));
  p.others = others;
  p.all = [
    el("div", "xk-line", labelled("Training", p.training), p.about),
    el("div", "xk-line", labelled("Corpus", p.corpus), p.pathField, p.columnField,
      ...FIELDS.map(({ name, title, hint }) => labelled(title, p.entries.get(name), hint))),
    others, p.outcome, el("div", "xk-buttons", p.launch, p.close, p.said),
  ];
  p.entries.forEach((input) => input.parentElement.classList.add("xk-short"));
  p.generation.parentElement.classList.add("xk-short");
  p.columnField.classList.add("xk-middling");
  return p;
}

// near(): the run whose training is proposed. row(id): a run of the table. launched(id), show(row):
// for the table. Returns {moved, stop}.
function makeForm({ ui, begin, announce, near, row, launched, show }) {
  let p = null; // made when it is opened for the first time
  let known = []; // corpora of the training
  let found = null; // what the wish that is in the form would come to
  let foreseen = null; // that wish
  let current = null; // the training of the wish that was asked about last
  let asked = 0; // numbers the questions: only the newest answer counts
  let launching = false;
  let spoken = "";
  let [again, slow] = [0, 0];
  let [looking, stale, lastAsks] = [false, false, null]; // a question is open; runs changed meanwhile

  ui.form.hidden = true;

  // --- what is in the form ---------------------------------------------------------------------

  function wish() {
    const lines = FIELDS.map(({ name }) => [name, p.entries.get(name).value.trim()])
      .filter(([, value]) => value).map(([name, value]) => `${name} = ${value}`);
    const generation = p.generation.value.trim();
    const number = /^\d+$/.test(generation) ? Number(generation) : generation || null;
    const corpus = p.corpus.value === A_FILE ? { path: p.path.value, text_column: p.column.value.trim() || null } : { run_id: p.corpus.value };
    return { training_id: p.training.value, ...corpus, config: [...lines, p.more.value].join("\n"), generation: number };
  }

  const ready = (asks) => asks.training_id && (asks.run_id || asks.path?.trim());

  function takeConfig(config) {
    for (const [name, input] of p.entries) input.value = config[name] ?? "";
    const others = Object.entries(config).filter(([name]) => !p.entries.has(name));
    p.more.value = others.map(([name, value]) => `${name} = ${value}`).join("\n");
    if (others.length) p.others.open = true;
  }

  async function opened() {
    if (!p) build();
    attrs(ui.launch, { "aria-expanded": "true" });
    ui.form.hidden = false;
    p.training.focus();
    const chosen = near()?.training_id ?? p.training.value;
    await lookUp("trainings", {}, ({ trainings }) => {
      p.training.replaceChildren(...trainings.map(({ training_id, about }) =>
        attrs(el("option", "", training_id), { value: training_id, "data-about": about })));
      if (trainings.some(({ training_id }) => training_id === chosen)) p.training.value = chosen;
      if (!trainings.length) return outcome({ tone: "info", lines: ["No training is registered yet. Type this first, then open the form again:"], code: 'ws.register_training("my-sae", sae="path/to/sae", model="gpt2")' });
      return chooseTraining();
    });
  }

  function closed() {
    asked += 1;
    looking = false;
    clearTimeout(again);
    begin("ask", { name: "foresee", wish: null }).catch(() => {}); // nobody waits for a corpus any more
    attrs(ui.launch, { "aria-expanded": "false" });
    ui.form.hidden = true;
    ui.launch.focus({ preventScroll: true });
  }

  async function chooseTraining() {
    say(p.about, p.training.selectedOptions[0]?.dataset.about ?? "");
    await lookUp("corpora", { training_id: p.training.value }, ({ corpora }) => {
      known = corpora;
      p.corpus.replaceChildren(
        ...known.map((one) => attrs(el("option", "", `${one.source} · ${count(one.n_tokens)} tokens in contexts of ${count(one.context_size)}`), { value: one.run_id })),
        attrs(el("option", "", "A file…"), { value: A_FILE }),
      );
      const before = near()?.run_id;
      p.corpus.value = known.find((one) => one.run_id === before)?.run_id ?? known[0]?.run_id ?? A_FILE;
      p.generation.value = "";
      return chooseCorpus();
    });
  }

  function chooseCorpus() {
    const one = known.find(({ run_id }) => run_id === p.corpus.value);
    p.pathField.hidden = p.columnField.hidden = Boolean(one);
    if (one) takeConfig(one.config);
    return look();
  }

  // --- what it would come to -----------------------------------------------------------------------

  // quietly: what is shown stays, and can be launched, until the answer comes.
  async function lookUp(name, content, take, quietly = false) {
    const number = (asked += 1);
    const tell = (text) => number === asked && text && !quietly && waits(text);
    if (!quietly) found = foreseen = null;
    looking = true;
    tell("Asking the kernel…");
    try {
      const answer = await begin("ask", { name, ...content }, tell);
      if (number !== asked) return;
      looking = false;
      await take(answer);
    } catch (reason) {
      if (number !== asked) return;
      looking = false;
      found = foreseen = null;
      outcome({ tone: "bad", lines: [String(reason)] });
    }
  }

  function look(asks = wish(), quietly = false) {
    current = asks.training_id;
    lastAsks = asks;
    if (!ready(asks)) {
      asked += 1;
      found = foreseen = null;
      looking = false;
      return outcome({ tone: "info", lines: ["Type the path of a file of texts: then it says here what a launch would come to."] });
    }
    stale = false;
    return lookUp("foresee", { wish: asks }, (answer) => {
      [found, foreseen] = [answer, asks];
      shown();
      if (stale) lookAgain();
    }, quietly);
  }

  function lookAgain() {
    clearTimeout(again);
    again = setTimeout(() => !ui.form.hidden && !launching && !looking && lastAsks && look(lastAsks, true), AGAIN_AFTER_MS);
  }

  function shown() {
    const [tone, title] = headline(found);
    const lines = [found.refusal, found.warning].filter(Boolean);
    if (found.answer === "attach") lines.push("Nothing new would be launched: you get the run that is under way.");
    outcome({ tone, title, facts: takes(found), lines, code: found.code, how: found.estimate?.how, job: launches(found) ? found.job_id : null });
    draw();
  }

  function waits(text, later = p.said.textContent ? 0 : 250) { // most answers are quicker
    clearTimeout(slow);
    if (later) slow = setTimeout(() => say(p.said, text), later);
    else say(p.said, text);
    draw();
  }

  function outcome({ tone, title, facts, lines, code, how, job }) {
    clearTimeout(slow);
    say(p.said, "");
    const key = { tone, title, facts, lines, code, job };
    fill(p.outcome, key, () => [
      title ? el("strong", "xk-come", title) : null,
      facts ? attrs(el("div", "xk-takes", ...facts.map((text) => el("span", "", text))), { title: how }) : null,
      ...lines.map((text) => el("div", "", ...prose(text))),
      title && !launches(found) ? instead() : null,
      job ? el("div", "xk-job", "job ", el("code", "", job)) : null,
      code ? snippet(code) : null,
    ].filter(Boolean));
    attrs(p.outcome, { "data-tone": tone });
    const news = title ?? lines[0];
    if (news !== spoken) announce(news);
    spoken = news;
    draw();
  }

  // What a person may want in the place of a launch that is refused.
  function instead() {
    const one = row(found.run_id);
    if (!one) return null;
    const shows = attrs(el("button", "xk-d-act", "Show this run"), { ...KEEP, type: "button" });
    shows.addEventListener("click", () => show(row(one.run_id) ?? one));
    if (found.answer !== "return") return el("div", "xk-buttons", shows);
    const next = one.generation + 1;
    const anew = attrs(el("button", "xk-d-act", `Compute anew, as generation ${next}`), { ...KEEP, type: "button" });
    anew.addEventListener("click", () => {
      p.others.open = true;
      p.generation.value = String(next);
      p.generation.focus();
      look();
    });
    return el("div", "xk-buttons", shows, anew);
  }

  function draw() {
    const can = launches(found) && !launching;
    attrs(p.launch, { "aria-disabled": can ? null : "true" });
    p.launch.classList.toggle("xk-pending", launching);
    say(p.launch, launching ? "Launching…" : found?.answer === "attach" ? "Attach" : "Launch");
    p.outcome.classList.toggle("xk-old", found == null && p.outcome.dataset.tone !== "bad" && p.outcome.dataset.tone !== "info");
  }

  async function press() {
    if (launching) return;
    if (looking && !found) {
      waits("Nothing was launched: first it must be known what this would come to.", 0);
      return announce(p.said.textContent);
    }
    if (!launches(found)) return announce(p.outcome.firstChild?.textContent || "");
    launching = true;
    draw();
    try {
      const tell = (text) => say(p.said, text);
      const done = await begin("act", { name: "launch", wish: foreseen }, tell);
      launching = false;
      if (done.ok) {
        launched(done.run_id);
        announce(done.reason || `Launched run ${done.run_id}`);
        await look();
      } else failed(done.reason);
    } catch (reason) {
      failed(reason);
    }
  }

  // Shown also to a person who closed the form meanwhile.
  function failed(reason) {
    launching = false;
    asked += 1;
    found = foreseen = null;
    looking = false;
    attrs(ui.launch, { "aria-expanded": "true" });
    ui.form.hidden = false;
    outcome({ tone: "bad", lines: [String(reason)] });
  }

  // --- life ----------------------------------------------------------------------------------------

  function build() {
    p = formParts();
    ui.form.append(...p.all);
    p.training.addEventListener("change", chooseTraining);
    p.corpus.addEventListener("change", chooseCorpus);
    for (const input of [p.path, p.column, p.more, p.generation, ...p.entries.values()]) input.addEventListener("change", () => look());
    p.launch.addEventListener("click", press);
    p.close.addEventListener("click", closed);
    ui.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") closed();
      else if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
      event.stopPropagation();
    });
  }

  ui.launch.addEventListener("click", () => (ui.form.hidden ? opened() : closed()));

  return {
    // Runs of a training have changed: what was foreseen may be different now.
    moved(trainingId) {
      if (ui.form.hidden || launching || current !== trainingId) return;
      if (looking) stale = true; // a question that prepares a corpus is not asked from the beginning
      else lookAgain();
    },
    stop() {
      clearTimeout(again);
      clearTimeout(slow);
    },
  };
}
