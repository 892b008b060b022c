"""One tiny training for all tests of extractions, made once per file."""

import pytest

from extraction_kit.config import Settings
from extraction_kit.corpora import prepare
from extraction_kit.extraction import StopAfterCheckpoint, extract
from extraction_kit.paths import Paths
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_training
from tests.unit.extraction.oracle import CONFIG, SETTINGS
from tests.unit.extraction.stops import stopper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extraction")


@pytest.fixture(scope="module")
def tiny(folder):
    return tiny_training(folder / "tiny", n_documents=14)


@pytest.fixture(scope="module")
def corpus_of(folder, tiny):
    """Return a function that prepares a source, by default the tiny corpus."""
    paths = Paths.of(folder / "workspace", Settings())

    def make(training, config, source=tiny.corpus):
        return prepare(source, tokenizer=training.tokenizer, config=config, paths=paths)

    return make


@pytest.fixture(scope="module")
def parts(tiny, corpus_of):
    """Return a function that gives training and corpus for a config."""

    def make(architecture="topk", config=CONFIG, **options):
        training = describe_training(
            "tiny", sae=tiny.saes[architecture], model=tiny.model, **options
        )
        return training, corpus_of(training, config)

    return make


@pytest.fixture(scope="module")
def undisturbed(parts):
    training, corpus = parts()
    return extract(training, corpus, config=CONFIG, settings=SETTINGS)


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
