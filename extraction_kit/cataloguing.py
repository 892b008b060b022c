"""Hands the ledger to the catalog: its rows, the folders of completed runs, the snapshot."""

import functools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from extraction_kit import embedded
from extraction_kit.atomic import write_json
from extraction_kit.catalog.labelled import label_table
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.corpora.corpus import CONTEXTS
from extraction_kit.errors import CatalogLocked
from extraction_kit.ledger import bulk, labels
from extraction_kit.ledger.store import Store
from extraction_kit.lifecycle import CLAIMED, RunState
from extraction_kit.status import checkpoint_tokens, cursor, damage_by_run
from extraction_kit.views import short, tokens_done
from extraction_kit.workbench import Workbench

log = logging.getLogger(__name__)


def catalog_rows(bench: Workbench, since: int | None = None) -> CatalogRows:
    """Return what the ledger knows, as the catalog takes it; nothing of deleted runs.

    A run whose files were found damaged says so in its row, and its files are left out.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    since : int, optional
        An earlier `status.cursor`: only runs that changed after it, and active ones. Without
        it the rows of runs are read when they are wanted.
    """
    with bench.store.read() as connection:
        changed = None if since is None else bulk.changed_runs(connection, since)
        completed = bulk.as_columns(
            bulk.file_rows(connection, changed), _names(bulk.FILE_COLUMNS)
        )
        found = None if changed is None else bulk.run_rows(connection, changed)
        trainings = bulk.training_rows(connection)  # after their runs: none is removed
        said = labels.state(connection)
    few = changed if changed is None or len(changed) <= _FEW else None
    damage = damage_by_run(bench, few)
    paths, results = bench.paths, str(bench.paths.results)
    return CatalogRows(
        runs=(lambda: _run_columns(bench))
        if found is None
        else _columns(bench, found, trainings=trainings, damage=damage),
        digests=dict(zip(completed["run_id"], completed["result_digest"], strict=True)),
        changed=changed,
        trainings=bulk.as_columns(trainings, _names(bulk.TRAINING_COLUMNS)),
        events=lambda: _event_columns(bench),
        label_history=_label_history(bench.store, said),
        folders={
            run_id: f"{results}/run_id={run_id}"
            for run_id, statistics_format in zip(
                completed["run_id"], completed["statistics_format"], strict=True
            )
            # of other formats the columns are not known
            if statistics_format == STATISTICS_FORMAT and run_id not in damage
        },
        corpora={
            digest: paths.corpora / digest / CONTEXTS
            for digest in set(completed["corpus_digest"])
        },
        vocabs={
            digest: paths.vocab / name
            for digest, name in set(
                zip(completed["tokenizer_digest"], completed["vocab"], strict=True)
            )
        },
        derived=paths.derived,
    )


def _run_columns(bench: Workbench) -> dict[str, list[Any]]:
    """Return all runs as they are now, as columns."""
    with bench.store.read() as connection:
        found = bulk.run_rows(connection)
        trainings = bulk.training_rows(connection)
    return _columns(bench, found, trainings=trainings, damage=damage_by_run(bench))


_FEW = 200  # a question about each of them is quicker than one about all


def _columns(
    bench: Workbench,
    found: Sequence[Any],
    *,
    trainings: Sequence[Any],
    damage: dict[str, str],
) -> dict[str, list[Any]]:
    """Return runs as columns, with what the ledger does not say of each in one row."""
    columns = bulk.as_columns(found, _names(bulk.RUN_COLUMNS))  # of 10,000 runs: no `Row`s
    of_training = {one.training_id: one for one in trainings}
    mine = [of_training[name] for name in columns["training_id"]]
    for name in ("d_sae", "hook_name", "sae_digest"):
        columns[name] = [getattr(one, name) for one in mine]
    shown = {source: short(source) for source in {one.model for one in mine}}
    columns["model"] = [shown[one.model] for one in mine]
    columns["damage"] = [damage.get(run_id) for run_id in columns["run_id"]]
    columns["n_tokens_done"] = list(columns["n_tokens"])
    for number, state in enumerate(columns["state"]):
        if state != RunState.COMPLETED:
            for name, value in _unfinished(bench, found[number]).items():
                columns[name][number] = value
    return columns


def _names(columns: Sequence[Any]) -> list[str]:
    return [column.name for column in columns]


def _unfinished(bench: Workbench, run: Any) -> dict[str, Any]:  # noqa: ANN401 - a row
    """Return what the ledger does not know of a run that is not completed."""
    working = bench.beats.read(run.run_id, run.attempt) if run.state in CLAIMED else None
    told = None if working is None else working.n_tokens_done
    saved = checkpoint_tokens(bench, run)
    done = tokens_done(RunState(run.state), run.n_tokens, told=told, saved=saved)
    told_too = () if working is None else ("l0", "fvu", "n_dead")
    return {"n_tokens_done": done} | {name: getattr(working, name) for name in told_too}


def _event_columns(bench: Workbench) -> dict[str, list[Any]]:
    with bench.store.read() as connection:
        found = bulk.event_rows(connection)
    return bulk.as_columns(found, _names(bulk.EVENT_COLUMNS))


@functools.lru_cache(maxsize=2)
def _label_history(store: Store, said: tuple[object, ...] | None) -> pa.Table:
    """Return all changes of labels; read again only when there are more (`labels.state`)."""
    if said is None:
        return label_table([])
    with store.read() as connection:
        changes = labels.history(connection)
    return label_table(
        {**vars(one), "changed_at": one.at, "changed_by": one.by} for one in changes
    )


# A process frozen in the middle of a snapshot holds up nobody for longer.
_PATIENCE_S = 30.0


def refresh_snapshot(bench: Workbench, *, patience_s: float = _PATIENCE_S) -> None:
    """Rebuild ``catalog.duckdb``; a failure is logged: it is derived, and must cost nothing."""
    try:
        write_snapshot(bench, patience_s=patience_s)
    except CatalogLocked as busy:
        log.info("catalog.duckdb was not rebuilt: %s", busy)
    except Exception:
        log.exception("catalog.duckdb was not rebuilt")


def write_snapshot(
    bench: Workbench, *, anew: bool = False, patience_s: float = _PATIENCE_S
) -> bool:
    """Rebuild ``catalog.duckdb``; readers that hold the old one are not disturbed.

    Of several processes that ask at the same time two rebuild it: the first, and one of
    those that waited for it.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    anew : bool
        Also if it shows all that the ledger knows.
    patience_s : float
        Seconds to wait for another process that rebuilds it.

    Returns
    -------
    bool
        Whether it was rebuilt.

    Raises
    ------
    CatalogLocked
        Another process has not finished rebuilding it in that time.
    """
    from extraction_kit.catalog.snapshot import write_snapshot as write  # noqa: PLC0415 - duckdb

    wanted = cursor(bench)
    # One at a time: of two writers the last one must also have read last.
    path = bench.paths.run / "catalog.lock"
    lock = embedded.take_lock(path, patience_s=patience_s)
    if lock is None:
        raise CatalogLocked(
            f"another process has been rebuilding {bench.paths.catalog} for more than "
            f"{patience_s:g} s (`fuser {path}` names it). If it is frozen, end it, then type "
            "it again"
        )
    try:
        if not anew and _shows(bench, wanted):
            return False
        now = cursor(bench)
        write(bench.paths.catalog, catalog_rows(bench))
        card = {"cursor": now, **(_stamp(bench.paths.catalog) or {})}
        write_json(bench.paths.catalog_card, card, durable=False)
    finally:
        os.close(lock)
    return True


def _shows(bench: Workbench, wanted: int) -> bool:
    """Tell whether the snapshot is the one that was written last, and new enough.

    It is not opened: a process that has it open would lose its lock on it.
    """
    try:
        card = json.loads(bench.paths.catalog_card.read_bytes())
        stamp = _stamp(bench.paths.catalog)
        same = stamp is not None and card.items() >= stamp.items()
        return same and wanted <= card["cursor"] <= cursor(bench)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _stamp(path: Path) -> dict[str, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return {"inode": found.st_ino, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
