"""What is said before a launch: from runs that were measured, else from formulas that hold."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from extraction_kit import Workspace, estimate
from extraction_kit.cli import main
from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import WorkspaceUnusable
from extraction_kit.ledger import records
from extraction_kit.lifecycle import RunState
from extraction_kit.liveness import ProcessIdentity

CONFIG = ExtractionConfig(context_size=32, n_tokens=2000)
MIB = 2**20


@pytest.fixture
def ws(tiny, tmp_path):
    workspace = Workspace(tmp_path / "ws", settings=Settings(device="cpu"))
    workspace.register_training("tiny", sae=tiny.sae, model=tiny.model)
    return workspace


def estimated(ws, tiny, training_id="tiny"):
    return ws.estimate(training_id, corpus=tiny.corpus, config=CONFIG)


def completed(training_id, *, speed, host=None, run_id="ab12"):
    """Return the record of a run as far as an estimate reads it."""
    values = dict.fromkeys(records.RunRecord.__dataclass_fields__)
    values |= {"run_id": run_id, "training_id": training_id, "state": RunState.COMPLETED}
    values |= {"created_at": datetime(2026, 11, 24, tzinfo=UTC)}
    values["summary"] = {"tokens_per_s": speed}
    values["process"] = {"host": host or ProcessIdentity.of_this_process().host}
    return records.RunRecord(**values)


@pytest.fixture
def ran(monkeypatch):
    """Let these runs be completed, the oldest first."""

    def them(*runs):
        monkeypatch.setattr(records, "runs_in", lambda *_: list(runs))

    return them


def test_the_newest_run_of_the_training_tells_the_time(ws, tiny, ran):
    ran(completed("tiny", speed=9.0), completed("tiny", speed=100.0, run_id="cd34"))
    found = estimated(ws, tiny)
    assert found.seconds == pytest.approx(estimate.START_S + 2000 / 100)
    assert found.how == "100 tokens/s in run cd34 of 2026-11-24"
    assert re.fullmatch(
        r"about 32 s for 2,000 tokens \(100 tokens/s in run cd34 of 2026-11-24\), "
        r"\d+ MiB memory, \d+ MiB disk",
        repr(found),
    )


def test_a_run_on_another_machine_says_so(ws, tiny, ran):
    ran(completed("tiny", speed=100.0, host="elsewhere"))
    assert "in run ab12 on elsewhere of" in estimated(ws, tiny).how


def test_another_training_of_the_same_sizes_tells_it_if_it_ran_here(ws, tiny, ran):
    ws.register_training("alike", sae=tiny.sae, model=tiny.model)
    ws.register_training("other", sae=tiny.saes["jumprelu"], model=tiny.model)
    ran(completed("alike", speed=50.0))
    assert estimated(ws, tiny).seconds == pytest.approx(estimate.START_S + 2000 / 50)
    assert estimated(ws, tiny, "other").how.startswith("computed")
    ran(completed("alike", speed=50.0, host="elsewhere"))
    assert estimated(ws, tiny).how.startswith("computed")


def test_what_never_ran_is_computed_from_its_arithmetic(ws, tiny, monkeypatch):
    monkeypatch.setattr(estimate, "matmul_rate", lambda: 1e9)
    found = estimated(ws, tiny)
    d, layer = (
        16,
        16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 32,
    )  # q, o; k, v of half the heads; MLP
    flops = 2 * 2 * layer + 4 * 2 * 32 * d + 2 * d * 48
    training = ws.training("tiny")
    assert estimate.flops_per_token(training, context_size=32) == flops
    corpus = ws.corpus(tiny.corpus, training_id="tiny", config=CONFIG)
    after = 2 * d * 48 * (48 + training.model.vocab_size)  # neighbours, logits
    work = corpus.n_contexts * 32 * flops + after
    seconds = work / (estimate.CPU_EFFICIENCY * 1e9)
    assert found.seconds == pytest.approx(estimate.START_S + seconds)
    assert "MFLOP per token" in found.how


def test_the_rate_of_this_machine_is_a_rate():
    assert 1e9 < estimate.matmul_rate(0.01) < 1e14


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"device": "cuda"}, "never measured on this GPU: the first minute of the run shows it"),
        ({"redis_url": "redis://nowhere"}, "workers elsewhere"),
    ],
)  # fmt: skip
def test_where_nothing_is_known_it_says_so(tiny, tmp_path, settings, how):
    ws = Workspace(tmp_path / "ws", settings=Settings(**settings))
    ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
    found = estimated(ws, tiny)
    assert found.seconds is None
    assert repr(found).startswith("time not known for 2,000 tokens")
    assert how in found.how


MEASURE = """
import sys, json
from pathlib import Path
from extraction_kit import ExtractionConfig, Settings, estimate
from extraction_kit.catalog.publish import stage
from extraction_kit.corpora import prepare
from extraction_kit.extraction import extract
from extraction_kit.paths import Paths
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_training

folder = Path(sys.argv[1])
tiny = tiny_training(folder / "t", d_in=64, d_sae=4096, k=32, n_documents=400)
settings = Settings(threads=1, device="cpu", preflight="report")
config = ExtractionConfig()
training = describe_training("t", sae=tiny.sae, model=tiny.model)
paths = Paths(folder / "w", folder / "w")
corpus = prepare(tiny.corpus, tokenizer=training.tokenizer, config=config, paths=paths)
found = extract(
    training, corpus, config=config, settings=settings, checkpoints=folder / "checkpoints"
)
stage(folder / "result", found, {})

def size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

one = size(folder / "checkpoints")
print(json.dumps({
    "memory": [found.summary["peak_rss_bytes"],
               estimate.memory_bytes(training, corpus, config, settings=settings)],
    "checkpoint": [one, estimate.state_bytes(training, corpus, config)],
    "disk": [3 * one + size(folder / "result"), estimate.disk_bytes(training, corpus, config)],
}))
"""


def test_memory_and_disk_of_a_real_run_are_within_a_factor_of_two(tmp_path):
    """Of a run whose features have fewer examples than they may: the formulas are above."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, (real, said) in json.loads(done.stdout.splitlines()[-1]).items():
        assert real / 2 < said < 2 * real, name


def test_what_is_kept_per_feature_decides_the_disk(ws, tiny):
    training = ws.training("tiny")
    corpus = ws.corpus(tiny.corpus, training_id="tiny", config=CONFIG)

    def disk(**changes):
        return estimate.disk_bytes(training, corpus, CONFIG.replace(**changes))

    usual = disk()
    for name in ("top_k", "per_band", "n_random"):
        assert disk(**{name: getattr(CONFIG, name) + 1}) > usual, name
    assert disk(n_silent=6) > usual
    few = replace(corpus, n_contexts=3)
    assert estimate.disk_bytes(training, few, CONFIG) < usual
    assert disk(window=(1, 0)) < usual == disk(window=(64, 64))


def test_the_ce_loss_needs_the_whole_model_and_its_logits(ws, tiny):
    training = ws.training("tiny")
    corpus = ws.corpus(tiny.corpus, training_id="tiny", config=CONFIG)

    def memory(**changes):
        settings = Settings(tile_tokens=2**16)
        config = CONFIG.replace(**changes)
        return estimate.memory_bytes(training, corpus, config, settings=settings)

    layer = 4 * (
        16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16
    )  # the third, with its norms
    assert memory(n_ce_contexts=5) - memory() == layer + max(
        0,
        2 * 4 * 2**16 * 64
        - 2**16 * (48 * 5 + 16 * 16)
        - 3 * estimate.state_bytes(training, corpus, CONFIG),
    )


def test_a_launch_that_would_fill_the_disk_is_refused_before_anything_is_made(
    ws, tiny, monkeypatch
):
    usage = SimpleNamespace(free=300 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("extraction_kit.service.disk_bytes", lambda *_: 400 * MIB)
    with pytest.raises(WorkspaceUnusable, match=r"300 MiB free, 400 MiB are needed.*top_k"):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    assert ws.views() == []


def test_the_command_line_says_it_and_launches_nothing(ws, tiny, capsys):
    command = ["--workspace", str(ws.home), "launch", "tiny", "--corpus", str(tiny.corpus)]
    assert main([*command, "--n-tokens", "500", "--estimate"]) == 0
    assert re.match(r"about \d+ s for 500 tokens \(computed: ", capsys.readouterr().out)
    assert ws.views() == []


def test_it_needs_no_torch(ws, tiny):
    code = (
        "import sys; from extraction_kit import Workspace;"
        "print(Workspace(sys.argv[1]).estimate('tiny', corpus=sys.argv[2]));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ws.home, tiny.corpus],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
