// What the page asks of the kernel and waits for: questions, and acts that may take long.

// Returns begin(kind, content, tell): a promise of the answer of a question, or of the
// acknowledgement of an act. tell(text): what is waited for at the moment, "" if nothing is known.
// view: of this page; a question takes the place of an earlier one of the same view.
function exchange(model, view) {
  const open = new Map(); // id -> {kind, done, fail, tell, late}

  function begin(kind, content, tell = (_) => {}) {
    const id = randomId();
    return new Promise((done, fail) => {
      const late = setTimeout(() => tell("Waiting for the kernel (busy running a cell?)"), BUSY_AFTER_MS);
      open.set(id, { kind, done, fail, tell, late });
      if (post(model, { kind, id, view, ...content })) return;
      end(id);
      fail("The kernel of this dashboard is gone: run the cell again.");
    });
  }

  function end(id) {
    clearTimeout(open.get(id)?.late);
    open.delete(id);
  }

  // Returns whether the message was an answer to something of these.
  begin.heard = (message) => {
    const one = open.get(message?.id);
    if (!one) return false;
    clearTimeout(one.late); // it was heard
    if (message.kind === "progress") one.tell(message.text);
    else if (message.kind === "ack" && one.kind === "ask" && message.ok) one.tell("");
    else {
      end(message.id);
      if (message.kind === "ack" && one.kind === "act") one.done(message);
      else if (message.ok) one.done(message.content);
      else one.fail(message.reason);
    }
    return true;
  };
  begin.stop = () => [...open.keys()].forEach(end);
  return begin;
}
