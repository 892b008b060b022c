"""Write small SAEs with the libraries themselves, and what they compute.

Run in an environment of its own, which `make golden` makes:

    build/golden/bin/python tests/golden/write_saes.py tests/fixtures/saes

The frozen ones are in the tests always; to compare with other versions of the libraries, write
them elsewhere and run SAE_FIXTURES=<folder> pytest tests/unit/test_golden_saes.py.

Each folder is what the library's own ``save`` wrote. Beside it, ``<name>.expected.npz`` holds
inputs ``x``, the library's own activations ``acts`` and reconstruction ``out`` (of a
transcoder: its output), and ``library``.
"""

import argparse
import json
import shutil
from pathlib import Path

import dictionary_learning
import numpy as np
import sae_lens
import torch
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D_IN, D_OUT, D_SAE, K, N = 8, 6, 20, 4, 24


def randomize(module):
    """Fill every weight with numbers that make each option matter."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            scale = {"threshold": 0.0, "r_mag": 0.3}.get(name, 0.5)
            weight.copy_(scale * torch.randn_like(weight))
            if name == "threshold":
                weight.copy_(0.3 + torch.rand_like(weight))


def inputs():
    return 2 * torch.randn(N, D_IN) + 0.5


def beside(folder):
    return folder.parent / f"{folder.name}.expected.npz"


def keep(folder, *, library, x, acts, out):
    assert (acts > 0).sum() > N, folder
    assert not torch.equal(acts > 0, torch.ones_like(acts, dtype=torch.bool)), folder
    np.savez_compressed(
        beside(folder),
        library=np.array(library),
        x=x.numpy(),
        acts=acts.numpy(),
        out=out.numpy(),
    )


# --- SAELens ---

METADATA = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}
SAELENS = {
    "standard": ("standard", {}),
    "layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "rescaled_norm": ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    "uncentred": ("standard", {"apply_b_dec_to_input": False}),
    "topk": ("topk", {"k": K}),
    "topk_rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
    "transcoder": ("transcoder", {"d_out": D_OUT}),
    "skip_transcoder": ("skip_transcoder", {"d_out": D_OUT}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": D_OUT}),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": D_OUT}),
}


def saelens_config(config_class, options):
    if "d_out" in options:
        options = options | {"apply_b_dec_to_input": False}
    config = config_class(d_in=D_IN, d_sae=D_SAE, dtype="float32", **options)
    for name, value in METADATA.items():
        config.metadata[name] = value
    if "d_out" in options:
        config.metadata["hook_name"] = "blocks.1.hook_mlp_in"
        config.metadata["hook_name_out"] = "blocks.1.hook_mlp_out"
    return config


def keep_saelens(folder):
    """Load what was saved as a user of SAELens does, and keep what it computes."""
    sae = sae_lens.SAE.load_from_disk(folder)
    x = inputs()
    keep(
        folder,
        library=f"sae-lens {sae_lens.__version__}",
        x=x,
        acts=sae.encode(x),
        out=sae(x),
    )


def write_saelens(root):
    for name, (architecture, options) in SAELENS.items():
        sae_class, config_class = get_sae_class(architecture)
        sae = sae_class(saelens_config(config_class, options))
        randomize(sae)
        sae.save_model(root / f"saelens-{name}")
        keep_saelens(root / f"saelens-{name}")
    for name in ("batchtopk", "matryoshka_batchtopk"):
        sae_class, config_class = get_sae_training_class(name)
        options = {"k": 2.0}
        if name.startswith("matryoshka"):
            options["matryoshka_widths"] = [5, D_SAE]
        sae = sae_class(saelens_config(config_class, options))
        randomize(sae)
        sae.topk_threshold = torch.tensor(0.9, dtype=torch.double)
        sae.save_inference_model(root / f"saelens-{name}")
        keep_saelens(root / f"saelens-{name}")
        # The training checkpoint of the same SAE encodes the same.
        sae.save_model(root / f"saelens-{name}_training")
        shutil.copy(
            beside(root / f"saelens-{name}"), beside(root / f"saelens-{name}_training")
        )
    write_saelens_5(root / "saelens-before_6_topk")


def write_saelens_5(folder):
    """Write a config as SAELens 5 did; the weight file was the same."""
    shutil.copytree(folder.parent / "saelens-topk", folder)
    config = {
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32",
        "device": "cpu", "model_name": "tiny", "hook_name": "blocks.1.hook_resid_post",
        "hook_layer": 1, "hook_head_index": None, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "normalize_activations": "none",
        "context_size": 128, "prepend_bos": True, "dataset_path": "none",
        "dataset_trust_remote_code": True, "sae_lens_training_version": "5.10.0",
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    keep_saelens(folder)


# --- sparsify ---

SPARSIFY = {
    "layers.1": {},
    "layers.1.self_attn": {"activation": "groupmax"},
    "layers.1.mlp": {"transcode": True},
    "layers.2.mlp": {"transcode": True, "skip_connection": True},
}


def write_sparsify(root):
    run = root / "sparsify-run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": "tiny", "ctx_len": 64}))
    for name, options in SPARSIFY.items():
        coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **options))
        randomize(coder)
        coder.save_to_disk(run / name)
        coder = SparseCoder.load_from_disk(run / name)
        x = inputs()
        encoded = coder.encode(x)
        acts = torch.zeros(N, D_SAE).scatter_(1, encoded.top_indices, encoded.top_acts)
        keep(run / name, library="eai-sparsify 1.3.3", x=x, acts=acts, out=coder(x).sae_out)
    # Sizes as sparsify writes them by default: 0 latents, times an expansion factor.
    coder = SparseCoder(D_IN, SparseCoderConfig(expansion_factor=3, k=K))
    randomize(coder)
    coder.save_to_disk(run / "layers.3" / "seed7")
    x = inputs()
    encoded = coder.encode(x)
    acts = torch.zeros(N, 3 * D_IN).scatter_(1, encoded.top_indices, encoded.top_acts)
    keep(
        run / "layers.3" / "seed7",
        library="eai-sparsify 1.3.3",
        x=x,
        acts=acts,
        out=coder(x).sae_out,
    )


# --- dictionary_learning ---


def write_dictionaries(root):
    group_sizes = [5, D_SAE - 5]
    made = {
        "AutoEncoder": AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, group_sizes),
    }
    for name, made_one in made.items():
        write_dictionary(root / f"dictionary_learning-{name}", name, made_one)


def write_dictionary(folder, name, dictionary):
    randomize(dictionary)
    trainer = {
        "dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 1,
        "lm_name": "tiny", "submodule_name": "resid_post_layer_1",
    }  # fmt: skip
    if hasattr(dictionary, "threshold") and name != "JumpReluAutoEncoder":
        dictionary.threshold.fill_(0.7)
        trainer["k"] = K
    folder.mkdir()
    torch.save(dictionary.state_dict(), folder / "ae.pt")
    buffer = {"io": "out", "ctx_len": 128, "d_submodule": D_IN}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    loaded, _ = load_dictionary(str(folder), "cpu")
    x = inputs()
    keep(
        folder,
        library="dictionary-learning 0.1.0",
        x=x,
        acts=loaded.encode(x),
        out=loaded(x),
    )


# --- Gemma Scope and Llama Scope: files as published, read by the loaders of SAELens ---


def random_parts(**names):
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "W_dec": (D_SAE, D_IN),
        "b_enc": (D_SAE,),
        "b_dec": (D_IN,),
    }
    parts = {names.get(n, n): 0.5 * torch.randn(shape) for n, shape in shapes.items()}
    return parts | {"threshold": 0.3 + torch.rand(D_SAE)}


def keep_published(folder, loader, *, repo, place, scale=None, **overrides):
    """Let SAELens convert the files that lie in `folder` as if it had downloaded them."""

    def local(repo_id=None, filename=None, subfolder="", **_):  # noqa: ARG001 - as on the Hub
        return str(folder / f"{subfolder}/{filename}".replace(place, "").strip("/"))

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda repo_id, filename: {  # noqa: ARG005
        name: list(tensor.shape) for name, tensor in load_file(local("", filename)).items()
    }
    config, weights, _ = loader(
        repo, place, cfg_overrides={"dtype": "float32", **overrides}
    )
    config = loaders.handle_config_defaulting(config)
    sae_class, config_class = get_sae_class(config["architecture"])
    sae = sae_class(config_class.from_dict(config))
    sae.load_state_dict(weights)
    if scale is not None:  # as SAE.from_pretrained does for expected_average_only_in
        sae.fold_activation_norm_scaling_factor(scale)
    x = inputs()
    library = f"files of {repo} read by sae-lens {sae_lens.__version__}"
    keep(folder, library=library, x=x, acts=sae.encode(x), out=sae(x))


def write_gemma_scope(root):
    place = "layer_1/width_16k/average_l0_5"
    folder = root / "gemma-scope-2b-pt-res" / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in random_parts().items()})
    keep_published(
        folder,
        loaders.gemma_2_sae_huggingface_loader,
        repo="google/gemma-scope-2b-pt-res",
        place=place,
        d_in=D_IN,
        d_sae=D_SAE,
    )


def write_gemma_scope_2(root):
    in_out = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
    places = {
        "resid_post/layer_1_width_16k": ("output", None),
        "transcoder/layer_1_width_16k_affine": in_out,
    }
    for place, (reads, writes) in places.items():
        folder = root / "gemma-scope-2-270m-pt" / place
        folder.mkdir(parents=True)
        config = {
            "architecture": "jump_relu",
            "model_name": "google/gemma-3-270m-pt",
            "hf_hook_point_in": f"model.layers.1.{reads}",
        }
        parts = random_parts(W_enc="w_enc", W_dec="w_dec")
        if writes is not None:
            config |= {
                "hf_hook_point_out": f"model.layers.1.{writes}",
                "affine_connection": True,
            }
            parts["affine_skip_connection"] = torch.randn(D_IN, D_IN)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(parts, folder / "params.safetensors")
        keep_published(
            folder,
            loaders.gemma_3_sae_huggingface_loader,
            repo="google/gemma-scope-2-270m-pt",
            place=place,
        )


def write_llama_scope(root):
    place = "Llama3_1-8B-Base-L1R-8x"
    folder = root / place
    (folder / "checkpoints").mkdir(parents=True)
    hook, norm = "blocks.1.hook_resid_post", 5.0
    config = {
        "d_model": D_IN, "d_sae": D_SAE, "act_fn": "jumprelu", "jump_relu_threshold": 0.6,
        "norm_activation": "dataset-wise", "hook_point_in": hook, "hook_point_out": hook,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "use_glu_encoder": False, "apply_decoder_bias_to_pre_encoder": False,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    parts = random_parts()
    save_file(
        {
            "encoder.weight": parts["W_enc"].T.contiguous(),
            "encoder.bias": parts["b_enc"],
            "decoder.weight": parts["W_dec"].T.contiguous(),
            "decoder.bias": parts["b_dec"],
        },
        folder / "checkpoints" / "final.safetensors",
    )
    keep_published(
        folder,
        loaders.llama_scope_sae_huggingface_loader,
        repo="fnlp/Llama3_1-8B-Base-LXR-8x",
        place=place,
        scale=D_IN**0.5 / norm,
    )


if __name__ == "__main__":
    assert dictionary_learning.__file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    torch.manual_seed(0)
    with torch.no_grad():
        write_saelens(root)
        write_sparsify(root)
        write_dictionaries(root)
        write_gemma_scope(root)
        write_gemma_scope_2(root)
        write_llama_scope(root)
