"""What a launch would come to, said before it: by the rule of the launch itself."""

import json
import threading

import pytest

from extraction_kit import ExtractionConfig, Settings, Workspace, service, wishes
from extraction_kit.errors import (
    AlreadyCompleted,
    BadConfig,
    BadCorpus,
    BadInput,
    GenerationUnavailable,
    RestsUntilResumed,
    RunDeleted,
    TrainingBusy,
    UnknownRun,
    UnknownTraining,
    WorkspaceUnusable,
)
from extraction_kit.lifecycle import Answer
from extraction_kit.widgets.board import RunBoard
from extraction_kit.widgets.hub import Hub, Pace
from extraction_kit.wishes import Wish
from tests.unit.lab import Lab

SMALL = "n_tokens = 2000\ncontext_size = 32"


@pytest.fixture
def ws(tmp_path, tiny):
    """A real training; the server is away, so launches are real and stay requested."""
    away = Settings(redis_url=f"unix://{tmp_path / 'away.sock'}", min_free_bytes=0)
    made = Workspace(tmp_path / "ws", settings=away)
    for name in ("tiny", "other"):
        made.register_training(name, sae=tiny.saes["topk"], model=tiny.model)
    return made


def wish(tiny, **changes):
    return Wish(
        **({"training_id": "tiny", "path": str(tiny.corpus), "config": SMALL} | changes)
    )


def content_in(lab, *names, **options):
    """The lab's content, with a folder of its corpus."""
    content = lab.content(*names, **options)
    content.corpus.path.mkdir(parents=True, exist_ok=True)
    return content


def foreseen(lab, content, **options):
    """What is foreseen; what launch then does is the same, or raises the same."""
    before = len(lab.ws.views())
    said = service.foresee(lab.bench, content, **options)
    assert len(lab.ws.views()) == before
    if isinstance(said.refusal, TrainingBusy | RunDeleted):
        with pytest.raises(type(said.refusal)) as raised:
            service.launch(lab.bench, content, **options)
        assert str(raised.value) == str(said.refusal)
    else:
        done = service.launch(lab.bench, content, **options)
        assert (done.run_id, done.answer) == (said.run_id, said.answer)
        assert str(done.refusal) == str(said.refusal)
    return said


def test_what_is_foreseen_is_what_a_launch_does_in_every_state(tmp_path):
    away = f"unix://{tmp_path / 'away.sock'}"
    lab = Lab(tmp_path / "ws", redis_url=away)
    content = content_in(lab)
    new = foreseen(lab, content)
    assert new.answer is Answer.NEW_RUN
    assert new.refusal is None
    assert lab.record(new.run_id).job_id == new.job_id
    again = foreseen(lab, content)
    assert (again.answer, again.refusal, again.run_id) == (Answer.ATTACH, None, new.run_id)
    busy = foreseen(lab, content_in(lab, seed=1))
    assert isinstance(busy.refusal, TrainingBusy)
    assert busy.run_id == new.run_id
    service.cancel(lab.bench, new.run_id)
    rests = foreseen(lab, content)
    assert isinstance(rests.refusal, RestsUntilResumed)
    done_id = lab.completed("done", seed=5)
    done = foreseen(lab, lab.content("done", seed=5))
    assert isinstance(done.refusal, AlreadyCompleted)
    assert done.run_id == done_id
    with pytest.raises(GenerationUnavailable):
        service.foresee(lab.bench, lab.content("done", seed=5), generation=3)
    lab.ws.run(done_id).delete()
    gone = foreseen(lab, lab.content("done", seed=5))
    assert isinstance(gone.refusal, RunDeleted)
    with pytest.raises(BadCorpus, match="is gone"):
        service.foresee(lab.bench, lab.content("done", seed=5), generation=2)
    anew = foreseen(lab, content_in(lab, "done", seed=5), generation=2)
    assert anew.answer is Answer.NEW_RUN


def test_a_look_leaves_no_event_and_no_refusal_behind(tmp_path):
    lab = Lab(tmp_path / "ws")
    run_id = lab.completed()
    before = [(one.kind, one.count) for one in lab.story(run_id)]
    service.foresee(lab.bench, lab.content())
    assert [(one.kind, one.count) for one in lab.story(run_id)] == before


def test_a_full_disk_is_foreseen(tmp_path):
    lab = Lab(tmp_path / "ws", min_free_bytes=2**53)
    content = content_in(lab)
    for call in (service.foresee, service.launch):
        with pytest.raises(WorkspaceUnusable, match="MiB are needed"):
            call(lab.bench, content)


# --- a wish ---------------------------------------------------------------------------------


def test_a_wish_is_the_launch_that_its_line_of_code_makes(ws, tiny):
    asked = wish(tiny, training_id="other", config=f"{SMALL}\ntop_k = 7")
    said = wishes.foresee(ws._bench, asked)
    assert said.foreseen.answer is Answer.NEW_RUN
    assert said.content.corpus.n_tokens == 2000
    assert said.estimate.n_tokens == 2000
    assert said.estimate.disk_bytes > 0
    names = {"ws": ws, "xk": __import__("extraction_kit")}
    exec(said.code, names)  # noqa: S102 - what a person copies into a cell
    assert names["run"].run_id == said.foreseen.run_id
    assert wishes.launch(ws._bench, asked).answer is Answer.ATTACH
    of_run = wish(tiny, training_id="other", path=None, run_id=said.foreseen.run_id)
    said = wishes.foresee(ws._bench, of_run)
    assert isinstance(said.foreseen.refusal, TrainingBusy)
    assert said.estimate is None  # nothing would be computed
    names["run"].cancel()
    exec(wishes.foresee(ws._bench, of_run).code, names)  # noqa: S102 - as above
    assert names["run"].view.n_tokens == 2000
    names["run"].cancel()


def test_corpora_of_earlier_runs_are_offered_with_the_config_that_fits(ws, tiny):
    config = ExtractionConfig(n_tokens=1500, context_size=32, packing="document")
    run = ws.launch("tiny", corpus=tiny.corpus, config=config).cancel()
    (offered,) = wishes.corpora(ws._bench, "tiny")
    assert offered["run_id"] == run.run_id
    assert offered["source"] == "corpus.jsonl"
    assert offered["config"] == {
        "n_tokens": "1500",
        "context_size": "32",
        "packing": '"document"',
    }
    lines = "\n".join(f"{name} = {value}" for name, value in offered["config"].items())
    said = wishes.foresee(ws._bench, wish(tiny, path=None, run_id=run.run_id, config=lines))
    assert said.foreseen.run_id == run.run_id
    assert wishes.corpora(ws._bench, "other") == []
    ws.launch(
        "other", corpus=tiny.corpus, config=ExtractionConfig.from_toml(SMALL)
    ).cancel()
    assert wishes.corpora(ws._bench, "other")[0]["n_tokens"] == 2000
    assert [one["training_id"] for one in wishes.trainings(ws._bench)] == ["other", "tiny"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"path": "no/such.jsonl"}, BadCorpus, "'no/such.jsonl': there is no such file"),
        ({"path": " "}, BadCorpus, "type the path of a .txt, .jsonl"),
        ({"path": None, "run_id": "0123"}, UnknownRun, "0123"),
        ({"config": "topk = 3"}, BadConfig, "did you mean top_k"),
        ({"config": "top_k = 0"}, BadConfig, "top_k=0: an integer from 1 to 1000"),
        ({"config": "top_k = a lot"}, BadConfig, "`top_k = a lot`"),
        ({"training_id": "tinny"}, UnknownTraining, "tiny"),
        ({"generation": 4}, GenerationUnavailable, "leave generation out"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_the_words_of_the_package(
    ws, tiny, changes, error, words
):
    n_runs = len(ws.views())
    for call in (wishes.foresee, wishes.launch):
        with pytest.raises(error, match=words):
            call(ws._bench, wish(tiny, **{"config": "n_tokens = 900"} | changes))
    assert len(ws.views()) == n_runs


def test_a_column_of_another_name_is_chosen_in_the_form_as_in_python(ws, tiny, tmp_path):
    path = tmp_path / "posts.jsonl"
    texts = (json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines())
    rows = [{"id": "7", "title": "short", "body": text} for text in texts]
    path.write_text("\n".join(map(json.dumps, rows)))
    unclear = wish(tiny, training_id="other", path=str(path), text_column=" ")
    with pytest.raises(BadCorpus, match="has no column 'text', but id, title, body"):
        wishes.foresee(ws._bench, unclear)
    config = f"{SMALL}\ntop_k = 9"
    asked = wish(
        tiny, training_id="other", path=str(path), text_column=" body ", config=config
    )
    said = wishes.foresee(ws._bench, asked)
    usual = wishes.foresee(ws._bench, wish(tiny, training_id="other"))
    assert said.content.corpus.digest == usual.content.corpus.digest  # the same texts
    names = {"ws": ws, "xk": __import__("extraction_kit")}
    exec(said.code, names)  # noqa: S102 - what a person copies into a cell
    run = names["run"]
    assert run.run_id == said.foreseen.run_id
    run.cancel()
    mixed = wish(
        tiny, training_id="other", path=None, run_id=run.run_id, text_column="body"
    )
    with pytest.raises(BadCorpus, match="text_column='body': the corpus of run"):
        wishes.foresee(ws._bench, mixed)


def test_what_does_not_fit_an_earlier_corpus_is_told_in_the_words_of_the_form(ws, tiny):
    config = ExtractionConfig.from_toml(f"{SMALL}\ntop_k = 4")
    run = ws.launch("other", corpus=tiny.corpus, config=config).cancel()
    told = f"the corpus of run {run.run_id[:8]} was prepared with"
    for config, words in (
        ("n_tokens = 500\ncontext_size = 32", f"Tokens: {told} 2000, and 500 is asked for"),
        ("context_size = 16", f"Context size: {told} 32, and 16 is asked for"),
        ('context_size = 32\npacking = "document"', f"packing: {told} pack, and document"),
    ):
        asked = wish(tiny, training_id="other", path=None, run_id=run.run_id, config=config)
        with pytest.raises(BadCorpus, match=words) as raised:
            wishes.foresee(ws._bench, asked)
        assert 'Choose "A file…" as the corpus and type the path' in str(raised.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "a mapping with training_id, path"),
        ({"training_id": "t", "sql": "x"}, "a mapping with training_id, path"),
        ({"training_id": ["t"]}, "training_id=\\['t'\\]: a text"),
        ({"training_id": "t", "config": {"top_k": 1}}, "a text is allowed"),
        ({"training_id": "t", "text_column": 3}, "text_column=3: a text"),
        ({"training_id": "t", "generation": "two"}, "generation='two': an integer"),
        ({"training_id": ""}, "no training is chosen"),
    ],
)
def test_a_page_can_wish_for_nothing_else(values, words):
    with pytest.raises(BadInput, match=words):
        Wish.from_dict(values)


# --- the desk -------------------------------------------------------------------------------


class Asked:
    """A board, and what it told the page."""

    def __init__(self, source):
        self.told, self.arrived = [], threading.Condition()
        self.board = RunBoard(
            source, Hub(Pace(viewed_s=0.02, unviewed_s=0.02)), push=self._push
        )

    def _push(self, message):
        with self.arrived:
            self.told.append(message)
            self.arrived.notify_all()

    def answer(self, number, **message):
        """Ask; return what was said at once, and what came in the end."""
        at_once = self.board.answer({"id": str(number), **message})
        self.board.heard_at = float("-inf")
        kinds = {"ask": "answer", "act": "ack"}[message["kind"]]

        def found():
            return [
                one
                for one in self.told
                if one["kind"] == kinds and one["id"] == str(number)
            ]

        with self.arrived:
            assert self.arrived.wait_for(found, 30), self.told
        return at_once, found()[0]


def page_wish(tiny, **changes):
    values = {"training_id": "tiny", "path": str(tiny.corpus), "config": SMALL}
    return values | changes


def test_a_form_is_answered_later_and_launches_once(ws, tiny):
    page = Asked(ws._watcher)
    n_runs = len(ws.views())
    at_once, said = page.answer(1, kind="ask", name="foresee", wish=page_wish(tiny))
    assert at_once == {"kind": "ack", "id": "1", "ok": True, "reason": ""}
    assert said["content"]["answer"] == "new_run"
    assert len(ws.views()) == n_runs
    at_once, done = page.answer(2, kind="act", name="launch", wish=page_wish(tiny))
    assert at_once == {"kind": "progress", "id": "2", "text": ""}
    run_id = said["content"]["run_id"]
    assert (done["ok"], done["run_id"], done["reason"]) == (True, run_id, "")
    _, done = page.answer(3, kind="act", name="launch", wish=page_wish(tiny))
    assert done["ok"]
    assert "nothing new was launched" in done["reason"]
    ws.run(run_id).cancel()
    _, done = page.answer(4, kind="act", name="launch", wish=page_wish(tiny))
    assert not done["ok"]
    assert "run.resume()" in done["reason"]
    assert len(ws.views()) == n_runs + 1


def test_errors_of_slow_questions_reach_the_page(ws, tiny):
    page = Asked(ws._watcher)
    for number, asks in enumerate(
        (
            {"name": "foresee", "wish": {"training_id": 3}},
            {"name": "foresee", "wish": page_wish(tiny, path="\u202e.txt")},
            {"name": "corpora", "training_id": None},
            {"name": "compare", "run_ids": ["a"]},
            {"name": "compare", "run_ids": ["a", "b"]},
            {"name": "browse", "view": "v", "run_id": "0123"},
        )
    ):
        _, said = page.answer(number, kind="ask", **asks)
        assert not said["ok"]
        assert "\u202e" not in said["reason"]
    for name in ("sql", None, ["trainings"], "__class__"):
        refused = page.board.answer({"kind": "ask", "id": "x", "name": name})
        assert (refused["ok"], "allowed are trainings" in refused["reason"]) == (
            False,
            True,
        )


@pytest.mark.parametrize("view", ["same", "another"])
def test_a_question_is_given_up_if_its_view_asks_another_one(ws, tiny, monkeypatch, view):
    page = Asked(ws._watcher)
    reading, go_on = threading.Event(), threading.Event()
    real = ws._watcher.foresee
    ended = []

    def slow(asked, progress):
        if asked.config == "n_tokens = 1000":
            reading.set()
            assert go_on.wait(30)
            try:
                progress(10, None, "tokenising")
            finally:
                ended.append(asked.config)
        return real(asked, progress)

    monkeypatch.setattr(ws._watcher, "foresee", slow)
    monkeypatch.setattr("extraction_kit.widgets.desk._PROGRESS_EVERY_S", 0)
    old = page_wish(tiny, config="n_tokens = 1000")
    asked = {"kind": "ask", "name": "foresee"}
    page.board.answer(asked | {"id": "old", "view": "same", "wish": old})
    assert reading.wait(30)
    page.board.answer(asked | {"id": "new", "view": view, "wish": page_wish(tiny)})
    go_on.set()
    with page.arrived:
        assert page.arrived.wait_for(
            lambda: any(one.get("id") == "new" for one in page.told), 30
        )
    assert ended == ["n_tokens = 1000"]
    said = [one for one in page.told if one.get("id") == "old"][-1]
    assert ("another question was asked" in said.get("reason", "")) == (view == "same")
    assert said["ok"] == (view == "another")
    page.board.heard_at = float("-inf")
