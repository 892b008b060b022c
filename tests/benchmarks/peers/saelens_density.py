"""SAELens: how often each feature fires, by its evaluation; no examples, no maxima."""

import numpy as np
import sae_lens
import torch
from datasets import Dataset
from measuring import N_CONTEXTS_PER_BATCH, Watch, answer, arguments, few_threads
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from tl_model import check_residual, load_model, load_sae

args = arguments()
few_threads()
model = load_model(args.inputs / "model")
sae = load_sae(args.inputs / f"sae-{args.architecture}")
tokens = np.load(args.inputs / "tokens.npy")[: args.n_contexts]
assert check_residual(model, args.inputs / "model", torch.from_numpy(tokens[:2])) < 1e-5
store = ActivationsStore.from_sae(
    model,
    sae,
    Dataset.from_dict({"tokens": tokens.tolist()}),
    context_size=tokens.shape[1],
    streaming=False,
    store_batch_size_prompts=N_CONTEXTS_PER_BATCH,
    total_tokens=tokens.size,
    sequence_separator_token=None,
)
config = EvalConfig(
    batch_size_prompts=N_CONTEXTS_PER_BATCH,
    n_eval_sparsity_variance_batches=len(tokens) // N_CONTEXTS_PER_BATCH,
    compute_featurewise_density_statistics=True,
)
watch = Watch()
_, found = run_evals(
    sae, store, model, ActivationScaler(), config, exclude_special_tokens=False
)
times = watch.stop()
if args.numbers is not None:
    n_active = np.array(found["feature_density"]) * tokens.size
    np.savez(args.numbers, n_active=np.rint(n_active).astype(np.int64))
answer(version=sae_lens.__version__, n_tokens=tokens.size, **times)
