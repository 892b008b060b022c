"""One small result that every format is checked against, examples complete."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import extraction_kit as xk

CONTEXT = 16
CONFIG = xk.ExtractionConfig(
    context_size=CONTEXT,
    n_tokens=3000,
    top_k=400,  # more than the contexts, so that the examples hold every active token
    window=(CONTEXT, CONTEXT),
    n_logits=5,
    n_neighbours=4,
)
SETTINGS = xk.Settings(threads=1, device="cpu", tile_tokens=64)


@pytest.fixture(scope="package")
def folder(tiny, tmp_path_factory):
    """Where the result is kept; not to be changed."""
    home = tmp_path_factory.mktemp("kept") / "result"
    xk.extract_here(
        tiny.saes["topk"],
        model=tiny.model,
        corpus=tiny.corpus,
        config=CONFIG,
        settings=SETTINGS,
        folder=home,
    )
    return home


@pytest.fixture(scope="package")
def run(folder):
    """The result, read as a run is."""
    return xk.LocalResult(folder)


@pytest.fixture
def hostile(folder, tmp_path):
    """The same result with token texts that would break out of HTML, JSON lines and CSV."""
    home = tmp_path / "hostile"
    shutil.copytree(folder, home)
    [vocab] = (home / "vocab").glob("*.parquet")
    table = pq.read_table(vocab)
    nasty = ["<script>alert(1)</script>", '"\n,;', "\u2028\u202e", "\0", "</td>\\", "Ä€"]
    texts = [nasty[i % len(nasty)] for i in range(table.num_rows)]
    pq.write_table(table.set_column(1, table.schema.field(1), [pa.array(texts)]), vocab)
    return xk.LocalResult(home)
