"""The snapshot beside real programs that hold it open."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import duckdb
import pytest

from extraction_kit.catalog.publish import publish, stage
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.snapshot import write_snapshot
from extraction_kit.catalog.tables import (
    CATALOG,
)
from extraction_kit.errors import WorkspaceUnusable
from tests.unit.synthetic import synthetic

# Holds the snapshot open; answers each line of SQL with one line of JSON.
HOLDER = """
import json, sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "RO")
print(json.dumps("open"), flush=True)
for line in sys.stdin:
    print(json.dumps(connection.execute(line).fetchall()), flush=True)
"""


class Holder:
    def __init__(self, path, mode):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "open"

    def _answer(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, query):
        self.process.stdin.write(query + "\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self):
        self.process.kill()
        self.process.communicate()


def ask(path, query):
    """Ask as a program that opens the file now, in a process of its own."""
    holder = Holder(path, "RO")
    try:
        return holder.ask(query)
    finally:
        holder.kill()


@pytest.fixture
def rows(tmp_path):
    made = synthetic()
    home = tmp_path / "it's [here]"
    final = home / "results" / "run_id=00000000000000aa"
    stage(home / "results" / ".staging" / "a-a1", made.result, made.manifest)
    assert publish(home / "results" / ".staging" / "a-a1", final)
    contexts, vocab = made.write_corpus(home)
    at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    return CatalogRows(
        runs=[{"run_id": "00000000000000aa", "state": "completed", "completed_at": at}],
        trainings=[{"training_id": "t", "d_sae": 16}],
        events=[{"seq": 1, "kind": "launched", "at": at}],
        folders={"00000000000000aa": final},
        corpora={"c0ffee": contexts},
        vocabs={"beef": vocab},
    )


@pytest.fixture
def path(rows, tmp_path):
    path = tmp_path / "catalog.duckdb"
    write_snapshot(path, rows)
    return path


def later(rows):
    return CatalogRows(
        runs=[*rows.runs, {"run_id": "b", "state": "queued"}], folders=rows.folders
    )


def test_any_program_reads_runs_features_and_meanings(path):
    assert ask(path, "SELECT run_id, state, strftime(completed_at, '%H:%M') FROM runs") == [
        ["00000000000000aa", "completed", "03:00"]
    ]
    assert ask(path, "SELECT run_id, count(*) FROM features GROUP BY 1") == [
        ["00000000000000aa", 16]
    ]
    assert ask(path, "SELECT count(*) FROM contexts JOIN vocab ON token_id = context") == [
        [40]
    ]
    said = ask(path, "SELECT table_name, column_name, comment FROM duckdb_columns()")
    comments = {(table, column): comment for table, column, comment in said}
    for table in CATALOG:
        for column in table.columns:
            assert comments[table.name, column.name] == column.comment
    assert "tables" in str(
        ask(path, "SELECT 'tables' FROM duckdb_tables() WHERE comment <> ''")
    )


def test_the_file_is_alone_and_readable_by_duckdb_1_4(path):
    assert [item.name for item in path.parent.glob("*catalog*")] == ["catalog.duckdb"]
    assert ask(path, "SELECT tags['storage_version'] FROM duckdb_databases()")[0] == [
        "v1.4.0+"
    ]


@pytest.mark.parametrize("mode", ["RO", "RW"])
def test_a_program_that_holds_the_old_one_goes_on_and_new_ones_see_the_new(
    path, rows, mode
):
    holder = Holder(path, mode)
    try:
        assert holder.ask("SELECT count(*) FROM runs") == [[1]]
        write_snapshot(path, later(rows))
        assert holder.ask("SELECT count(*) FROM runs") == [[1]]
        assert holder.ask("SELECT count(*) FROM features") == [[16]]
        assert ask(path, "SELECT count(*) FROM runs") == [[2]]
    finally:
        holder.kill()
    assert ask(path, "SELECT count(*) FROM runs") == [[2]]


@pytest.mark.parametrize("killed", [False, True], ids=["still open", "killed"])
def test_what_a_program_wrote_into_the_old_one_never_reaches_the_new(path, rows, killed):
    holder = Holder(path, "RW")
    holder.ask("CREATE TABLE mine AS SELECT 1 AS a")
    holder.ask("INSERT INTO runs (run_id) VALUES ('forged')")
    assert path.with_name("catalog.duckdb.wal").exists()
    if killed:
        holder.kill()
    write_snapshot(path, later(rows))
    assert not path.with_name("catalog.duckdb.wal").exists()
    assert ask(path, "SELECT run_id FROM runs ORDER BY 1") == [["00000000000000aa"], ["b"]]
    if not killed:
        assert holder.ask("SELECT count(*) FROM runs") == [[2]]
        holder.kill()


def test_a_program_in_this_process_that_holds_it_is_not_disturbed(path, rows):
    with duckdb.connect(str(path), read_only=True) as connection:
        write_snapshot(path, later(rows))
        assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]
    assert ask(path, "SELECT count(*) FROM runs") == [[2]]


@pytest.mark.parametrize("what", ["deleted", "corrupt", "from the future"])
def test_whatever_was_there_is_written_anew(path, rows, what):
    data = bytearray(path.read_bytes())
    if what == "deleted":
        path.unlink()
    elif what == "corrupt":
        path.write_bytes(data[:1000])
    else:
        data[12] = 255  # the storage version
        path.write_bytes(data)
    write_snapshot(path, rows)
    assert ask(path, "SELECT count(*) FROM runs") == [[1]]


def test_an_empty_workspace_has_all_tables_with_their_types(tmp_path):
    path = tmp_path / "new" / "catalog.duckdb"
    write_snapshot(path, CatalogRows())
    for table in CATALOG:
        described = {name: kind for name, kind, *_ in ask(path, f"DESCRIBE {table.name}")}
        for column in table.columns:
            assert described[column.name] == column.type


def test_a_folder_that_cannot_be_written_keeps_the_old_one(path, rows, monkeypatch):
    def refuse(*_args, **_options):
        msg = "IO Error: No space left on device"
        raise duckdb.IOException(msg)

    monkeypatch.setattr("extraction_kit.catalog.snapshot.populate", refuse)
    with pytest.raises(WorkspaceUnusable, match=r"cannot write .*catalog.duckdb: .*space"):
        write_snapshot(path, later(rows))
    monkeypatch.undo()
    assert [item.name for item in path.parent.glob("*catalog*")] == ["catalog.duckdb"]
    assert ask(path, "SELECT count(*) FROM runs") == [[1]]
