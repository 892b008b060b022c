"""Hugging Face datasets, the real ones: map-style, streamed, of texts, chats and ids."""

import pytest

from extraction_kit.errors import BadCorpus

datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def texts(topics):
    return [text[:900] for text in topics]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """Keep the package's own caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def test_a_dataset_a_stream_and_a_list_of_the_same_texts_are_one_corpus(make, texts):
    dataset = datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
    expected = make(texts).digest
    assert make(dataset).digest == expected
    assert make(dataset.to_iterable_dataset(num_shards=3)).digest == expected
    assert make(dataset.with_format("numpy")).digest == expected


def test_a_stream_without_known_columns_is_read(make, texts):
    def rows():
        for text in texts:
            yield {"body": text, "n": len(text)}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.column_names is None
    with pytest.raises(BadCorpus, match="but body, n: say which"):
        make(stream)
    assert make(stream, text_column="body").digest == make(texts).digest


def test_a_stream_is_not_read_beyond_what_is_needed(make, texts):
    read = []

    def rows():
        for _ in range(100):
            for text in texts:
                read.append(text)
                yield {"text": text}

    stream = datasets.IterableDataset.from_generator(rows)
    assert make(stream, n_tokens=300).n_tokens == 300
    assert len(read) <= 3 * 256


def test_a_dataset_that_was_transformed_is_another_corpus(make, texts, tmp_path):
    dataset = datasets.Dataset.from_dict({"text": texts})
    first = make(dataset)
    shouted = dataset.map(
        lambda row: {"text": row["text"].upper()}, cache_file_name=str(tmp_path / "m.arrow")
    )
    assert make(shouted).digest == make([text.upper() for text in texts]).digest
    assert make(dataset.select(range(4))).digest != first.digest
    shuffled = dataset.shuffle(seed=1, indices_cache_file_name=str(tmp_path / "i.arrow"))
    assert make(shuffled).digest != first.digest


def test_a_tokenized_dataset_gives_its_tokens_without_their_padding(make):
    rows = {"input_ids": [[70, 71, 1, 1], [1, 72, 73, 74]],
            "attention_mask": [[1, 1, 0, 0], [0, 1, 1, 1]]}  # fmt: skip
    expected = make([[70, 71], [72, 73, 74]], packing="document").digest
    for dataset in (
        datasets.Dataset.from_dict(rows),
        datasets.Dataset.from_dict(rows).to_iterable_dataset(),
        datasets.Dataset.from_dict(rows).with_format("numpy"),
    ):
        corpus = make(dataset, packing="document")
        assert corpus.digest == expected
        assert corpus.accounting["discarded"]["padding"] == 3


def test_splits_are_asked_for_one(make, texts):
    split = datasets.Dataset.from_dict({"text": texts})
    for splits in (
        datasets.DatasetDict({"train": split, "test": split}),
        datasets.IterableDatasetDict({"train": split.to_iterable_dataset()}),
    ):
        with pytest.raises(BadCorpus, match=r"\['train'\]"):
            make(splits)


def test_a_second_preparation_of_a_dataset_reads_nothing(make, texts, monkeypatch):
    dataset = datasets.Dataset.from_dict({"text": texts})
    first = make(dataset)
    monkeypatch.setattr(datasets.Dataset, "iter", lambda *_, **__: pytest.fail("read"))
    assert make(dataset) == first
