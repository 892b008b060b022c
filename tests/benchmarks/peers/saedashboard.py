"""SAEDashboard: one feature batch after another, with (option ``cache``) or without its cache.

``--option 128`` or ``128-cache`` gives the features per batch. Three batches are run; the cost
of the first (which fills the cache) and of each further one are told apart.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from measuring import HOOK_NAME, Watch, answer, arguments, few_threads, peak_mib
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData
from sae_dashboard.sae_vis_runner import SaeVisRunner
from tl_model import load_model, load_sae

N_BATCHES = 3

args = arguments()
few_threads()
per_batch, _, cache = args.option.partition("-")
model = load_model(args.inputs / "model")
sae = load_sae(args.inputs / f"sae-{args.architecture}")
tokens = torch.from_numpy(np.load(args.inputs / "tokens.npy")[: args.n_contexts])
features = list(range(N_BATCHES * int(per_batch)))
config = SaeVisConfig(
    hook_point=HOOK_NAME,
    features=features,
    minibatch_size_features=int(per_batch),
    cache_dir=Path(args.scratch) if cache else None,
)
laps = []
merge = SaeVisData.update


def merge_and_note(data, other):  # the runner's last call for each feature batch
    merge(data, other)
    laps.append(watch.stop())


SaeVisData.update = merge_and_note
watch = Watch()
found = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
assert len(laps) == N_BATCHES
first, last = laps[0], laps[-1]
marginal = {name: (last[name] - first[name]) / (N_BATCHES - 1) for name in first}
n_left = sae.cfg.d_sae / int(per_batch) - 1
if args.numbers is not None:
    stats = found.feature_stats
    np.savez(
        args.numbers,
        features=np.array(features),
        max_act=np.array(stats.max, dtype=np.float32),
        n_active=np.rint(np.array(stats.frac_nonzero) * tokens.numel()).astype(np.int64),
    )
answer(
    version=version("sae-dashboard"),
    n_tokens=tokens.numel(),
    first=first,
    marginal=marginal,
    features_per_batch=int(per_batch),
    measured_mib=peak_mib(),
    **{name: first[name] + n_left * marginal[name] for name in first},
)
