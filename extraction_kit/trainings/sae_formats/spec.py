"""What is known of a trained SAE before its weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from extraction_kit.lifecycle import digest_of

INPUT, OUTPUT, UNKNOWN = "input", "output", "unknown"
TRANSPOSED = "^T"
_ALWAYS = (
    "format", "architecture", "d_in", "d_sae", "k", "apply_b_dec_to_input",
    "normalize_activations", "rescale_acts_by_decoder_norm",
)  # fmt: skip
_IF_SET = (
    "d_out", "reconstructs", "hook_name_out", "skip", "tensors", "threshold", "input_scale",
)  # fmt: skip
# Left out of the digest where they have their default, so that no digest changes when a
# field is added.


@dataclass(frozen=True, kw_only=True)
class SaeSpec:
    """A trained SAE, as far as its files say without loading the weights."""

    path: str
    """What was given, absolute: the folder, or its weight file."""
    format: str
    """``saelens``, ``sparsify``, ``dictionary_learning``, ``gemma_scope``,
    ``gemma_scope_2``, ``llama_scope`` or ``explicit``."""
    architecture: str
    """How pre-activations become activations: ``standard`` (relu), ``jumprelu``, ``topk``,
    ``groupmax`` or ``gated``."""
    d_in: int
    d_sae: int
    k: int | None
    """Active features per token of a ``topk`` SAE, groups of a ``groupmax`` SAE."""
    apply_b_dec_to_input: bool
    normalize_activations: str
    """``none``, ``layer_norm`` or ``constant_norm_rescale``."""
    rescale_acts_by_decoder_norm: bool
    hook_name: str | None
    metadata: Mapping[str, Any]
    """``model_name``, ``context_size``, ``prepend_bos`` and others, as found."""
    digest: str
    """Over every field that changes the numbers, and the bytes of the weights."""
    d_out: int | None = None
    """Width of what a transcoder writes; None where it is `d_in`."""
    reconstructs: str = INPUT
    """``input``: an autoencoder; ``output``: a transcoder, which predicts the activations at
    `hook_name_out`; ``unknown``: the files do not say which."""
    hook_name_out: str | None = None
    skip: bool = False
    """Whether ``W_skip`` x is added to the output of a transcoder."""
    weights: str = "sae_weights.safetensors"
    """Weight file, relative to the folder."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Our name of a tensor -> its name in the file, with ``^T`` where it is transposed
    there; a name that is not in here is the same."""
    threshold: float | None = None
    """The threshold of every feature, where it is not a tensor of the weight file."""
    input_scale: float = 1.0
    """The SAE sees its input times this: folded into the weights when they are loaded."""

    @property
    def file(self) -> Path:
        """Absolute path of the weight file."""
        path = Path(self.path)
        return path if path.name == Path(self.weights).name else path / self.weights

    def named(self, tensor: str) -> tuple[str, bool]:
        """Return the name of our `tensor` in the file, and whether it is transposed."""
        name = self.tensors.get(tensor, tensor)
        return name.removesuffix(TRANSPOSED), name.endswith(TRANSPOSED)


def tensor_shapes(spec: SaeSpec) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an SAE is made of, by our names, and their shapes."""
    d_in, d_sae, d_out = spec.d_in, spec.d_sae, spec.d_out or spec.d_in
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out)}
    if spec.architecture == "gated":
        shapes |= {"b_gate": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,)}
    else:
        shapes["b_enc"] = (d_sae,)
    shapes["b_dec"] = (d_out,)
    if spec.architecture == "jumprelu" and spec.threshold is None:
        shapes["threshold"] = (d_sae,)
    if spec.skip:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def spec_digest(spec: SaeSpec, weights: str) -> str:
    """Return the digest of what an SAE computes; `weights` is that of its weight file."""
    default = {each.name: each.default for each in fields(SaeSpec)} | {"tensors": {}}
    computed = {name: getattr(spec, name) for name in _ALWAYS}
    for name in _IF_SET:
        value = getattr(spec, name)
        if value != default[name]:
            computed[name] = value
    return digest_of(computed | {"weights": weights})
