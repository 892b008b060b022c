"""Real tokenizers and a workspace for corpora."""

import json
import pydoc_data.topics

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.paths import Paths
from extraction_kit.trainings import describe_tokenizer

TOPICS = [text for text in pydoc_data.topics.topics.values() if text.strip()]


@pytest.fixture(scope="session")
def topics():
    """English documents of the standard library."""
    return TOPICS[:20]


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    """A byte-level BPE tokenizer as GPT-2's, with BOS and EOS."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TOPICS[:20],
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return describe_tokenizer(folder)


@pytest.fixture
def words(tmp_path):
    """A word-level tokenizer without BOS and EOS."""
    folder = tmp_path / "words"
    folder.mkdir()
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "the", "cat", "sat", "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return describe_tokenizer(folder)


@pytest.fixture
def paths(tmp_path):
    """A workspace."""
    return Paths.of(tmp_path / "workspace", Settings())


@pytest.fixture
def make(paths, bpe):
    """Prepare a corpus in the workspace; keywords that are no config go to `prepare`."""

    def prepared(source, *, tokenizer=None, progress=None, text_column=None, **options):
        config = ExtractionConfig(**({"context_size": 16} | options))
        return prepare(
            source,
            tokenizer=tokenizer or bpe,
            config=config,
            paths=paths,
            progress=progress,
            text_column=text_column,
        )

    return prepared
