"""Where SAEDashboard's numbers are not right, and how that shows.

Each case prints what is right, what the library says, and whether they differ.
"""

import copy
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from measuring import HOOK_NAME, answer, arguments, few_threads
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_dashboard.utils_fns import HistogramData
from tl_model import load_model, load_sae

N_FEATURES, SHORT = 8, 16

args = arguments()
few_threads()
model = load_model(args.inputs / "model")
loaded = load_sae(args.inputs / "sae-jumprelu")
tokens = torch.from_numpy(np.load(args.inputs / "tokens.npy"))


def run(these, *, sae=None, features=None, **options):
    config = SaeVisConfig(
        hook_point=HOOK_NAME, features=list(features or range(N_FEATURES)), **options
    )
    encoder = copy.deepcopy(loaded) if sae is None else sae
    return SaeVisRunner(config).run(encoder=encoder, model=model, tokens=these)


def activations(these, features):
    _, cache = model.run_with_cache(these, stop_at_layer=3)
    return loaded.encode(cache[HOOK_NAME])[..., features]


def with_bos():
    """Return contexts of 16 that begin with BOS, and the features that fire most."""
    short = tokens[:32, :SHORT].clone()
    short[:, 0] = model.tokenizer.bos_token_id
    all_acts = activations(short, slice(None))
    often = (all_acts[:, 1:] > 0).float().mean((0, 1)).topk(N_FEATURES).indices.tolist()
    on_bos = (all_acts[:, 0].amax(0) - all_acts[:, 1:].amax((0, 1))).topk(1).indices.item()
    return short, often, on_bos


def density_counts_bos():
    short, features, _ = with_bos()
    found = run(short, features=features, ignore_tokens={model.tokenizer.bos_token_id})
    title = found.feature_data_dict[features[0]].acts_histogram_data.title
    said = float(re.search(r"DENSITY = ([\d.]+)%", title)[1])
    valid = short != model.tokenizer.bos_token_id
    fired = activations(short, features[:1])[..., 0] > 0
    right = 100 * float((fired & valid).sum() / valid.sum())
    return {
        "name": "density, BOS among ignore_tokens, contexts of 16",
        "expected": f"{right:.3f} % (of the valid tokens)",
        "found": f"{said:.3f} % (BOS is in the denominator)",
        "wrong": abs(said - right) > 0.01,
    }


def maximum_counts_bos():
    short, _, feature = with_bos()
    found = run(short, features=[feature], ignore_tokens={model.tokenizer.bos_token_id})
    said = found.feature_stats.max[0]
    acts = activations(short, [feature])[..., 0]
    right = float(acts[short != model.tokenizer.bos_token_id].max())
    return {
        "name": "maximum, BOS among ignore_tokens",
        "expected": f"{right:.3f}",
        "found": f"{said:.3f} (the activation on BOS)",
        "wrong": abs(said - right) > 1e-3,
    }


def cache_knows_no_tokens():
    with tempfile.TemporaryDirectory() as folder:
        options = {"features": range(64), "cache_dir": Path(folder)}
        first = run(tokens[:32], **options)
        second = run(tokens[32:64], **options)
        alone = run(tokens[32:64], features=range(64))
    stale = first.feature_stats.max == second.feature_stats.max
    n_off = sum(
        abs(a - b) > 1e-4
        for a, b in zip(second.feature_stats.max, alone.feature_stats.max, strict=True)
    )
    return {
        "name": "other tokens with the same cache_dir",
        "expected": "the maxima on these tokens",
        "found": f"all 64 maxima are the first run's; {n_off} of them are not these tokens'"
        if stale
        else "the maxima on these tokens",
        "wrong": stale and n_off > 0,
    }


def users_sae_is_changed():
    sae = copy.deepcopy(loaded)
    sae.W_dec.data *= 2
    before = sae.W_enc.data.clone()
    right = activations(tokens[:8], range(N_FEATURES)).amax((0, 1))
    said = torch.tensor(run(tokens[:8], sae=sae).feature_stats.max)
    changed = not torch.equal(before, sae.W_enc.data)
    ratio = float((said / right)[right > 0].median())
    return {
        "name": "an SAE whose decoder rows have norm 2",
        "expected": "activations as its encoder gives them; the caller's SAE unchanged",
        "found": f"activations x {ratio:.2f} (norms folded in); the caller's weights "
        f"{'are changed' if changed else 'unchanged'}",
        "wrong": changed and abs(ratio - 1) > 1e-3,
    }


def small_values_get_a_tick_each():
    found = HistogramData.from_data(
        torch.linspace(-0.25, 0.25, 1000), n_bins=50, tickmode="5 ticks", title=None
    )
    n_ticks = len(found.tick_vals)
    return {
        "name": "ticks of a histogram of values between -0.25 and 0.25",
        "expected": "about 5",
        "found": f"{n_ticks:,}",
        "wrong": n_ticks > 50,
    }


def plain_topk_crashes():
    sae = load_sae(args.inputs / "sae-topk")
    sae.cfg.rescale_acts_by_decoder_norm = False
    found = "runs"
    try:
        run(tokens[:8], sae=sae)
    except NotImplementedError as error:
        found = f"NotImplementedError: {str(error)[:60]} ..."
    return {
        "name": "a TopK SAE without rescale_acts_by_decoder_norm",
        "expected": "runs",
        "found": found,
        "wrong": found != "runs",
    }


def top_examples_repeat_contexts():
    few = tokens[:64]
    acts = activations(few, slice(None))
    n_contexts = (acts > 0).any(1).sum(0)
    n_tokens = (acts > 0).sum((0, 1))
    feature = int((n_tokens * (n_contexts >= 20)).argmax())
    found = run(few, features=[feature]).feature_data_dict[feature]
    group = found.sequence_data.seq_group_data[0].seq_data
    distinct = len({one.original_index for one in group})
    return {
        "name": f"top {len(group)} examples of a feature active in {int(n_contexts[feature])} "
        "contexts",
        "expected": f"{len(group)} contexts",
        "found": f"{distinct} contexts, some of them several times",
        "wrong": distinct < len(group),
    }


with torch.no_grad():
    cases = [
        case()
        for case in (
            density_counts_bos, maximum_counts_bos, cache_knows_no_tokens,
            users_sae_is_changed, small_values_get_a_tick_each,
            plain_topk_crashes, top_examples_repeat_contexts,
        )
    ]  # fmt: skip
answer(tool="SAEDashboard", version=version("sae-dashboard"), cases=cases)
