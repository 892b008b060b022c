"""Where Delphi's numbers are not right, and how that shows.

Each case prints what is right, what the library says, and whether they differ.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from delphi.config import ConstructorConfig
from delphi.latents import LatentCache
from delphi.latents.cache import check_single_feature
from delphi.latents.constructors import constructor
from delphi.latents.latents import ActivationData, Latent, LatentRecord
from delphi_cache import HOOKPOINT, encoder
from measuring import answer, arguments, few_threads
from safetensors.torch import load_file
from transformers import AutoModel

args = arguments()
few_threads()
model = AutoModel.from_pretrained(args.inputs / "model").eval()
encode = encoder(args.inputs / "sae-jumprelu")
tokens = torch.from_numpy(np.load(args.inputs / "tokens.npy"))


def last_batch_is_dropped():
    cache = LatentCache(model, {HOOKPOINT: encode}, batch_size=32)
    these = tokens[:40]
    cache.run(these.numel(), these)
    n_read = len(cache.cache.tokens[HOOKPOINT])
    return {
        "name": "40 contexts in batches of 32",
        "expected": "40 contexts",
        "found": f"{n_read} contexts, no word of the other {40 - n_read}",
        "wrong": n_read != 40,
    }


def single_token_reads_the_weak_half():
    """The strong half of the activations on one token, the weak half on many, and reverse."""
    acts = torch.arange(1, 201).float()
    one, many = torch.full((100,), 7), torch.arange(100, 200)
    strong = check_single_feature(acts, torch.cat([many, one]))
    weak = check_single_feature(acts, torch.cat([one, many]))
    return {
        "name": "(weak, strong) single token: the 100 largest of 200 activations on one token",
        "expected": "(0, 1) or (1, 0)",
        "found": f"{strong}; where instead the 100 smallest are: {weak}",
        "wrong": strong == (0, 0) and weak != (0, 0),
    }


def half_precision_overflows():
    cache = LatentCache(
        model, {HOOKPOINT: lambda x: 70_000 * (encode(x) > 0)}, batch_size=2
    )
    with tempfile.TemporaryDirectory() as folder:
        cache.run(tokens[:2].numel(), tokens[:2])
        cache.save_splits(n_splits=1, save_dir=Path(folder))
        saved = load_file(next(Path(folder).rglob("*.safetensors")))["activations"]
    return {
        "name": "activations of 70,000 (some models have them)",
        "expected": "70,000",
        "found": f"{float(saved.max())} (stored as float16)",
        "wrong": bool(torch.isinf(saved).all()),
    }


def centring_is_reversed():
    """One activation at position 5 of a window of 32: centring would move it."""
    few = tokens[:4]
    data = ActivationData(torch.tensor([[1, 37, 0]]), torch.tensor([1.0]))
    record = constructor(
        LatentRecord(Latent(HOOKPOINT, 0)),
        data,
        ConstructorConfig(min_examples=1, center_examples=True, n_non_activating=0),
        few,
        None,
    )
    at = int(record.examples[0].activations.argmax())
    return {
        "name": "center_examples=True, one activation at position 5 of a window of 32",
        "expected": "an example centred on it",
        "found": f"the window as it was: it is at position {at}",
        "wrong": at == 5,
    }


with torch.no_grad():
    cases = [
        last_batch_is_dropped(),
        single_token_reads_the_weak_half(),
        half_precision_overflows(),
        centring_is_reversed(),
    ]
answer(tool="Delphi", version=version("eai-delphi"), cases=cases)
