"""Delphi: its sparse cache on disk, then the top examples of all latents from it.

Whole contexts as examples, the largest first, no test set, nothing non-activating: the least
that it does to give what the others give.
"""

from importlib.metadata import version

import numpy as np
import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from measuring import HOOK_BLOCK, TOP_K, Watch, answer, arguments, few_threads
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedTokenizerFast

BATCH_SIZE = 8
HOOKPOINT = f"h.{HOOK_BLOCK}"


def encoder(folder, k=32):
    """Return the SAE as the dense function that Delphi asks for, as SAELens computes it."""
    sae = load_file(folder / "sae_weights.safetensors")

    def encode(x):
        p = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        if "threshold" in sae:
            return p.relu() * (p > sae["threshold"])
        best = p.topk(k, dim=-1)
        return torch.zeros_like(p).scatter_(-1, best.indices, best.values.relu())

    return encode


def write_cache(model, encode, tokens, folder):
    """Fill the cache and save it, as ``delphi.__main__`` does."""
    cache = LatentCache(model, {HOOKPOINT: encode}, batch_size=BATCH_SIZE)
    cache.run(tokens.numel(), tokens)
    cache.save_splits(n_splits=CacheConfig().n_splits, save_dir=folder)
    config = CacheConfig(cache_ctx_len=tokens.shape[1], n_tokens=tokens.numel())
    cache.save_config(save_dir=folder, cfg=config, model_name="gpt2-shape")
    return cache


if __name__ == "__main__":
    args = arguments()
    few_threads()
    model = AutoModel.from_pretrained(args.inputs / "model").eval()
    encode = encoder(args.inputs / f"sae-{args.architecture}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(args.inputs / "model" / "tokenizer.json")
    )
    tokens = torch.from_numpy(np.load(args.inputs / "tokens.npy")[: args.n_contexts])
    watch = Watch()
    cache = write_cache(model, encode, tokens, args.scratch)
    cached = watch.stop()
    dataset = LatentDataset(
        args.scratch,
        SamplerConfig(n_examples_train=TOP_K, n_examples_test=0, train_type="top"),
        ConstructorConfig(
            example_ctx_len=tokens.shape[1], min_examples=1, n_non_activating=0
        ),
        tokenizer=tokenizer,
        modules=[HOOKPOINT],
    )
    top_k = np.zeros((cache.width, TOP_K), dtype=np.float32)
    for record in dataset:  # as its own pipeline takes them: one by one
        best = [float(example.activations.max()) for example in record.train]
        top_k[record.latent.latent_index, : len(best)] = best
    times = watch.stop()
    if args.numbers is not None:
        n_active = cache.hookpoint_firing_counts[HOOKPOINT].numpy()
        np.savez(args.numbers, n_active=n_active, top_k=top_k)
    answer(
        version=version("eai-delphi"), n_tokens=tokens.numel(), cache_only=cached, **times
    )
