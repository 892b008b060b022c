"""The loop: exact against a naive reference, and the same after any interruption."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from extraction_kit import checkpoints
from extraction_kit.corpora import Corpus, prepare
from extraction_kit.errors import BadCorpus, BadModel, CheckpointUnusable
from extraction_kit.extraction import Progress, StopAfterCheckpoint, extract
from extraction_kit.paths import Paths
from extraction_kit.results import result_digest
from extraction_kit.testing import ARCHITECTURES, tiny_training
from extraction_kit.trainings import describe_training
from tests.unit.extraction.oracle import (
    CONFIG,
    CONFIGS,
    SETTINGS,
    assert_examples,
    naive_result,
)
from tests.unit.extraction.stops import Killed, resumed, stopper


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_equals_a_naive_loop(parts, architecture, name):
    config = CONFIGS[name]
    training, corpus = parts(architecture, config)
    found = extract(training, corpus, config=config, settings=SETTINGS)
    columns, histogram, examples, quality = naive_result(training, corpus, config)

    assert found.features["n_active"].tolist() == columns["n_active"]
    assert found.features["n_contexts"].tolist() == columns["n_contexts"]
    for column in ("sum_act", "sum_sq_act"):
        np.testing.assert_allclose(found.features[column], columns[column], rtol=1e-4)
    np.testing.assert_array_equal(found.histograms, histogram)
    assert_examples(found, examples, config.top_k)
    assert found.summary["l0"] == pytest.approx(quality["l0"], rel=1e-12)
    assert found.summary["fvu"] == pytest.approx(quality["fvu"], rel=1e-5)
    assert found.summary["n_dead"] == columns["n_active"].count(0) >= 1
    assert found.summary["n_tokens"] == corpus.n_tokens == corpus.n_tokens
    assert found.summary["n_tokens_total"] == corpus.n_tokens_total
    assert found.summary["n_contexts"] == corpus.n_contexts


# --- interruption ---------------------------------------------------------------------


@pytest.fixture
def interrupted(parts, tmp_path):
    """Return a function that runs attempts until they are stopped, one after another."""
    training, corpus = parts()

    def run(*stops, every_s=1e-9, settings=SETTINGS):
        settings = replace(settings, checkpoint_every_s=every_s)
        for attempt, stop in enumerate([*stops, None], 1):
            try:
                return extract(
                    training,
                    corpus,
                    config=CONFIG,
                    settings=settings,
                    content_key="key",
                    checkpoints=tmp_path / f"a{attempt}",
                    resume_from=tmp_path,
                    on_progress=stop and stopper(*stop),
                )
            except (Killed, StopAfterCheckpoint):
                continue
        raise AssertionError

    return run


@pytest.mark.parametrize("after", [1, 2, 7, 15])
@pytest.mark.parametrize("error", [Killed, StopAfterCheckpoint])
def test_stopped_anywhere_and_resumed_gives_the_same_digest(
    interrupted, undisturbed, after, error
):
    found = interrupted((after, error))
    assert found.provenance["resumed_from_tokens"] > 0
    assert result_digest(found) == result_digest(undisturbed)
    for column in ("sum_act", "sum_sq_act"):
        np.testing.assert_allclose(
            found.features[column], undisturbed.features[column], rtol=1e-12
        )
    for name in ("l0", "fvu"):
        assert found.summary[name] == pytest.approx(undisturbed.summary[name], rel=1e-12)


def test_stopped_again_and_again_gives_the_same_digest(interrupted, undisturbed):
    stops = [(2, Killed), (1, StopAfterCheckpoint), (3, StopAfterCheckpoint), (1, Killed)]
    assert result_digest(interrupted(*stops)) == result_digest(undisturbed)


def test_killed_between_checkpoints_repeats_what_came_after_the_last(
    interrupted, undisturbed, tmp_path
):
    found = interrupted((4, StopAfterCheckpoint), (3, Killed), every_s=3600.0)
    assert not (tmp_path / "a2").exists()
    last = checkpoints.best(tmp_path)
    assert last.path.parent.name == "a3", "all is computed: nothing is computed twice now"
    assert last.meta["n_tokens_done"] == found.summary["n_tokens"]
    shutil.rmtree(tmp_path / "a3")
    stopped = checkpoints.best(tmp_path).meta["n_tokens_done"]
    assert found.provenance["resumed_from_tokens"] == stopped
    assert result_digest(found) == result_digest(undisturbed)


def test_a_stop_without_a_checkpoint_writes_nothing(parts, tmp_path):
    training, corpus = parts()
    with pytest.raises(Killed):
        extract(
            training,
            corpus,
            config=CONFIG,
            settings=SETTINGS,
            checkpoints=tmp_path / "a1",
            on_progress=stopper(3, Killed),
        )
    assert not (tmp_path / "a1").exists()


def test_a_stop_before_the_first_batch_goes_through_and_writes_nothing(parts, tmp_path):
    def at_once(_):
        raise StopAfterCheckpoint

    training, corpus = parts()
    with pytest.raises(StopAfterCheckpoint):
        extract(
            training,
            corpus,
            config=CONFIG,
            settings=SETTINGS,
            checkpoints=tmp_path / "a1",
            on_progress=at_once,
        )
    assert not (tmp_path / "a1").exists()


def test_checkpoints_are_written_by_the_clock(parts, tmp_path):
    training, corpus = parts()
    now, told = [0.0], []

    def tick(progress):
        told.append(progress)
        now[0] += 1.0

    extract(
        training,
        corpus,
        config=CONFIG,
        settings=replace(SETTINGS, checkpoint_every_s=5.0),
        checkpoints=tmp_path / "a1",
        on_progress=tick,
        clock=lambda: now[0],
    )
    batches = [progress for progress in told if progress.n_contexts_done]
    numbers = sorted(int(path.name) for path in (tmp_path / "a1").iterdir())
    assert len(numbers) == 2
    assert numbers[-1] == -(-(len(batches) - 1) // 5)  # the last when all is computed
    saved = [progress.checkpoint_tokens for progress in batches]
    assert saved[:4] == [None] * 4
    # one is told of once it is on disk, at the latest when the next one is begun
    assert saved[9] == batches[4].n_tokens_done
    assert set(saved) <= {None, *(progress.n_tokens_done for progress in batches[4::5])}


def test_a_checkpoint_holds_the_state_that_it_was_begun_with(
    parts, tmp_path, undisturbed, monkeypatch
):
    """However long it takes to be written, and whatever is counted meanwhile."""
    written, go_on, seen = checkpoints.save_file, threading.Event(), []

    def slowly(*arguments):
        assert go_on.wait(60)
        written(*arguments)

    def watch(progress):
        seen.append(progress)
        if progress.n_contexts_done >= 7:
            go_on.set()
            raise Killed

    training, corpus = parts()
    monkeypatch.setattr(checkpoints, "save_file", slowly)
    clock = iter([0.0, 0.0, 0.0, 1.0, *[1.0] * 10_000])
    with pytest.raises(Killed):
        extract(
            training,
            corpus,
            config=CONFIG,
            settings=replace(SETTINGS, checkpoint_every_s=1.0),
            content_key="key",
            checkpoints=tmp_path / "a1",
            on_progress=watch,
            clock=lambda: next(clock),
        )
    assert {progress.checkpoint_tokens for progress in seen} == {None}, "not on disk yet"
    done = checkpoints.best(tmp_path).meta["n_contexts_done"]
    assert 0 < done < 7, "batches were computed while it was written"
    assert result_digest(resumed(parts, tmp_path)) == result_digest(undisturbed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": replace(SETTINGS, tile_tokens=60)}, "tile_contexts: 2 then, 5 now"),
        ({"settings": replace(SETTINGS, threads=2)}, "threads: 1 then, 2 now"),
        ({"content_key": "other"}, "content_key: 'key' then, 'other' now"),
        ({"config": CONFIG.replace(n_tokens=100)}, "corpus: '"),
        (
            {"config": CONFIG.replace(dtype="bfloat16")},
            "dtype: 'float32' then, 'bfloat16' now",
        ),
    ],
)
def test_a_checkpoint_of_other_conditions_is_refused_by_what_differs(
    parts, stopped, changes, named
):
    with pytest.raises(CheckpointUnusable, match="start from the beginning") as caught:
        resumed(parts, stopped, **changes)
    assert named in str(caught.value)
    assert str(stopped) in str(caught.value)


def test_a_checkpoint_of_another_torch_is_refused(parts, stopped):
    meta = checkpoints.best(stopped).path / checkpoints.META
    values = json.loads(meta.read_text())
    values["fingerprint"]["torch"] = "1.0"
    meta.write_text(json.dumps(values))
    with pytest.raises(CheckpointUnusable, match=r"torch: '1\.0' then"):
        resumed(parts, stopped)


def test_a_checkpoint_with_other_statistics_is_refused(parts, stopped):
    state = {"moments.n_active": np.zeros(3, dtype=np.int64)}
    meta = dict(checkpoints.best(stopped).meta) | {"n_contexts_done": 9}
    checkpoints.save(stopped / "a2", state, meta)
    with pytest.raises(CheckpointUnusable, match="does not fit this extraction"):
        resumed(parts, stopped)


def test_with_no_sound_checkpoint_it_starts_from_the_beginning(parts, stopped, undisturbed):
    (checkpoints.best(stopped).path / checkpoints.STATE).write_bytes(b"")
    found = resumed(parts, stopped)
    assert found.provenance["resumed_from_tokens"] is None
    assert result_digest(found) == result_digest(undisturbed)


# --- what does not change the numbers, what is told, what is refused ------------------


def test_the_padding_token_changes_no_number(parts):
    training, corpus = parts(config=CONFIGS["documents"])
    digests = set()
    for pad_id in (0, 9, 99):  # the model knows 0 to 63
        padded = Corpus(
            **{name: value for name, value in vars(corpus).items() if name != "_groups"}
            | {"pad_id": pad_id, "vocab_size": 100}
        )
        found = extract(training, padded, config=CONFIGS["documents"], settings=SETTINGS)
        digests.add(result_digest(found))
    assert len(digests) == 1


def test_progress_is_told_at_each_phase_and_after_each_batch(parts):
    training, corpus = parts()
    told: list[Progress] = []
    extract(training, corpus, config=CONFIG, settings=SETTINGS, on_progress=told.append)
    phases = list(dict.fromkeys(progress.phase for progress in told))
    assert phases == ["loading model", "loading SAE", "checking", "extracting", "finishing"]
    batches = [progress for progress in told if progress.n_contexts_done]
    contexts = [progress.n_contexts_done for progress in batches[:-1]]
    full = corpus.n_contexts - 1  # the last is short: a tile of its own
    assert contexts == [*range(2, full, 2), full, corpus.n_contexts]
    assert all(progress.n_tokens == corpus.n_tokens for progress in told)
    assert batches[0].l0 == pytest.approx(6.0)
    assert batches[0].fvu > 0
    assert batches[0].n_dead >= 1
    assert batches[-1].n_tokens_done == corpus.n_tokens
    assert batches[-1].tokens_per_s > 0


def test_the_result_carries_its_provenance(parts):
    training, corpus = parts(config=CONFIGS["masked"])
    found = extract(training, corpus, config=CONFIGS["masked"], settings=SETTINGS)
    provenance = json.loads(json.dumps(found.provenance))
    assert provenance["fingerprint"]["threads"] == 1
    assert provenance["fingerprint"]["tile_contexts"] == 2
    assert provenance["masks"]["ignore_positions"] == [1, 5]
    assert provenance["corpus_digest"] == corpus.digest
    assert provenance["hookpoint"]["equals_hidden_state"] is True
    assert json.loads(json.dumps(found.summary))["peak_rss_bytes"] > 2**20
    assert found.features["decoder_norm"].shape == (training.sae.d_sae,)


def test_bfloat16_gives_a_result_too(parts):
    config = CONFIG.replace(dtype="bfloat16", n_tokens=100)
    training, corpus = parts(config=config)
    found = extract(training, corpus, config=config, settings=SETTINGS)
    assert found.summary["l0"] == pytest.approx(6.0, abs=0.1)
    assert found.examples.act.dtype == np.float32


def test_activations_that_are_not_finite_are_refused_with_their_place(tmp_path, folder):
    tiny = tiny_training(tmp_path / "tiny")
    path = tiny.model / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][40] = 3e38  # token 40 overflows in layer 0
    save_file(weights, path, metadata={"format": "pt"})
    training = describe_training("tiny", sae=tiny.sae, model=tiny.model)
    paths = Paths.of(folder / "other", SETTINGS)
    rows = [[5, 6, 7, 8], [5, 6, 40, 8]]
    config = CONFIG.replace(packing="document")
    corpus = prepare(rows, tokenizer=training.tokenizer, config=config, paths=paths)
    with pytest.raises(BadModel, match="not finite at context 1, position 3"):
        extract(training, corpus, config=config, settings=SETTINGS)


def test_a_context_beyond_the_model_is_refused_before_loading(parts):
    training, corpus = parts()
    small = replace(training, model=replace(training.model, max_context=11, path="/gone"))
    with pytest.raises(BadCorpus, match="context_size=12: the model takes at most 11"):
        extract(small, corpus, config=CONFIG, settings=SETTINGS)


def test_token_ids_beyond_the_vocabulary_are_refused(parts):
    training, corpus = parts()
    small = replace(training, model=replace(training.model, vocab_size=20))
    with pytest.raises(BadCorpus, match="vocab_size=20"):
        extract(small, corpus, config=CONFIG, settings=SETTINGS)


def test_a_corpus_with_another_count_than_it_says_is_refused(parts):
    training, corpus = parts()
    with pytest.raises(BadCorpus, match="it is damaged"):
        extract(
            training,
            replace(corpus, n_tokens=corpus.n_tokens + 1),
            config=CONFIG,
            settings=SETTINGS,
        )
