"""An exported report in Chromium: no request, no script, readable in light and dark."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction_kit.catalog.bulk import ResultFiles
from extraction_kit.catalog.publish import stage
from extraction_kit.interchange import Exports
from tests.unit.synthetic import DEAD, synthetic

pytestmark = pytest.mark.browser

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
HOSTILE = (
    "<img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\">",
    "</style><script>document.title='owned'</script>",
    "</td></section>&lt;",
    "\u202eltr\u2066 \x00\x07",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    made = synthetic()
    training = {
        "training_id": "t",
        "model": {"source": "<b>model</b>"},
        "sae": {"architecture": "topk"},
        "hookpoint": {"hook_name": "blocks.1.hook_resid_post"},
    }
    made.result.summary["d_sae"] = 16
    stage(
        folder / "results",
        made.result,
        made.manifest | {"training": training, "corpus": {"source": "texts.jsonl"}},
    )
    contexts, vocab = made.write_corpus(folder)
    table = pq.read_table(vocab)
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(table.num_rows)]
    pq.write_table(table.set_column(1, table.schema.field(1), [pa.array(texts)]), vocab)
    files = ResultFiles(folder=folder / "results", contexts=contexts, vocab=vocab)
    return Exports(files).report(
        folder / "report.html", features=[5, DEAD, 2], title=HOSTILE[0]
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_report_is_readable_and_asks_for_nothing(chromium, report, theme):
    page = chromium.new_page(color_scheme=theme)
    requests, said = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    assert requests == [report.as_uri()]
    assert said == []
    assert page.title() != "owned"
    assert page.locator("h2").all_inner_texts() == [f"feature {i}" for i in (5, DEAD, 2)]
    assert page.locator("svg").count() == 2  # a dead feature has no histogram
    found = page.locator("body").evaluate(CONTRAST)
    assert len(found) > 100
    ratio, text = found[0]
    assert ratio >= 4.5, f"{text!r} has a contrast of {ratio:.2f}"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")
    page.close()
