"""SAEs saved by the libraries themselves give the libraries' own activations.

The folders and the numbers were written by tests/golden/write_saes.py with sae-lens,
eai-sparsify and dictionary-learning. SAE_FIXTURES names a folder that was written anew.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from extraction_kit.sources import load_sae
from extraction_kit.stats import Contexts
from extraction_kit.trainings import describe_sae

FROZEN = Path(__file__).parents[1] / "fixtures" / "saes"
FIXTURES = Path(os.environ.get("SAE_FIXTURES", FROZEN))
EXPECTED = sorted(FIXTURES.rglob("*.expected.npz"))


def folder_of(expected):
    return expected.with_name(expected.name.removesuffix(".expected.npz"))


def computed(folder, x):
    """Return activations and reconstruction as the extraction puts them together."""
    spec = describe_sae(folder)
    sae = load_sae(spec, device=torch.device("cpu"), dtype=torch.float32)
    n = x.shape[0]
    contexts = Contexts.consecutive(
        0, torch.zeros((n, 1), dtype=torch.int64), torch.ones((n, 1), dtype=torch.bool)
    )
    normal = sae.normalize(x)
    acts, out = np.zeros((n, spec.d_sae), np.float32), sae.baseline(x)
    for batch in sae.encode(normal.x, contexts):
        acts[batch.row, batch.feature] = batch.value
        out = out + sae.decode(batch, n_rows=n)
    return acts, normal.undo(out).expand(n, -1).numpy()


def test_every_architecture_of_every_library_is_among_the_fixtures():
    formats = [describe_sae(folder_of(each)).format for each in EXPECTED]
    assert formats.count("saelens") == 17
    assert formats.count("sparsify") == 5
    assert formats.count("dictionary_learning") == 7
    assert formats.count("gemma_scope") == 1
    assert formats.count("gemma_scope_2") == 2
    assert formats.count("llama_scope") == 1


@pytest.mark.parametrize(
    "expected", EXPECTED, ids=[str(e.relative_to(FIXTURES))[:-13] for e in EXPECTED]
)
def test_the_activations_are_the_librarys_own(expected):
    stored = np.load(expected)
    acts, out = computed(folder_of(expected), torch.from_numpy(stored["x"]))
    np.testing.assert_array_equal(acts > 0, stored["acts"] > 0)
    np.testing.assert_allclose(acts, stored["acts"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(out, stored["out"], rtol=3e-5, atol=3e-5)


def test_where_each_one_reads_and_writes_is_found():
    places = {
        "saelens-topk": ("blocks.1.hook_resid_post", "input", None),
        "saelens-before_6_topk": ("blocks.1.hook_resid_post", "input", None),
        "saelens-skip_transcoder": (
            "blocks.1.hook_mlp_in",
            "output",
            "blocks.1.hook_mlp_out",
        ),
        "sparsify-run/layers.1": ("layers.1", "input", None),
        "sparsify-run/layers.1.mlp": ("layers.1.mlp.input", "output", "layers.1.mlp"),
        "sparsify-run/layers.3/seed7": ("layers.3", "input", None),
        "dictionary_learning-BatchTopKSAE": ("blocks.1.hook_resid_post", "input", None),
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_5": (
            "blocks.1.hook_resid_post",
            "input",
            None,
        ),
        "gemma-scope-2-270m-pt/transcoder/layer_1_width_16k_affine": (
            "model.layers.1.pre_feedforward_layernorm.output",
            "output",
            "model.layers.1.post_feedforward_layernorm.output",
        ),
        "Llama3_1-8B-Base-L1R-8x": ("blocks.1.hook_resid_post", "input", None),
    }
    for name, place in places.items():
        spec = describe_sae(FIXTURES / name)
        assert (spec.hook_name, spec.reconstructs, spec.hook_name_out) == place, name
