"""Models as `transformers` saves them, in a local folder or from the Hub."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadModel, near
from extraction_kit.lifecycle import digest_of
from extraction_kit.trainings.files import read_json, read_tensor_headers

CONFIG = "config.json"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
_ADVICE = "save the model again with model.save_pretrained(folder)"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?\Z")
_FILES = (
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_POSITIONS_AFTER_PAD = ("roberta", "xlm-roberta", "camembert")  # the first are never used
_VOLATILE = ("transformers_version", "_name_or_path")  # say who saved it, not what


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal language model, as far as its files say without loading it."""

    source: str
    """As it was given: an absolute path or a Hub id."""
    path: str
    """Folder that holds ``config.json`` and the weights."""
    revision: str | None
    """Hub commit; None for a local folder."""
    model_type: str
    hidden_size: int
    n_layers: int
    max_context: int | None
    """Most tokens that the model takes at once; None if its config does not say."""
    vocab_size: int
    digest: str
    """Over config and weight files, or over the Hub id and its commit."""


def describe_model(source: Path | str, *, cache: Path | None = None) -> ModelSpec:
    """Describe a model, downloading it first if it is a Hub id that is not here yet.

    Parameters
    ----------
    source : Path or str
        Folder that ``model.save_pretrained`` wrote, or a Hub id such as ``gpt2``,
        ``EleutherAI/pythia-70m`` or ``EleutherAI/pythia-70m@step1000`` (a revision).
    cache : Path, optional
        Folder that remembers digests of weight files.

    Raises
    ------
    BadModel
        It cannot be found or downloaded, is torn, or is not a `transformers` model.
    """
    if not isinstance(source, (str, Path)):
        raise BadModel(
            f"model={type(source).__name__} object: a worker can only load a model from a "
            "folder or the Hub. Type model.save_pretrained(folder), then pass that folder"
        )
    folder = Path(source).expanduser().absolute()
    if folder.exists():
        _check_folder(folder)
        return _describe(folder, source=str(folder), revision=None, cache=cache)
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.match(name) or name.startswith("."):
        raise BadModel(
            f"model={name!r}: there is no such folder.{_meant(Path(source))} Pass a folder "
            f"that holds {CONFIG}, or a Hub id such as 'gpt2' or 'EleutherAI/pythia-70m'"
        )
    snapshot = _snapshot(name)
    return _describe(snapshot, source=name, revision=snapshot.name, cache=cache)


def _meant(folder: Path) -> str:
    """Return a question that names the models beside a folder that is not there."""
    parent = folder.expanduser().parent
    try:
        models = [one.name for one in parent.iterdir() if (one / CONFIG).is_file()]
    except OSError:
        return ""
    found = [repr(str(parent / name)) for name in near(folder.name, models)]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model's folder."""
    return read_json(folder / CONFIG, BadModel, _ADVICE)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model, complete or not at all.

    Raises
    ------
    BadModel
        There are none, or one that the index names is missing.
    """
    for name in _INDEXES:
        if (folder / name).exists():
            index = read_json(folder / name, BadModel, _ADVICE).get("weight_map")
            if not isinstance(index, Mapping) or not index:
                raise BadModel(f"{folder / name} has no weight_map: {_ADVICE}")
            return _all_there(folder / part for part in sorted(set(index.values())))
    for name in _SINGLES:
        if (folder / name).exists():
            return [folder / name]
    raise BadModel(
        f"{folder} holds no weights ({', '.join(_SINGLES)} or an index of parts): {_ADVICE}"
    )


def _all_there(paths: Iterable[Path]) -> list[Path]:
    paths = list(paths)
    for path in paths:
        if not path.is_file():
            raise BadModel(
                f"there is no {path}, which the index of weights names: {_ADVICE}"
            )
    return paths


def _check_folder(folder: Path) -> None:
    if folder.suffix == ".gguf" or (folder.is_dir() and _only_gguf(folder)):
        raise BadModel(
            f"{folder} is GGUF: save it once as safetensors, with "
            "AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)"
            ".save_pretrained(other_folder), then pass that folder"
        )
    if not folder.is_dir():
        raise BadModel(f"{folder} is a file: pass the folder that holds {CONFIG}")


def _only_gguf(folder: Path) -> bool:
    return not (folder / CONFIG).exists() and any(folder.glob("*.gguf"))


def _describe(
    folder: Path, *, source: str, revision: str | None, cache: Path | None
) -> ModelSpec:
    config = read_model_config(folder)
    files = weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            read_tensor_headers(path, BadModel, _ADVICE)
    if revision is None:
        stable = {key: config[key] for key in config if key not in _VOLATILE}
        weights = {path.name: file_digest(path, cache) for path in files}
        digest = digest_of({"config": stable, "weights": weights})
    else:
        digest = digest_of(f"hub:{source.partition('@')[0]}@{revision}")
    return model_of(folder, config, source=source, revision=revision, digest=digest)


def model_of(
    folder: Path,
    config: Mapping[str, Any],
    *,
    source: str,
    revision: str | None = None,
    digest: str = "",
) -> ModelSpec:
    """Describe the model of a ``config.json`` in `folder`.

    Raises
    ------
    BadModel
        The config is not one of a language model.
    """
    where = folder / CONFIG
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BadModel(f"{where} has no model_type: it is not a transformers model")
    return ModelSpec(
        source=source,
        path=str(folder),
        revision=revision,
        model_type=model_type,
        hidden_size=_number(config, ("hidden_size", "n_embd", "d_model", "dim"), where),
        n_layers=_number(config, ("num_hidden_layers", "n_layer", "n_layers"), where),
        max_context=_max_context(config),
        vocab_size=_number(config, ("vocab_size",), where),
        digest=digest,
    )


def _max_context(config: Mapping[str, Any]) -> int | None:
    n = _optional(config, ("max_position_embeddings", "n_positions", "n_ctx"))
    if n is not None and config.get("model_type") in _POSITIONS_AFTER_PAD:
        return n - int(config.get("pad_token_id") or 0) - 1
    return n


def _optional(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _number(config: Mapping[str, Any], names: tuple[str, ...], where: Path) -> int:
    value = _optional(config, names)
    if value is None:
        kind = config.get("model_type")
        raise BadModel(
            f"{where} (model_type={kind!r}) does not say {' or '.join(names)}: pass a "
            "causal language model of text only"
        )
    return value


# --- the Hub ----------------------------------------------------------------------------


def _snapshot(name: str) -> Path:
    """Return the local snapshot of a Hub model, downloaded if need be."""
    local = _local_snapshot(name)
    if local is not None and (local / "tokenizer.json").exists():
        return local
    try:
        folder = _download(name, (*_FILES, "*.safetensors", "*.safetensors.index.json"))
        if not _complete(folder):
            folder = _download(name, (*_FILES, "*.bin", "*.bin.index.json"))
    except Exception as cause:  # many kinds: no network, no such id, gated, full disk
        if local is not None:  # all but the tokenizer, which may be given apart
            return local
        raise BadModel(
            f"model={name!r} is neither a folder nor in the local Hub cache, and cannot be "
            f"downloaded ({type(cause).__name__}: {_first_line(cause)}).{_meant(Path(name))} "
            "Check the name and the network, or pass the path of a local folder"
        ) from cause
    weight_files(folder)
    return folder


def _local_snapshot(name: str) -> Path | None:
    from huggingface_hub.errors import (  # noqa: PLC0415 - 0.1 s that few launches need
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = _download(name, None)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _complete(folder) else None


def _download(name: str, patterns: tuple[str, ...] | None) -> Path:
    """Fetch the files of `patterns`; None looks at the local cache only."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see above

    repository, _, revision = name.partition("@")
    return Path(
        snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(patterns or ()) or None,
            ignore_patterns=["*/*"],  # other formats of the same weights
            local_files_only=patterns is None,
        )
    )


def _complete(folder: Path) -> bool:
    """Say whether config and all weights of a snapshot are here."""
    try:
        weight_files(folder)
    except BadModel:
        return False
    return (folder / CONFIG).exists()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
