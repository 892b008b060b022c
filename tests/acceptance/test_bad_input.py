"""What a tired person passes: one clear error at launch, and no half-made run."""

import json
import re
import shutil
import sqlite3

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from extraction_kit import ExtractionConfig, Settings, Workspace
from extraction_kit.errors import (
    BadConfig,
    BadCorpus,
    BadModel,
    BadQuery,
    BadSae,
    BadTrainingId,
    GenerationUnavailable,
    LedgerBusy,
    ServerNotStarted,
    TrainingConflict,
    UnknownFeature,
    UnknownRun,
    UnknownTraining,
    WorkerNotStarted,
    WorkspaceUnusable,
)
from extraction_kit.workbench import Workbench
from tests.acceptance.staging import CONFIG, SETTINGS, kill


@pytest.fixture
def ws(tmp_path, tiny):
    ws = Workspace(tmp_path / "ws", settings=SETTINGS)
    ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
    yield ws
    assert ws.views() == [], "a half-made run was left"
    ws.down()


@pytest.fixture
def sae(tmp_path, tiny):
    """A copy of the SAE that may be spoiled."""
    return shutil.copytree(tiny.sae, tmp_path / "sae")


def spoil(sae, **changes):
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | changes))


def test_an_unknown_training_is_named_with_those_that_exist(ws, tiny):
    with pytest.raises(
        UnknownTraining, match=r"no training 'tinny'.*known: tiny.*register"
    ):
        ws.launch("tinny", corpus=tiny.corpus)


@pytest.mark.parametrize("bad", ["my sae", "a/b", "", "é", ".hidden"])
def test_a_training_id_with_illegal_characters_is_refused(ws, tiny, bad):
    with pytest.raises(BadTrainingId, match="letters, digits"):
        ws.register_training(bad, sae=tiny.sae, model=tiny.model)


def test_other_content_under_a_used_id_names_both_digests(ws, tiny):
    first = ws.training("tiny")
    assert ws.register_training("tiny", sae=tiny.sae, model=tiny.model) == first
    with pytest.raises(TrainingConflict) as caught:
        ws.register_training("tiny", sae=tiny.saes["jumprelu"], model=tiny.model)
    assert first.digest[:12] in str(caught.value)
    assert caught.value.offered in str(caught.value)
    assert ws.training("tiny") == first


def test_a_missing_sae_is_named(ws, tiny, tmp_path):
    with pytest.raises(BadSae, match="nowhere"):
        ws.register_training("x", sae=tmp_path / "nowhere", model=tiny.model)


def test_a_torn_sae_file_is_refused(ws, tiny, sae):
    weights = sae / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadSae, match=r"sae_weights\.safetensors"):
        ws.register_training("x", sae=sae, model=tiny.model)


def test_an_sae_of_the_wrong_width_names_both_widths(ws, tiny, sae):
    weights = load_file(sae / "sae_weights.safetensors")
    narrow = {
        "W_enc": weights["W_enc"][:8], "W_dec": weights["W_dec"][:, :8],
        "b_dec": weights["b_dec"][:8], "b_enc": weights["b_enc"],
    }  # fmt: skip
    save_file({k: np.ascontiguousarray(v) for k, v in narrow.items()},
              sae / "sae_weights.safetensors")  # fmt: skip
    spoil(sae, d_in=8)
    with pytest.raises(BadSae, match=r"d_in=8.*16 wide"):
        ws.register_training("x", sae=sae, model=tiny.model)


def test_an_unknown_activation_function_is_refused(ws, tiny, sae):
    spoil(sae, architecture="swish-sae")
    with pytest.raises(BadSae, match="swish-sae"):
        ws.register_training("x", sae=sae, model=tiny.model)


def test_an_sae_that_changed_on_disk_since_is_refused_by_the_worker(tmp_path, tiny, sae):
    ws = Workspace(tmp_path / "other", settings=SETTINGS)
    ws.register_training("tiny", sae=sae, model=tiny.model)
    weights = load_file(sae / "sae_weights.safetensors")
    weights["b_enc"] = weights["b_enc"] + 1
    save_file(weights, sae / "sae_weights.safetensors")
    run = ws.launch("tiny", corpus=tiny.corpus, config=CONFIG).wait(90)
    try:
        assert run.state == "failed"
        assert "has changed since" in run.view.error
        assert "register the new ones under another id" in run.view.error
    finally:
        ws.down()


def test_a_model_that_is_nowhere_is_named(ws, tiny, tmp_path):
    with pytest.raises(BadModel, match="nowhere"):
        ws.register_training("x", sae=tiny.sae, model=tmp_path / "nowhere")


def test_a_layer_beyond_the_model_is_refused(ws, tiny):
    with pytest.raises(BadModel, match=r"blocks\.9\.hook_resid_post"):
        ws.register_training(
            "x", sae=tiny.sae, model=tiny.model, hook_name="blocks.9.hook_resid_post"
        )


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        pytest.param(
            "no-such-file.txt", r"no-such-file\.txt", id="a file that is not there"
        ),
        pytest.param([], "empty", id="no texts"),
        pytest.param(["", "  "], "empty|no token", id="empty texts"),
        pytest.param([1, 2, 3], "allowed|wanted|list", id="numbers"),
        pytest.param(["baba bade"], "60,?000", id="too few tokens"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused(ws, corpus, words):
    with pytest.raises(BadCorpus, match=words):
        ws.launch("tiny", corpus=corpus, config=CONFIG)


def test_a_context_beyond_the_model_is_refused_with_its_limit(ws, tiny):
    longest = ws.training("tiny").model.max_context
    with pytest.raises(BadConfig, match=f"context_size={longest + 1}.*{longest}"):
        ws.launch(
            "tiny",
            corpus=tiny.corpus,
            config=ExtractionConfig(context_size=longest + 1, n_tokens=100),
        )


def test_a_generation_that_does_not_follow_is_refused(ws, tiny):
    with pytest.raises(GenerationUnavailable, match="generation=3"):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG, generation=3)


@pytest.mark.parametrize("bad", ["2", 2.0, True, 0, -1])
def test_what_is_no_generation_is_refused_as_it_was_typed(ws, tiny, bad):
    with pytest.raises(
        BadConfig, match=re.escape(f"generation={bad!r}: an integer from 1")
    ):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG, generation=bad)


def test_a_workspace_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceUnusable, match=r"file/ws"):
        Workspace(tmp_path / "file" / "ws")
    with pytest.raises(WorkspaceUnusable):
        Workspace("/proc/extractions")


def test_a_full_disk_is_refused_before_anything_is_made(tmp_path, tiny):
    ws = Workspace(tmp_path / "ws", settings=Settings(min_free_bytes=2**53))
    ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
    with pytest.raises(WorkspaceUnusable, match=r"MiB free.*free some space"):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    assert ws.views() == []


def test_a_server_that_does_not_start_leaves_no_run(ws, tiny):
    (ws.home / "server-binary").write_text(shutil.which("false"))
    with pytest.raises(ServerNotStarted, match="EXTRACTION_KIT_REDIS_URL"):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)


def test_a_worker_that_does_not_start_leaves_no_run(ws, tiny):
    (ws.home / "run" / "logs" / "worker.log").mkdir(parents=True)
    with pytest.raises(WorkerNotStarted, match="doctor"):
        ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)


def test_a_server_of_ones_own_that_is_away_keeps_the_run_and_says_so(tmp_path, tiny):
    home = tmp_path / "ws"
    away = Settings(redis_url=f"unix://{tmp_path}/nobody.sock", min_free_bytes=0)
    ws = Workspace(home, settings=away)
    ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
    run = ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    assert run.state == "requested"
    assert "will be sent" in run.view.findings[0]
    run.cancel()
    assert run.state == "cancelled"
    ws.down()


def test_a_locked_ledger_is_named(tmp_path, tiny):
    ws = Workspace(tmp_path / "ws", settings=SETTINGS)
    ws._bench.store._busy_timeout_s = 0.2
    other = sqlite3.connect(ws._bench.paths.ledger)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(LedgerBusy, match="locked"):
            ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
    finally:
        other.close()


def test_a_catalog_held_by_another_program_stops_nothing(ws):
    import duckdb  # noqa: PLC0415

    path = ws.refresh_catalog()
    with duckdb.connect(str(path)) as held:
        held.sql("create table mine (x int)")
        assert ws.refresh_catalog() == path
        assert ws.sql("select count(*) from runs").fetchall() == [(0,)]


def test_an_unknown_run_feature_or_query_is_named(undisturbed):
    stage, run = undisturbed
    with pytest.raises(UnknownRun, match=f"'nope'.*{run.run_id}"):
        stage.ws.run("nope")
    for feature in (48, -1, 10**6):
        with pytest.raises(UnknownFeature, match="from 0 to 47"):
            run.examples(feature)
    with pytest.raises(BadQuery, match="features"):
        stage.ws.sql("select * from featuers")
    with pytest.raises(BadQuery):
        stage.ws.sql("drop table runs")


def test_two_workspaces_on_one_directory_are_one(undisturbed):
    stage, run = undisturbed
    second = Workspace(stage.ws.home, settings=SETTINGS)
    assert second.run(run.run_id).view.result_digest == run.view.result_digest
    assert Workbench.open(stage.ws.home).store.version() == stage.bench.store.version()
    assert kill(stage.worker_pid(), 0)
