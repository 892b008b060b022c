"""A training: an SAE, its model, hookpoint and tokenizer, checked to belong together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from extraction_kit.errors import BadModel, BadSae
from extraction_kit.lifecycle import check_training_id, digest_of
from extraction_kit.trainings.hookpoints import (
    Hookpoint,
    hook_suffix,
    resolve_hookpoint,
    with_centred_writing,
)
from extraction_kit.trainings.model_folder import (
    ModelSpec,
    describe_model,
    read_model_config,
)
from extraction_kit.trainings.sae_folder import describe_sae
from extraction_kit.trainings.sae_formats.spec import INPUT, UNKNOWN, SaeSpec
from extraction_kit.trainings.tokenizer_folder import (
    TokenizerSpec,
    describe_tokenizer,
    load_tokenizer,
)

_PROCESSING = {
    "fold_ln": ("mlp.hook_in",),
    "fold_value_biases": ("attn.hook_z",),
    "refactor_factored_attn_matrices": ("attn.hook_z",),
}
# Options of TransformerLens and the hooks whose activations each of them changes.


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training id stands for."""

    training_id: str
    sae: SaeSpec
    model: ModelSpec
    tokenizer: TokenizerSpec
    hookpoint: Hookpoint
    digest: str
    """Over the digests of SAE, model and tokenizer, and the place of the hookpoint."""

    def __repr__(self) -> str:
        """Return what was read off the files; the attributes have all of it."""
        sae, hook = self.sae, self.hookpoint
        k = "" if sae.k is None else f", k={sae.k}"
        return (
            f"<Training {self.training_id!r}: {sae.architecture} SAE ({sae.format}{k}) of "
            f"{sae.d_sae:,} features, reads {hook.hook_name} (the {hook.side} of "
            f"{hook.module_path}, {sae.d_in} wide) of {self.model.source}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_dict`` is the inverse."""
        plain = asdict(self)
        plain["tokenizer"]["special_ids"] = list(self.tokenizer.special_ids)
        plain["sae"]["metadata"] = dict(self.sae.metadata)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Training":
        """Build a training from what ``to_dict`` returned."""
        tokenizer = dict(values["tokenizer"])
        tokenizer["special_ids"] = tuple(tokenizer["special_ids"])
        return cls(
            training_id=values["training_id"],
            sae=SaeSpec(**values["sae"]),
            model=ModelSpec(**values["model"]),
            tokenizer=TokenizerSpec(**tokenizer),
            hookpoint=Hookpoint(**values["hookpoint"]),
            digest=values["digest"],
        )


def describe_training(
    training_id: str,
    *,
    sae: Path | str,
    model: Path | str,
    hook_name: str | None = None,
    tokenizer: Path | str | None = None,
    cache: Path | None = None,
) -> Training:
    """Read what a training is made of and check that the parts fit.

    Parameters
    ----------
    training_id : str
        The name it gets.
    sae : Path or str
        Folder of the SAE.
    model : Path or str
        Folder of the model, or its Hub id.
    hook_name : str, optional
        Where the SAE reads; None takes what the SAE's metadata says.
    tokenizer : Path or str, optional
        Folder of the tokenizer; None takes the model's.
    cache : Path, optional
        Folder that remembers digests of big files.

    Raises
    ------
    BadTrainingId, BadSae, BadModel
        The id, the SAE or the model cannot be used, or they do not belong together.
    """
    check_training_id(training_id)
    return training_of(
        training_id,
        describe_sae(sae, cache=cache),
        describe_model(model, cache=cache),
        hook_name=hook_name,
        tokenizer=tokenizer,
        cache=cache,
    )


def training_of(
    training_id: str,
    sae_spec: SaeSpec,
    model_spec: ModelSpec,
    *,
    hook_name: str | None = None,
    tokenizer: Path | str | None = None,
    cache: Path | None = None,
) -> Training:
    """Put an SAE and a model together and check that they fit; see `describe_training`."""
    hookpoint = _hookpoint(sae_spec, model_spec, hook_name)
    _target(sae_spec, model_spec)
    tokenizer_spec = _tokenizer(tokenizer or model_spec.path, model_spec, cache)
    return Training(
        training_id=training_id,
        sae=sae_spec,
        model=model_spec,
        tokenizer=tokenizer_spec,
        hookpoint=hookpoint,
        digest=digest_of(
            {
                "sae": sae_spec.digest,
                "model": model_spec.digest,
                "hookpoint": hookpoint.place,
                "tokenizer": tokenizer_spec.digest,
            }
        ),
    )


def _hookpoint(sae: SaeSpec, model: ModelSpec, hook_name: str | None) -> Hookpoint:
    name = hook_name or sae.hook_name
    if name is None:
        raise BadSae(
            f"the SAE {sae.path} does not say where it reads: pass hook_name=, for example "
            "hook_name='blocks.5.hook_resid_post'"
        )
    config = read_model_config(Path(model.path))
    hookpoint = _processed(resolve_hookpoint(name, config, d_in=sae.d_in), sae, config)
    if hookpoint.width != sae.d_in:
        trained_on = sae.metadata.get("model_name")
        cause = (
            f"the SAE was trained on {trained_on!r}, is this that model?"
            if trained_on
            else "is this the model that the SAE was trained on?"
        )
        raise BadSae(
            f"the SAE has d_in={sae.d_in}, but {name!r} of {model.source} is "
            f"{hookpoint.width} wide: {cause} If it is, pass another hook_name="
        )
    return hookpoint


def resolve_target(training: Training) -> tuple[Hookpoint | None, str | None]:
    """Return where a transcoder writes, or why its output cannot be compared.

    (None, None) for an autoencoder, whose output is compared with what it reads.

    Raises
    ------
    BadSae
        What is found where it writes has another width than its output.
    """
    return _target(training.sae, training.model)


def _target(sae: SaeSpec, model: ModelSpec) -> tuple[Hookpoint | None, str | None]:
    if sae.reconstructs == INPUT:
        return None, None
    if sae.reconstructs == UNKNOWN:
        return None, "the SAE's files do not say whether it is a transcoder"
    if sae.hook_name_out is None:
        return None, "the transcoder's files do not say where it writes"
    try:
        config = read_model_config(Path(model.path))
        target = _processed(resolve_hookpoint(sae.hook_name_out, config), sae, config)
    except BadModel as error:
        return None, f"where the transcoder writes is not known: {error}"
    d_out = sae.d_out or sae.d_in
    if target.width != d_out:
        raise BadSae(
            f"the transcoder {sae.path} writes d_out={d_out} numbers, but "
            f"{sae.hook_name_out!r} of {model.source} is {target.width} wide: is this the "
            "model that it was trained on?"
        )
    return target, None


def _processed(hookpoint: Hookpoint, sae: SaeSpec, config: Mapping[str, Any]) -> Hookpoint:
    """Return the place as TransformerLens's processing of the weights leaves it.

    Raises
    ------
    BadSae
        The processing changes these activations in a way that is not computed here.
    """
    options = sae.metadata.get("model_from_pretrained_kwargs")
    if not isinstance(options, Mapping):
        return hookpoint
    for name, changed in _PROCESSING.items():
        if options.get(name) and hook_suffix(hookpoint, config) in (*changed, None):
            raise BadSae(
                f"the SAE {sae.path} was trained with {name}=True of TransformerLens, "
                f"whose activations at {hookpoint.hook_name!r} differ from the model's own: "
                "this is not supported. Choose an SAE trained on the unprocessed model"
            )
    if options.get("center_writing_weights"):
        return with_centred_writing(hookpoint, config)
    return hookpoint


def _tokenizer(source: Path | str, model: ModelSpec, cache: Path | None) -> TokenizerSpec:
    """Describe the tokenizer, limited to ids that the model has too.

    Some models (Gemma 3) ship a tokenizer with special tokens beyond their embedding; an
    ordinary token beyond it shows that the tokenizer is another model's.
    """
    spec = describe_tokenizer(source, cache=cache)
    if spec.vocab_size <= model.vocab_size:
        return spec
    ids = set(load_tokenizer(spec.path).get_vocab(with_added_tokens=True).values())
    largest = max(ids - set(spec.special_ids), default=0)
    if largest >= model.vocab_size:
        raise BadModel(
            f"the tokenizer {spec.path} has token ids up to {largest}, the model "
            f"{model.source} has vocab_size={model.vocab_size}: it is another model's "
            "tokenizer. Pass tokenizer= the folder of the right one"
        )
    known = tuple(i for i in spec.special_ids if i < model.vocab_size)
    return replace(spec, special_ids=known, vocab_size=model.vocab_size)
