"""Products by oneDNN: as exact as torch's, used where the processor says so, and recorded."""

import pytest
import torch

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.errors import CheckpointUnusable
from extraction_kit.extraction import StopAfterCheckpoint, extract
from extraction_kit.paths import Paths
from extraction_kit.sources import onednn
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_training
from tests.devices import needs_onednn
from tests.unit.extraction.stops import stopper

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# --- the product --------------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (1024,), (3, 5)])
@torch.inference_mode()
def test_it_is_as_near_to_the_exact_product_as_float32_is(shape, transposed):
    chance = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*rows, 300, generator=chance) for rows in (shape, (200,)))
    bias = torch.randn(200, generator=chance)
    if transposed:
        weight = weight.T.contiguous().T
    for b in (bias, None):
        found = onednn.linear(x, weight, b)
        exact = x.double() @ weight.double().T + (0 if b is None else b.double())
        # the usual bound of a sum of n products: n u |x| |w|, u = 2^-24
        bound = (300 + 2) * 2.0**-24 * (x.double().abs() @ weight.double().abs().T + 4)
        assert found.shape == exact.shape
        assert ((found - exact).abs() <= bound).all()


# --- where it is used ---------------------------------------------------------------------

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
flags\t\t: fpu avx512f
"""


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Return a function that puts another processor into this machine."""

    def put(cpuinfo, capability="AVX512"):
        onednn._vendor.cache_clear()
        monkeypatch.setattr(onednn, "_CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(onednn, "is_there", lambda: True)

    yield put
    onednn._vendor.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "expected"),
    [
        (AMD, "AVX512", True),
        (AMD, "AVX2", False),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), "AVX512", False),
        ("processor : 0\nCPU implementer : 0x41\n", "DEFAULT", False),
    ],
)
def test_it_is_for_amd_processors_with_512_bits(processor, cpuinfo, capability, expected):
    processor(cpuinfo, capability)
    assert onednn.is_faster(CPU, torch.float32) is expected


def test_it_is_for_float32_on_a_cpu_until_it_is_switched_off(processor, monkeypatch):
    processor(AMD)
    assert not onednn.is_faster(CPU, torch.bfloat16)
    assert not onednn.is_faster(CPU, torch.float64)
    assert not onednn.is_faster(CUDA, torch.float32)
    assert onednn.is_faster(CPU, torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not onednn.is_faster(CPU, torch.float32)


def test_a_machine_without_cpuinfo_is_known_by_what_its_system_says(monkeypatch, tmp_path):
    monkeypatch.setattr(onednn, "_CPUINFO", tmp_path / "none")
    named = "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
    monkeypatch.setattr(onednn.platform, "processor", lambda: named)
    onednn._vendor.cache_clear()
    try:
        assert onednn._vendor() == "AuthenticAMD"
    finally:
        onednn._vendor.cache_clear()


# --- in an extraction -----------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_a_run_counts_the_same_with_it_and_without_and_says_which(
    architecture, tmp_path, monkeypatch
):
    tiny = tiny_training(tmp_path / "tiny", n_documents=14)
    training = describe_training("tiny", sae=tiny.saes[architecture], model=tiny.model)
    config = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
    settings = Settings(threads=1, device="cpu", tile_tokens=24)
    paths = Paths.of(tmp_path / "workspace", settings)
    corpus = prepare(tiny.corpus, tokenizer=training.tokenizer, config=config, paths=paths)

    def run(*, by_onednn, **options):
        monkeypatch.setattr(
            onednn, "is_faster", lambda _, dtype: by_onednn and dtype is torch.float32
        )
        return extract(training, corpus, config=config, settings=settings, **options)

    with_it, without = run(by_onednn=True), run(by_onednn=False)
    assert with_it.features["n_active"].tolist() == without.features["n_active"].tolist()
    torch.testing.assert_close(
        torch.from_numpy(with_it.features["sum_act"]),
        torch.from_numpy(without.features["sum_act"]),
        rtol=1e-5,
        atol=1e-4,
    )
    told = with_it.provenance["fingerprint"]
    assert (told["linear"], told["encoder"]) == ("oneDNN", "oneDNN")
    assert not {"linear", "encoder"} & without.provenance["fingerprint"].keys()

    with pytest.raises(StopAfterCheckpoint):
        run(
            by_onednn=True,
            checkpoints=tmp_path / "attempts" / "a1",
            on_progress=stopper(2, StopAfterCheckpoint),
        )
    with pytest.raises(CheckpointUnusable, match=r"encoder: 'oneDNN' then, None now"):
        run(by_onednn=False, resume_from=tmp_path / "attempts")
