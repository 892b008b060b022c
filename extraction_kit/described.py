"""SAEs and a model as a notebook has them, files or objects, described as trainings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import BadModel, BadSae, naming
from extraction_kit.lifecycle import check_training_id
from extraction_kit.trainings import (
    SaeSpec,
    Training,
    describe_model,
    describe_sae,
    training_of,
)
from extraction_kit.trainings.hookpoints import resolve_hookpoint
from extraction_kit.trainings.model_folder import (
    CONFIG,
    ModelSpec,
    model_of,
    read_model_config,
)

if TYPE_CHECKING:
    from extraction_kit.extraction import Given
    from extraction_kit.sources.custom_sae import EncodesAndDecodes

ALONE = "here"
"""The name of an SAE that got none."""


@dataclass(frozen=True, kw_only=True)
class PassedSae:
    """An SAE as it was passed, and what is said of it."""

    sae: Any
    name: str | None
    """Which messages begin with; None where there are no others."""
    hook_name: str | None
    d_in: int | None
    d_sae: int | None

    @property
    def is_file(self) -> bool:
        """Whether it is the place of an SAE, not an object."""
        return isinstance(self.sae, (str, Path))


def named_saes(sae: object, **about: Any) -> dict[str, PassedSae]:  # noqa: ANN401 - as said
    """Return one SAE, or several by name, each with what is said of it.

    Parameters
    ----------
    sae : object, path, or mapping of str to these
        One is called ``here``.
    **about
        ``hook_name``, ``d_in``, ``d_sae``: one for all, or a mapping by name.

    Raises
    ------
    BadSae, BadTrainingId
        There is none, a name cannot be used, or `about` names another.
    """
    is_alone = not isinstance(sae, Mapping)
    saes = {ALONE: sae} if not isinstance(sae, Mapping) else sae
    if not saes:
        raise BadSae("sae={}: at least one SAE is needed, by a name of yours")
    for name in saes:
        check_training_id(name)
    by_name = {what: said for what, said in about.items() if isinstance(said, Mapping)}
    for what, said in by_name.items():
        unknown = sorted(said.keys() - saes.keys())
        if unknown:
            raise BadSae(f"{what}= names {unknown[0]!r}, sae= names {', '.join(saes)}")
    return {
        name: PassedSae(
            sae=each,
            name=None if is_alone else name,
            **about | {what: said.get(name) for what, said in by_name.items()},
        )
        for name, each in saes.items()
    }


def describe_parts(
    saes: Mapping[str, PassedSae],
    model: Any,  # noqa: ANN401 - a folder, a Hub id or a loaded model
    *,
    home: Path,
    config: ExtractionConfig,
    settings: Settings,
    tokenizer: Path | str | None,
) -> tuple[list[Training], "Given", Settings]:
    """Describe SAEs and their model, whatever they are, as trainings; imports torch.

    Parameters
    ----------
    saes : mapping
        As `named_saes` returns them.
    home : Path
        Where digests are remembered, and what describes a loaded model is written.

    Returns
    -------
    (trainings, given, settings)
        The trainings in the order of `saes`, the objects among the parts, and `settings` for
        the device that these are on.
    """
    from extraction_kit.extraction.given import Given, as_sae  # noqa: PLC0415 - torch

    taken = {}
    for name, each in saes.items():
        if not each.is_file:
            with naming(each.name):
                taken[name] = as_sae(each.sae)
    loads, cache = isinstance(model, (str, Path)), home / "cache"
    given = Given(saes=taken, model=None if loads else model)
    spec = describe_model(model, cache=cache) if loads else _describe_loaded(model, home)
    if not loads and tokenizer is None:
        raise BadModel(
            "a loaded model does not bring its tokenizer: pass tokenizer= the folder that "
            "tokenizer.save_pretrained(folder) wrote"
        )
    given.check_dtype(config)
    settings = given.settings(settings)
    trainings = []
    for name, each in saes.items():
        with naming(each.name):
            if each.is_file:
                _refuse_given_sizes(each)
                sae = describe_sae(each.sae, cache=cache)
            else:
                sae = _describe_object(
                    each, taken[name], spec, dtype=config.dtype, device=settings.device
                )
            trainings.append(
                training_of(
                    name, sae, spec,
                    hook_name=each.hook_name, tokenizer=tokenizer, cache=cache,
                )
            )  # fmt: skip
    return trainings, given, settings


def _refuse_given_sizes(sae: PassedSae) -> None:
    for name in ("d_in", "d_sae"):
        if getattr(sae, name) is not None:
            raise BadSae(
                f"{name}={getattr(sae, name)!r}: the files say it, leave {name} out"
            )


def _describe_object(
    passed: PassedSae,
    sae: "EncodesAndDecodes",
    model: ModelSpec,
    *,
    dtype: str,
    device: str,
) -> SaeSpec:
    from extraction_kit.extraction import given  # noqa: PLC0415 - torch
    from extraction_kit.sources.devices import DTYPES, resolve_device  # noqa: PLC0415 - torch

    hook_name, d_in = _place(model, passed.hook_name, passed.d_in)
    with given.left_as_they_were(*given.Given(saes={hook_name: sae}).modules):
        return given.describe_given(
            sae, d_in=d_in, d_sae=passed.d_sae, hook_name=hook_name,
            device=resolve_device(device), dtype=DTYPES[dtype],
        )  # fmt: skip


def _place(model: ModelSpec, hook_name: str | None, d_in: int | None) -> tuple[str, int]:
    """Return where an SAE that is an object reads, and how wide it is there."""
    if hook_name is None:
        raise BadSae(
            "an object does not say where it reads: pass hook_name=, for example "
            "hook_name='blocks.5.hook_resid_post'"
        )
    config = read_model_config(Path(model.path))
    width = resolve_hookpoint(hook_name, config, d_in=d_in).width
    return hook_name, d_in or width


def _describe_loaded(model: object, home: Path) -> ModelSpec:
    """Describe a model that is in memory; its weights are not hashed."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        raise BadModel(
            f"model={type(model).__name__} object: a loaded transformers model, a folder or "
            "a Hub id is needed"
        )
    folder = home / "model"
    folder.mkdir(parents=True)
    # what a description reads of a model is in its config
    (folder / CONFIG).write_text(config.to_json_string(use_diff=False))
    values = json.loads((folder / CONFIG).read_text())
    return model_of(folder, values, source=f"{type(model).__name__} object")
