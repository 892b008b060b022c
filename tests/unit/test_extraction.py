"""The loop: exact against a naive reference, and the same after any interruption."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from extraction_kit import checkpoints
from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, prepare
from extraction_kit.errors import BadCorpus, BadModel, BadSettings, CheckpointUnusable
from extraction_kit.extraction import Progress, StopAfterCheckpoint, extract
from extraction_kit.paths import Paths
from extraction_kit.results import GROUPS, N_BANDS, N_BINS, bin_edges, result_digest
from extraction_kit.sources.saes import SparseAutoencoder
from extraction_kit.testing import ARCHITECTURES, tiny_training
from extraction_kit.trainings import describe_training

SETTINGS = Settings(threads=1, device="cpu", tile_tokens=24)
CONFIG = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
CONFIGS = {
    "packed": CONFIG,
    "documents": CONFIG.replace(packing="document"),
    "masked": CONFIG.replace(
        packing="document", ignore_positions=(1, 5), ignore_tokens=(7, 8), n_tokens=150
    ),
    "specials count": CONFIG.replace(exclude_special_tokens=False, n_tokens=211),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extraction")


@pytest.fixture(scope="module")
def tiny(folder):
    return tiny_training(folder / "tiny", n_documents=14)


@pytest.fixture(scope="module")
def parts(folder, tiny):
    """Return a function that gives training and corpus for a config."""
    paths = Paths.of(folder / "workspace", SETTINGS)

    def make(architecture="topk", config=CONFIG):
        training = describe_training("tiny", sae=tiny.saes[architecture], model=tiny.model)
        corpus = prepare(
            tiny.corpus, tokenizer=training.tokenizer, config=config, paths=paths
        )
        return training, corpus

    return make


@pytest.fixture(scope="module")
def undisturbed(parts):
    training, corpus = parts()
    return extract(training, corpus, config=CONFIG, settings=SETTINGS)


CLOSE = {"rel": 1e-5, "abs": 1e-5}  # float32 against float64

# --- the oracle -----------------------------------------------------------------------


def naive_activations(training, corpus):
    """Return per context (tokens, valid, acts [pos, d_sae], x, x_hat) in float64.

    Each context goes through the whole model alone and without padding.
    """
    model = AutoModelForCausalLM.from_pretrained(training.model.path).eval()
    model.model.norm = torch.nn.Identity()  # else the last hidden state is a normed one
    sae = load_file(training.sae.path + "/sae_weights.safetensors")
    sae = {name: tensor.double().numpy() for name, tensor in sae.items()}
    batch = corpus.read(0, corpus.n_contexts)
    for tokens, present, valid in zip(
        batch.tokens, batch.present, batch.valid, strict=True
    ):
        known = torch.from_numpy(tokens[present]).long()[None]
        with torch.no_grad():
            states = model(known, output_hidden_states=True).hidden_states
        x = states[training.hookpoint.layer + 1][0].double().numpy()
        h = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        acts = np.zeros_like(h)
        for pos in range(len(h)):
            allowed = np.ones(len(h[pos]), dtype=bool)
            if training.sae.k:
                allowed[np.argsort(-h[pos])[training.sae.k :]] = False
            if "threshold" in sae:
                allowed &= h[pos] > sae["threshold"]
            acts[pos] = np.where(allowed, np.maximum(h[pos], 0), 0)
        yield tokens, valid, acts, x, acts @ sae["W_dec"] + sae["b_dec"]


def naive_result(training, corpus, config):
    """Return columns, histogram, examples, L0 and FVU, counted in Python loops."""
    d_sae, (before, after) = training.sae.d_sae, config.window
    columns = {name: [0] * d_sae for name in ("n_active", "n_contexts")}
    columns |= {name: [0.0] * d_sae for name in ("sum_act", "sum_sq_act")}
    histogram = np.zeros((d_sae, N_BINS), dtype=np.int64)
    peaks = [[] for _ in range(d_sae)]
    xs, errors, n_active, n_tokens = [], 0.0, 0, 0
    stream = naive_activations(training, corpus)
    for context, (tokens, valid, acts, x, x_hat) in enumerate(stream):
        counted = [pos for pos in range(len(x)) if valid[pos]]
        n_tokens += len(counted)
        for pos in counted:
            xs.append(x[pos])
            errors += ((x[pos] - x_hat[pos]) ** 2).sum()
        for feature in range(d_sae):
            active = [
                (pos, acts[pos, feature]) for pos in counted if acts[pos, feature] > 0
            ]
            if not active:
                continue
            n_active += len(active)
            columns["n_active"][feature] += len(active)
            columns["n_contexts"][feature] += 1
            for _, act in active:
                columns["sum_act"][feature] += act
                columns["sum_sq_act"][feature] += act * act
                histogram[feature, np.searchsorted(bin_edges(), act, side="right") - 1] += 1
            pos, act = max(active, key=lambda each: (each[1], -each[0]))
            start = max(0, pos - before)
            window = [(at - start, v) for at, v in active if start <= at <= pos + after]
            peaks[feature].append((-act, context, pos, start, int(tokens[pos]), window))
    centred = np.array(xs) - np.mean(xs, axis=0)
    quality = {"l0": n_active / n_tokens, "fvu": errors / (centred**2).sum()}
    return columns, histogram, peaks, quality


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


def assert_examples(found, expected, top_k):
    """Compare examples; equal prefixes give equal values but for the last bit."""
    rows, features = found.examples, found.features
    for feature, peaks in enumerate(expected):
        by_context = {peak[1]: peak for peak in peaks}
        groups = {group: [] for group in GROUPS}
        for place in np.flatnonzero(rows.feature == feature):
            group, context = groups[GROUPS[rows.group[place]]], int(rows.context[place])
            assert rows.rank[place] == len(group)
            assert context not in {each[1] for each in group}
            if GROUPS[rows.group[place]] == "silent":
                assert context not in by_context
                group.append((0.0, context, 0))
            else:
                assert_example(rows, place, by_context[context])
                group.append((-float(rows.act[place]), context, int(rows.pos[place])))
        top = groups["top"]
        assert top == sorted(top)
        best_acts = [peak[0] for peak in sorted(peaks)[:top_k]]
        assert [act for act, *_ in top] == pytest.approx(best_acts, **CLOSE)
        best = top[0] if top else (0.0, -1, -1)
        columns = ("max_act", "max_context", "max_pos")
        assert tuple(features[name][feature] for name in columns) == (-best[0], *best[1:])
        assert features["last_context"][feature] == max(by_context, default=-1)
        assert_drawn(groups, peaks)


def assert_example(rows, place, peak):
    act, _, pos, start, token, window = peak
    assert rows.act[place] == pytest.approx(-act, **CLOSE)
    assert rows.pos[place] == pos
    assert rows.start[place] == start
    assert rows.peak_token[place] == token
    entries = slice(*rows.offsets[place : place + 2])
    assert rows.act_off[entries].tolist() == [at for at, _ in window]
    assert rows.act_val[entries] == pytest.approx([v for _, v in window], **CLOSE)


def assert_drawn(groups, peaks):
    """Bands are octaves below the largest activation, as full as they can be."""
    octaves = [int(np.floor(np.log2(-peak[0]))) for peak in peaks]
    for band in range(N_BANDS):
        there = octaves.count(max(octaves, default=0) - band)
        assert len(groups[f"band_{band + 1}"]) == min(there, ExtractionConfig().per_band)
    assert len(groups["random"]) == min(len(peaks), ExtractionConfig().n_random)


# --- interruption ---------------------------------------------------------------------


class Killed(BaseException):
    """Stands for what ends a process without a word."""


def stopper(after, error):
    """Return an ``on_progress`` that raises `error` after so many batches."""
    seen = []

    def on_progress(progress):
        if progress.phase == "extracting" and progress.n_contexts_done:
            seen.append(progress)
            if len(seen) == after:
                raise error

    return on_progress


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
    first = saved.index(batches[4].n_tokens_done)
    assert saved[:first] == [None] * first
    assert first == 4


def resumed(parts, folder, *, content_key="key", settings=SETTINGS, config=CONFIG):
    training, corpus = parts(config=config)
    return extract(
        training,
        corpus,
        config=config,
        settings=settings,
        content_key=content_key,
        resume_from=folder,
    )


@pytest.fixture
def stopped(parts, tmp_path):
    """Return a folder with one checkpoint of the usual conditions."""
    training, corpus = parts()
    with pytest.raises(StopAfterCheckpoint):
        extract(
            training,
            corpus,
            config=CONFIG,
            settings=SETTINGS,
            content_key="key",
            checkpoints=tmp_path / "a1",
            on_progress=stopper(2, StopAfterCheckpoint),
        )
    return tmp_path


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


def test_other_tiles_give_the_same_counts_on_this_corpus(parts, undisturbed):
    training, corpus = parts()
    other = extract(
        training, corpus, config=CONFIG, settings=replace(SETTINGS, tile_tokens=12 * 17)
    )
    for column in ("n_active", "n_contexts", "max_context", "max_pos"):
        np.testing.assert_array_equal(other.features[column], undisturbed.features[column])
    np.testing.assert_allclose(
        other.features["max_act"], undisturbed.features["max_act"], rtol=1e-5
    )


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


@pytest.fixture
def small_memory(monkeypatch):
    """Let the SAE have room for so many rows."""
    normalize = SparseAutoencoder.normalize

    def limited(rows):
        def with_so_much(self, x):
            if len(x) > rows:
                raise torch.OutOfMemoryError
            return normalize(self, x)

        monkeypatch.setattr(SparseAutoencoder, "normalize", with_so_much)

    return limited


AUTO = replace(SETTINGS, tile_tokens=None)


def test_a_tile_that_nobody_chose_is_halved_until_it_fits(parts, small_memory):
    training, corpus = parts()
    whole = extract(training, corpus, config=CONFIG, settings=AUTO)
    assert whole.provenance["fingerprint"]["tile_contexts"] == 1024 // 12
    small_memory(rows=60)
    halved = extract(training, corpus, config=CONFIG, settings=AUTO)
    assert halved.provenance["fingerprint"]["tile_contexts"] == 5  # 85, 42, 21, 10, 5
    chosen = replace(SETTINGS, tile_tokens=60)
    same = extract(training, corpus, config=CONFIG, settings=chosen)
    assert result_digest(halved) == result_digest(same)


def test_a_resumed_run_keeps_the_tile_of_its_checkpoint(parts, stopped, undisturbed):
    found = resumed(parts, stopped, settings=AUTO)
    assert found.provenance["resumed_from_tokens"] > 0
    assert found.provenance["fingerprint"]["tile_contexts"] == 2
    assert result_digest(found) == result_digest(undisturbed)


def test_the_tile_is_not_changed_once_tokens_are_counted(parts, stopped, small_memory):
    small_memory(rows=12)
    with pytest.raises(BadSettings, match="does not fit into the memory"):
        resumed(parts, stopped, settings=AUTO)


def test_a_float32_encoder_beside_a_bfloat16_model_is_nearer_to_float32(parts):
    training, corpus = parts("jumprelu")
    found = {
        name: extract(training, corpus, config=CONFIG.replace(**dtypes), settings=SETTINGS)
        for name, dtypes in {
            "exact": {},
            "low": {"dtype": "bfloat16"},
            "mixed": {"dtype": "bfloat16", "sae_dtype": "float32"},
        }.items()
    }
    assert found["mixed"].provenance["fingerprint"]["sae_dtype"] == "float32"
    error = {
        name: np.abs(each.features["sum_act"] - found["exact"].features["sum_act"]).sum()
        for name, each in found.items()
    }
    assert 0 < error["mixed"] < error["low"]


def test_too_little_memory_says_which_setting_to_lower(parts, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(
        "extraction_kit.sources.saes.SparseAutoencoder.normalize", no_memory
    )
    training, corpus = parts()
    with pytest.raises(
        BadSettings, match=r"lower it, for example Settings\(tile_tokens=12\)"
    ):
        extract(training, corpus, config=CONFIG, settings=SETTINGS)
