"""Texts of token ids and back, from vocabularies that are read once."""

import functools
from collections.abc import Mapping
from pathlib import Path

from extraction_kit.catalog.asking import readable
from extraction_kit.corpora.vocabulary import read_texts
from extraction_kit.errors import BadQuery

_NEAR = 5  # tokens that are proposed where none has the text


@functools.lru_cache(maxsize=4)
def texts_of(vocab: Path) -> list[str]:
    """Return the text of each token id; the file never changes under its name."""
    with readable(vocab):
        return read_texts(vocab)


@functools.lru_cache(maxsize=4)
def _ids_of(vocab: Path) -> dict[str, list[int]]:
    """Return the ids of each text: some tokens are written alike."""
    found: dict[str, list[int]] = {}
    for token, text in enumerate(texts_of(vocab)):
        found.setdefault(text, []).append(token)
    found.pop("", None)  # no token
    return found


def forms_of(text: str) -> tuple[str, ...]:
    """Return the token texts that a search for `text` means: itself, and after a space.

    Most tokenizers have two tokens for a word, one for its beginning after a space. Who
    writes the space means only that one. Letters are compared as they are.
    """
    return (text,) if text.startswith(" ") else (text, f" {text}")


def tokens_of(text: str, vocabs: Mapping[str, Path]) -> list[tuple[str, int, str]]:
    """Return the tokens that a search for `text` means: tokenizer, token id, text.

    Parameters
    ----------
    text : str
        Text of a token; see `forms_of`.
    vocabs : mapping
        Tokenizer digest to vocabulary; one that is not there has no token.

    Raises
    ------
    BadQuery
        No token has this text.
    ResultsDamaged
        A vocabulary cannot be read.
    """
    there = {digest: path for digest, path in vocabs.items() if path.is_file()}
    found = [
        (digest, token, form)
        for digest, path in there.items()
        for form in forms_of(text)
        for token in _ids_of(path).get(form, ())
    ]
    if not found:
        raise BadQuery(_no_token(text, there))
    return found


def _no_token(text: str, vocabs: Mapping[str, Path]) -> str:
    part = text.strip().lower()
    known = {one for path in vocabs.values() for one in _ids_of(path)}
    near = sorted(
        (one for one in known if part in one.lower()), key=lambda one: (len(one), one)
    )
    forms = " or ".join(map(repr, forms_of(text)))
    advice = (
        f"Tokens that contain it: {', '.join(map(repr, near[:_NEAR]))}"
        if near
        else "A word may be several tokens: search for a part of it"
    )
    return f"no token has the text {forms}. {advice}"
