"""Which features fire on a token: `tables.PEAKS`, derived from examples and counted tokens."""

import operator
from collections.abc import Callable
from typing import SupportsIndex

import duckdb

from extraction_kit.errors import BadQuery


def peaks_of(examples: str, tokens: str | None = None, *, by: str = "") -> str:
    """Return the SQL of `tables.PEAKS`: the one place where it is defined.

    Parameters
    ----------
    examples, tokens : str
        Relations with the columns of `EXAMPLES` and `TOKENS`; tokens may be None.
    by : str
        ``"run_id, "`` if they have that column too.
    """
    counted = (
        ""
        if tokens is None
        else f" UNION ALL SELECT {by}feature, token, 0, max_act, n_active FROM {tokens}"  # noqa: S608 - ours
    )
    return (
        f"SELECT {by}feature, token, sum(n_examples)::BIGINT AS n_examples, "  # noqa: S608 - ours
        "max(max_act) AS max_act, max(n_active) AS n_active FROM ("
        f"SELECT {by}feature, peak_token AS token, 1 AS n_examples, act AS max_act, "
        f"NULL::BIGINT AS n_active FROM {examples} WHERE \"group\" = 'top'{counted}"
        f") GROUP BY {by}feature, token"
    )


def forms_of(text: str) -> tuple[str, ...]:
    """Return the token texts that a search for `text` means: itself, and after a space.

    Most tokenizers have two tokens for a word, one for its beginning after a space. Who
    writes the space means only that one. Letters are compared as they are.
    """
    return (text,) if text.startswith(" ") else (text, f" {text}")


FOUND = "token, text, feature, n_examples, max_act, n_active"
"""Columns of a search, after those that tell the run."""

ORDER = "n_examples DESC, max_act DESC"


Ask = Callable[[str], duckdb.DuckDBPyRelation]


def search(ask: Ask, text: str, *, vocab: str, peaks: str, runs: str | None) -> str:
    """Return the SQL of a search for `text`, whose tokens are looked up now.

    With their ids in it, of an index only the rows of these tokens are read.

    Parameters
    ----------
    ask : callable
        Answers SQL.
    text : str
        Text of a token; see `forms_of`.
    vocab, peaks : str
        Relations; vocab with a tokenizer_digest if there are `runs`.
    runs : str, optional
        Relation with the columns of `RUNS`, for peaks of several runs.

    Raises
    ------
    BadQuery
        No token has this text.
    """
    wanted = ", ".join(_literal(form) for form in forms_of(text))
    tokenizer = "" if runs is None else "tokenizer_digest, "
    tokens = ask(
        f"SELECT DISTINCT {tokenizer}token_id, text FROM {vocab} WHERE text IN ({wanted})"  # noqa: S608 - quoted
    ).fetchall()
    if not tokens:
        raise BadQuery(_no_token(ask, text, vocab))
    ids = ", ".join(str(token) for *_, token, _ in tokens)
    named = ", ".join(
        f"({', '.join(_literal(one) if isinstance(one, str) else str(one) for one in row)})"
        for row in tokens
    )
    keys = f"({tokenizer}token)"
    rows = f"(FROM {peaks} WHERE token IN ({ids}))"
    texts = f"(VALUES {named}) AS texts({tokenizer}token, text) USING {keys}"
    if runs is None:
        return f"SELECT {FOUND} FROM {rows} JOIN {texts} ORDER BY {ORDER}, feature"  # noqa: S608 - ours
    return (
        f"SELECT run_id, training_id, {FOUND} FROM {rows} "  # noqa: S608 - ours
        f"JOIN (SELECT run_id, training_id, tokenizer_digest FROM {runs}) USING (run_id) "
        f"JOIN {texts} ORDER BY {ORDER}, run_id, feature"
    )


def limited(query: str, k: SupportsIndex | None) -> str:
    """Return `query` with at most `k` rows."""
    return query if k is None else f"{query} LIMIT {operator.index(k)}"


def _no_token(ask: Ask, text: str, vocab: str) -> str:
    part = _literal(text.strip().lower())
    near = ask(
        f"SELECT DISTINCT text FROM {vocab} WHERE contains(lower(text), {part}) "  # noqa: S608 - quoted
        "ORDER BY length(text), text LIMIT 5"
    ).fetchall()
    forms = " or ".join(map(repr, forms_of(text)))
    advice = (
        f"Tokens that contain it: {', '.join(repr(one) for (one,) in near)}"
        if near
        else "A word may be several tokens: search for a part of it"
    )
    return f"no token has the text {forms}. {advice}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
