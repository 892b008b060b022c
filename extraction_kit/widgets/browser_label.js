// Name and description of a feature, edited in place. Enter saves, Escape leaves all as it was.

// events: read(feature), write(feature, texts), failed(reason), giveUp(), closed()
function makeEditor(events) {
  const about = attrs(el("div", "xk-name-of"), { role: "heading", "aria-level": 4 });
  const name = field("text", "name", { placeholder: "name", maxlength: 200 });
  const description = attrs(el("textarea", "xk-input"), {
    ...KEEP, "aria-label": "description", rows: 3, maxlength: 20000,
    placeholder: "description (Shift+Enter: a new line)",
  });
  const [save, cancel] = [press("xk-small", "Save", "save the label"), press("xk-small", "Cancel", null)];
  const says = attrs(el("div", "xk-says"), { role: "status" });
  const box = el("div", "xk-editor", about, name, description,
    el("div", "xk-pair", save, cancel, says));
  attrs(box, { role: "group", "aria-label": "label" }).hidden = true;
  const texts = { name, description };
  let [feature, before, pending] = [null, null, false]; // before: what the ledger says
  const tell = (text) => (says.textContent = text);

  function changes() {
    const now = Object.entries(texts).map(([key, node]) => [key, node.value.trim() || null]);
    return Object.fromEntries(now.filter(([key, text]) => text !== before[key]));
  }

  function setPending(is) {
    pending = is;
    attrs(box, { "aria-busy": is ? "true" : null });
    for (const node of Object.values(texts)) node.readOnly = is;
  }

  function close() {
    const held = box.contains(box.getRootNode().activeElement);
    before = null;
    box.hidden = true;
    setPending(false);
    if (held) events.closed(); // the keyboard must not go to the notebook
  }

  async function open(wanted) {
    if (before && feature !== wanted && moved())
      tell(`Save or cancel the label of feature ${feature} first.`);
    if (before) return name.focus();
    feature = wanted;
    try {
      const found = await events.read(wanted);
      if (before || feature !== wanted) return;
      before = found;
    } catch (reason) {
      return events.failed(reason);
    }
    for (const [key, node] of Object.entries(texts)) node.value = before[key] ?? "";
    say(about, `Label of feature ${feature}`);
    tell("");
    box.hidden = false;
    name.focus();
    name.select();
  }

  async function keep() {
    if (pending) return events.giveUp();
    const wanted = changes();
    if (!Object.keys(wanted).length) return close();
    const mine = before;
    setPending(true);
    tell("saving…");
    try {
      await events.write(feature, wanted);
      if (before === mine) close();
    } catch (reason) {
      if (before !== mine) return;
      setPending(false);
      tell(reason === GIVEN_UP ? "The kernel did not answer: save again." : String(reason));
    }
  }

  // True if something was typed that is not saved; else the editor goes with its feature.
  function moved() {
    if (pending || Object.keys(changes()).length) return true;
    close();
    return false;
  }

  save.addEventListener("click", keep);
  cancel.addEventListener("click", close);
  return {
    box,
    open,
    shows: (shown) => before && feature !== shown && moved(),
    // What a key that was pressed in the editor does; Shift+Enter begins a line.
    key(event) {
      const done = { Escape: close, Enter: keep }[event.key];
      const typed = Object.values(texts).includes(event.target);
      if (!done || (event.key === "Enter" && (event.shiftKey || !typed))) return;
      event.preventDefault();
      done();
    },
  };
}
