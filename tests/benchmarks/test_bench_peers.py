"""How fast the field's tools are on the same tokens, model and SAE, and where they are wrong.

`make bench-peers` installs the peers into environments of their own below ``build/bench/peers``
(minutes, once), measures each of them between two runs of `extraction_kit`, with a thread per
core (``PEERS_THREADS``), loading left out for all, prints the tables and writes
``build/bench/peers.json``. It takes about 40 minutes on a quiet machine; ``ARGS="-k
topk-saelens"`` measures one pair, ``ARGS="-k tables"`` prints what was measured last,
``PEERS_ROUNDS`` (2) is how often each is measured.

``seconds`` are what a person waits, ``cpu_seconds`` what all threads worked; ``x_ours`` and
``x_ours_cpu`` are the peer's over the mean of ours before and after it. Beside each time stands
how well the two results agree.
"""

import json
import os
import platform
import shutil
import statistics
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.peers.environments import (
    FOLDER,
    OURS,
    THREADS,
    NotInstalled,
    inputs,
    run,
)
from tests.benchmarks.peers.field import ALL_CONTEXTS, COMPUTES_OURS, PEERS, Peer

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

OUT = FOLDER.parent / "peers.json"
WRONG_OUT = FOLDER.parent / "peers-wrong.json"
MEASURED, WRONG = FOLDER / "measured", FOLDER / "wrong"
ARCHITECTURES = ("jumprelu", "topk")
D_SAE = 8192
ROUNDS = int(os.environ.get("PEERS_ROUNDS", "2"))
_latest: dict[tuple[str, int], dict] = {}


# --- measuring ------------------------------------------------------------------------


def measure(environment: str, script: str, architecture: str, peer: Peer) -> dict:
    """Run one script in its environment; returns its answer and its numbers."""
    scratch = FOLDER / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    numbers = FOLDER / "numbers.npz"
    found = run(
        environment, script, str(inputs()), architecture,
        "--n-contexts", str(peer.n_contexts), "--option", peer.option,
        "--numbers", str(numbers), "--scratch", str(scratch),
    )  # fmt: skip
    shutil.rmtree(scratch)
    print(f"{script} {architecture} {found['seconds']:.1f} s", flush=True)  # noqa: T201 - minutes
    with np.load(numbers) as file:
        found["numbers"] = dict(file)
    return found


def ours(architecture: str, peer: Peer) -> dict:
    found = measure(OURS, "ours.py", architecture, peer)
    _latest.clear()
    _latest[architecture, peer.n_contexts] = found
    return found


def just_measured(architecture: str, peer: Peer) -> dict:
    """Return our run that ended the comparison before this one, or else a new one."""
    return _latest.get((architecture, peer.n_contexts)) or ours(architecture, peer)


def row_of(name: str, architecture: str, computes: str, runs: list[dict]) -> dict:
    """Return a row from the runs of one tool: medians, and the last run's facts."""
    seconds = statistics.median(one["seconds"] for one in runs)
    return {
        "name": name,
        "architecture": architecture,
        "d_sae": D_SAE,
        "n_tokens": runs[-1]["n_tokens"],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(statistics.median(one["cpu_seconds"] for one in runs), 2),
        "tokens_per_s": round(runs[-1]["n_tokens"] / seconds, 1),
        "computes": computes,
        "peak_mib": max(one["peak_mib"] for one in runs),
        "version": runs[-1]["version"],
    }


def compared(peer: Peer, architecture: str) -> dict:
    """Measure ours, the peer, ours, the peer, ..., ours."""
    own, theirs = [just_measured(architecture, peer)], []
    for _ in range(ROUNDS):
        theirs.append(measure(peer.environment, peer.script, architecture, peer))
        own.append(ours(architecture, peer))
    ratios = {
        unit: [
            2 * one[unit] / (before[unit] + after[unit])
            for before, one, after in zip(own, theirs, own[1:], strict=False)
        ]
        for unit in ("seconds", "cpu_seconds")
    }
    row = row_of(peer.name, architecture, peer.computes, theirs)
    row |= {
        "x_ours": round(statistics.median(ratios["seconds"]), 2),
        "x_ours_each": [round(one, 2) for one in ratios["seconds"]],
        "x_ours_cpu": round(statistics.median(ratios["cpu_seconds"]), 2),
        "target": peer.target,
        "load": round(os.getloadavg()[0], 1),  # of a quiet machine: `THREADS`
        "agreement": agreement(own[-1]["numbers"], theirs[-1]["numbers"]),
    }
    if "marginal" in theirs[-1]:
        row["feature_batches"] = {
            "measured": 3,
            "features": theirs[-1]["features_per_batch"],
            "first_seconds": round(theirs[-1]["first"]["seconds"], 2),
            "marginal_seconds": round(theirs[-1]["marginal"]["seconds"], 2),
        }
    if "cache_only" in theirs[-1]:
        row["cache_only_seconds"] = round(theirs[-1]["cache_only"]["seconds"], 2)
    return {"row": row, "ours": row_of("extraction_kit", architecture, COMPUTES_OURS, own)}


def agreement(own: dict, theirs: dict) -> dict:
    """Compare per feature what both tools give; relative differences of activations."""
    features = theirs.pop("features", np.arange(D_SAE))
    own = {name: values[features] for name, values in own.items()}
    found = {"n_features": len(features)}
    for name in ("n_active", "n_contexts"):
        if name in theirs:
            off = np.abs(own[name] - theirs[name])
            found[name] = {
                "equal": round(float((off == 0).mean()), 5),
                "largest_difference": int(off.max()),
                "off_in_all": float(off.sum() / own[name].sum()),
            }
    own["top_1"] = own["max_act"]
    theirs["top_1"] = theirs["top_k"][:, 0] if "top_k" in theirs else theirs.get("max_act")
    for name in ("top_1", "top_k"):
        if theirs.get(name) is not None:
            off = np.abs(own[name] - theirs[name]) / np.maximum(np.abs(own[name]), 1e-3)
            found[name] = {
                "within_1e-3": round(float((off < 1e-3).mean()), 5),
                "median": float(np.median(off)),
            }
    return found


@pytest.mark.parametrize("peer", PEERS, ids=[peer.key for peer in PEERS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peer_is_slower_and_where_it_is_right_agrees(peer, architecture):
    file = MEASURED / f"{peer.key}-{architecture}.json"
    try:
        found = compared(peer, architecture)
    except NotInstalled as reason:
        row = {"name": peer.name, "architecture": architecture, "d_sae": D_SAE}
        keep(file, {"row": row | {"computes": peer.computes, "not_measured": str(reason)}})
        pytest.skip(f"{peer.name} cannot be installed here: {reason}")
    keep(file, found)
    print("", *lines_of([found["ours"], found["row"]]), sep="\n")  # noqa: T201 - the table
    agreed = found["row"]["agreement"]
    # not 0: TransformerLens rounds otherwise, so that a few tokens change sides of a threshold
    for name in ("n_active", "n_contexts"):
        assert agreed.get(name, {"off_in_all": 0})["off_in_all"] < 3e-4, agreed
    for name in ("top_1", "top_k"):
        assert agreed.get(name, {"within_1e-3": 1})["within_1e-3"] > 0.999, agreed


@pytest.mark.parametrize("environment", ["saelens", "delphi"])
def test_where_the_numbers_of_peers_are_not_right(environment):
    scripts = {
        "saelens": ("wrong_saelens.py", "wrong_saedashboard.py"),
        "delphi": ("wrong_delphi.py",),
    }
    cases = []
    for script in scripts[environment]:
        found = run(environment, script, str(inputs()))
        cases += [
            {"tool": found["tool"], "version": found["version"], "script": script} | case
            for case in found["cases"]
        ]
    keep(WRONG / f"{environment}.json", cases)
    assert all(case["wrong"] for case in cases), (
        cases
    )  # else: the README's list is out of date


# --- the tables -----------------------------------------------------------------------


def keep(file: Path, found: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def lines_of(rows: list[dict]) -> list[str]:
    """Return the rows as lines of a table."""
    head = f"{'':60} {'tokens':>7} {'s':>8} {'x ours':>7} {'CPU s':>8} {'x ours':>7}"
    lines = [f"{head} {'tok/s':>6} {'MiB':>6}  load"]
    for row in rows:
        name = f"{row['name']}, {row['architecture']}"
        if "not_measured" in row:
            lines.append(f"{name:60} not measured: {row['not_measured']}")
            continue
        ratio, target = row.get("x_ours"), row.get("target")
        lines.append(
            f"{name:60} {row['n_tokens']:>7,} {row['seconds']:>8,.1f} "
            f"{'' if ratio is None else ratio:>7} {row['cpu_seconds']:>8,.1f} "
            f"{row.get('x_ours_cpu', ''):>7} {row['tokens_per_s']:>6,.0f} "
            f"{row['peak_mib']:>6} {row.get('load', ''):>5}"
            + ("" if target is None else f"  (target {target:g}: "
               f"{'reached' if ratio >= target else 'missed'})")
        )  # fmt: skip
        if "feature_batches" in row:
            batches = row["feature_batches"]
            lines.append(
                f"    first batch {batches['first_seconds']} s, each further "
                f"{batches['marginal_seconds']} s; the rest is extrapolated"
            )
        lines.append(f"    {row['version']}: {row['computes']}")
    return lines


def test_tables():
    """Print all that was measured last, and write ``build/bench/peers.json``."""
    rows = []
    for architecture in ARCHITECTURES:
        files = [MEASURED / f"{peer.key}-{architecture}.json" for peer in PEERS]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        own = [
            one["ours"]
            for one in found
            if one.get("ours", {}).get("n_tokens") == ALL_CONTEXTS * 128
        ]
        if own:
            rows.append(sorted(own, key=lambda row: row["seconds"])[len(own) // 2])
            rows[-1] |= {"x_ours": 1.0, "x_ours_cpu": 1.0}
        rows += [one["row"] for one in found]
    keep(OUT, rows)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    threads = f"{THREADS} threads" if THREADS != "1" else "one thread"
    print(f"\n{platform.machine()}, {threads}, {when}", *lines_of(rows), sep="\n")  # noqa: T201
    wrong = [
        case
        for file in sorted(WRONG.glob("*.json"))
        for case in json.loads(file.read_text())
    ]
    keep(WRONG_OUT, wrong)
    print("\nwhere the peers' numbers are not right")  # noqa: T201 - the table
    for case in wrong:
        print(f"{case['tool']} {case['version']}: {case['name']}")  # noqa: T201 - the table
        print(f"    right: {case['expected']}\n    found: {case['found']}")  # noqa: T201
