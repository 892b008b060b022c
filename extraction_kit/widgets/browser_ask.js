// The questions of a page to its kernel, of which an answer may be late or never come.

const LOST_AFTER_MS = 5000;
const GIVEN_UP = null; // the reason of a question in whose place another one is asked

// Returns ask(name, content): a promise of the answer. tell(text): a note for the person.
function questions(model, view, tell) {
  const open = new Map(); // id -> {name, done, fail, at}
  let [timer, since] = [0, 0]; // since: when what is waited for was asked, 0: nothing is
  const look = () => {
    clearTimeout(timer);
    if (!open.size) return tell("");
    const age = Date.now() - since;
    if (age >= BUSY_AFTER_MS) tell("waiting for the kernel (busy running a cell?)");
    else timer = setTimeout(look, BUSY_AFTER_MS - age + 10);
  };
  function ask(name, content) {
    const id = randomId();
    return new Promise((done, fail) => {
      open.set(id, { name, done, fail, at: Date.now() });
      since ||= Date.now();
      if (post(model, { kind: "ask", id, view, name, ...content })) return look();
      open.delete(id);
      fail("The kernel of this browser is gone: run the cell again.");
    });
  }
  ask.heard = (message) => {
    const one = open.get(message?.id);
    if (message?.kind !== "answer" || !one) return;
    open.delete(message.id);
    since = open.size ? Math.min(...[...open.values()].map((other) => other.at)) : 0;
    look();
    if (message.ok) one.done(message.content);
    else one.fail(message.reason);
  };
  // A kernel that was restarted answers nothing: who asks anew need not wait for it.
  ask.giveUp = (name) => {
    for (const [id, one] of open) {
      if (one.name !== name || Date.now() - one.at < LOST_AFTER_MS) continue;
      open.delete(id);
      one.fail(GIVEN_UP);
    }
  };
  ask.stop = () => {
    clearTimeout(timer);
    open.clear();
  };
  return ask;
}
