"""A result appears whole or not at all, once, and damage is found by name."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from extraction_kit.atomic import fsync_file
from extraction_kit.catalog.publish import (
    publish,
    read_manifest,
    stage,
    staged_and_sound,
    verify,
)
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.errors import ResultsDamaged, WorkspaceUnusable
from extraction_kit.results import result_digest
from tests.unit.synthetic import synthetic

FILES = [
    "examples.parquet", "features.parquet", "histograms.parquet", "logits.parquet",
    "neighbours.parquet", "tokens.parquet",
]  # fmt: skip


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def made():
    return synthetic()


@pytest.fixture
def staged(made, tmp_path):
    folder = tmp_path / "results" / ".staging" / "r-a1"
    stage(folder, made.result, made.manifest)
    return folder


def test_the_manifest_says_what_was_measured_and_of_which_files(staged, made):
    manifest = read_manifest(staged)
    assert manifest["run_id"] == made.manifest["run_id"]
    assert manifest["format"] == STATISTICS_FORMAT
    assert manifest["result_digest"] == result_digest(made.result)
    assert manifest["summary"]["fvu"] is None  # NaN is no JSON
    assert math.isclose(manifest["summary"]["l0"], made.result.summary["l0"])
    assert sorted(manifest["files"]) == FILES
    assert manifest["files"]["features.parquet"]["rows"] == 16
    assert names_in(staged) == sorted([*FILES, "manifest.json"])
    assert verify(staged) == []
    assert staged_and_sound(staged)


def test_files_are_compressed_in_row_groups_sorted_by_feature(tmp_path):
    made = synthetic(d_sae=9000, n_contexts=2)
    stage(tmp_path / "s", made.result, made.manifest)
    meta = pq.read_metadata(tmp_path / "s" / "features.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [9000]
    assert meta.row_group(0).column(0).compression == "LZ4"
    hist = pq.read_metadata(tmp_path / "s" / "histograms.parquet")
    assert [hist.row_group(i).num_rows for i in range(3)] == [1024, 1024, 1024]
    examples = pq.read_metadata(tmp_path / "s" / "examples.parquet")
    assert examples.row_group(0).column(0).compression == "ZSTD"
    assert examples.row_group(0).num_rows == 8192
    feature = pq.read_table(tmp_path / "s" / "examples.parquet")["feature"].to_numpy()
    assert (np.diff(feature) >= 0).all()


def test_everything_is_on_disk_before_the_manifest_is(made, tmp_path, monkeypatch):
    order = []

    def watch(path):
        order.append(path.name.strip(".").split(".")[0])
        fsync_file(path)

    monkeypatch.setattr("extraction_kit.atomic.fsync_file", watch)
    stage(tmp_path / "s", made.result, made.manifest)
    assert order[-1] == "manifest"
    assert [f"{name}.parquet" for name in sorted(order[:-1])] == FILES


def test_staging_again_starts_clean(staged, made):
    (staged / "left-over.parquet").write_bytes(b"of a killed process")
    stage(staged, made.result, made.manifest)
    assert names_in(staged) == sorted([*FILES, "manifest.json"])


def test_a_full_disk_leaves_nothing_and_says_so(made, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(WorkspaceUnusable, match="disk is full"):
        stage(tmp_path / "s", made.result, made.manifest)
    assert not (tmp_path / "s").exists()


def test_the_first_to_publish_wins_and_the_second_is_cleared_away(staged, made, tmp_path):
    final = tmp_path / "results" / "run_id=r"
    assert publish(staged, final) is True
    before = {path.name: path.read_bytes() for path in final.iterdir()}
    late = staged.with_name("r-a2")
    stage(late, synthetic(seed=1).result, made.manifest)
    assert publish(late, final) is False
    assert not late.exists()
    assert {path.name: path.read_bytes() for path in final.iterdir()} == before
    assert publish(staged, final) is False  # the winner again: nothing staged any more


def test_a_torn_staging_folder_is_not_published(staged, tmp_path):
    (staged / "manifest.json").unlink()
    with pytest.raises(ResultsDamaged, match="no whole result"):
        publish(staged, tmp_path / "results" / "run_id=r")
    assert not (tmp_path / "results" / "run_id=r").exists()


def test_a_foreign_folder_in_the_way_does_not_cost_the_staged_result(staged, tmp_path):
    final = tmp_path / "results" / "run_id=r"
    final.mkdir()
    (final / "notes.txt").write_text("mine")
    with pytest.raises(ResultsDamaged, match="out of the way"):
        publish(staged, final)
    assert staged_and_sound(staged)
    assert (final / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_named(staged, name):
    data = bytearray((staged / name).read_bytes())
    data[len(data) // 3] ^= 1
    (staged / name).write_bytes(data)
    problems = verify(staged)
    assert len(problems) == 1
    assert name in problems[0]
    assert not staged_and_sound(staged)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_named(staged, name):
    data = (staged / name).read_bytes()
    (staged / name).write_bytes(data[:-7])
    assert f"{name} has {len(data) - 7} bytes" in verify(staged)[0]
    (staged / name).unlink()
    assert "is missing" in verify(staged)[0]


def test_a_wrong_row_count_in_the_manifest_is_named(staged):
    manifest = read_manifest(staged)
    manifest["files"]["features.parquet"]["rows"] = 17
    (staged / "manifest.json").write_text(json.dumps(manifest))
    assert "features.parquet has rows 16" in verify(staged)[0]


@pytest.mark.parametrize(("made_as", "whole"), [(2, True), (STATISTICS_FORMAT, False)])
def test_a_result_needs_the_files_that_its_own_format_has(staged, made_as, whole):
    manifest = read_manifest(staged)
    for name in ("logits", "neighbours", "tokens"):
        del manifest["files"][f"{name}.parquet"]
    (staged / "manifest.json").write_text(json.dumps(manifest | {"format": made_as}))
    assert (read_manifest(staged) is not None) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {}}', "\xff"])
def test_a_torn_manifest_is_none(staged, text):
    (staged / "manifest.json").write_bytes(text.encode("latin-1"))
    assert read_manifest(staged) is None
    assert "missing or torn" in verify(staged)[0]
