"""%%extract, %runs and %run_status in a real IPython shell; launches: test_main_job.py."""

import re
import subprocess
import sys

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from extraction_kit import service, widgets, workspace
from extraction_kit.errors import (
    BadConfig,
    BadCorpus,
    BadInput,
    UnknownRun,
    UnknownTraining,
    WaitTimeout,
)
from extraction_kit.ledger.transitions import Target, move
from extraction_kit.lifecycle import Move
from tests.unit.lab import Lab

ANSI = re.compile(r"\x1b\[[0-9;]*m")
FIELDS = "allowed are n_tokens, context_size, top_k"


@pytest.fixture
def lab(tmp_path):
    """Two trainings; the first has a completed run and, of another corpus, one at work."""
    lab = Lab(tmp_path / "ws")
    lab.done = lab.completed("gpt2-l6")
    lab.active = lab.begun(lab.content("gpt2-l6", seed=1))
    lab.done_later = lab.completed("smollm2-demo")
    lab.content("never-run")
    return lab


@pytest.fixture
def shell(lab, monkeypatch):
    """An IPython shell with the magics, in whose working directory the workspace is."""
    monkeypatch.setenv("EXTRACTION_KIT_HOME", str(lab.home))
    monkeypatch.setattr(workspace, "_default", {str(lab.home): lab.ws})
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "extraction_kit")
    return shell


def value(shell, cell):
    """Return the value of a cell as a person types it; raise what it raises."""
    return shell.run_cell(cell, store_history=True).result


def refusal(shell, cell, capsys):
    done = shell.run_cell(cell, silent=True)
    capsys.readouterr()  # the shell has shown it
    assert done.error_in_exec is not None
    return done.error_in_exec


def offered(shell, text):
    """Return what the Tab key offers at the end of `text`, as whole lines."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    return [text[: one.start] + one.text for one in found]


# --- refusals -------------------------------------------------------------------------------


@pytest.fixture
def one_shell(shell, monkeypatch):
    """The shell, as the one of its process: a notebook's kernel has one."""
    monkeypatch.setattr(InteractiveShell, "_instance", shell)
    return shell


@pytest.mark.parametrize(
    "cell", ["workspace['gpt2-l7']", "%run_status gpt2-l7"], ids=["python", "magic"]
)
def test_an_error_in_a_notebook_is_your_lines_and_the_words(one_shell, lab, capsys, cell):
    one_shell.user_ns |= {"workspace": lab.ws}

    one_shell.run_cell(cell)

    shown = ANSI.sub("", capsys.readouterr().out)
    assert "'gpt2-l7'" in shown.splitlines()[-1]  # the words are the last thing
    assert "----> 1" in shown, "the line that was typed is missing"
    assert "extraction_kit/" not in shown, "lines of this package"
    assert len(shown.splitlines()) < 8


def test_the_persons_functions_are_shown_and_verbose_shows_the_packages(
    one_shell, lab, capsys
):
    one_shell.user_ns |= {"workspace": lab.ws}
    one_shell.run_cell("def mine(name):\n    return workspace[name]\n\nmine('gpt2-l7')")
    shown = ANSI.sub("", capsys.readouterr().out)
    assert "in mine(name)" in shown
    assert "in Workspace.training" not in shown

    one_shell.run_line_magic("xmode", "Verbose")
    one_shell.run_cell("mine('gpt2-l7')")
    assert "in Workspace.training" in ANSI.sub("", capsys.readouterr().out)


def test_a_cause_is_not_shown_and_stays_with_the_error(one_shell, capsys):
    one_shell.run_cell(
        "from extraction_kit.errors import BadModel\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError as cause:\n"
        "    raise BadModel('no such model') from cause"
    )
    assert "ZeroDivisionError:" not in capsys.readouterr().out
    assert isinstance(sys.last_value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "n_tokns = 3",
            ["n_tokns", "did you mean n_tokens", FIELDS, "`n_tokens = 1000000`"],
        ),
        ("colour = 3", ["colour", FIELDS]),
        ("n_tokens = '3'", ["n_tokens='3'", "an integer from 1", "`n_tokens = 1000000`"]),
        ("window = 3", ["window=3", "a pair", "`window = [32, 16]`"]),
        ("top_k = 5\ndedupe = True", ["`dedupe = True`", "line 2", "`dedupe = false`"]),
        ("top_k 5", ["`top_k 5`", "The fields are n_tokens, context_size"]),
        ("top_k = 5\ntop_k = 6", ["line 2", "The fields are n_tokens"]),
        ("[config]\ntop_k = 5", ["unknown option config", FIELDS]),
    ],
    ids=["near", "unknown", "type", "pair", "Python", "syntax", "twice", "table"],
)
def test_a_body_that_is_no_config_is_refused_with_field_and_line(
    shell, capsys, body, words
):
    error = refusal(shell, f"%%extract gpt2-l6 --corpus texts.jsonl\n{body}", capsys)
    assert isinstance(error, BadConfig)
    assert [one for one in words if one not in str(error)] == []


def test_an_unknown_training_is_refused_with_the_near_ones(shell, capsys):
    error = refusal(shell, "%%extract smolm2-demo --corpus texts.jsonl", capsys)
    assert isinstance(error, UnknownTraining)
    assert "did you mean 'smollm2-demo'? known: gpt2-l6, never-run" in str(error)


def test_an_unknown_id_is_refused_with_the_near_ones(shell, lab, capsys):
    error = refusal(shell, f"%run_status {lab.done[:6]}", capsys)
    assert isinstance(error, UnknownRun)
    assert f"did you mean '{lab.done}'?" in str(error)
    assert "'smollm2-demo'" in str(refusal(shell, "%run_status smollm2_demo", capsys))


def test_a_training_without_runs_is_refused_with_the_line_to_type(shell, capsys):
    line = "`%%extract never-run --corpus texts.jsonl`"
    error = refusal(shell, "%run_status never-run", capsys)
    assert isinstance(error, BadInput)
    assert line in str(error)
    error = refusal(shell, "%%extract never-run", capsys)  # whose corpus?
    assert isinstance(error, BadCorpus)
    assert line in str(error)


@pytest.mark.parametrize(
    "cell",
    [
        "%%extract",
        "%%extract gpt2-l6 --corpus",
        "%%extract gpt2-l6 --generation two",
        "%%extract gpt2-l6 --wai",
        "%%extract 'gpt2-l6",
        "%run_status",
        "%run_status one two",
        "%runs gpt2-l6",
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_type(shell, capsys, cell):
    done = shell.run_cell(cell, silent=True)
    assert isinstance(done.error_in_exec, UsageError)
    shown = capsys.readouterr()
    assert "Type %" in shown.err
    assert "Traceback" not in shown.out + shown.err


def test_a_refusal_is_shown_without_the_lines_of_the_package(one_shell, capsys):
    one_shell.run_cell("%%extract gpt2-l6 --corpus texts.jsonl\ntop_k = 0", silent=True)
    shown = capsys.readouterr()
    assert "top_k=0" in shown.out + shown.err
    assert "from_toml" not in shown.out + shown.err


# --- what they return -----------------------------------------------------------------------


def test_runs_lists_all_runs_the_newest_first(shell, lab):
    table = value(shell, "%runs").df()
    assert list(table.run_id) == [lab.done_later, lab.active, lab.done]
    assert list(table.state) == ["completed", "extracting", "completed"]


def test_run_status_finds_a_run_by_its_id_or_by_its_training(shell, lab):
    assert value(shell, f"%run_status {lab.done}").run_id == lab.done
    assert value(shell, "%run_status smollm2-demo").run_id == lab.done_later
    assert value(shell, "%run_status gpt2-l6").run_id == lab.active


def test_the_run_that_is_at_work_is_meant_even_if_another_one_is_newer(shell, lab):
    resumed = lab.begun(lab.content("resumed"))
    attempt = Target(run_id=resumed, attempt=1, nonce="n")
    with lab.bench.store.write() as connection:
        assert move(connection, attempt, Move.INTERRUPT, by=lab.worker, text="")
    newer = lab.completed("resumed", seed=1)
    assert value(shell, "%run_status resumed").run_id == newer
    with lab.bench.store.write() as connection:
        assert service._resume(connection, resumed, lab.bench.mover()) is None
    assert value(shell, "%run_status resumed").run_id == resumed


def test_run_status_of_a_training_at_rest_is_that_of_the_newest(shell, lab):
    first = lab.completed("at-rest")
    second = lab.completed("at-rest", seed=1)
    assert value(shell, "%run_status at-rest").run_id == second != first


def test_a_cell_that_waits_shows_its_card_once(lab, monkeypatch):
    """The card is live while the cell waits; its value must not show it again."""
    shown = []
    monkeypatch.setattr(widgets, "show", lambda *_, **__: shown.append("card"))
    monkeypatch.setattr(widgets, "cell_number", lambda: 7)
    run = lab.ws.run(lab.done).watch()
    run._ipython_display_()  # what the cell does with its value
    assert shown == ["card"]
    monkeypatch.setattr(widgets, "cell_number", lambda: 8)
    run._ipython_display_()
    assert shown == ["card", "card"]


def test_a_cell_that_waits_for_a_result_shows_its_card(lab, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "show", lambda *_, **__: shown.append("card"))
    for n_cards, cell in ((0, None), (1, 7)):  # in a script, in a notebook
        monkeypatch.setattr(widgets, "cell_number", lambda cell=cell: cell)
        with pytest.raises(WaitTimeout):
            lab.ws.run(lab.active).result(timeout_s=0)
        assert len(shown) == n_cards
    assert lab.ws.run(lab.done).result()["summary"]
    assert len(shown) == 1  # there was nothing to wait for


def test_a_training_lists_its_runs_by_their_ids(lab):
    lines = repr(lab.ws["gpt2-l6"]).splitlines()
    runs = [line.split(maxsplit=1) for line in lines[1:]]
    assert [[one.run_id, repr(one)] for one in lab.ws["gpt2-l6"].runs] == runs
    assert {lab.done, lab.active} <= {run_id for run_id, _ in runs}


def test_trainings_are_a_relation_as_runs_are(lab):
    found = lab.ws.trainings()
    assert {row[0] for row in found.fetchall()} == set(lab.ws._ipython_key_completions_())
    at = [row[0] for row in found.project("created_at").fetchall()]
    assert at == sorted(at, reverse=True)


# --- completion -----------------------------------------------------------------------------


def test_tab_completes_training_ids_and_options(shell):
    assert offered(shell, "%%ext") == ["%%extract"]
    assert offered(shell, "%%extract smol") == ["%%extract smollm2-demo"]
    assert offered(shell, "%%extract gpt2-l") == ["%%extract gpt2-l6"]
    assert "%%extract gpt2-l6" in offered(shell, "%%extract ")
    assert offered(shell, "run = %extract smol") == ["run = %extract smollm2-demo"]
    assert offered(shell, "%%extract gpt2-l6 --w") == ["%%extract gpt2-l6 --wait"]


def test_tab_completes_ids_of_runs_and_of_trainings(shell, lab):
    assert offered(shell, f"%run_status {lab.active[:7]}") == [f"%run_status {lab.active}"]
    assert offered(shell, "%run_status smol") == ["%run_status smollm2-demo"]


def test_tab_completes_fields_in_the_body_and_paths_after_corpus(
    shell, tmp_path, monkeypatch
):
    head = "%%extract gpt2-l6\n"
    assert offered(shell, f"{head}n_to") == [f"{head}n_tokens", f"{head}n_top_tokens"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").touch()
    typed = "%%extract gpt2-l6 --corpus te"
    assert offered(shell, typed) == ["%%extract gpt2-l6 --corpus texts.jsonl"]


def test_tab_without_a_usable_workspace_offers_nothing_and_says_nothing(
    shell, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXTRACTION_KIT_HOME", str(tmp_path / "file"))
    assert offered(shell, "%%extract smol") == []
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""


# --- in and out -----------------------------------------------------------------------------


def test_unloading_takes_everything_away_and_loading_brings_it_back(shell):
    steps = len(shell.input_transformers_cleanup)
    shell.run_line_magic("unload_ext", "extraction_kit")
    assert shell.find_line_magic("runs") is None
    assert shell.find_cell_magic("extract") is None
    assert shell.find_line_magic("extract") is None
    assert offered(shell, "%run_status smol") == []
    shell.run_line_magic("load_ext", "extraction_kit")
    shell.run_line_magic("reload_ext", "extraction_kit")
    assert len(shell.input_transformers_cleanup) == steps
    assert offered(shell, "%run_status smol") == ["%run_status smollm2-demo"]


def test_the_magics_import_no_torch():
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as Shell;"
        "Shell().run_line_magic('load_ext', 'extraction_kit'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
