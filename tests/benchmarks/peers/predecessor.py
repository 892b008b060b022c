"""The predecessor's algorithm, in our own words: Python objects per (sequence, feature).

A faithful stand-in for the loop that ``facts`` of this project describe, on the same residual
stream as all others (the predecessor's hook captured a LayerNorm's output): the whole model
with its LM head, activations copied per sample, `encode` sample by sample, codes padded and
stacked, a `topk` over positions that nothing reads, then for each active (sequence, feature)
pair a dictionary with the window's tokens and activations, pushed on the feature's heap.

Left out, in its favour: reading padding, filtering of "junk" tokens by regular expressions,
decoding of each sample, one row per example through an ORM.
"""

import heapq
import itertools
from collections import defaultdict

import numpy as np
import torch
from inputs import K_OF_TOPK
from measuring import HOOK_BLOCK, TOP_K, Watch, answer, arguments, few_threads
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

BEFORE, AFTER, SEQUENCES_PER_BATCH = 25, 25, 8


def window(tokens, acts, peak):
    """Return what is stored of one example: tokens and activations around the peak."""
    start, stop = max(0, peak - BEFORE), min(len(tokens), peak + AFTER + 1)
    values = acts[start:stop].tolist()
    return {
        "tokens": tokens[start:stop],
        "activations": values,
        "prefix_tokens": tokens[start:peak],
        "prime_token": tokens[peak],
        "suffix_tokens": tokens[peak + 1 : stop],
        "prime_activation_index": peak - start,
        "token_positions": list(range(start - peak, stop - peak)),
        "max_activation": max(values),
    }


class Extraction:
    """Counts and heaps, feature by feature."""

    def __init__(self):
        self.n_samples_active = defaultdict(int)
        self.heaps = defaultdict(list)
        self._ticket = itertools.count()

    def update(self, codes, tokens, first):
        """Add a batch: `codes` [sample, position, feature] and the samples' token strings."""
        peaks, places = codes.max(dim=1)
        torch.topk(codes, k=5, dim=1)  # theirs, never read
        for sample, words in enumerate(tokens):
            active = torch.nonzero(peaks[sample] > 0).squeeze(1).tolist()
            found = [
                (
                    feature,
                    window(words, codes[sample, :, feature], int(places[sample, feature])),
                )
                for feature in active
            ]
            for feature, example in found:
                self.n_samples_active[feature] += 1
                self._push(feature, example, first + sample)

    def _push(self, feature, example, sample):
        heap, act = self.heaps[feature], example["max_activation"]
        entry = (act, next(self._ticket), example | {"sample_index": sample})
        if len(heap) < TOP_K:
            heapq.heappush(heap, entry)
        elif act > heap[0][0]:
            heapq.heapreplace(heap, entry)


def encode(sae, x):
    p = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
    if "threshold" in sae:
        return p.relu() * (p > sae["threshold"])
    best = p.topk(K_OF_TOPK, dim=-1)
    return torch.zeros_like(p).scatter_(-1, best.indices, best.values.relu())


def run(model, sae, tokenizer, all_tokens):
    extraction, captured = Extraction(), []
    handle = model.transformer.h[HOOK_BLOCK].register_forward_hook(
        lambda _module, _inputs, output: captured.append(
            (output[0] if isinstance(output, tuple) else output).detach().cpu().clone()
        )
    )
    for first in range(0, len(all_tokens), SEQUENCES_PER_BATCH):
        batch = all_tokens[first : first + SEQUENCES_PER_BATCH]
        model(batch)
        acts = captured.pop()
        codes = torch.stack([encode(sae, sample) for sample in acts])
        words = [tokenizer.convert_ids_to_tokens(sample.tolist()) for sample in batch]
        extraction.update(codes, words, first)
    handle.remove()
    return extraction


args = arguments()
few_threads()
model = AutoModelForCausalLM.from_pretrained(args.inputs / "model").eval()
sae = load_file(args.inputs / f"sae-{args.architecture}" / "sae_weights.safetensors")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=str(args.inputs / "model" / "tokenizer.json")
)
tokens = torch.from_numpy(np.load(args.inputs / "tokens.npy")[: args.n_contexts])
with torch.no_grad():
    watch = Watch()
    extraction = run(model, sae, tokenizer, tokens)
    times = watch.stop()
if args.numbers is not None:
    d_sae = len(sae["b_enc"])
    top_k = np.zeros((d_sae, TOP_K), dtype=np.float32)
    n_contexts = np.zeros(d_sae, dtype=np.int64)
    for feature, heap in extraction.heaps.items():
        best = sorted((act for act, _, _ in heap), reverse=True)
        top_k[feature, : len(best)] = best
        n_contexts[feature] = extraction.n_samples_active[feature]
    np.savez(args.numbers, n_contexts=n_contexts, top_k=top_k)
answer(version="stand-in", n_tokens=tokens.numel(), **times)
