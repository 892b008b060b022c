"""What every measured script does alike: arguments, threads, two clocks, one answer.

Each script runs in a process, and in an environment, of its own. It reads the folder that
``inputs.py`` wrote, times what lies between ``Watch()`` and ``stop()`` (loading is left out for
all alike) and prints its answer as JSON in the last line of its output. What it found per
feature it writes to ``--numbers`` (npz), to be compared outside.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

HOOK_BLOCK = 2
HOOK_NAME = f"blocks.{HOOK_BLOCK}.hook_resid_post"
TOP_K = 20
N_CONTEXTS_PER_BATCH = 8
"""1,024 tokens: the tile of `extraction_kit` and the batch of SAELens, by default."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=Path)
    parser.add_argument("architecture", nargs="?", default="jumprelu")
    parser.add_argument("--n-contexts", type=int, default=256)
    parser.add_argument("--numbers", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--option", default="")
    return parser.parse_args()


def n_threads() -> int:
    """Return the number of threads that all are measured with."""
    return int(os.environ["OMP_NUM_THREADS"])


def few_threads() -> None:
    """Keep torch to that number of threads."""
    import torch  # noqa: PLC0415 - not every script needs it

    torch.set_num_threads(n_threads())


class Watch:
    """Wall time and CPU time (of all threads) since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Return the seconds so far; the watch goes on."""
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
        }


def peak_mib() -> float:
    """Return the largest resident size of this process, imports and weights included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def answer(**found: object) -> None:
    print(json.dumps(found | {"peak_mib": round(peak_mib())}), flush=True)  # noqa: T201 - read outside
