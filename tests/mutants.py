"""Break each guard of the protocol in turn and show which tests notice.

``python -m tests.mutants`` copies the tree, breaks one guard in the copy, and runs the tests
that should fail there, beside a run without any fault that must still pass: a mutant that
breaks everything proves nothing. Exit code 1 if a guard's removal goes unnoticed.

``python -m tests.mutants claim outbox`` tries these only.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELL = "tests/acceptance/matrix/test_matrix.py::test_a_run_completes_exactly_once"
ONCE = "tests/acceptance/matrix/test_exactly_once.py"
LEDGER = "tests/unit/test_ledger.py"
DELETION = "tests/unit/test_deletion.py"
FROZEN = (
    "tests/acceptance/matrix/test_frozen_reader.py::"
    "test_what_the_heartbeat_read_before_it_was_frozen_is_no_news_after_it"
)
CONTROL = (
    "tests/acceptance/matrix/test_matrix.py::test_a_run_that_nothing_happens_to_completes"
)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One guard, how it is removed, and who should notice."""

    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        guard="claim: compare-and-set",
        file="ledger/transitions.py",
        old="runs.c.state.in_(sorted(sources)),",
        new="runs.c.state.is_not(None) if what is Move.CLAIM else "
        "runs.c.state.in_(sorted(sources)),",
        tests=(
            f"{LEDGER}::test_exactly_one_of_two_deliveries_claims_an_attempt[sqlite]",
            f"{ONCE}::test_extraction_completes_once[sqlite]",
        ),
    ),
    Mutant(
        guard="fence: attempt and nonce in every update",
        file="ledger/transitions.py",
        old="        runs.c.attempt == target.attempt,\n        runs.c.state.in_(",
        new="        runs.c.state.in_(",
        tests=(
            f"{LEDGER}::test_an_older_attempt_or_another_nonce_is_fenced[sqlite]",
            f"{CELL}[freeze, thaw / staged]",
        ),
    ),
    Mutant(
        guard="one active run per training: unique index",
        file="ledger/migrations/versions/0001_first_schema.py",
        old="        unique=True,\n        sqlite_where",
        new="        unique=False,\n        sqlite_where",
        tests=(
            f"{LEDGER}::test_the_store_allows_one_active_run_per_training[sqlite-extracting]",
        ),
    ),
    Mutant(
        guard="enqueue: unique=True",
        file="jobqueue.py",
        old="unique=True,",
        new="unique=False,",
        tests=("tests/integration/test_jobqueue.py",),
    ),
    Mutant(
        guard="publish: the first one wins",
        file="atomic.py",
        old="    try:\n        # POSIX rename",
        new="    shutil.rmtree(final, ignore_errors=True)\n    try:\n        # POSIX rename",
        tests=(
            "tests/unit/test_catalog_publish.py",
            "tests/integration/test_catalog_publish_processes.py",
        ),
    ),
    Mutant(
        guard="self-fencing after a pause",
        file="worker.py",
        old="return boottime() - self._good_at",
        new="return 0.0 * self._good_at",
        tests=(f"{FROZEN}[sqlite]",),
    ),
    Mutant(
        guard="adoption of a published result",
        file="reconcile.py",
        old="        final = self.paths.results_of(run.run_id)\n        if not final.exists():\n"
        "            self._publish_staged",
        new="        final = self.paths.results / 'nowhere'\n        if not final.exists():\n"
        "            self._publish_staged",
        tests=(f"{CELL}[kill -9 job / renamed]", f"{CELL}[kill -9 job / staged]"),
    ),
    Mutant(
        guard="outbox: what was committed is sent",
        file="reconcile.py",
        old="return Action.ENQUEUE  # the outbox: committed, not yet sent",
        new="return Action.LEAVE",
        tests=(f"{ONCE}::test_task_id_tracked[sqlite]",),
    ),
    Mutant(
        guard="supersede: a lost attempt is sent again",
        file="reconcile.py",
        old="    return Action.SUPERSEDE if unchanged_s >= patience_s else Action.LEAVE",
        new="    return Action.LEAVE if patience_s else Action.SUPERSEDE",
        tests=("tests/unit/test_reconcile_table.py", f"{CELL}[FLUSHALL / queued]"),
    ),
    Mutant(
        guard="deleted: no move leads out",
        file="ledger/transitions.py",
        old="        runs.c.deleted_at.is_(None),  # a deleted run rests until it is restored\n",
        new="",
        tests=(
            f"{DELETION}::test_no_move_leads_out_of_a_deleted_run_whoever_comes_late",
            f"{DELETION}::test_a_deleted_run_is_not_adopted_and_a_restored_one_is",
        ),
    ),
    Mutant(
        guard="deleted: a repair brings nothing back",
        file="ledger/restoring.py",
        old="    if is_deleted(seen):\n        return",
        new="    if seen is None:\n        return",
        tests=(f"{DELETION}::test_a_repair_leaves_a_deleted_run_deleted",),
    ),
    Mutant(
        guard="single-use job ids",
        file="lifecycle.py",
        old='-g{generation}-a{attempt}"',
        new='-g{generation}-a{min(attempt, 1)}"',
        tests=("tests/unit/test_lifecycle.py", f"{CELL}[FLUSHALL / queued]"),
    ),
)


def main(wanted: list[str]) -> int:
    """Try the mutants whose guard contains one of `wanted`; print a line for each."""
    chosen = [one for one in MUTANTS if not wanted or any(w in one.guard for w in wanted)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of their time is waiting
        survived = [
            mutant.guard
            for mutant, caught in zip(chosen, pool.map(_caught, chosen), strict=True)
            if not caught
        ]
    print(f"\n{len(chosen) - len(survived)} of {len(chosen)} guards: removal noticed")
    if survived:
        print("NOT noticed: " + "; ".join(survived))
    return 1 if survived or not chosen else 0


def _caught(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory(prefix="xk-mutant-") as folder:
        copy = Path(folder)
        for name in ("extraction_kit", "tests", "pyproject.toml", "README.md"):
            source = ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / name, ignore=ignore)
            else:
                shutil.copy(source, copy / name)
        path = copy / "extraction_kit" / mutant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, (
            f"{mutant.guard}: its text is not in {mutant.file}"
        )
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        outcome = _run(copy, (CONTROL, *mutant.tests))
    failed = [name for name, result in outcome.items() if result in {"FAILED", "ERROR"}]
    control = outcome.get(CONTROL)
    caught = control == "PASSED" and bool(failed)
    lines = [
        f"{'noticed' if caught else 'SURVIVED':<9} {mutant.guard}  (no fault: {control})",
        *(f"            fails: {name}" for name in failed[:4]),
    ]
    print("\n".join(lines), flush=True)
    return caught


def _run(copy: Path, tests: tuple[str, ...]) -> dict[str, str]:
    command = [
        sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "-p", "no:cacheprovider",
        "--timeout=300", "-m", "", *tests,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "400"}
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    found = re.findall(
        r"^(PASSED|FAILED|ERROR) (tests/.*?)(?: - .*)?$", done.stdout, re.MULTILINE
    )
    if not found:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return {name: result for result, name in found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
