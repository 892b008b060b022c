"""Tokenizers as `transformers` saves them: ``tokenizer.json`` and what stands beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadModel
from extraction_kit.lifecycle import digest_of
from extraction_kit.trainings.files import read_json

TOKENIZER = "tokenizer.json"
_ROLES = ("bos", "eos", "pad")
_OF_ENCODERS = {"bos": "cls", "eos": "sep"}  # what BERT begins and parts texts with


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A fast tokenizer."""

    path: str
    """Its ``tokenizer.json``."""
    digest: str
    """Over the bytes of ``tokenizer.json`` and the special ids."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    special_ids: tuple[int, ...]
    vocab_size: int
    """Ids from 0 to this number, exclusive, may occur."""


def describe_tokenizer(source: Path | str, *, cache: Path | None = None) -> TokenizerSpec:
    """Describe the tokenizer in a folder.

    Parameters
    ----------
    source : Path or str
        Folder with ``tokenizer.json``, or that file. The roles of BOS, EOS and padding come
        from ``tokenizer_config.json``, else ``special_tokens_map.json``, else
        ``config.json`` beside it: the first that names any of them.
    cache : Path, optional
        Folder that remembers digests.

    Raises
    ------
    BadModel
        There is no ``tokenizer.json``, or it is torn or not deterministic.
    """
    path = _tokenizer_file(source)
    tokenizer = load_tokenizer(path)
    added = tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    roles = _roles(path.parent, tokenizer, special)
    special |= {token_id for token_id in roles.values() if token_id is not None}
    ids: dict[str, Any] = {f"{role}_id": roles[role] for role in _ROLES}
    ids["special_ids"] = tuple(sorted(special))
    return TokenizerSpec(
        path=str(path),
        digest=digest_of({"tokenizer": file_digest(path, cache)} | ids),
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        + 1,
        **ids,
    )


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load ``tokenizer.json`` so that it neither truncates nor pads.

    Raises
    ------
    BadModel
        The file is torn, or drops merges at random (BPE dropout).
    """
    advice = (
        "save it again with AutoTokenizer.from_pretrained(name).save_pretrained(folder)"
    )
    read_json(Path(path), BadModel, advice)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as cause:  # the library raises nothing narrower
        raise BadModel(f"{path} is not a tokenizer ({cause}): {advice}") from cause
    tokenizer.no_truncation()  # would cut documents without a word
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        raise BadModel(
            f"{path} has BPE dropout {tokenizer.model.dropout}: the same text would give "
            'other tokens each time. Set "dropout": null in it'
        )
    return tokenizer


def _tokenizer_file(source: Path | str) -> Path:
    if not isinstance(source, (str, Path)):
        raise BadModel(
            f"tokenizer={type(source).__name__} object: pass the folder that "
            "tokenizer.save_pretrained(folder) wrote"
        )
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        path = path / TOKENIZER
    if not path.is_file() or path.suffix != ".json":
        raise BadModel(
            f"there is no {TOKENIZER} at {str(source)!r}. Save a fast tokenizer there: "
            "AutoTokenizer.from_pretrained(name).save_pretrained(folder)"
        )
    return path


def _roles(folder: Path, tokenizer: Tokenizer, special: set[int]) -> dict[str, int | None]:
    """Return the ids of BOS, EOS and padding.

    A file that names any of them is taken at its word about all (transformers 5 leaves out
    those that do not exist); CLS and SEP stand in for BOS and EOS that are not there.
    GPT-2's tokenizer_config.json on the Hub names none.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = _optional_json(folder / name)
        if any(f"{role}_token" in config for role in (*_ROLES, *_OF_ENCODERS.values())):
            found = {role: _token_id(config, role, tokenizer) for role in _ROLES}
            for role, theirs in _OF_ENCODERS.items():
                if found[role] is None:
                    found[role] = _token_id(config, theirs, tokenizer)
            return found
    config = _optional_json(folder / "config.json")
    ids = {role: config.get(f"{role}_token_id") for role in _ROLES}
    firsts = {role: i[0] if isinstance(i, list) and i else i for role, i in ids.items()}
    return {
        role: first if isinstance(first, int) and first in special else None
        for role, first in firsts.items()
    }


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return read_json(path, BadModel, "copy the tokenizer again")


def _token_id(config: Mapping[str, Any], role: str, tokenizer: Tokenizer) -> int | None:
    token = config.get(f"{role}_token")
    if isinstance(token, Mapping):  # how transformers 4 wrote an AddedToken
        token = token.get("content")
    if token is None:
        return None
    token_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if token_id is None:
        raise BadModel(
            f"the tokenizer's {role}_token is {json.dumps(token)}, which is not in its "
            f"vocabulary: {TOKENIZER} and the file beside it are not of the same tokenizer"
        )
    return token_id
