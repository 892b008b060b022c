"""What one pass of the model saves, for several SAEs, against one pass for each.

Wall and CPU seconds of the whole extraction, loading and preflight included, taken in turns.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.extraction import extract_together
from extraction_kit.results import result_digest
from tests.benchmarks.parts import CONTEXT_SIZE, make_parts

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

D_SAE, N_TOKENS = 8192, 16_384
SETTINGS = Settings(device="cpu", threads=1, preflight="report")
HOOKS = ("blocks.5.hook_resid_post", "blocks.2.hook_resid_post")


@pytest.mark.parametrize("n_saes", [2, 4])
def test_together_against_one_after_the_other(n_saes):
    parts = make_parts(Path("build/bench/parts").absolute())
    kinds = [parts.training(kind, D_SAE) for kind in ("topk", "jumprelu")]
    trainings = [
        replace(kind, training_id=f"{number}{kind.sae.architecture}", hookpoint=replace(
            kind.hookpoint, hook_name=hook, layer=int(hook[7]),
            module_path=kind.hookpoint.module_path[:-1] + hook[7],
        ))
        for number, hook in enumerate(HOOKS)
        for kind in kinds
    ][:n_saes]  # fmt: skip
    config = ExtractionConfig(n_tokens=N_TOKENS, context_size=CONTEXT_SIZE)
    corpus = parts.corpus(trainings[0], config)

    def timed(*some):
        wall, cpu = time.perf_counter(), time.process_time()
        found = extract_together(some, corpus, config=config, settings=SETTINGS)
        digests = [result_digest(each) for each in found]
        return digests, time.perf_counter() - wall, time.process_time() - cpu

    digests, wall, cpu = timed(*trainings)
    alone = [timed(each) for each in trainings]
    assert digests == [digest for [digest], *_ in alone]
    walls, cpus = (sum(each[i] for each in alone) for i in (1, 2))
    figures = {
        "name": "together", "n_saes": n_saes, "d_sae": D_SAE, "n_tokens": N_TOKENS,
        "wall_s": round(wall, 1), "wall_s_alone": round(walls, 1),
        "cpu_s": round(cpu, 1), "cpu_s_alone": round(cpus, 1),
        "cpu_ratio": round(cpu / cpus, 3),
    }  # fmt: skip
    print(json.dumps(figures), flush=True)  # noqa: T201 - a benchmark prints
