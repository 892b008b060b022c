"""Tables and reports, and what holds for every format."""

import csv
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from extraction_kit.atomic import temporary_beside
from extraction_kit.errors import BadExport, UnknownFeature
from extraction_kit.interchange import tables
from tests.unit.published import PublishedRuns

NAMES = {"model_id": "tiny", "source_set": "res"}
FORMATS = {
    "neuronpedia": NAMES, "circuit_tracer": {}, "delphi": {}, "parquet": {}, "csv": {},
    "report": {},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, ids and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_replaces_nothing(run, tmp_path, name):
    target = tmp_path / "there"
    target.write_text("mine")
    with pytest.raises(BadExport, match="replaces nothing"):
        getattr(run.export, name)(target, **FORMATS[name], features=[3])
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", FORMATS)
def test_a_feature_outside_the_sae_leaves_nothing(run, tmp_path, name):
    with pytest.raises(UnknownFeature, match="from 0 to 47"):
        getattr(run.export, name)(tmp_path / "new", **FORMATS[name], features=[48])
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        tables, "_examples", fail
    )  # features and logits are written by then
    with pytest.raises(Exception, match="the disk is full"):
        run.export.parquet(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_what_appears_meanwhile_is_left_as_it_is(run, tmp_path, monkeypatch):
    target = tmp_path / "new"

    def meanwhile(batch, **options):
        target.mkdir()
        (target / "mine").touch()
        return real(batch, **options)

    real = tables._examples
    monkeypatch.setattr(tables, "_examples", meanwhile)
    with pytest.raises(BadExport, match="is there already"):
        run.export.parquet(target)
    assert [each.name for each in target.iterdir()] == ["mine"]
    assert list(tmp_path.iterdir()) == [target]
    assert temporary_beside(target).parent == tmp_path  # where a rest would have been


def test_unknown_formats_say_which_there_are(run):
    with pytest.raises(AttributeError, match=r"'sqlite'.*neuronpedia.*csv"):
        run.export.sqlite  # noqa: B018 - asked for
    with pytest.raises(BadExport, match=r"type run.export.delphi\(path"):
        run.export("delphi", "somewhere")


def test_parquet_holds_the_rows_and_texts(run, tmp_path):
    path = run.export.parquet(tmp_path / "tables", features=[5, 3])
    assert sorted(each.name for each in path.iterdir()) == [
        f"{name}.parquet" for name in ("examples", "features", "logits", "neighbours")
    ]
    features = pq.read_table(path / "features.parquet")
    assert features.equals(run.features().filter("feature IN (3, 5)").to_arrow_table())
    top = [
        row
        for row in pq.read_table(path / "examples.parquet").to_pylist()
        if row["feature"] == 3 and row["group"] == "top"
    ]
    windows = run.windows(3, k=1000)
    assert [row["tokens"] for row in top] == [each.tokens for each in windows]
    assert [row["acts"] for row in top] == [each.acts for each in windows]
    assert [row["text"] for row in top] == ["".join(each.tokens) for each in windows]


def test_csv_survives_hostile_texts(hostile, tmp_path):
    path = hostile.export.csv(tmp_path / "tables", features=[3])
    with (path / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    windows = hostile.windows(3, k=1000)
    top = [row for row in rows if row["group"] == "top"]
    assert [json.loads(row["tokens"]) for row in top] == [each.tokens for each in windows]
    assert [np.float32(json.loads(row["acts"])).tolist() for row in top] == [
        each.acts for each in windows
    ]


def test_a_report_needs_nothing_but_itself(run, tmp_path):
    path = run.export.report(tmp_path / "report.html", features=[3, 47, 5], k=2)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    links = [value for name, value in page.attributes if name in {"href", "src", "srcset"}]
    assert links == ["#f3", "#f47", "#f5"]
    assert [value for name, value in page.attributes if name == "id"] == ["f3", "f47", "f5"]
    assert "url(" not in path.read_text(encoding="utf-8")
    assert dict(page.attributes)["content"]  # viewport, policy
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "dead: never active" in path.read_text(encoding="utf-8")


def test_a_report_escapes_what_comes_from_outside(hostile, tmp_path):
    title = "<img src=x onerror=alert(1)>"
    path = hostile.export.report(tmp_path / "r.html", features=range(8), title=title)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search("[\u202e\0]", text)
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": None}, "chosen features"),
        ({"features": [1], "k": 0}, "k=0"),
        ({"features": []}, "is empty"),
    ],
    ids=["all", "no-example", "none"],
)
def test_a_report_without_a_choice_is_refused(run, tmp_path, options, words):
    with pytest.raises(BadExport, match=words):
        run.export.report(tmp_path / "r.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_workspaces_exports_say_what_a_feature_is_called(tmp_path):
    stage = PublishedRuns(tmp_path / "ws")
    run = stage.ws.run(stage.completed())
    stage.ws.label("tiny", 1, name="dates <b>", description="years & months")

    report = run.export.report(tmp_path / "some.html", features=[0, 1]).read_text()
    assert "feature 1 · <bdi>dates &lt;b&gt;</bdi></h2>" in report
    assert "<p><bdi>years &amp; months</bdi></p>" in report
    assert "feature 0</h2>" in report

    with (run.export.csv(tmp_path / "all") / "features.csv").open() as file:
        rows = {row["feature"]: row for row in csv.DictReader(file)}
    assert (rows["1"]["label"], rows["1"]["description"]) == ("dates <b>", "years & months")
    assert (rows["0"]["label"], rows["0"]["description"]) == ("", "")
    columns = pq.read_table(run.export.parquet(tmp_path / "p") / "features.parquet")
    assert columns.column_names[-2:] == ["label", "description"]

    np_ = run.export.neuronpedia(tmp_path / "np", model_id="tiny", source_set="res-16")
    [file] = np_.rglob("explanations/*")
    said = json.loads(gzip.decompress(file.read_bytes()))
    assert (said["index"], said["description"]) == ("1", "dates <b>: years & months")
