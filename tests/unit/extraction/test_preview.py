"""What is told while a run extracts: exact over the tokens it names, the same features."""

import json
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from extraction_kit.corpora.vocabulary import SCHEMA, read_texts
from extraction_kit.extraction import StopAfterCheckpoint, extract
from extraction_kit.extraction.preview import MAX_BYTES, MAX_TOKENS, N_FEATURES, Previews
from extraction_kit.results import DENSE, GROUPS, result_digest
from extraction_kit.stats import Activations, Collection, Contexts, Sizes
from extraction_kit.views import Preview
from tests.unit.extraction.oracle import CLOSE, CONFIG, SETTINGS, naive_result
from tests.unit.extraction.stops import stopper

LIVE = ("l0", "fvu", "n_dead", "preview")


class Watcher:
    """An ``on_progress`` whose clock makes a preview due at each batch."""

    def __init__(self, error=lambda _: None):
        self.told, self.now, self.error = [], 0.0, error

    def __call__(self, progress):
        self.told.append(progress)
        self.now += 2.0
        self.error(progress)

    def clock(self):
        return self.now

    @property
    def live(self):
        """The figures by tokens, of each moment at which there are some."""
        seen = [each for each in self.told if each.preview is not None]
        return {
            each.preview.n_tokens: [getattr(each, one) for one in LIVE] for each in seen
        }


def watched(
    training, corpus, *, config=CONFIG, settings=SETTINGS, error=lambda _: None, **more
):
    watcher = Watcher(error)
    result = None
    with suppress(StopAfterCheckpoint):
        result = extract(
            training, corpus, config=config, settings=settings, content_key="key",
            on_progress=watcher, clock=watcher.clock, **more,
        )  # fmt: skip
    return watcher, result


@pytest.fixture(scope="module")
def run(parts):
    return watched(*parts())


def by_feature(preview):
    return {one.feature: one for one in preview.features}


WIDE = CONFIG.replace(context_size=24, window=(32, 16))  # wider than what is shown


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["narrow", "wide"])
def test_it_equals_a_naive_loop_over_the_tokens_that_it_names(parts, run, config):
    training, corpus = parts(config=config)
    watcher = run[0] if config is CONFIG else watched(training, corpus, config=WIDE)[0]
    batches = [each for each in watcher.told if each.preview and each.preview.features]
    for progress in (batches[0], batches[len(batches) // 2]):
        assert progress.preview.n_tokens == progress.n_tokens_done < corpus.n_tokens
        so_far = replace(corpus, n_contexts=progress.n_contexts_done)
        columns, _, peaks, quality = naive_result(training, so_far, config)
        assert progress.l0 == pytest.approx(quality["l0"], rel=1e-12)
        assert progress.fvu == pytest.approx(quality["fvu"], rel=1e-5)
        assert progress.n_dead == columns["n_active"].count(0)
        for feature, shown in by_feature(progress.preview).items():
            best = min(peaks[feature])
            assert shown.max_act == pytest.approx(-best[0], **CLOSE)
            assert shown.density == columns["n_active"][feature] / progress.n_tokens_done
            assert_window(shown, best, corpus, config.window)


def assert_window(shown, best, corpus, window):
    _, context, pos, start, _, entries = best
    first = pos - min(pos, 7, window[0])
    last = min(pos + window[1], first + 11)
    tokens = corpus.tokens_at(context)[first : last + 1]
    texts = read_texts(corpus.vocab)
    assert list(shown.tokens) == [texts[token] for token in tokens]
    acts = dict.fromkeys(range(first, first + tokens.size), 0.0)
    acts |= {start + at: value for at, value in entries if start + at in acts}
    assert shown.acts == pytest.approx(list(acts.values()), **CLOSE)


def test_the_last_one_is_of_all_tokens_and_equals_the_result(parts, run):
    _, corpus = parts()
    watcher, result = run
    last = watcher.told[-1]
    assert last.phase == "finishing"
    assert last.preview.n_tokens == corpus.n_tokens == result.summary["n_tokens"]
    for name in ("l0", "fvu", "n_dead"):
        assert getattr(last, name) == result.summary[name]
    rows, texts = result.examples, read_texts(corpus.vocab)
    assert len(last.preview.features) == N_FEATURES
    for feature, shown in by_feature(last.preview).items():
        assert shown.max_act == result.features["max_act"][feature]
        assert shown.density == result.features["n_active"][feature] / corpus.n_tokens
        top = (rows.feature == feature) & (rows.group == GROUPS.index("top"))
        [place] = np.flatnonzero(top & (rows.rank == 0))
        start, end = rows.start[place], rows.pos[place] + CONFIG.window[1] + 1
        tokens = corpus.tokens_at(int(rows.context[place]))[start:end]
        assert list(shown.tokens) == [texts[token] for token in tokens]
        entries = slice(*rows.offsets[place : place + 2])
        acts = np.zeros(tokens.size, dtype=np.float32)
        acts[rows.act_off[entries]] = rows.act_val[entries]
        assert shown.acts == tuple(acts.tolist())


def test_the_last_one_is_made_however_lately_there_was_one(parts, run):
    told = []
    extract(
        *parts(), config=CONFIG, settings=SETTINGS, on_progress=told.append,
        clock=lambda: 0.0,
    )  # fmt: skip
    assert [getattr(told[-1], name) for name in LIVE[:3]] == [
        getattr(run[0].told[-1], name) for name in LIVE[:3]
    ]
    assert told[-1].preview.n_tokens == told[-1].n_tokens_done


def test_to_be_watched_changes_no_number(run, undisturbed):
    assert result_digest(run[1]) == result_digest(undisturbed)


def test_a_feature_stays_in_its_place_and_none_is_dense_when_it_comes(run):
    shown = []
    for progress in run[0].told:
        features = progress.preview.features if progress.preview else ()
        assert [one.feature for one in features][: len(shown)] == shown
        assert all(one.density <= DENSE for one in features[len(shown) :])
        shown = [one.feature for one in features]
    assert len(shown) == N_FEATURES


def test_after_a_resume_it_goes_on_where_it_was(parts, run, tmp_path):
    stop = stopper(6, StopAfterCheckpoint)
    first, _ = watched(*parts(), error=stop, checkpoints=tmp_path / "a1")
    assert first.told[-1].preview.features
    second, _ = watched(*parts(), checkpoints=tmp_path / "a2", resume_from=tmp_path)
    begun = next(each for each in second.told if each.phase == "extracting")
    told = [getattr(begun, name) for name in LIVE]
    assert told == [getattr(first.told[-1], name) for name in LIVE]
    # buffered before, in a checkpoint now: it shows the same
    for n_tokens, (l0, fvu, n_dead, preview) in second.live.items():
        assert [l0, n_dead, preview] == [run[0].live[n_tokens][at] for at in (0, 2, 3)]
        assert fvu == pytest.approx(run[0].live[n_tokens][1], rel=1e-12)


# --- by itself ------------------------------------------------------------------------


def previews(training, corpus, clock=lambda: 0.0):
    sizes = Sizes(top_k=4, window=CONFIG.window)
    statistics = Collection(d_in=training.sae.d_in, d_sae=training.sae.d_sae, sizes=sizes)
    return Previews(statistics, corpus, clock=clock)


@pytest.mark.parametrize("noted", [None, "all", [10**9, -1, "3", True], [7, 7, 7, 7, 7]])
def test_a_checkpoint_that_names_strange_features_does_no_harm(parts, noted):
    made = previews(*parts())
    made.go_on(noted)
    assert made.drawn in ([], [7])
    assert made.figures["preview"] == Preview(n_tokens=0)


@pytest.mark.parametrize(
    ("n_tokens", "n_drawn"), [(720, 2), (730, 0), (10**9, 0)], ids=["tenth", "less", "vast"]
)
def test_features_are_drawn_after_a_tenth_of_the_corpus(parts, n_tokens, n_drawn):
    training, corpus = parts()
    made = previews(training, replace(corpus, n_tokens=n_tokens))
    shape, row = (6, 12), torch.arange(0, 72, 12)  # the first token of six contexts
    valid = torch.ones(shape, dtype=torch.bool)
    contexts = Contexts.consecutive(0, torch.zeros(shape, dtype=torch.int64), valid)
    rows, features = row.repeat_interleave(2), torch.tensor([3, 5] * 6)
    active = Activations(contexts, rows, features, torch.ones(12), 0, training.sae.d_sae)
    active = active.to(made._statistics.device)
    x = torch.randn(72, training.sae.d_in)
    made._statistics.update(active).update_quality(x, x, n_active=12)
    made.look()
    assert len(made.figures["preview"].features) == n_drawn


@pytest.mark.parametrize(
    ("takes_s", "pause_s"), [(0.0005, 1.0), (0.01, 5.0), (0.1, 50.0), (10.0, 60.0)]
)
def test_it_takes_two_thousandths_of_the_time(parts, takes_s, pause_s):
    times = iter([0.0, takes_s, takes_s + pause_s - 0.01, takes_s + pause_s, 1e3])
    made = previews(*parts(), clock=lambda: next(times))
    made.look()
    first = made.figures
    made.look()
    assert made.figures is first
    made.look()
    assert made.figures is not first


def test_the_longest_texts_stay_below_the_bound_and_are_free_of_nul(parts, tmp_path):
    training, corpus = parts(config=WIDE)
    ids, long = range(training.model.vocab_size), "\0" + "\U0001f600" * 40
    table = pa.table([pa.array(ids, pa.int32()), [long] * 64, [b""] * 64], schema=SCHEMA)
    pq.write_table(table, tmp_path / "vocab.parquet")
    corpus = replace(corpus, vocab=tmp_path / "vocab.parquet")
    watcher, _ = watched(training, corpus, config=WIDE)
    shown = watcher.told[-1].preview
    assert len(shown.features) == N_FEATURES
    assert max(len(one.tokens) for one in shown.features) == MAX_TOKENS
    assert len(json.dumps(asdict(shown))) <= MAX_BYTES
    assert {text for one in shown.features for text in one.tokens} == {
        "␀" + "\U0001f600" * 14 + "…"
    }


def test_the_peak_is_in_its_window_wherever_it_is(run):
    for *_, preview in run[0].live.values():
        for one in preview.features:
            assert max(one.acts) == one.max_act
            assert len(one.tokens) == len(one.acts) <= MAX_TOKENS


def test_without_its_vocabulary_a_run_shows_figures_only_and_completes(parts, tmp_path):
    training, corpus = parts()
    watcher, result = watched(training, replace(corpus, vocab=tmp_path / "none.parquet"))
    assert watcher.told[-1].preview == Preview(n_tokens=corpus.n_tokens)
    assert watcher.told[-1].l0 == result.summary["l0"]


def test_tokens_of_a_context_are_the_same_held_or_read(parts):
    _, corpus = parts()
    fresh = replace(corpus)
    read = [fresh.tokens_at(number).tolist() for number in (0, corpus.n_contexts - 1)]
    batch = fresh.read(0, corpus.n_contexts)
    expected = [batch.tokens[at][batch.present[at]].tolist() for at in (0, -1)]
    assert read == expected
    assert [fresh.tokens_at(at).tolist() for at in (0, corpus.n_contexts - 1)] == expected
