"""Runs in one file for another machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from extraction_kit import cataloguing, refusals, status
from extraction_kit.catalog.publish import verify
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.errors import BadExport, ResultsDamaged
from extraction_kit.lifecycle import RunState
from extraction_kit.service import read_run
from extraction_kit.workbench import Workbench


def export_catalog(
    bench: Workbench, path: Path | str, run_ids: Sequence[str] | None = None
) -> Path:
    """Write completed runs (None: all) into one new DuckDB file; return its path.

    Raises
    ------
    UnknownRun
        There is no such run.
    RunDeleted
        A run is deleted.
    BadExport
        A run has nothing to export, or something is at `path` already.
    ResultsDamaged
        A file of a run is not the one that was published: nothing is exported.
    """
    from extraction_kit.catalog.export import export_runs  # noqa: PLC0415 - duckdb

    path = Path(path).expanduser().absolute()
    rows = cataloguing.catalog_rows(bench)
    if run_ids is None:
        chosen = sorted(rows.folders)
        if not chosen:
            raise BadExport("no run is completed: there is nothing to export")
    else:
        chosen = sorted({str(run_id) for run_id in run_ids})
        if not chosen:
            raise BadExport("runs=[] names no run: pass some, or None for all completed")
    for run_id in chosen:
        if run_id not in rows.folders:
            raise _refusal(bench, run_id)
        problems = verify(Path(rows.folders[run_id]))
        if problems:
            raise ResultsDamaged(
                f"run {run_id}: {'; '.join(problems)}. Nothing was exported: type "
                "ws.verify(), or name the other runs with runs=[...]"
            )
    folders = {run_id: rows.folders[run_id] for run_id in chosen}
    export_runs(path, replace(rows, folders=folders), run_ids=chosen)
    return path


def _refusal(bench: Workbench, run_id: str) -> Exception:
    """Return why a run cannot be exported."""
    run = read_run(bench, run_id)
    if run.deleted_at is not None:
        return refusals.deleted(run)
    damage = status.damage_by_run(bench).get(run_id)
    if run.state is not RunState.COMPLETED:
        return BadExport(
            f"run {run_id} is {run.state}: only completed runs can be exported"
        )
    if damage is not None:
        return ResultsDamaged(f"run {run_id}: {damage}. Restore it, then ws.verify()")
    made_as = (run.summary or {}).get("statistics_format")
    return BadExport(
        f"run {run_id} has statistics of format {made_as}, this release exports format "
        f"{STATISTICS_FORMAT}"
    )
