"""Where SAELens's numbers are not right, and how that shows.

Each case prints what is right, what the library says, and whether they differ.
"""

import numpy as np
import sae_lens
import torch
from datasets import Dataset
from measuring import answer, arguments, few_threads
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from tl_model import load_model, load_sae

args = arguments()
few_threads()
model = load_model(args.inputs / "model")
sae = load_sae(args.inputs / "sae-jumprelu")
tokens = np.load(args.inputs / "tokens.npy")


def store_of(n_contexts):
    return ActivationsStore.from_sae(
        model, sae, Dataset.from_dict({"tokens": tokens[:n_contexts].tolist()}),
        context_size=tokens.shape[1], streaming=False, store_batch_size_prompts=4,
        sequence_separator_token=None, total_tokens=n_contexts,
    )  # fmt: skip


def small_data_set_wraps():
    """Ask an evaluation of 6 contexts for 8: two are counted twice, silently."""
    config = EvalConfig(
        batch_size_prompts=4,
        n_eval_sparsity_variance_batches=2,
        compute_featurewise_density_statistics=True,
    )
    _, found = run_evals(
        sae, store_of(6), model, ActivationScaler(), config, exclude_special_tokens=False
    )
    n_said = torch.tensor(found["feature_density"])
    _, cache = model.run_with_cache(torch.from_numpy(tokens[:6]), stop_at_layer=3)
    fired = (sae.encode(cache[sae.cfg.metadata.hook_name]) > 0).float()
    wanted = fired.mean((0, 1))
    twice = torch.cat([fired, fired[:2]]).mean((0, 1))
    differing = int(((n_said - wanted).abs() > 1e-6).sum())
    assert torch.allclose(n_said, twice, atol=2e-4)  # as if the first two came again
    return {
        "name": "a data set of 6 contexts, asked for 8",
        "expected": "an error, or the densities of 6 contexts",
        "found": f"no error; {differing:,} of {len(wanted):,} densities are those of 8 "
        "contexts, the first two counted twice",
        "wrong": differing > 0,
    }


def reset_does_nothing():
    store = store_of(12)
    first = store.get_batch_tokens(4)
    store.reset_input_dataset()
    again = store.get_batch_tokens(4)
    goes_on = torch.equal(again, torch.from_numpy(tokens[4:8]))
    return {
        "name": "get_batch_tokens after reset_input_dataset()",
        "expected": "contexts 0 to 3",
        "found": "contexts 4 to 7" if goes_on else "contexts 0 to 3",
        "wrong": not torch.equal(first, again),
    }


with torch.no_grad():
    cases = [small_data_set_wraps(), reset_does_nothing()]
answer(tool="SAELens", version=sae_lens.__version__, cases=cases)
