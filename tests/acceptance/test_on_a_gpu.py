"""What only a GPU can show: memory that is full, memory that comes back, one set of numbers.

`make test-gpu` runs these, and the tests of the computation with ``TEST_DEVICE=cuda``.
"""

import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.lifecycle import RunState
from tests.acceptance.staging import SETTINGS, Stage
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.gpu

ON_GPU = replace(SETTINGS, device="cuda")
SLACK_MIB = 64


@pytest.fixture
def on_gpu(tmp_path, tiny):
    stage = Stage(tmp_path / "ws", tiny, settings=ON_GPU)
    yield stage
    stage.close()


def memory_used():
    """Return MiB in use on the first GPU; this process takes none by asking."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[0])


def test_a_killed_run_gives_its_memory_back_and_resumes_to_the_same_digest(on_gpu):
    before = memory_used()
    run = on_gpu.launch()
    pid = on_gpu.in_the_middle(run)
    assert memory_used() > before + SLACK_MIB
    os.kill(pid, signal.SIGKILL)
    until(lambda: memory_used() < before + SLACK_MIB, "the memory of the killed job")
    until(lambda: run.state is RunState.INTERRUPTED, "the interruption")
    run.resume()
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert on_gpu.executions(run) == 2
    until(lambda: memory_used() < before + SLACK_MIB, "the memory of the completed job")
    undisturbed = on_gpu.launch(generation=2)
    undisturbed.wait(PATIENCE_S)
    assert undisturbed.view.result_digest == run.view.result_digest


def extracted(tiny, folder, **settings):
    """Extract in this process; return the result."""
    from extraction_kit.corpora import prepare  # noqa: PLC0415 - torch, for these tests only
    from extraction_kit.extraction import extract  # noqa: PLC0415
    from extraction_kit.paths import Paths  # noqa: PLC0415
    from extraction_kit.trainings import describe_training  # noqa: PLC0415

    config = ExtractionConfig(context_size=32, n_tokens=60_000, top_k=5)
    training = describe_training("tiny", sae=tiny.sae, model=tiny.model)
    corpus = prepare(
        tiny.corpus, tokenizer=training.tokenizer, config=config,
        paths=Paths.of(folder, Settings()),
    )  # fmt: skip
    settings = Settings(preflight="report", **settings)
    return extract(training, corpus, config=config, settings=settings)


def test_a_tile_that_does_not_fit_the_gpu_is_halved(tiny, tmp_path, monkeypatch):
    import torch  # noqa: PLC0415 - as above

    from extraction_kit.extraction import rig  # noqa: PLC0415
    from extraction_kit.results import result_digest  # noqa: PLC0415

    monkeypatch.setattr(rig, "TILE_TOKENS_OF_OTHERS", 2**21)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / total)
    try:
        halved = extracted(tiny, tmp_path, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    contexts = halved.provenance["fingerprint"]["tile_contexts"]
    assert 1 <= contexts < 2**21 // 32
    assert contexts & (contexts - 1) == 0
    chosen = extracted(tiny, tmp_path, device="cuda", tile_tokens=32 * contexts)
    assert result_digest(chosen) == result_digest(halved)


def test_gpu_and_cpu_find_the_same_but_for_rounding(tiny, tmp_path):
    gpu = extracted(tiny, tmp_path, device="cuda")
    cpu = extracted(tiny, tmp_path, device="cpu", threads=1)
    for name in ("n_tokens", "n_dead"):
        assert gpu.summary[name] == cpu.summary[name]
    for name in ("l0", "fvu", "mse"):
        assert gpu.summary[name] == pytest.approx(cpu.summary[name], rel=1e-4)
    n_gpu, n_cpu = gpu.features["n_active"], cpu.features["n_active"]
    # a pre-activation next to its bound falls on either side: a few tokens of 60,000
    assert np.abs(n_gpu - n_cpu).max() <= 5
    np.testing.assert_allclose(gpu.features["max_act"], cpu.features["max_act"], rtol=1e-4)
    np.testing.assert_allclose(gpu.features["sum_act"], cpu.features["sum_act"], rtol=1e-3)
